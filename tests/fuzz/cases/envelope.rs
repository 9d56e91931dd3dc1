//! What is done to a record's headers, and to the time that Kafka has for it.

use rand::{Rng, RngExt as _};

use super::seeds::RECORD_TIME;
use super::{Case, pick};

const DAY_MS: i64 = 24 * 3600 * 1000;

const NAMES: [&str; 14] = [
    "token",
    "distinct_id",
    "uuid",
    "timestamp",
    "event",
    "now",
    "sluice-topic",
    "sluice-incarnation",
    "sluice-partition",
    "sluice-offset",
    "sluice-reason",
    "Token",
    "",
    "trace",
];

const VALUES: [&str; 26] = [
    "",
    " ",
    "t",
    " phc_abc ",
    "tökén",
    "a\0b",
    "0190b6a8-3f10-7c9a-8d1e-00000000abcd",
    "{0190B6A8-3F10-7C9A-8D1E-00000000ABCD}",
    "order-17",
    "1714560000123",
    " 1714560000123 ",
    "+1714560000123",
    "1714651200001",
    "-1",
    "-0",
    "0",
    "3",
    "+3",
    "1.5",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "2024-05-01T12:00:00Z",
    "events",
];

const TIMES: [i64; 12] = [
    -1,
    0,
    1,
    RECORD_TIME - DAY_MS,
    RECORD_TIME - DAY_MS - 1,
    RECORD_TIME + 1,
    RECORD_TIME + 300 * DAY_MS,
    -RECORD_TIME,
    i64::MIN,
    i64::MAX,
    10_413_791_999_999,
    10_413_792_000_000,
];

/// Headers as capture sends them, on some records; a key, on most.
pub(super) fn vary(case: &mut Case, rng: &mut impl Rng) {
    if rng.random_ratio(1, 4) {
        for (name, value) in [
            ("token", "h-token"),
            ("distinct_id", "h-user"),
            ("uuid", "0190b6a8-3f10-7c9a-8d1e-00000000ffff"),
            ("timestamp", "1714560000123"),
            ("event", "h-event"),
        ] {
            if rng.random_ratio(2, 3) {
                case.headers.push((name.into(), Some(value.into())));
            }
        }
    }
    if rng.random_ratio(1, 20) {
        for (name, value) in [
            ("sluice-topic", "events"),
            ("sluice-incarnation", "0"),
            ("sluice-partition", "3"),
            ("sluice-offset", "17"),
            ("sluice-reason", "over_limit"),
        ] {
            case.headers.push((name.into(), Some(value.into())));
        }
    }
    if rng.random_ratio(3, 4) {
        case.key = Some(b"key".to_vec());
    }
}

pub(super) fn change(case: &mut Case, rng: &mut impl Rng) {
    let headers = &mut case.headers;
    let at = (!headers.is_empty()).then(|| rng.random_range(0..headers.len()));
    match (rng.random_range(0..10), at) {
        (0..3, _) => case.timestamp = time(rng),
        (3, Some(at)) => drop(headers.swap_remove(at)),
        (4, Some(at)) => headers[at].1 = value(rng),
        (5, Some(at)) => {
            let again = (headers[at].0.clone(), value(rng));
            headers.push(again);
        }
        _ => {
            let at = rng.random_range(0..=headers.len());
            headers.insert(at, (pick(&NAMES, rng).as_bytes().to_vec(), value(rng)));
        }
    }
}

fn value(rng: &mut impl Rng) -> Option<Vec<u8>> {
    match rng.random_range(0..12) {
        0 => None,
        1 => Some(vec![0xff, 0xfe]),
        2 => Some((0..rng.random_range(0..300)).map(|_| rng.random()).collect()),
        3 => Some(b"x".repeat(pick(&[63, 64, 65, 199, 200, 201, 5000], rng))),
        4 => Some(rng.random_range(-DAY_MS..2 * RECORD_TIME).to_string().into()),
        _ => Some(pick(&VALUES, rng).as_bytes().to_vec()),
    }
}

fn time(rng: &mut impl Rng) -> i64 {
    match rng.random_range(0..4) {
        0 => rng.random(),
        1 => RECORD_TIME + rng.random_range(-3 * DAY_MS..3 * DAY_MS),
        _ => pick(&TIMES, rng),
    }
}
