//! Which part of the topic is settled, as the user says it.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

/// What to settle, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The part of the topic.
    pub range: Range,
    /// Wait for so long until the group has settled what the topic holds at the beginning.
    pub wait: Option<Duration>,
    /// Records a second that are read from each topic, and rows from the table; without, as fast as they come.
    pub max_per_second: Option<NonZeroU32>,
}

/// A part of the topic. Nothing said means all that the group has settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// These partitions; none stands for all.
    pub partitions: Vec<i32>,
    /// The first record.
    pub from: Option<Bound>,
    /// The first record that no longer belongs to it.
    pub to: Option<Bound>,
}

/// One end of a range, the same in every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// This offset.
    Offset(i64),
    /// The first record whose time, as Kafka has it, is this one (ms since 1970) or a later one.
    Time(i64),
}

/// A range that cannot be: bad usage.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadRange {
    /// It ends before it begins.
    #[error("the range ends at {to}, which is not after its beginning, {from}")]
    Empty {
        /// The first record.
        from: Bound,
        /// The end.
        to: Bound,
    },
    /// The topic has no such partition.
    #[error("the topic {topic} has no partition {partition}")]
    NoPartition {
        /// The topic.
        topic: String,
        /// The partition that was asked for.
        partition: i32,
    },
}

impl Range {
    /// Refuses a range that holds nothing whatever the topic has.
    pub fn check(&self) -> Result<(), BadRange> {
        let (Some(from), Some(to)) = (self.from, self.to) else {
            return Ok(());
        };
        match (from, to) {
            (Bound::Offset(a), Bound::Offset(b)) | (Bound::Time(a), Bound::Time(b)) if a >= b => {
                Err(BadRange::Empty { from, to })
            }
            _ => Ok(()),
        }
    }

    /// Whether it is all that the group has settled.
    pub(super) fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for Bound {
    type Err = String;

    /// Reads digits (an offset), a time as in RFC 3339, or digits and a unit (so long ago).
    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let number: Option<i64> = digits.parse().ok();
        let unit_ms = match unit {
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => 0,
        };
        let found = match number {
            Some(offset) if unit.is_empty() => Some(Self::Offset(offset)),
            Some(number) if unit_ms > 0 => number
                .checked_mul(unit_ms)
                .map(|ago| Self::time(Timestamp::now().as_millisecond().saturating_sub(ago))),
            _ => text
                .parse()
                .ok()
                .map(|time: Timestamp| Self::time(time.as_millisecond())),
        };
        found.ok_or_else(|| {
            format!(
                "{text:?} is neither an offset (1000), nor a time (2026-01-31T12:00:00Z), nor how long ago (90s, 15m, \
                 2h, 7d)"
            )
        })
    }
}

impl Bound {
    /// Kafka has no times before 1970; it takes negative ones for something else.
    fn time(ms: i64) -> Self {
        Self::Time(ms.max(0))
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "offset {offset}"),
            Self::Time(ms) => match Timestamp::from_millisecond(*ms) {
                Ok(time) => write!(f, "{time}"),
                Err(_) => write!(f, "{ms} ms"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_offset_a_time_or_how_long_ago() {
        assert_eq!("0".parse(), Ok(Bound::Offset(0)));
        assert_eq!("12345678901".parse(), Ok(Bound::Offset(12_345_678_901)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Bound::Time(1_000)));
        assert_eq!("1970-01-01T01:00:01.5+01:00".parse(), Ok(Bound::Time(1_500)));
        assert_eq!("1969-12-31T00:00:00Z".parse(), Ok(Bound::Time(0)));
        assert_eq!("99999d".parse(), Ok(Bound::Time(0)));
        let now = Timestamp::now().as_millisecond();
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800)] {
            let Ok(Bound::Time(time)) = text.parse() else {
                panic!("{text}");
            };
            let late = time - (now - seconds * 1_000);
            assert!((0..60_000).contains(&late), "{text}: {late}");
        }
        for text in [
            "",
            "-1",
            "+1",
            "1.5",
            "yesterday",
            "2026-01-31",
            "5w",
            "-5m",
            "+5m",
            "h",
            "99999999999999999999",
        ] {
            assert!(text.parse::<Bound>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_that_ends_before_it_begins_is_refused() {
        let range = |from, to| Range {
            from: Some(from),
            to: Some(to),
            ..Range::default()
        };
        let (offset, time) = (Bound::Offset, Bound::Time);
        assert!(range(offset(5), offset(6)).check().is_ok());
        assert!(range(offset(5), time(4)).check().is_ok(), "only the topic knows");
        assert!(range(time(5), time(5)).check().is_err());
        let error = range(offset(6), offset(5)).check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the range ends at offset 5, which is not after its beginning, offset 6"
        );
    }
}
