//! A scanner of JSON text: checks it against the grammar and says where its values stand.
//!
//! It reads a payload once and hands out positions, so that properties can be passed on byte for byte; it
//! never decodes, converts or copies a value. What it accepts is what `serde_json` accepts as a `RawValue`
//! (the property tests hold it to that). `serde_json` would have to go over `properties` twice, once for
//! its text and once for its members, and counts no depth in a `RawValue`; its two passes alone take
//! nearly as long as all of decoding does now (`benches/decode.rs`).

use super::MAX_DEPTH;
use super::value::{Kind, Value};

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not JSON.
    Syntax,
    /// Nested deeper than [`MAX_DEPTH`].
    Depth,
}

/// A cursor over JSON text.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    /// At the beginning of a text, which must be shorter than 4 GiB.
    pub(super) fn new(text: &'a str) -> Self {
        Scanner {
            bytes: text.as_bytes(),
            at: 0,
            depth: 0,
        }
    }

    /// The next byte that is no blank.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Nothing but blanks is left.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        self.peek().map_or(Ok(()), |_| Err(Fault::Syntax))
    }

    /// Reads the object at the cursor; `member` is called with each name and reads its value.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Value) -> Result<(), Fault>,
    ) -> Result<Value, Fault> {
        self.expect(b'{')?;
        let start = self.at - 1;
        self.enter()?;
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                let name = self.name()?;
                member(self, name)?;
                if self.next_of(b'}')? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(self.value_from(Kind::Object, start))
    }

    /// Reads the array at the cursor; `item` reads each of its values.
    pub(super) fn array(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), Fault>,
    ) -> Result<Value, Fault> {
        self.expect(b'[')?;
        let start = self.at - 1;
        self.enter()?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                item(self)?;
                if self.next_of(b']')? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(self.value_from(Kind::Array, start))
    }

    /// Reads any value.
    pub(super) fn value(&mut self) -> Result<Value, Fault> {
        let first = self.peek().ok_or(Fault::Syntax)?;
        let start = self.at;
        let kind = match first {
            b'"' => return self.string(),
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            _ => {
                let kind = self.scalar(first)?;
                return Ok(self.value_from(kind, start));
            }
        };
        self.container()?;
        Ok(self.value_from(kind, start))
    }

    /// Reads the container at the cursor. Without recursion: a payload must not choose the stack's depth.
    fn container(&mut self) -> Result<(), Fault> {
        const { assert!(MAX_DEPTH <= u128::BITS, "a bit a level") };
        let outside = self.depth;
        // The lowest bit is the innermost container: 1 for an object.
        let mut objects = 0_u128;
        loop {
            // At a value.
            let first = self.peek().ok_or(Fault::Syntax)?;
            match first {
                b'{' | b'[' => {
                    let object = first == b'{';
                    self.at += 1;
                    self.enter()?;
                    objects = objects << 1 | u128::from(object);
                    if self.peek() != Some(if object { b'}' } else { b']' }) {
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                    // Empty: closed below.
                }
                b'"' => drop(self.string()?),
                _ => drop(self.scalar(first)?),
            }
            // Behind a value, or before the end of an empty container.
            loop {
                let object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.name()?;
                        }
                        break;
                    }
                    Some(b'}') if object => self.at += 1,
                    Some(b']') if !object => self.at += 1,
                    _ => return Err(Fault::Syntax),
                }
                objects >>= 1;
                self.depth -= 1;
                if self.depth == outside {
                    return Ok(());
                }
            }
        }
    }

    /// Reads a member's name and the colon behind it.
    fn name(&mut self) -> Result<Value, Fault> {
        if self.peek() != Some(b'"') {
            return Err(Fault::Syntax);
        }
        let name = self.string()?;
        self.expect(b':')?;
        Ok(name)
    }

    /// Reads a comma (false) or the end of the container (true).
    fn next_of(&mut self, end: u8) -> Result<bool, Fault> {
        let byte = self.peek();
        self.at += 1;
        match byte {
            Some(b',') => Ok(false),
            Some(byte) if byte == end => Ok(true),
            _ => Err(Fault::Syntax),
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.peek() != Some(byte) {
            return Err(Fault::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            Err(Fault::Depth)
        } else {
            Ok(())
        }
    }

    fn value_from(&self, kind: Kind, start: usize) -> Value {
        Value::at(kind, start, self.at)
    }

    /// Reads the string whose opening quote is at the cursor.
    fn string(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        let mut escaped = false;
        self.at += 1;
        loop {
            self.at += plain_prefix(&self.bytes[self.at..]);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    let value = self.value_from(Kind::String, start);
                    return Ok(if escaped { value.with_escapes() } else { value });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(Fault::Syntax),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let rest = &self.bytes[self.at..];
        self.at += match rest.get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u')
                if rest
                    .get(2..6)
                    .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
            {
                6
            }
            _ => return Err(Fault::Syntax),
        };
        Ok(())
    }

    fn scalar(&mut self, first: u8) -> Result<Kind, Fault> {
        let (word, kind): (&[u8], Kind) = match first {
            b'n' => (b"null", Kind::Null),
            b't' => (b"true", Kind::True),
            b'f' => (b"false", Kind::False),
            _ => return self.number(),
        };
        if !self.bytes[self.at..].starts_with(word) {
            return Err(Fault::Syntax);
        }
        self.at += word.len();
        Ok(kind)
    }

    fn number(&mut self) -> Result<Kind, Fault> {
        if self.here() == Some(b'-') {
            self.at += 1;
        }
        if self.here() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.here() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.here(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.here(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Kind::Number)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while self.here().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            Err(Fault::Syntax)
        } else {
            Ok(())
        }
    }

    fn here(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// How many bytes at the front are neither a quote, nor a backslash, nor a control character. Eight at a
/// time: strings are most of a payload.
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    let mut len = 0;
    while let Some(chunk) = bytes[len..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        // The high bit of each byte that is below 32, or zero: exact up to the first one that is set.
        let found = (word.wrapping_sub(ONES * 32) & !word
            | quote.wrapping_sub(ONES) & !quote
            | backslash.wrapping_sub(ONES) & !backslash)
            & (ONES * 128);
        if found != 0 {
            return len + (found.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    let rest = &bytes[len..];
    len + rest
        .iter()
        .position(|&b| b == b'"' || b == b'\\' || b < 32)
        .unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn scan(text: &str) -> Result<Value, Fault> {
        let mut scanner = Scanner::new(text);
        let value = scanner.value()?;
        scanner.end().map(|()| value)
    }

    /// The same text read member by member and item by item.
    fn walk(scanner: &mut Scanner<'_>) -> Result<Value, Fault> {
        match scanner.peek() {
            Some(b'{') => scanner.object(|scanner, _| walk(scanner).map(drop)),
            Some(b'[') => scanner.array(|scanner| walk(scanner).map(drop)),
            _ => scanner.value(),
        }
    }

    fn agrees(text: &str) {
        let serde = serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get);
        let ours = scan(text).ok().map(|value| value.of(text).text);
        assert_eq!(ours, serde, "{text:?}");
        let mut scanner = Scanner::new(text);
        let walked = walk(&mut scanner).and_then(|value| scanner.end().map(|()| value));
        assert_eq!(walked.ok().map(|value| value.of(text).text), serde, "{text:?}");
    }

    #[test]
    fn the_grammar_is_that_of_serde_json() {
        let pieces = [
            "",
            "0",
            "-0",
            "-",
            "01",
            "1.",
            ".1",
            "1.5",
            "1e",
            "1e5",
            "1E+5",
            "1e-05",
            "+1",
            "NaN",
            "1e999",
            "null",
            "nul",
            "nulll",
            "true",
            "false",
            "True",
            "\"",
            "\"\"",
            "\"a",
            "\"\\\"",
            "\"\\\"\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12G4\"",
            "\"\\ud83d\"",
            "\"\\uD83D\\uDE00\"",
            "\"\t\"",
            "\"\u{7f}é😀\"",
            "\"1234567\\\"8901234\"",
            "\"12345678\u{1f}\"",
            "[",
            "]",
            "[]",
            "[1]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1,2]",
            "[[],{}]",
            "[}",
            "{",
            "}",
            "{}",
            "{1:2}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":1,\"b\":[{}]}",
            "{]",
            "{\"a\":1]",
            "[{\"a\":1}",
            "//",
            "/**/1",
            "\u{a0}1",
            "\u{b}1",
            "\u{feff}1",
        ];
        for piece in pieces {
            for text in [
                piece.to_owned(),
                format!(" \n\t\r{piece} "),
                format!("[{piece}]"),
                format!("{{\"k\":{piece}}}"),
                format!("[{piece} , {piece}]"),
                format!("{piece}{piece}"),
                format!("{{{piece}:1}}"),
            ] {
                agrees(&text);
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_as_serde_json_does(text in "[\\[\\]{}:,\"\\\\0-9eE.+-nulltruefasé \n\u{1}]{0,24}", string: String) {
            agrees(&text);
            agrees(&string);
            agrees(&format!("\"{string}\""));
            agrees(&format!("[{text}]"));
        }

        #[test]
        fn strings_end_where_they_end(text in "[a-zé\u{1f}\u{20}\u{7f}\u{80}\u{ff}\"\\\\]{0,40}") {
            let json = serde_json::to_string(&text).unwrap();
            agrees(&json);
            let value = scan(&json).unwrap();
            prop_assert_eq!(value.escaped, json.contains('\\'));
            prop_assert_eq!(crate::event::text::meaning(value.of(&json)), text.clone());
            agrees(&format!("\"{text}\""));
        }
    }
}
