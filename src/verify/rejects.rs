//! What a record of the dead-letter or overflow topic is a copy of, and what of those topics counts for nothing.

use super::replays::{self, Place};
use crate::config;
use crate::event::{Origin, Reason, Record};
use crate::kafka::producer::REASON;

/// Records of such a topic that say nothing about the topic that is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// Without headers that name a coordinate: any producer may write there.
    without_coordinate: u64,
    /// Of another topic or incarnation.
    of_others: u64,
}

impl Passed {
    /// Where the record stood, if it was one of the topic that is settled.
    pub(super) fn origin(&mut self, record: &Record<'_>, kafka: &config::Kafka) -> Option<(i32, i64)> {
        let Some(at) = Origin::of(record.headers) else {
            self.without_coordinate += 1;
            return None;
        };
        if at.topic != kafka.topic || at.incarnation != kafka.incarnation {
            self.of_others += 1;
            return None;
        }
        Some((at.partition, at.offset))
    }

    /// What there is to say about `topic`.
    pub(super) fn notes(self, topic: &str) -> impl Iterator<Item = String> {
        let told = [
            (self.without_coordinate, "name no coordinate"),
            (self.of_others, "are of another topic or incarnation"),
        ];
        let topic = topic.to_owned();
        told.into_iter()
            .filter(|(count, _)| *count > 0)
            .map(move |(count, what)| format!("{count} records of {topic} {what}: not counted"))
    }
}

/// Why it was rejected, as its header says. Words that are none of ours are not told apart: there may be many.
pub(super) fn reason(record: &Record<'_>) -> &'static str {
    let word = record.headers.get(REASON.as_bytes()).unwrap_or_default();
    let known = Reason::ALL.iter().map(|reason| reason.as_str());
    known
        .into_iter()
        .find(|known| known.as_bytes() == word)
        .unwrap_or("other")
}

/// Where the record stood that this is a copy of, if it had claimed its id before it was rejected. One that was no event
/// had not, even if its copy, which is younger, would pass for one.
pub(super) fn claimed_at(record: &Record<'_>, dead: bool, kafka: &config::Kafka) -> Option<Place> {
    let refused = Reason::Refused.as_str().as_bytes();
    if dead && record.headers.get(REASON.as_bytes()) != Some(refused) {
        return None;
    }
    replays::place(&Origin::of(record.headers)?, kafka)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Headers;

    fn headers(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, value) in headers {
            Headers::encode(&mut bytes, name.as_bytes(), Some(value.as_bytes()));
        }
        bytes
    }

    fn record(headers: &[u8]) -> Record<'_> {
        Record {
            offset: 0,
            timestamp: 0,
            key: None,
            payload: None,
            headers: Headers(headers),
        }
    }

    #[test]
    fn only_a_whole_coordinate_of_the_settled_topic_counts() {
        let kafka = crate::config::Config::load_with(None, []).unwrap().kafka;
        let mut passed = Passed::default();
        let mut origin = |topic: &str, incarnation: &str, partition: &str, offset: &str| {
            let bytes = headers(&[
                ("sluice-topic", topic),
                ("sluice-incarnation", incarnation),
                ("sluice-partition", partition),
                ("sluice-offset", offset),
            ]);
            passed.origin(&record(&bytes), &kafka)
        };
        let topic = kafka.topic.as_str();
        assert_eq!(origin(topic, "0", "3", "70"), Some((3, 70)));
        for (incarnation, partition, offset) in [
            ("0", "-1", "7"),
            ("0", "3", "+7"),
            ("x", "3", "7"),
            ("0", "3", ""),
        ] {
            assert_eq!(origin(topic, incarnation, partition, offset), None);
        }
        assert_eq!(origin(topic, "1", "3", "7"), None);
        assert_eq!(origin("another", "0", "3", "7"), None);
        assert_eq!(passed.origin(&record(&[]), &kafka), None);
        assert_eq!((passed.without_coordinate, passed.of_others), (5, 2));
        let notes: Vec<String> = passed.notes("bin").collect();
        assert_eq!(
            notes,
            [
                "5 records of bin name no coordinate: not counted",
                "2 records of bin are of another topic or incarnation: not counted"
            ]
        );
        assert_eq!(Passed::default().notes("bin").count(), 0);
    }

    #[test]
    fn a_record_that_was_no_event_had_claimed_nothing() {
        let of = |reason: &str| {
            headers(&[
                ("sluice-topic", "t"),
                ("sluice-incarnation", "0"),
                ("sluice-partition", "0"),
                ("sluice-offset", "0"),
                ("sluice-reason", reason),
            ])
        };
        assert_eq!(reason(&record(&of("bad_timestamp"))), "bad_timestamp");
        assert_eq!(reason(&record(&of("whatever"))), "other");
        assert_eq!(reason(&record(&[])), "other");
        let kafka = crate::config::Config::load_with(None, []).unwrap().kafka;
        let claimed = |headers: &[u8], dead| claimed_at(&record(headers), dead, &kafka).is_some();
        assert!(claimed(&of("refused"), true));
        assert!(!claimed(&of("bad_timestamp"), true));
        assert!(claimed(&of("over_limit"), false));
        assert!(!claimed(&headers(&[("sluice-reason", "over_limit")]), false));
    }
}
