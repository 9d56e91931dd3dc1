//! A user's profile: from the hash that the worker keeps, or from the user's events.
//!
//! Pure: values in, values out.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::person::{FIRST_SEEN, HIDDEN, LAST_SEEN, OFFSETS, Properties, WHOLE};

/// A user's hash as it is in Redis.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) properties: Properties,
    /// [`OFFSETS`] fields with their values, sorted.
    pub(super) offsets: Vec<(String, String)>,
    /// Whether [`WHOLE`] is there.
    pub(super) whole: bool,
    pub(super) seen: Seen,
}

/// The times of a user's first and last events, ms since 1970, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) first: Option<i64>,
    pub(super) last: Option<i64>,
}

impl Stored {
    /// Sorts the fields of a hash; `None` if there are none.
    pub(super) fn of(fields: Vec<(String, String)>) -> Option<Self> {
        if fields.is_empty() {
            return None;
        }
        let mut stored = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                WHOLE => stored.whole = true,
                FIRST_SEEN => stored.seen.first = value.parse().ok(),
                LAST_SEEN => stored.seen.last = value.parse().ok(),
                _ if name.starts_with(OFFSETS) => stored.offsets.push((name, value)),
                _ if name.starts_with(HIDDEN) => {}
                _ => drop(stored.properties.insert(name, json_or_text(&value))),
            }
        }
        stored.offsets.sort();
        Some(stored)
    }
}

/// The worker writes JSON only; what an operator wrote by hand is shown as the text it is.
fn json_or_text(value: &str) -> Box<RawValue> {
    serde_json::from_str::<&RawValue>(value)
        .map(ToOwned::to_owned)
        .or_else(|_| to_raw_value(value))
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// What `GET /v1/users/{distinct_id}` answers.
#[derive(Debug, Serialize)]
pub(super) struct Profile<'a> {
    pub(super) distinct_id: &'a str,
    pub(super) properties: &'a Properties,
    pub(super) first_seen: Option<Timestamp>,
    pub(super) last_seen: Option<Timestamp>,
    /// False if an older part of the properties could not be read just now.
    pub(super) complete: bool,
    /// When this was put together. Properties are never older than their last change; the times of the first and the
    /// last event can be as old as this.
    pub(super) as_of: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_fields_are_told_apart() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert!(Stored::of(Vec::new()).is_none());
        let stored = Stored::of(vec![
            field("plan", "\"pro\""),
            field("\0offset:0:3", "18"),
            field("\0whole", "1"),
            field("\0first_seen", "-5"),
            field("\0unknown", "7"),
            field("by hand", "pro"),
        ])
        .unwrap();
        assert_eq!(
            serde_json::to_string(&stored.properties).unwrap(),
            r#"{"by hand":"pro","plan":"pro"}"#
        );
        assert_eq!(stored.offsets, [field("\0offset:0:3", "18")]);
        assert!(stored.whole);
        assert_eq!(
            stored.seen,
            Seen {
                first: Some(-5),
                last: None
            }
        );
    }
}
