//! Times for the reference, in nanoseconds since 1970, by way of `jiff`'s calendar.

use jiff::civil;

/// Reads RFC 3339, a date alone, a blank for the T, an offset of hours alone, and a time without a zone (UTC). Two
/// forms beside these are in use, and taken too: minutes without seconds, and an offset without its colon.
pub(crate) fn nanos(text: &str) -> Option<i128> {
    if !text.is_ascii() {
        return None;
    }
    let (date, rest) = text.split_at_checked(10)?;
    let date = civil::Date::new(
        digits(date.get(0..4)?)? as i16,
        digits(date.strip_at(4, "-")?.get(0..2)?)? as i8,
        digits(date.strip_at(7, "-")?)? as i8,
    )
    .ok()?;
    if rest.is_empty() {
        return Some(at(date, 0, 0));
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, zone) = match rest.find(['Z', 'z', '+', '-']) {
        Some(end) => rest.split_at(end),
        None => (rest, "Z"),
    };
    Some(at(date, of_day(time)?, minutes_east(zone)?))
}

trait StripAt {
    fn strip_at(&self, at: usize, what: &str) -> Option<&str>;
}

impl StripAt for str {
    /// What follows `what`, which must stand at that place.
    fn strip_at(&self, at: usize, what: &str) -> Option<&str> {
        self.get(at..)?.strip_prefix(what)
    }
}

fn digits(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn two_digits(text: &str, below: i64) -> Option<i64> {
    (text.len() == 2)
        .then(|| digits(text))?
        .filter(|&number| number < below)
}

/// Nanoseconds since midnight. A leap second is the one after it.
fn of_day(time: &str) -> Option<i128> {
    let (time, fraction) = match time.split_once('.') {
        Some((time, fraction)) => (time, Some(fraction)),
        None => (time, None),
    };
    let parts: Vec<&str> = time.split(':').collect();
    let (hours, minutes, seconds) = match parts[..] {
        [hours, minutes] if fraction.is_none() => (hours, minutes, "00"),
        [hours, minutes, seconds] => (hours, minutes, seconds),
        _ => return None,
    };
    let nanos = match fraction {
        None => 0,
        Some(fraction) => {
            // Beyond nanoseconds nothing counts, but it must be digits.
            fraction.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
            let first: String = fraction.chars().chain("000000000".chars()).take(9).collect();
            (!fraction.is_empty()).then(|| digits(&first))??
        }
    };
    let seconds = (two_digits(hours, 24)? * 60 + two_digits(minutes, 60)?) * 60 + two_digits(seconds, 61)?;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
}

fn minutes_east(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, zone) = zone.split_at(1);
    matches!(sign, "+" | "-").then_some(())?;
    let zone = match zone.len() {
        2 => format!("{zone}00"),
        5 => zone
            .strip_at(2, ":")
            .map(|minutes| format!("{}{minutes}", &zone[..2]))?,
        4 => zone.to_owned(),
        _ => return None,
    };
    let minutes = two_digits(&zone[..2], 24)? * 60 + two_digits(&zone[2..], 60)?;
    Some(if sign == "-" { -minutes } else { minutes })
}

fn at(date: civil::Date, nanos: i128, minutes_east: i64) -> i128 {
    let days = (date - civil::date(1970, 1, 1)).get_days();
    i128::from(days) * 86_400_000_000_000 + nanos - i128::from(minutes_east) * 60_000_000_000
}
