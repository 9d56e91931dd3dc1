//! Intervals of time, numbered: the same number here and on the server.
//!
//! Whole numbers throughout, so that times before 1970 fall where they belong.

use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

/// The first Monday, ms since 1970.
const MONDAY: i64 = 4 * 86_400_000;

/// The length of an interval. All are in UTC; a week begins on Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Interval {
    Minute,
    Hour,
    Day,
    Week,
    Month,
}

impl Interval {
    /// The one of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "minute" => Self::Minute,
            "hour" => Self::Hour,
            "day" => Self::Day,
            "week" => Self::Week,
            "month" => Self::Month,
            _ => return None,
        })
    }

    /// Length and begin of the interval number 0, in ms; none for months, which differ.
    fn width(self) -> Option<(i64, i64)> {
        match self {
            Self::Minute => Some((60_000, 0)),
            Self::Hour => Some((3_600_000, 0)),
            Self::Day => Some((86_400_000, 0)),
            Self::Week => Some((7 * 86_400_000, MONDAY)),
            Self::Month => None,
        }
    }

    /// The number of the interval that a time falls into.
    pub(super) fn bucket(self, ms: i64) -> i64 {
        if let Some((width, begin)) = self.width() {
            return (ms - begin).div_euclid(width);
        }
        let time = Timestamp::from_millisecond(ms).unwrap_or_default();
        let day = time.to_zoned_datetime(TimeZone::UTC).date();
        i64::from(day.year()) * 12 + i64::from(day.month()) - 1
    }

    /// The same, on the server.
    pub(super) fn sql(self) -> String {
        match self.width() {
            Some((width, begin)) => format!(
                "intDiv(toUnixTimestamp64Milli(timestamp) - {begin} \
                 - positiveModulo(toUnixTimestamp64Milli(timestamp) - {begin}, {width}), {width})"
            ),
            None => "toInt64(toYear(timestamp)) * 12 + toMonth(timestamp) - 1".to_owned(),
        }
    }

    /// When an interval begins.
    pub(super) fn start(self, bucket: i64) -> Timestamp {
        match self.width() {
            Some((width, begin)) => Timestamp::from_millisecond(bucket * width + begin).unwrap_or_default(),
            None => date(1970, 1, 1)
                .checked_add((bucket - 1970 * 12).months())
                .and_then(|day| day.to_zoned_datetime(TimeZone::UTC))
                .map(|begin| begin.timestamp())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_begin_where_people_expect() {
        let begin = |interval: Interval, time: &str| {
            let ms = time.parse::<Timestamp>().unwrap().as_millisecond();
            interval.start(interval.bucket(ms)).to_string()
        };
        let cases = [
            (Interval::Minute, "1969-12-31T23:59:59Z", "1969-12-31T23:59:00Z"),
            (Interval::Hour, "2026-01-01T00:59:59.999Z", "2026-01-01T00:00:00Z"),
            (Interval::Day, "1969-12-31T00:00:00Z", "1969-12-31T00:00:00Z"),
            (Interval::Week, "2026-01-01T00:00:00Z", "2025-12-29T00:00:00Z"),
            (Interval::Week, "1969-12-28T23:59:59.999Z", "1969-12-22T00:00:00Z"),
            (Interval::Month, "1969-12-31T23:00:00Z", "1969-12-01T00:00:00Z"),
            (
                Interval::Month,
                "2028-02-29T23:59:59.999Z",
                "2028-02-01T00:00:00Z",
            ),
            (Interval::Month, "1900-01-01T00:00:00Z", "1900-01-01T00:00:00Z"),
        ];
        for (interval, time, expected) in cases {
            assert_eq!(begin(interval, time), expected, "{interval:?} of {time}");
        }
    }
}
