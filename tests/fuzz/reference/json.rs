//! JSON for the reference: what `serde_json` makes of a text, by way of `RawValue`, with members in their order.
//!
//! Strings are bytes, in which a lone surrogate is the three bytes that it would have in UTF-8 (WTF-8): `serde_json`
//! decodes strings so when it is asked for bytes, and refuses lone surrogates when it is asked for a `String`.

use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A string's meaning, in WTF-8.
pub(crate) type Text = Vec<u8>;

/// A value as it was written.
pub(crate) type Raw<'a> = &'a RawValue;

/// The text as one JSON value, with nothing but blanks around it.
pub(crate) fn value(text: &str) -> Option<Raw<'_>> {
    serde_json::from_str(text).ok()
}

/// The members of an object in their order; `None` for another value.
pub(crate) fn members(raw: Raw<'_>) -> Option<Vec<(Text, Raw<'_>)>> {
    serde_json::from_str::<Members<'_>>(raw.get())
        .ok()
        .map(|members| members.0)
}

/// The items of an array; `None` for another value.
pub(crate) fn items(raw: Raw<'_>) -> Option<Vec<Raw<'_>>> {
    serde_json::from_str::<Items<'_>>(raw.get())
        .ok()
        .map(|items| items.0)
}

/// What a string says; `None` for another value.
pub(crate) fn string(raw: Raw<'_>) -> Option<Text> {
    if !raw.get().starts_with('"') {
        return None;
    }
    let mut json = serde_json::Deserializer::from_str(raw.get());
    Some(
        StringBytes
            .deserialize(&mut json)
            .expect("serde_json took this string before"),
    )
}

/// How deep a text is nested, as far as its brackets outside strings tell: also of a text that is no JSON.
pub(crate) fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The text without blanks between its parts; strings and numbers stay as they were written.
pub(crate) fn compact(raw: Raw<'_>) -> String {
    let (mut out, mut in_string, mut escaped) = (String::new(), false, false);
    for char in raw.get().chars() {
        match char {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            ' ' | '\t' | '\n' | '\r' if !in_string => continue,
            _ => {}
        }
        out.push(char);
    }
    out
}

/// JSON text that stood in a string: a lone surrogate becomes its escape, which is the only way to write one.
/// `None` where it is no JSON.
pub(crate) fn embedded(text: &[u8]) -> Option<String> {
    // With a letter in its place it must be JSON too: behind a backslash it would be no escape.
    value(&surrogates_as(text, |_| "x".to_owned()))?;
    let text = surrogates_as(text, |unit| format!("\\u{unit:04x}"));
    value(&text).is_some().then_some(text)
}

fn surrogates_as(text: &[u8], written: impl Fn(u32) -> String) -> String {
    let (mut out, mut rest) = (String::new(), text);
    loop {
        match std::str::from_utf8(rest) {
            Ok(last) => return out + last,
            Err(error) => {
                let (good, surrogate) = rest.split_at(error.valid_up_to());
                out += std::str::from_utf8(good).expect("valid up to there");
                let unit = 0xd000 | (u32::from(surrogate[1]) & 0x3f) << 6 | u32::from(surrogate[2]) & 0x3f;
                out += &written(unit);
                rest = &surrogate[3..];
            }
        }
    }
}

struct Members<'a>(Vec<(Text, Raw<'a>)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    all.push((string(name).expect("a name is a string"), value));
                }
                Ok(Members(all))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

struct Items<'a>(Vec<Raw<'a>>);

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Items<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = seq.next_element()? {
                    all.push(item);
                }
                Ok(Items(all))
            }
        }
        deserializer.deserialize_seq(Collect)
    }
}

struct StringBytes;

impl<'de> DeserializeSeed<'de> for StringBytes {
    type Value = Text;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for StringBytes {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
        Ok(bytes.to_vec())
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(text.as_bytes().to_vec())
    }
}
