//! Made-up records, for demonstrations, tests and benchmarks.
//!
//! Owns what a record with a given index is: a pure function of the [`Plan`] and the index, so that the same seed
//! gives the same bytes, on any number of threads, and a duplicate is the earlier record made once more. Read in
//! this order: `draw` (randomness), `event` (what an event says), `bad` (records that are none, by reason), `send` (to
//! Kafka), `topics`.

mod bad;
mod draw;
mod event;
mod send;
mod topics;

use serde::Serialize;

use self::draw::Draw;
use crate::event::{MAX_PAYLOAD, Reason};

pub use self::send::{Bounds, Summary, Watch, send};
pub use self::topics::create as create_topics;

/// Which of the two shapes events have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// What SDKs send.
    Plain,
    /// What a capture service puts on its topic.
    Captured,
    /// Half of each.
    #[default]
    Mixed,
}

/// One token that floods.
#[derive(Clone, Debug, PartialEq)]
pub struct Hot {
    /// The token.
    pub token: String,
    /// Its share of the events, 0 to 1.
    pub share: f64,
}

/// What the records are like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all randomness comes from.
    pub seed: u64,
    /// Shape of the events.
    pub shape: Shape,
    /// Number of project tokens, `token-0` and so on; the first have the most events (Zipf).
    pub tokens: u32,
    /// Number of users; the first are the busiest.
    pub users: u32,
    /// Share of records that repeat an earlier event, 0 to 1.
    pub duplicates: f64,
    /// Share of bad records, 0 to 1.
    pub bad: f64,
    /// A token that has a share of its own.
    pub hot: Option<Hot>,
    /// About how many bytes an event has.
    pub size: usize,
    /// Events happened before this time, ms since 1970.
    pub until_ms: i64,
    /// And within so many ms before it.
    pub span_ms: u64,
    /// Share of events that come late, 0 to 1: they happened up to [`LATE_MS`] before the others.
    pub late: f64,
}

/// What became of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An event that was not there before.
    Event,
    /// An earlier event once more, byte for byte.
    Duplicate,
    /// No event, for this reason.
    Bad(Reason),
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// What it is.
    pub kind: Kind,
    /// Whether it is of the hot token.
    pub hot: bool,
    /// Token and user, so that a user's events keep their order.
    pub key: &'a [u8],
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// A duplicate that does not follow its key: a number to choose its partition by.
    pub astray: Option<u64>,
}

/// The reasons that a record alone can have, in the order in which bad records cycle through them.
pub const REASONS: [Reason; Reason::ALL.len() - 1] = [
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
];

/// Oversized records of one run: a megabyte each, more would be a test of the disk.
const TOO_LARGE_AT_MOST: u64 = 4;
/// How much earlier than the others a late event happened at the most, in ms: 60 days.
pub const LATE_MS: u64 = 60 * 86_400_000;
/// How far back a duplicate reaches: beyond it no client retries, and an index stays cheap to resolve.
const REACH: u64 = 1 << 20;

/// Makes records. Clones make the same ones.
#[derive(Clone, Debug)]
pub struct Generator {
    plan: Plan,
    draw: Draw,
    /// For each token the share of events that it and those before it have.
    shares: Vec<f64>,
    key: Vec<u8>,
    payload: Vec<u8>,
    inner: Vec<u8>,
}

impl Generator {
    /// For a plan.
    pub fn new(plan: Plan) -> Self {
        let mut shares: Vec<f64> = (1..=plan.tokens.max(1))
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / f64::from(rank);
                Some(*sum)
            })
            .collect();
        let all = shares.last().copied().unwrap_or(1.0);
        for share in &mut shares {
            *share /= all;
        }
        Self {
            draw: Draw::of_seed(plan.seed),
            plan,
            shares,
            key: Vec::new(),
            payload: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// The record of an index.
    pub fn record(&mut self, index: u64) -> Made<'_> {
        self.key.clear();
        self.payload.clear();
        if let Some(nth) = self.nth_bad(index) {
            let reason = reason(nth);
            self.draw.seek(index);
            let token = self.token();
            let tombstone = bad::write(reason, nth, &token, &mut self.payload);
            self.key.extend_from_slice(token.as_bytes());
            self.key.extend_from_slice(b":bad");
            return Made {
                kind: Kind::Bad(reason),
                hot: false,
                key: &self.key,
                payload: (!tombstone).then_some(&self.payload),
                astray: None,
            };
        }
        let original = self.resolve(index);
        let hot = self.event();
        let kind = if original == index {
            Kind::Event
        } else {
            Kind::Duplicate
        };
        // Half of the duplicates, so that claims meet within and across partitions. The multiplication spreads
        // neighbours (Fibonacci hashing).
        let spread = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let astray = kind == Kind::Duplicate && spread >> 63 == 1;
        Made {
            kind,
            hot,
            key: &self.key,
            payload: Some(&self.payload),
            astray: astray.then_some(spread >> 20),
        }
    }

    /// Bad records stand at even distances, so that their number is exact and each reason has its turn.
    fn nth_bad(&self, index: u64) -> Option<u64> {
        let before = |index: u64| (index as f64 * self.plan.bad) as u64;
        let nth = before(index);
        (before(index + 1) > nth).then_some(nth)
    }

    /// The index of the event that stands at an index which is not bad: itself, or the one that it repeats. Leaves
    /// the draws where that event's content begins.
    fn resolve(&mut self, index: u64) -> u64 {
        let share = if self.plan.bad < 1.0 {
            self.plan.duplicates / (1.0 - self.plan.bad)
        } else {
            0.0
        };
        let mut at = index;
        loop {
            self.draw.seek(at);
            if !self.draw.chance(share) {
                return at;
            }
            match self.earlier(at) {
                Some(earlier) => at = earlier,
                None => return at,
            }
        }
    }

    fn earlier(&mut self, index: u64) -> Option<u64> {
        const TRIES: usize = 8;
        if index == 0 {
            return None;
        }
        (0..TRIES).find_map(|_| {
            let at = index - 1 - self.draw.below(index.min(REACH));
            self.nth_bad(at).is_none().then_some(at)
        })
    }

    /// A token by its share.
    fn token(&mut self) -> String {
        let share = self.draw.share();
        let rank = self.shares.partition_point(|below| *below <= share);
        format!("token-{}", rank.min(self.shares.len() - 1))
    }
}

fn reason(nth: u64) -> Reason {
    let cycle = REASONS.len() as u64;
    match REASONS[(nth % cycle) as usize] {
        Reason::TooLarge if nth / cycle >= TOO_LARGE_AT_MOST => Reason::NotJson,
        reason => reason,
    }
}

/// Longest record that a producer must let through.
const LONGEST: usize = MAX_PAYLOAD + 4096;

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::event::{Decoded, Headers, Place, Record, decode};

    fn plan() -> Plan {
        Plan {
            seed: 7,
            shape: Shape::Mixed,
            tokens: 20,
            users: 1_000,
            duplicates: 0.1,
            bad: 0.01,
            hot: None,
            size: 500,
            until_ms: 1_790_000_000_000,
            span_ms: 7 * 86_400_000,
            late: 0.0,
        }
    }

    fn judged(payload: Option<&[u8]>) -> Decoded {
        let mut decoded = Decoded::default();
        let record = Record {
            offset: 5,
            timestamp: plan().until_ms,
            key: None,
            payload,
            headers: Headers(&[]),
        };
        let place = Place {
            topic: "events",
            incarnation: 0,
            partition: 0,
        };
        decode(&place, 0, &record, &mut decoded);
        decoded
    }

    #[test]
    fn the_same_seed_makes_the_same_bytes_in_any_order() {
        let all = |indexes: &mut dyn Iterator<Item = u64>| {
            let mut generator = Generator::new(plan());
            indexes
                .map(|index| {
                    let made = generator.record(index);
                    (index, (made.key.to_vec(), made.payload.map(<[u8]>::to_vec)))
                })
                .collect::<HashMap<_, _>>()
        };
        let forwards = all(&mut (0..500));
        assert_eq!(forwards, all(&mut (0..500).rev()));
        let mut other = Generator::new(Plan { seed: 8, ..plan() });
        assert_ne!(
            forwards[&3].1.as_deref(),
            other.record(3).payload,
            "another seed, other bytes"
        );
    }

    #[test]
    fn shares_come_out_as_asked_and_every_record_is_what_it_is_said_to_be() {
        let hot = Hot {
            token: "flood".to_owned(),
            share: 0.25,
        };
        let mut generator = Generator::new(Plan {
            hot: Some(hot),
            ..plan()
        });
        let (mut events, mut duplicates, mut bad, mut floods, mut bytes) = (0, 0, 0, 0, 0);
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        let mut uuids = HashSet::new();
        let mut persons = [0; 3];
        for index in 0..20_000 {
            let made = generator.record(index);
            let decoded = judged(made.payload);
            if let Kind::Bad(reason) = made.kind {
                bad += 1;
                assert_eq!(
                    decoded.rejected.first().map(|r| r.reason),
                    Some(reason),
                    "{index}"
                );
                continue;
            }
            assert_eq!(decoded.rejected, [], "{index}");
            let event = &decoded.events[0];
            let token = &decoded.tokens[event.token as usize];
            assert_eq!(
                made.key,
                format!("{token}:{}", decoded.str(event.distinct_id)).as_bytes()
            );
            assert_eq!(made.hot, token == "flood");
            assert!(event.timestamp <= plan().until_ms && event.timestamp > plan().until_ms - 7 * 86_400_000);
            let new = seen.insert(made.payload.unwrap().to_vec());
            assert_eq!(new, uuids.insert(event.uuid), "a uuid belongs to one body");
            assert_eq!(new, made.kind == Kind::Event, "{index}");
            if new {
                events += 1;
                floods += u32::from(made.hot);
                bytes += made.payload.unwrap().len();
                for (count, span) in persons.iter_mut().zip([event.set, event.set_once, event.unset]) {
                    *count += u32::from(span.is_some());
                }
            } else {
                duplicates += 1;
            }
        }
        assert_eq!(bad, 200);
        assert!((1_900..2_100).contains(&duplicates), "{duplicates}");
        assert!(floods > events / 5 && floods < events / 3, "{floods} of {events}");
        assert!(persons.iter().all(|count| *count > 100), "{persons:?}");
        let mean = bytes / events as usize;
        assert!((450..650).contains(&mean), "{mean}");
    }

    #[test]
    fn every_reason_a_record_can_have_gets_its_turn_and_few_are_oversized() {
        let possible: HashSet<_> = Reason::ALL
            .into_iter()
            .filter(|r| *r != Reason::Refused)
            .collect();
        assert_eq!(REASONS.into_iter().collect::<HashSet<_>>(), possible);
        let mut generator = Generator::new(Plan { bad: 1.0, ..plan() });
        let mut counts: HashMap<Reason, u64> = HashMap::new();
        for index in 0..REASONS.len() as u64 * 8 {
            let made = generator.record(index);
            let decoded = judged(made.payload);
            let found = decoded.rejected.first().map(|r| r.reason);
            assert_eq!(found.map(Kind::Bad), Some(made.kind), "{index}");
            *counts.entry(found.unwrap()).or_default() += 1;
        }
        assert_eq!(counts.len(), REASONS.len());
        assert_eq!(counts[&Reason::TooLarge], TOO_LARGE_AT_MOST);
    }

    #[test]
    fn the_first_tokens_have_the_most_events() {
        let mut generator = Generator::new(Plan {
            duplicates: 0.0,
            bad: 0.0,
            ..plan()
        });
        let mut counts: HashMap<Vec<u8>, u32> = HashMap::new();
        for index in 0..5_000 {
            let key = generator.record(index).key.to_vec();
            let token = key.split(|byte| *byte == b':').next().unwrap().to_vec();
            *counts.entry(token).or_default() += 1;
        }
        assert_eq!(counts.len(), 20);
        assert!(counts[&b"token-0"[..]] > 4 * counts[&b"token-9"[..]]);
    }

    #[test]
    fn records_of_nothing_but_duplicates_repeat_the_first() {
        let mut generator = Generator::new(Plan {
            duplicates: 1.0,
            bad: 0.0,
            ..plan()
        });
        let first = generator.record(0).payload.unwrap().to_vec();
        assert!((1..50).all(|index| generator.record(index).payload == Some(&first[..])));
    }
}
