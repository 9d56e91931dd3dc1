//! The ledger and the rule by which a record is judged: a pure function of what the destinations have of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::ser::{Serialize, Serializer};

use super::records::Span;
use super::states::State;

/// Offenders that are named; more are only counted.
const NAMED: usize = 1_000;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Position {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl Position {
    /// In the order of positions.
    pub(super) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.partition.to_be_bytes());
        bytes[4..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; 12]) -> Self {
        let [p0, p1, p2, p3, offset @ ..] = bytes;
        Self {
            partition: i32::from_be_bytes([p0, p1, p2, p3]),
            offset: i64::from_be_bytes(offset),
        }
    }
}

/// Records that do not add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offenders {
    /// How many there are.
    pub count: u64,
    /// The first thousand, by partition and offset.
    pub first: BTreeSet<Position>,
}

/// What became of the records. `records` is the sum of the four outcomes and of those that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ledger {
    /// Records of the topic in the ranges.
    pub records: u64,
    /// Those with a row.
    pub written: u64,
    /// Those whose id has a row, an overflow copy or a dead letter of another record.
    pub duplicates: u64,
    /// Those with a copy in the overflow topic.
    pub limited: u64,
    /// Those with a dead letter.
    pub dead_letters: u64,
    /// Those with nothing at all.
    pub missing: Offenders,
    /// Those with more than one row (counted as written).
    pub twice: Offenders,
    /// Those in more than one destination (counted in one).
    pub both: Offenders,
    /// Those whose event another record had a row of already (counted as written).
    pub repeated: Offenders,
    /// Rows at offsets where the topic never had a record: somebody else's.
    pub stray: Offenders,
    /// How many are missing, also beyond those that are named.
    pub missing_count: u64,
    /// How many are there twice.
    pub twice_count: u64,
    /// How many are in more than one destination.
    pub both_count: u64,
    /// How many repeat another one's event.
    pub repeated_count: u64,
    /// How many rows are of no record.
    pub stray_count: u64,
    /// Those of the duplicates whose original the group has not come to: what becomes of that is not known yet.
    pub unsettled_duplicates: u64,
    /// Dead letters by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Offsets that the group has not come to: no part of the ledger.
    pub behind: u64,
    /// What was settled, of each partition.
    pub ranges: Vec<Span>,
    /// What the reader of the ledger should know.
    pub notes: Vec<String>,
}

impl Ledger {
    /// Whether every record has ended in exactly one way, every event is there once, and every row has its record.
    pub fn adds_up(&self) -> bool {
        self.offences().iter().all(|(_, offenders)| offenders.count == 0)
    }

    /// What does not add up, by kind.
    pub fn offences(&self) -> [(&'static str, &Offenders); 5] {
        [
            ("missing", &self.missing),
            ("twice", &self.twice),
            ("both", &self.both),
            ("repeated", &self.repeated),
            ("stray", &self.stray),
        ]
    }

    /// Counts a record. False if no destination has it: then its id decides.
    pub(super) fn judge(&mut self, at: Position, state: State) -> bool {
        self.records += 1;
        let State { rows, overflow, dead } = state;
        if rows > 1 {
            self.twice.add(at);
            self.twice_count += 1;
        }
        if u8::from(rows > 0) + u8::from(overflow) + u8::from(dead) > 1 {
            self.both.add(at);
            self.both_count += 1;
        }
        let outcome = match (rows, overflow, dead) {
            (1.., _, _) => &mut self.written,
            (0, _, true) => &mut self.dead_letters,
            (0, true, false) => &mut self.limited,
            (0, false, false) => return false,
        };
        *outcome += 1;
        true
    }

    /// A record of no destination turned out to be a duplicate.
    pub(super) fn duplicate(&mut self) {
        self.duplicates += 1;
    }

    /// Another record had a row of the event already.
    pub(super) fn repeated(&mut self, at: Position) {
        self.repeated.add(at);
        self.repeated_count += 1;
    }

    /// Rows stand where the topic has no record.
    pub(super) fn stray(&mut self, at: Position) {
        self.stray.add(at);
        self.stray_count += 1;
    }

    /// A record of no destination is no duplicate either.
    pub(super) fn missing(&mut self, at: Position) {
        self.missing.add(at);
        self.missing_count += 1;
    }
}

impl Offenders {
    fn add(&mut self, at: Position) {
        self.count += 1;
        self.first.insert(at);
        if self.first.len() > NAMED {
            self.first.pop_last();
        }
    }
}

impl Serialize for Offenders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.first.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Position {
        Position { partition: 3, offset }
    }

    #[test]
    fn a_record_is_judged_by_what_the_destinations_have() {
        // rows, overflow, dead -> written, limited, dead letters, twice, both
        let cases = [
            ((1, false, false), (1, 0, 0, 0, 0)),
            ((2, false, false), (1, 0, 0, 1, 0)),
            ((0, true, false), (0, 1, 0, 0, 0)),
            ((0, false, true), (0, 0, 1, 0, 0)),
            ((1, true, false), (1, 0, 0, 0, 1)),
            ((1, false, true), (1, 0, 0, 0, 1)),
            ((2, true, true), (1, 0, 0, 1, 1)),
            ((0, true, true), (0, 0, 1, 0, 1)),
        ];
        for ((rows, overflow, dead), expected) in cases {
            let mut ledger = Ledger::default();
            assert!(ledger.judge(at(7), State { rows, overflow, dead }));
            let Ledger {
                written,
                limited,
                dead_letters,
                twice,
                both,
                ..
            } = &ledger;
            assert_eq!(
                (*written, *limited, *dead_letters, twice.count, both.count),
                expected,
                "{rows} {overflow} {dead}"
            );
            assert_eq!(ledger.records, 1);
            assert_eq!(ledger.adds_up(), expected.3 + expected.4 == 0);
            for (offenders, count) in [(twice, expected.3), (both, expected.4)] {
                assert_eq!(
                    offenders.first.iter().copied().collect::<Vec<_>>(),
                    vec![at(7); count as usize]
                );
            }
        }
        let mut ledger = Ledger::default();
        assert!(!ledger.judge(at(7), State::default()), "its id decides");
        ledger.missing(at(7));
        assert!(!ledger.adds_up());
        assert!(ledger.missing.first.contains(&at(7)));
    }

    #[test]
    fn a_row_without_a_record_and_an_event_with_two_do_not_add_up() {
        let mut ledger = Ledger::default();
        ledger.repeated(at(5));
        assert_eq!((ledger.adds_up(), ledger.repeated_count), (false, 1));
        let mut ledger = Ledger::default();
        ledger.stray(at(5));
        assert_eq!(
            (ledger.adds_up(), ledger.records, ledger.stray_count),
            (false, 0, 1)
        );
    }

    #[test]
    fn positions_come_back_from_bytes_that_are_in_their_order() {
        let places = [(0, 0), (0, 256), (0, 1 << 40), (1, 0), (256, 5)];
        let places = places.map(|(partition, offset)| Position { partition, offset });
        let bytes = places.map(Position::to_bytes);
        assert!(bytes.is_sorted());
        assert_eq!(bytes.map(Position::from_bytes), places);
    }

    #[test]
    fn the_first_thousand_offenders_are_named_and_all_are_counted() {
        let mut ledger = Ledger::default();
        for offset in (0..1_500).rev() {
            ledger.missing(at(offset));
        }
        let json = serde_json::to_value(&ledger).unwrap();
        let missing = json["missing"].as_array().unwrap();
        assert_eq!(missing.len(), NAMED);
        assert_eq!(missing[0], serde_json::json!({"partition": 3, "offset": 0}));
        assert_eq!(missing[999], serde_json::json!({"partition": 3, "offset": 999}));
        assert_eq!(json["missing_count"], 1_500);
        for count in ["records", "written", "duplicates", "limited", "dead_letters"] {
            assert!(json[count].is_u64(), "{count}");
        }
        assert!(json["twice"].as_array().unwrap().is_empty() && json["both"].as_array().unwrap().is_empty());
    }
}
