//! When an event happened: reading times, and which of those that a record has counts.
//!
//! Works in civil days and milliseconds; never asks the clock, so that two attempts at a record agree.

use super::Reason;
use super::body::{Bodies, Field};
use super::text::meaning;
use super::value::{Kind, Raw};

/// What `DateTime64(3, 'UTC')` holds: 1900-01-01 to the end of 2299-12-31, ms since 1970.
const COLUMN: std::ops::RangeInclusive<i64> = -2_208_988_800_000..=10_413_791_999_999;

/// How far ahead of the record's own time an event may be, ms.
const AHEAD: i64 = 24 * 3600 * 1000;

/// A point in time. Clients and services give more digits than the column keeps, and a difference of
/// times must not be one of rounded times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instant {
    /// Whole ms since 1970 UTC.
    ms: i64,
    /// And this many ns, below a million.
    ns: i32,
}

/// When an event happened, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventTime {
    /// ms since 1970 UTC.
    pub(super) ms: i64,
    /// Only Kafka, of the record.
    pub(super) is_kafkas: bool,
}

/// When the event happened.
///
/// The body's `timestamp` as it is (in the captured shape the outer one, which capture has corrected);
/// else, in the captured shape, the client's time moved by what its clock is off; else `offset` before
/// `now`; else `now`; else the header, which is epoch ms; else the record's own time, less the `offset`.
///
/// A `timestamp` that is there and cannot be read refuses the record; `now`, `sent_at` and `offset` that
/// cannot be read are as good as none.
pub(super) fn event_time(
    bodies: &Bodies<'_>,
    header: Option<&str>,
    record: i64,
) -> Result<EventTime, Reason> {
    let time = match claimed_time(bodies, header)? {
        Some(ms) => EventTime { ms, is_kafkas: false },
        None if record >= 0 => EventTime {
            ms: moved(record, offset(bodies.field(Field::Offset)))?,
            is_kafkas: true,
        },
        None => return Err(Reason::BadTimestamp),
    };
    // A record without a time of its own (-1) has nothing to be ahead of.
    let ahead = record >= 0 && time.ms.saturating_sub(record) > AHEAD;
    if COLUMN.contains(&time.ms) && !ahead {
        Ok(time)
    } else {
        Err(Reason::BadTimestamp)
    }
}

/// So many ms earlier. An offset that no time can be moved by must not end up as one that can.
fn moved(ms: i64, offset: i128) -> Result<i64, Reason> {
    i64::try_from(i128::from(ms).saturating_sub(offset)).map_err(|_| Reason::BadTimestamp)
}

/// What the record says of its time, in itself or its headers.
fn claimed_time(bodies: &Bodies<'_>, header: Option<&str>) -> Result<Option<i64>, Reason> {
    if let Some(time) = timestamp(bodies.outer.field(Field::Timestamp))? {
        return Ok(Some(time.ms));
    }
    let now = readable(bodies.told(Field::Now));
    if let Some(inner) = &bodies.inner
        && let Some(time) = timestamp(inner.field(Field::Timestamp))?
    {
        let sent_at = readable(bodies.told(Field::SentAt));
        return Ok(Some(match (now, sent_at) {
            (Some(now), Some(sent_at)) => {
                let ns = now.ns + time.ns - sent_at.ns;
                now.ms + (time.ms - sent_at.ms) + i64::from(ns.div_euclid(1_000_000))
            }
            _ => time.ms,
        }));
    }
    if let Some(now) = now {
        return moved(now.ms, offset(bodies.field(Field::Offset))).map(Some);
    }
    match header.map(str::trim).filter(|header| !header.is_empty()) {
        Some(header) => header.parse().map(Some).map_err(|_| Reason::BadTimestamp),
        None => Ok(None),
    }
}

/// A `timestamp` that must be readable if it is there.
fn timestamp(raw: Raw<'_>) -> Result<Option<Instant>, Reason> {
    if raw.is_missing() {
        return Ok(None);
    }
    if raw.kind != Kind::String {
        return Err(Reason::BadTimestamp);
    }
    let text = meaning(raw);
    match text.trim() {
        "" => Ok(None),
        text => parse(text).map(Some).ok_or(Reason::BadTimestamp),
    }
}

/// A time that is as good as none if it cannot be read.
fn readable(raw: Raw<'_>) -> Option<Instant> {
    if raw.kind == Kind::String {
        parse(meaning(raw).trim())
    } else {
        None
    }
}

/// Whole ms; clients that measure with fractions lose them.
fn offset(raw: Raw<'_>) -> i128 {
    if raw.kind != Kind::Number {
        return 0;
    }
    raw.text
        .parse()
        .or_else(|_| raw.text.parse().map(|float: f64| float as i128))
        .unwrap_or(0)
}

/// Reads RFC 3339 and what clients make of it: a date alone, a blank for the T, no seconds, no zone (UTC),
/// an offset of hours alone or without a colon. Digits below a nanosecond are cut off.
fn parse(text: &str) -> Option<Instant> {
    let mut rest = text.as_bytes();
    let year = number(&mut rest, 4)?;
    skip(&mut rest, b"-")?;
    let month = number(&mut rest, 2)?;
    skip(&mut rest, b"-")?;
    let day = number(&mut rest, 2)?;
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return None;
    }
    let days = days_since_1970(year, month, day);
    if rest.is_empty() {
        return Some(Instant {
            ms: days * 86_400_000,
            ns: 0,
        });
    }
    skip(&mut rest, b"Tt ")?;
    let hour = number(&mut rest, 2)?;
    skip(&mut rest, b":")?;
    let minute = number(&mut rest, 2)?;
    let mut second = 0;
    let mut ns = 0;
    if skip(&mut rest, b":").is_some() {
        second = number(&mut rest, 2)?;
        if skip(&mut rest, b".").is_some() {
            ns = fraction(&mut rest)?;
        }
    }
    // 60 is a leap second: the first of the next minute, as clocks without them have it.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let east = zone(&mut rest)?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - east;
    Some(Instant {
        ms: seconds * 1000 + i64::from(ns / 1_000_000),
        ns: ns % 1_000_000,
    })
}

/// How far east of UTC, in seconds; nothing may follow.
fn zone(rest: &mut &[u8]) -> Option<i64> {
    let east = match *rest {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    *rest = &rest[1..];
    let hours = number(rest, 2)?;
    let mut minutes = 0;
    if !rest.is_empty() {
        // With or without a colon.
        let colon = skip(rest, b":");
        minutes = number(rest, 2).filter(|_| colon.is_some() || rest.is_empty())?;
    }
    (rest.is_empty() && hours <= 23 && minutes <= 59).then_some(east * (hours * 3600 + minutes * 60))
}

/// So many digits.
fn number(rest: &mut &[u8], digits: usize) -> Option<i64> {
    let (front, back) = rest.split_at_checked(digits)?;
    let mut number = 0;
    for byte in front {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + i64::from(byte - b'0');
    }
    *rest = back;
    Some(number)
}

/// At least one digit behind the point, as ns.
fn fraction(rest: &mut &[u8]) -> Option<i32> {
    let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, back) = rest.split_at(len);
    *rest = back;
    let mut ns = 0;
    for place in 0..9 {
        ns = ns * 10 + i32::from(digits.get(place).map_or(0, |digit| digit - b'0'));
    }
    (len > 0).then_some(ns)
}

/// One of these bytes.
fn skip(rest: &mut &[u8], any: &[u8]) -> Option<()> {
    let (first, back) = rest.split_first()?;
    any.contains(first).then(|| *rest = back)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the Gregorian calendar, counted in years that begin in March, so that a leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(text: &str) -> Option<i64> {
        parse(text).map(|time| time.ms)
    }

    #[test]
    fn the_forms_that_clients_send_are_read() {
        // 2024-02-29T03:04:05Z.
        let base = 1_709_175_845_000;
        for (text, after) in [
            ("2024-02-29T03:04:05Z", 0),
            ("2024-02-29t03:04:05z", 0),
            ("2024-02-29T03:04:05", 0),
            ("2024-02-29 03:04:05", 0),
            ("2024-02-29 03:04:05+00:00", 0),
            ("2024-02-29T03:04:05.1Z", 100),
            ("2024-02-29T03:04:05.123456789999Z", 123),
            ("2024-02-29T03:04:05.123+03", 123 - 3 * 3_600_000),
            ("2024-02-29T03:04:05-0530", 19_800_000),
            ("2024-02-29T03:04:05-05:30", 19_800_000),
            ("2024-02-29T03:04:05+23:59", -86_340_000),
            ("2024-02-29T03:04Z", -5000),
            ("2024-02-29T03:04:60Z", 55_000),
            ("2024-02-29", -11_045_000),
        ] {
            assert_eq!(ms(text), Some(base + after), "{text}");
        }
        assert_eq!(
            parse("1969-12-31T23:59:59.9999Z"),
            Some(Instant { ms: -1, ns: 900_000 })
        );
    }

    #[test]
    fn what_is_no_time_is_not_read() {
        for text in [
            "",
            "x",
            "1709175845",
            "2024",
            "2024-02",
            "2024-2-9",
            "2024-02-30",
            "2023-02-29",
            "1900-02-29",
            "2024-00-01",
            "2024-13-01",
            "2024-04-31",
            "2024-01-00",
            "2024-02-29T",
            "2024-02-29X03:04:05",
            "2024-02-29T24:00:00Z",
            "2024-02-29T03:60:00Z",
            "2024-02-29T03:04:61Z",
            "2024-02-29T03:04:05.Z",
            "2024-02-29T03:04:05,1Z",
            "2024-02-29T03:04:05ZZ",
            "2024-02-29T03:04:05+3",
            "2024-02-29T03:04:05+24:00",
            "2024-02-29T03:04:05+03:60",
            "2024-02-29T03:04:05+03:",
            "2024-02-29T03:04:05+03:0",
            "2024-02-29T03:04:05 +03:00",
            "2024-02-29Z",
            "+2024-02-29T03:04:05Z",
            "-001-02-29",
            "２024-02-29",
        ] {
            assert_eq!(ms(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn times_agree_with_jiff(ms in COLUMN, ns in 0_i32..1_000_000, east in -86_340_i32..=86_340) {
            let nanos = i128::from(ms) * 1_000_000 + i128::from(ns);
            let time = jiff::Timestamp::from_nanosecond(nanos).unwrap();
            let expected = Some(Instant { ms, ns });
            prop_assert_eq!(parse(&time.to_string()), expected);
            // To the minute: RFC 3339 has no seconds in an offset.
            let zone = jiff::tz::Offset::from_seconds(east / 60 * 60).unwrap();
            let text = time.display_with_offset(zone).to_string();
            prop_assert_eq!(parse(&text), expected, "{}", text);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String, near in "[0-9+:.TZ -]{0,40}") {
            let _either = (parse(&text), parse(&near), parse(&format!("2024-02-29T03:04:05{near}")));
        }
    }
}
