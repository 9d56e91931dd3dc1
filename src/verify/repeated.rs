//! Events that have rows of more than one record.
//!
//! Within `dedup.window_seconds` a claim lets only one record of an event through; if another one has a row, Redis has
//! forgotten a claim, or something else has gone wrong. Later ones are written by design. What counts is the time that
//! the rows themselves tell (`ingested_at`), since claims live by the clock and not by what producers say.
//!
//! All rows that may matter are read once and sorted by what they are deduplicated by, on disk. What merges have made
//! one row cannot be told: the record without one then passes for a duplicate.

use std::io;

use anyhow::Context as _;

use super::ledger::Position;
use super::sorter::Sorter;
use super::{Auditor, TEMPORARY, notes};

/// Who has a row. In the order in which they are compared: the time comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// `ingested_at`, ms since 1970.
    pub(super) time_ms: i64,
    /// The record, if it is one of the topic that is settled.
    pub(super) at: Option<Position>,
}

/// Bytes of a [`Written`] in an entry.
const WRITTEN: usize = 8 + 1 + 12;

impl Written {
    fn to_bytes(self) -> [u8; WRITTEN] {
        let mut bytes = [0; WRITTEN];
        // In the order of the numbers, those below zero among them.
        bytes[..8].copy_from_slice(&(self.time_ms ^ i64::MIN).to_be_bytes());
        if let Some(at) = self.at {
            bytes[8] = 1;
            bytes[9..].copy_from_slice(&at.to_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; WRITTEN]) -> Self {
        let [t0, t1, t2, t3, t4, t5, t6, t7, is_ours, at @ ..] = *bytes;
        Self {
            time_ms: i64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]) ^ i64::MIN,
            at: (is_ours == 1).then(|| Position::from_bytes(at)),
        }
    }
}

/// Rows by event.
#[derive(Debug, Default)]
pub(super) struct Rows(Sorter);

impl Rows {
    pub(super) fn push(&mut self, key: &[u8], written: Written) -> io::Result<()> {
        // What is longer than any event of ours repeats none.
        if key.len() + WRITTEN > usize::from(u16::MAX) {
            return Ok(());
        }
        self.0.push(&[key, &written.to_bytes()])
    }

    /// Hands over each record that has a row after another one's of the same event, and how long after (ms).
    fn each_repeated(self, mut each: impl FnMut(Position, i64)) -> io::Result<()> {
        let mut sorted = self.0.sorted()?;
        let (mut entry, mut key) = (Vec::new(), Vec::new());
        let mut before: Option<Written> = None;
        while sorted.next(&mut entry)? {
            let (of, written) = entry.split_last_chunk().ok_or(io::ErrorKind::InvalidData)?;
            let written = Written::from_bytes(written);
            if of != key {
                key.clear();
                key.extend_from_slice(of);
                before = None;
            }
            // The same record once more. (Those of elsewhere are not told apart: they only make others repeated.)
            if written.at.is_some() && before.is_some_and(|before| before.at == written.at) {
                continue;
            }
            if let (Some(before), Some(at)) = (before, written.at) {
                each(at, written.time_ms.saturating_sub(before.time_ms));
            }
            before = Some(written);
        }
        Ok(())
    }
}

impl Auditor<'_> {
    /// Counts the records whose event another one had a row of already. What they are has been judged by then.
    pub(super) fn repeated(&mut self) -> anyhow::Result<()> {
        let window_seconds = self.config.dedup.window_seconds;
        let window_ms = i64::try_from(window_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let Some((first, last)) = self.written else {
            return Ok(());
        };
        self.watch.step("events", None);
        // Of the rows before, those still count whose claims may have lived when the first of these was written.
        let times = first.saturating_sub(window_ms)..=last;
        let (mut rows, mut failed, mut done) = (Rows::default(), Ok(()), 0);
        let watch = &mut self.watch;
        self.runtime
            .block_on(self.table.events(&times, |key, written| {
                failed = rows.push(key, written);
                done += 1;
                watch.done(done);
                failed.is_ok()
            }))
            .context("the table could not be read")?;
        failed.context(TEMPORARY)?;
        let (states, ledger) = (&mut self.states, &mut self.ledger);
        let mut late = 0;
        let judge = |at: Position, after_ms| {
            let Some(states) = states.get_mut(&at.partition) else {
                return;
            };
            if after_ms >= window_ms {
                late += u64::from(states.is_judged(at.offset));
            } else if states.mark_repeated(at.offset) {
                ledger.repeated(at);
            }
        };
        rows.each_repeated(judge).context(TEMPORARY)?;
        self.ledger
            .notes
            .extend(notes::late_repeats(late, window_seconds));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Position {
        Position { partition: 3, offset }
    }

    #[test]
    fn rows_come_back_from_bytes_that_are_in_their_order() {
        let rows = [
            (-5, Some(at(9))),
            (3, None),
            (3, Some(at(0))),
            (3, Some(at(256))),
            (1 << 40, Some(at(1))),
        ];
        let rows = rows.map(|(time_ms, at)| Written { time_ms, at });
        let bytes = rows.map(Written::to_bytes);
        assert!(bytes.is_sorted());
        assert_eq!(bytes.map(|bytes| Written::from_bytes(&bytes)), rows);
    }

    #[test]
    fn a_record_repeats_another_one_of_its_event_and_never_itself() {
        let mut rows = Rows::default();
        for (key, time_ms, at) in [
            ("once", 5, Some(at(1))),
            ("twice the same", 9, Some(at(2))),
            ("twice the same", 5, Some(at(2))),
            ("later", 50, Some(at(4))),
            ("later", 20, Some(at(5))),
            ("together", 7, Some(at(7))),
            ("together", 7, Some(at(6))),
            ("of elsewhere", 4, None),
            ("of elsewhere", 5, Some(at(8))),
            ("of elsewhere again", 4, None),
            ("of elsewhere again", 8, None),
            ("of elsewhere again", 9, Some(at(20))),
            ("elsewhere later", 5, Some(at(9))),
            ("elsewhere later", 6, None),
            ("elsewhere alone", 6, None),
            ("elsewhere alone", 7, None),
            ("again and again", 1, Some(at(10))),
            ("again and again", 2, Some(at(11))),
            ("again and again", 3, Some(at(11))),
            ("again and again", 9, Some(at(12))),
        ] {
            rows.push(key.as_bytes(), Written { time_ms, at }).unwrap();
        }
        rows.push(&vec![0; 70_000], Written { time_ms: 0, at: None })
            .unwrap();
        let mut found = Vec::new();
        rows.each_repeated(|at, after_ms| found.push((at.offset, after_ms)))
            .unwrap();
        found.sort_unstable();
        assert_eq!(found, [(4, 30), (7, 0), (8, 1), (11, 1), (12, 7), (20, 1)]);
    }
}
