//! Records that no destination names: duplicates, if another record of their id has come to one.
//!
//! Owns them until they are settled. A record here has no row and no copy, so whatever is found under its id is
//! another's. Memory is bounded: those that wait for the table are few at a time, and those that it does not settle
//! are sorted on disk. Nothing is decided by a hash: keys are compared whole.

use std::collections::HashSet;
use std::io;
use std::ops::RangeInclusive;

use ::clickhouse::error::Result;
use xxhash_rust::xxh3::xxh3_64;

use super::key;
use super::ledger::{Ledger, Position};
use super::replays::{self, Groups};
use super::sorter::Sorter;

/// Keys that are asked for at once: some hundred kilobytes of query text.
const KEYS_A_QUERY: usize = 20_000;
/// Bytes of keys that are asked for at once.
const BYTES_A_QUERY: usize = 2 << 20;
/// Records that wait, and bytes of their keys, before the table is asked: together they are near one another there.
const WAITING: usize = 1 << 17;
const WAITING_BYTES: usize = 8 << 20;
/// Bits of the filter of keys that are left: 8 MiB.
const FILTER_BITS: usize = 1 << 26;

/// Where keys can be looked up.
pub(super) trait Keys {
    /// Those of the keys that have a row of a time in the range (ms since 1970).
    fn near(
        &self,
        keys: &[&[u8]],
        times: RangeInclusive<i64>,
    ) -> impl Future<Output = Result<HashSet<Vec<u8>>>>;
    /// Those of the keys that have a row of any time.
    fn anywhere(&self, keys: &[&[u8]]) -> impl Future<Output = Result<HashSet<Vec<u8>>>>;
}

/// The records that wait, and those that the table does not settle.
#[derive(Debug, Default)]
pub(super) struct Claims {
    arena: Vec<u8>,
    waiting: Vec<Waiting>,
    /// Keys with the positions of their records appended.
    left: Sorter,
    filter: Filter,
    /// Keys and places of other records that have an outcome, among them all of those that are left.
    others: Sorter,
    /// Keys and places of replays, and of what they replay.
    replays: Sorter,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    start: u32,
    len: u16,
    time_ms: i64,
    at: Position,
}

impl Claims {
    /// A record whose key decides. `time_ms` is when the event happened.
    pub(super) fn push(&mut self, key: &[u8], time_ms: i64, at: Position) {
        self.waiting.push(Waiting {
            start: self.arena.len() as u32,
            len: key.len() as u16,
            time_ms,
            at,
        });
        self.arena.extend_from_slice(key);
    }

    /// The record is a replay of the one at that place.
    pub(super) fn replay(&mut self, key: &[u8], at: Position, of: &[u8]) -> io::Result<()> {
        replays::push(&mut self.replays, key, [&at.to_bytes(), of])
    }

    /// The table should be asked now.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING || self.arena.len() >= WAITING_BYTES
    }

    /// Records that are neither settled nor waiting.
    pub(super) fn left(&self) -> u64 {
        self.left.len()
    }

    /// Looks up what waits; what has no row is left for [`Self::other`].
    pub(super) async fn settle(&mut self, keys: &impl Keys, ledger: &mut Ledger) -> anyhow::Result<()> {
        let Self {
            arena,
            waiting,
            left,
            filter,
            ..
        } = self;
        let key_of = |one: &Waiting| &arena[one.start as usize..][..usize::from(one.len)];
        // The order of the table's own key: token, then time. A resend keeps its event's time as a rule.
        let place = |one: &Waiting| (key::token(key_of(one)).map(|(token, _)| token), one.time_ms);
        waiting.sort_unstable_by(|a, b| place(a).cmp(&place(b)));
        let mut rest = waiting.as_slice();
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(batch_of(rest));
            rest = next;
            let times = batch.iter().map(|one| one.time_ms);
            let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
                continue;
            };
            let asked: Vec<&[u8]> = batch.iter().map(key_of).collect();
            let near = keys.near(&asked, first..=last).await?;
            let asked: Vec<&[u8]> = asked.into_iter().filter(|key| !near.contains(*key)).collect();
            let far = if asked.is_empty() {
                HashSet::new()
            } else {
                keys.anywhere(&asked).await?
            };
            for one in batch {
                let key = key_of(one);
                if near.contains(key) || far.contains(key) {
                    ledger.duplicate();
                } else {
                    filter.add(key);
                    left.push(&[key, &one.at.to_bytes()])?;
                }
            }
        }
        waiting.clear();
        arena.clear();
        Ok(())
    }

    /// The record at that place has this key, and an outcome. Fails if the temporary file cannot be written.
    pub(super) fn other(&mut self, key: &[u8], place: &[u8]) -> io::Result<()> {
        if self.filter.may_have(key) {
            replays::push(&mut self.others, key, [place])?;
        }
        Ok(())
    }

    /// Those that are left and have the key of an other, which they do not replay: they are settled. Answers how many.
    pub(super) fn join(&mut self) -> io::Result<u64> {
        if self.others.len() == 0 {
            return Ok(0);
        }
        let mut found = 0;
        let mut groups = Groups::of(
            std::mem::take(&mut self.others),
            std::mem::take(&mut self.replays),
        )?;
        let mut replays = Sorter::default();
        let mut kept = Vec::new();
        self.each_left(|left, key, at| {
            let group = groups.of_key(key)?;
            if group.settles(at) {
                found += 1;
                return Ok(());
            }
            if kept != key {
                kept = key.to_vec();
                group.keep_replays(key, &mut replays)?;
            }
            left.push(&[key, &at.to_bytes()])
        })?;
        self.replays = replays;
        Ok(found)
    }

    /// What is left is missing.
    pub(super) fn finish(mut self, ledger: &mut Ledger) -> io::Result<()> {
        self.each_left(|_, _, at| {
            ledger.missing(at);
            Ok(())
        })
    }

    /// Takes out what is left, in order of keys, and hands it over, together with the place for what remains so.
    fn each_left(
        &mut self,
        mut each: impl FnMut(&mut Sorter, &[u8], Position) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut left = std::mem::take(&mut self.left).sorted()?;
        let mut entry = Vec::new();
        while left.next(&mut entry)? {
            let (key, at) = entry.split_last_chunk().ok_or(io::ErrorKind::InvalidData)?;
            each(&mut self.left, key, Position::from_bytes(*at))?;
        }
        Ok(())
    }
}

/// How many of them are asked for at once.
fn batch_of(waiting: &[Waiting]) -> usize {
    let mut bytes = 0;
    let fits = waiting.iter().take(KEYS_A_QUERY).take_while(|one| {
        bytes += usize::from(one.len);
        bytes <= BYTES_A_QUERY
    });
    fits.count().max(1)
}

/// Keeps keys that are certainly not wanted from being sorted for nothing; decides nothing.
#[derive(Debug, Default)]
struct Filter(Vec<u64>);

impl Filter {
    fn add(&mut self, key: &[u8]) {
        if self.0.is_empty() {
            self.0 = vec![0; FILTER_BITS / 64];
        }
        let (word, bit) = Self::place(key);
        self.0[word] |= bit;
    }

    fn may_have(&self, key: &[u8]) -> bool {
        let (word, bit) = Self::place(key);
        self.0.get(word).is_some_and(|found| found & bit != 0)
    }

    fn place(key: &[u8]) -> (usize, u64) {
        let hash = xxh3_64(key) as usize % FILTER_BITS;
        (hash / 64, 1 << (hash % 64))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Rows, by key and time; and how often they were asked.
    struct Rows {
        rows: HashSet<(Vec<u8>, i64)>,
        asked: RefCell<Vec<(usize, bool)>>,
    }

    impl Rows {
        fn of(rows: impl IntoIterator<Item = (Vec<u8>, i64)>) -> Self {
            Self {
                rows: rows.into_iter().collect(),
                asked: RefCell::default(),
            }
        }

        fn find(&self, keys: &[&[u8]], wanted: impl Fn(i64) -> bool) -> HashSet<Vec<u8>> {
            let rows = self.rows.iter().filter(|(_, time)| wanted(*time));
            let asked: HashSet<&[u8]> = keys.iter().copied().collect();
            rows.filter(|(key, _)| asked.contains(key.as_slice()))
                .map(|(key, _)| key.clone())
                .collect()
        }
    }

    impl Keys for Rows {
        async fn near(&self, keys: &[&[u8]], times: RangeInclusive<i64>) -> Result<HashSet<Vec<u8>>> {
            self.asked.borrow_mut().push((keys.len(), true));
            Ok(self.find(keys, |time| times.contains(&time)))
        }

        async fn anywhere(&self, keys: &[&[u8]]) -> Result<HashSet<Vec<u8>>> {
            self.asked.borrow_mut().push((keys.len(), false));
            Ok(self.find(keys, |_| true))
        }
    }

    fn key(token: &str, id: u128) -> Vec<u8> {
        let mut key = Vec::new();
        super::key::of_id(&mut key, token, uuid::Uuid::from_u128(id));
        key
    }

    fn at(offset: i64) -> Position {
        Position { partition: 0, offset }
    }

    fn missing(claims: Claims, ledger: &mut Ledger) -> Vec<i64> {
        claims.finish(ledger).unwrap();
        ledger.missing.first.iter().map(|at| at.offset).collect()
    }

    #[tokio::test]
    async fn a_record_is_a_duplicate_if_its_id_has_a_row_or_a_reject_within_its_token() {
        let mut claims = Claims::default();
        let mut ledger = Ledger::default();
        for (token, id, offset) in [
            ("a", 1, 10), // has a row
            ("a", 1, 11), // and again
            ("b", 1, 12), // another token's
            ("a", 2, 13), // rejected
            ("a", 2, 14), // and again
            ("b", 2, 15), // another token's
            ("b", 3, 16), // nowhere
            ("a", 4, 17), // has a row of another time
        ] {
            claims.push(&key(token, id), 5, at(offset));
        }
        let rows = Rows::of([(key("a", 1), 5), (key("c", 1), 5), (key("a", 4), 900)]);
        claims.settle(&rows, &mut ledger).await.unwrap();
        assert_eq!((ledger.duplicates, claims.left()), (3, 5));
        assert_eq!(*rows.asked.borrow(), [(8, true), (6, false)]);
        assert_eq!(claims.join().unwrap(), 0, "nothing to join with");
        for (token, id) in [("a", 2), ("a", 2), ("c", 3), ("a", 77), ("a", 0)] {
            claims.other(&key(token, id), &at(90).to_bytes()).unwrap();
        }
        assert_eq!((claims.join().unwrap(), claims.left()), (2, 3));
        claims.other(&key("b", 2), &at(91).to_bytes()).unwrap();
        assert_eq!((claims.join().unwrap(), claims.left()), (1, 2));
        assert_eq!(missing(claims, &mut ledger), [12, 16]);
    }

    #[tokio::test]
    async fn a_replay_is_not_settled_by_what_it_replays_however_often_it_is_looked_for() {
        let mut claims = Claims::default();
        let mut ledger = Ledger::default();
        let key = key("a", 1);
        for (offset, of) in [(10, Some(5)), (11, None), (12, Some(6))] {
            if let Some(of) = of {
                claims.replay(&key, at(offset), &at(of).to_bytes()).unwrap();
            }
            claims.push(&key, 0, at(offset));
        }
        claims.settle(&Rows::of([]), &mut ledger).await.unwrap();
        for _ in 0..2 {
            claims.other(&key, &at(5).to_bytes()).unwrap();
            claims.join().unwrap();
        }
        assert_eq!(missing(claims, &mut ledger), [10]);
    }

    #[tokio::test]
    async fn many_records_are_asked_for_in_batches_and_settled_in_rounds() {
        let mut claims = Claims::default();
        let mut ledger = Ledger::default();
        let many = KEYS_A_QUERY as i64 * 2 + 7;
        let rows = Rows::of((1..many).map(|id| (key("a", id as u128), 0)));
        for round in 0..2 {
            for offset in 0..many {
                claims.push(&key("a", offset as u128), 0, at(offset * 2 + round));
            }
            claims.settle(&rows, &mut ledger).await.unwrap();
        }
        let most = rows.asked.borrow().iter().map(|(keys, _)| *keys).max();
        assert_eq!(most, Some(KEYS_A_QUERY));
        assert_eq!(missing(claims, &mut ledger), [0, 1]);
        assert_eq!(ledger.duplicates, 2 * (many as u64 - 1));
    }

    #[tokio::test]
    async fn long_keys_are_asked_for_in_smaller_batches() {
        let mut claims = Claims::default();
        let mut long = Vec::new();
        for n in 0..1_000 {
            super::key::of_content(&mut long, "t", &"u".repeat(800), &"e".repeat(4_000), n);
            claims.push(&long, n, at(n));
        }
        let rows = Rows::of([]);
        claims.settle(&rows, &mut Ledger::default()).await.unwrap();
        let asked = rows.asked.borrow();
        assert!(
            asked.iter().all(|(keys, _)| keys * long.len() <= BYTES_A_QUERY),
            "{asked:?}"
        );
        assert_eq!(asked.iter().map(|(keys, _)| keys).sum::<usize>(), 2_000);
    }
}
