//! What is done to the bytes of a payload.

use rand::{Rng, RngExt as _};

use super::{Case, pick};

/// Bytes that a reader of JSON may trip over.
const PIECES: [&[u8]; 30] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"\n",
    b"\0",
    b"\x1f",
    b"\x7f",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\xbd",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\xf0\x9f\x98\x80",
    b"\\u0000",
    b"\\ud83d",
    b"\\\\ud83d",
    b"\\udc00",
    b"\\u12",
    b"\\x",
    b"null",
    b"1e999",
    b"-",
    b"{}",
];

pub(super) fn change(case: &mut Case, other: &Case, rng: &mut impl Rng) {
    let payload = case.payload.get_or_insert_default();
    let len = payload.len();
    let at = rng.random_range(0..=len);
    let span = at..(at + rng.random_range(0..16)).min(len);
    match rng.random_range(0..12) {
        0 if at < len => payload[at] ^= 1 << rng.random_range(0..8),
        1 if at < len => payload[at] = rng.random(),
        2 => drop(payload.drain(span)),
        3 => {
            let again = payload[span].to_vec();
            payload.splice(at..at, again);
        }
        4 => payload.truncate(at),
        5 => drop(payload.drain(..at)),
        6 => {
            // One's head and the other's tail.
            let other = other.payload.as_deref().unwrap_or_default();
            payload.truncate(at);
            payload.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
        }
        7 => payload
            .splice(0..0, pick(&PIECES, rng).iter().copied())
            .for_each(drop),
        8 => payload.extend_from_slice(pick(&PIECES, rng)),
        9 => {
            // The other whole, behind this one.
            payload.extend_from_slice(other.payload.as_deref().unwrap_or_default());
        }
        10 if rng.random_ratio(1, 10) => case.payload = None,
        11 if rng.random_ratio(1, 10) => payload.clear(),
        _ => payload
            .splice(at..at, pick(&PIECES, rng).iter().copied())
            .for_each(drop),
    }
}
