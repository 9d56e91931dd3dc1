//! What JSON strings mean: their escapes, and the names of members compared by meaning.
//!
//! Works on strings that the scanner has checked; it never judges them.

use super::value::{Entry, Raw};
use std::borrow::Cow;
use std::collections::HashSet;

/// What a string means. Lone surrogates stay escapes, see [`unescape`].
pub(super) fn meaning(string: Raw<'_>) -> Cow<'_, str> {
    if string.escaped {
        Cow::Owned(decoded(string).0)
    } else {
        Cow::Borrowed(string.inside())
    }
}

/// What a string means, or `None` if it holds a NUL or a lone surrogate. A string without a backslash
/// holds neither: the grammar refuses control characters, UTF-8 refuses surrogates.
pub(super) fn clean(string: Raw<'_>) -> Option<Cow<'_, str>> {
    if !string.escaped {
        return Some(Cow::Borrowed(string.inside()));
    }
    let (text, lone) = decoded(string);
    (!lone && !text.contains('\0')).then_some(Cow::Owned(text))
}

fn decoded(string: Raw<'_>) -> (String, bool) {
    let mut bytes = Vec::new();
    let lone = unescape(string.inside(), &mut bytes);
    (String::from_utf8(bytes).unwrap_or_default(), lone)
}

/// Puts what the inside of a JSON string means into `out`, as UTF-8, and says whether a lone surrogate
/// was in it. UTF-8 has none, so one stays the escape that it was: the same thing, where the text is JSON
/// once more.
pub(super) fn unescape(inside: &str, out: &mut Vec<u8>) -> bool {
    const ONES: u64 = u64::MAX / 255;
    let source = inside.as_bytes();
    let mut lone = false;
    let (mut read, mut written) = (0, 0);
    out.clear();
    // Escapes never grow; the eight are for whole words written at the end.
    out.resize(source.len() + 8, 0);
    while read < source.len() {
        if let Some(chunk) = source[read..].first_chunk::<8>() {
            // A text in a text has an escape every few bytes: copy a word, then go back to the escape.
            out[written..written + 8].copy_from_slice(chunk);
            let word = u64::from_le_bytes(*chunk) ^ (ONES * u64::from(b'\\'));
            let found = word.wrapping_sub(ONES) & !word & (ONES * 128);
            let plain = if found == 0 {
                8
            } else {
                (found.trailing_zeros() / 8) as usize
            };
            read += plain;
            written += plain;
            if found == 0 {
                continue;
            }
        } else if source[read] != b'\\' {
            out[written] = source[read];
            read += 1;
            written += 1;
            continue;
        }
        let byte = match source.get(read + 1) {
            Some(b'u') => {
                let (char, len) = unicode(&source[read..]);
                if let Some(char) = char {
                    written += char.encode_utf8(&mut out[written..]).len();
                } else {
                    lone = true;
                    let backslashes = out[..written].iter().rev().take_while(|&&b| b == b'\\').count();
                    out[written..written + 6].copy_from_slice(&source[read..read + 6]);
                    if backslashes % 2 == 1 {
                        // Behind an odd backslash the escape would read as text, though what it stands
                        // for is no JSON there. Neither is this.
                        out[written] = 1;
                    }
                    written += 6;
                }
                read += len;
                continue;
            }
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(&other) => other,
            None => b'\\',
        };
        out[written] = byte;
        written += 1;
        read += 2;
    }
    out.truncate(written);
    lone
}

/// The character of the `\uXXXX` at the front, and how long its escape is; none for a lone surrogate.
fn unicode(source: &[u8]) -> (Option<char>, usize) {
    let high = unit(source);
    if (0xD800..0xDC00).contains(&high) && source.get(6..8) == Some(br"\u") {
        let low = unit(&source[6..]);
        if (0xDC00..0xE000).contains(&low) {
            return (
                char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)),
                12,
            );
        }
    }
    (char::from_u32(high), 6)
}

fn unit(escape: &[u8]) -> u32 {
    escape.iter().skip(2).take(4).fold(0, |unit, &digit| {
        unit << 4 | char::from(digit).to_digit(16).unwrap_or(0)
    })
}

/// Appends a JSON value without the blanks between its parts.
pub(super) fn compact(json: &str, out: &mut String) {
    let mut rest = json;
    // Outside of strings there is nothing but ASCII, and blanks only between parts.
    while let Some(quote) = rest.find('"') {
        out.extend(rest[..quote].split_ascii_whitespace());
        let end = quote + string_len(&rest[quote..]);
        out.push_str(&rest[quote..end]);
        rest = &rest[end..];
    }
    out.extend(rest.split_ascii_whitespace());
}

/// Length of the JSON string at the front, with its quotes.
fn string_len(json: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in json.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    json.len()
}

/// The names of an object's members, to look others up in. Names are equal if they mean the same.
#[derive(Debug)]
pub(super) enum Names<'a> {
    /// Compared one by one.
    Few(&'a str, &'a [Entry]),
    /// Hashed: a payload of nothing but members must not cost the square of their number.
    Many(HashSet<Cow<'a, str>>),
}

impl<'a> Names<'a> {
    const FEW_COMPARISONS: usize = 4096;

    /// Of the members of an object in `text`, for about so many look-ups.
    pub(super) fn of(text: &'a str, entries: &'a [Entry], lookups: usize) -> Self {
        if entries.len().saturating_mul(lookups) <= Self::FEW_COMPARISONS {
            Names::Few(text, entries)
        } else {
            Names::Many(entries.iter().map(|entry| meaning(entry.name.of(text))).collect())
        }
    }

    pub(super) fn contains(&self, name: Raw<'_>) -> bool {
        match self {
            Names::Few(text, entries) => entries.iter().any(|entry| same(entry.name.of(text), name)),
            Names::Many(names) => names.contains(&*meaning(name)),
        }
    }
}

/// Whether two names mean the same.
pub(super) fn same(one: Raw<'_>, other: Raw<'_>) -> bool {
    if one.escaped || other.escaped {
        meaning(one) == meaning(other)
    } else {
        one.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unescaped(inside: &str) -> (String, bool) {
        let mut out = b"old".to_vec();
        let lone = unescape(inside, &mut out);
        (String::from_utf8(out).unwrap(), lone)
    }

    #[test]
    fn pairs_of_surrogates_are_one_character_and_lone_ones_stay_escapes() {
        for (inside, text, lone) in [
            (r"\ud83d\ude00", "😀", false),
            (r"\uD83D\uDE00x", "😀x", false),
            (r"\udbff\udfff", "\u{10ffff}", false),
            (r"\ud83d", r"\ud83d", true),
            (r"\ud83dxy", r"\ud83dxy", true),
            (r"\ud83d\ud83d\ude00", r"\ud83d😀", true),
            (r"\ude00\ud83d", r"\ude00\ud83d", true),
            (r"\ud83d\n", "\\ud83d\n", true),
            (r"\\\\\ud83d", r"\\\ud83d", true),
        ] {
            assert_eq!(unescaped(inside), (text.to_owned(), lone), "{inside}");
        }
    }

    #[test]
    fn a_lone_surrogate_behind_a_backslash_cannot_become_json() {
        assert_eq!(unescaped(r"\\\ud83d").0, "\\\u{1}ud83d");
    }

    proptest! {
        #[test]
        fn escapes_mean_what_serde_json_says(text in "[a-zé😀\u{0}\u{1f}\n\"\\\\]{0,40}", all: bool) {
            let mut json = serde_json::to_string(&text).unwrap();
            if all {
                let units: Vec<_> = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
                json = format!("\"{}\"", units.concat());
            }
            prop_assert_eq!(unescaped(&json[1..json.len() - 1]), (text, false));
        }

        #[test]
        fn compact_json_means_the_same(text in "[a-z \"\\\\]{0,12}", n: i32) {
            let value = serde_json::json!({"a": [text, n, {}], "b": {"c": [[], null]}});
            let mut out = String::new();
            compact(&serde_json::to_string_pretty(&value).unwrap(), &mut out);
            prop_assert_eq!(out, value.to_string());
        }
    }
}
