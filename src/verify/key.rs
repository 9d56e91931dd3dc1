//! What a record is deduplicated by, as bytes: equal where the events are the same, and only there.
//!
//! Token, a NUL (which no token holds), and the id; or the lengths and texts of the content. No key is the beginning
//! of another one, so that keys with something appended are sorted as the keys are.

use uuid::Uuid;

use crate::config::{Config, DedupBy};
use crate::event::{Decoded, Event, Origin, Place, Record, decode};

/// The key of an event with this id.
pub(super) fn of_id(key: &mut Vec<u8>, token: &str, id: Uuid) {
    key.clear();
    key.extend_from_slice(token.as_bytes());
    key.push(0);
    key.extend_from_slice(id.as_bytes());
}

/// The key of an event with this content.
pub(super) fn of_content(key: &mut Vec<u8>, token: &str, distinct_id: &str, event: &str, time_ms: i64) {
    key.clear();
    key.extend_from_slice(token.as_bytes());
    key.push(0);
    key.extend_from_slice(&time_ms.to_be_bytes());
    for text in [distinct_id, event] {
        key.extend_from_slice(&(text.len() as u32).to_be_bytes());
    }
    for text in [distinct_id, event] {
        key.extend_from_slice(text.as_bytes());
    }
}

/// The key of an event.
fn of_event(by: DedupBy, key: &mut Vec<u8>, decoded: &Decoded, event: &Event) {
    let token = &decoded.tokens[event.token as usize];
    match by {
        DedupBy::Id => of_id(key, token, Uuid::from_u128(event.uuid)),
        DedupBy::Content => of_content(
            key,
            token,
            decoded.str(event.distinct_id),
            decoded.str(event.event),
            event.timestamp,
        ),
    }
}

/// The token of a key, and the rest.
pub(super) fn token(key: &[u8]) -> Option<(&str, &[u8])> {
    let end = key.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&key[..end]).ok()?, &key[end + 1..]))
}

/// Token and id, of a key by id.
pub(super) fn id(key: &[u8]) -> Option<(&str, Uuid)> {
    let (token, id) = token(key)?;
    Some((token, Uuid::from_slice(id).ok()?))
}

/// Token, user, event's name and time (ms since 1970), of a key by content.
pub(super) fn content(key: &[u8]) -> Option<(&str, &str, &str, i64)> {
    let (token, rest) = token(key)?;
    let (time_ms, rest) = rest.split_first_chunk()?;
    let (first, rest) = rest.split_first_chunk()?;
    let (second, rest) = rest.split_first_chunk::<4>()?;
    let (distinct_id, event) = rest.split_at_checked(u32::from_be_bytes(*first) as usize)?;
    if event.len() != u32::from_be_bytes(*second) as usize {
        return None;
    }
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some((
        token,
        text(distinct_id)?,
        text(event)?,
        i64::from_be_bytes(*time_ms),
    ))
}

/// What a record is deduplicated by.
#[derive(Debug)]
pub(super) struct Keyed<'a> {
    pub(super) key: &'a [u8],
    /// When the event happened (ms since 1970).
    pub(super) time_ms: i64,
    /// What the record is a replay of.
    pub(super) origin: Option<&'a Origin>,
}

/// Reads off a topic's records what they are deduplicated by.
pub(super) struct KeyReader<'a> {
    by: DedupBy,
    topic: &'a str,
    incarnation: u32,
    decoded: Decoded,
    key: Vec<u8>,
}

impl<'a> KeyReader<'a> {
    pub(super) fn new(config: &Config, topic: &'a str) -> Self {
        Self {
            by: config.dedup.by,
            topic,
            incarnation: config.kafka.incarnation,
            decoded: Decoded::default(),
            key: Vec::new(),
        }
    }

    /// Nothing if the record is no event.
    pub(super) fn read(&mut self, record: &Record<'_>, partition: i32) -> Option<Keyed<'_>> {
        let place = Place {
            topic: self.topic,
            incarnation: self.incarnation,
            partition,
        };
        self.decoded.clear();
        decode(&place, 0, record, &mut self.decoded);
        let event = self.decoded.events.first()?;
        of_event(self.by, &mut self.key, &self.decoded, event);
        Some(Keyed {
            key: &self.key,
            time_ms: event.timestamp,
            origin: event.origin.as_deref(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_what_it_was_made_of_and_no_two_are_alike() {
        let mut key = Vec::new();
        of_id(&mut key, "token", Uuid::from_u128(7 << 64));
        assert_eq!(id(&key), Some(("token", Uuid::from_u128(7 << 64))));
        let mut seen = std::collections::BTreeSet::new();
        for token in ["t", "tt"] {
            for (user, event) in [("", "ab"), ("a", "b"), ("ab", ""), ("a", "bc"), ("é", "b")] {
                for time in [-1, 0, 1 << 40] {
                    of_content(&mut key, token, user, event, time);
                    assert_eq!(content(&key), Some((token, user, event, time)));
                    assert!(seen.insert(key.clone()));
                }
            }
        }
        let all: Vec<_> = seen.into_iter().collect();
        assert!(
            all.windows(2).all(|pair| !pair[1].starts_with(&pair[0])),
            "none is the beginning of another one"
        );
    }
}
