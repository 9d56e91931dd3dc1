//! Why a record is not written: the short stable words of the `sluice-reason` header and of metrics.
//!
//! Owns the words alone; what earns them is decided where they are given.

use std::fmt;

/// Why a record goes to the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No payload (a tombstone), or one of no bytes.
    Empty,
    /// Longer than [`super::MAX_PAYLOAD`].
    TooLarge,
    /// The payload is not UTF-8.
    NotUtf8,
    /// The payload, or the `data` in it, is not JSON, or something follows the JSON.
    NotJson,
    /// The payload, or the `data` in it, is JSON but not an object.
    NotAnObject,
    /// Nested deeper than [`super::MAX_DEPTH`].
    TooDeep,
    /// No token: none given, null, no string, empty or white space alone.
    MissingToken,
    /// A token longer than 64 bytes.
    TokenTooLong,
    /// A token with a NUL or with anything outside ASCII.
    BadToken,
    /// No event name: none given, null, no string or empty.
    MissingEvent,
    /// An event name longer than 1,000 characters.
    EventTooLong,
    /// An event name with a NUL or a lone surrogate.
    BadEvent,
    /// No `distinct_id`: none given, null, empty or white space alone.
    MissingDistinctId,
    /// A `distinct_id` with a NUL or a lone surrogate.
    BadDistinctId,
    /// A time that cannot be read, that the table's column does not hold, or that is more than a day
    /// ahead of the record's own.
    BadTimestamp,
    /// `properties` is there but is not an object.
    PropertiesNotAnObject,
    /// `ClickHouse` refuses the row for good. Never given by [`super::decode`].
    Refused,
}

impl Reason {
    /// Every reason, each once.
    pub const ALL: [Reason; 17] = [
        Reason::Empty,
        Reason::TooLarge,
        Reason::NotUtf8,
        Reason::NotJson,
        Reason::NotAnObject,
        Reason::TooDeep,
        Reason::MissingToken,
        Reason::TokenTooLong,
        Reason::BadToken,
        Reason::MissingEvent,
        Reason::EventTooLong,
        Reason::BadEvent,
        Reason::MissingDistinctId,
        Reason::BadDistinctId,
        Reason::BadTimestamp,
        Reason::PropertiesNotAnObject,
        Reason::Refused,
    ];

    /// The word: stable, because dead letters keep it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::TooLarge => "too_large",
            Reason::NotUtf8 => "not_utf8",
            Reason::NotJson => "not_json",
            Reason::NotAnObject => "not_an_object",
            Reason::TooDeep => "too_deep",
            Reason::MissingToken => "missing_token",
            Reason::TokenTooLong => "token_too_long",
            Reason::BadToken => "bad_token",
            Reason::MissingEvent => "missing_event",
            Reason::EventTooLong => "event_too_long",
            Reason::BadEvent => "bad_event",
            Reason::MissingDistinctId => "missing_distinct_id",
            Reason::BadDistinctId => "bad_distinct_id",
            Reason::BadTimestamp => "bad_timestamp",
            Reason::PropertiesNotAnObject => "properties_not_an_object",
            Reason::Refused => "refused",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let words: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(words.iter().all(|word| !word.is_empty()));
    }
}
