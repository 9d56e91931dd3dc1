//! What the polling thread keeps of each assigned partition: the open block, and when it closes.
//!
//! Owns the cut of blocks and the check of the record before the committed offset. Never talks to a service.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::metadata::{Announcement, Previous};
use super::position::{Refusal, Start};
use crate::event::Record;
use crate::pipeline::block::{Cut, InFlight, Open, fingerprint};
use crate::pipeline::lane::Lane;

/// Blocks of one partition that may be closed and unsettled: one being written, one prepared, one waiting.
const MOST_OUTSTANDING: usize = 3;
/// Up to here a block closes by age; beyond, it grows instead, for there is nobody to take it.
const IDLE_OUTSTANDING: usize = 2;

/// When a block is full.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `batch.max_rows`.
    pub rows: usize,
    /// `batch.max_bytes`.
    pub bytes: usize,
}

/// What is known of the partition's end. The client reports that it was reached, in order with the records, but not at
/// which offset. Its statistics know the offset, but overtake everything that waits to be polled: an offset may be that
/// of records which are still to come. So one counts if it was told after the report, then nothing waited any more, and
/// then it was told again, all with no record in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Records come.
    Ahead,
    /// It was reached after the last record.
    Reached,
    /// And the statistics say where.
    Told(i64),
    /// And what waited then has been polled.
    Drained(i64),
}

impl End {
    /// Statistics say `end`. Answers whether that counts.
    fn is_told(&mut self, end: i64) -> bool {
        match *self {
            Self::Drained(before) if before == end => return true,
            Self::Ahead => {}
            Self::Told(before) if before == end => {}
            Self::Reached | Self::Told(_) | Self::Drained(_) => *self = Self::Told(end),
        }
        false
    }

    /// Nothing waits to be polled.
    fn drained(&mut self) {
        if let Self::Told(end) = *self {
            *self = Self::Drained(end);
        }
    }
}

/// What an end that is known means to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// Nothing but what it has.
    Nothing,
    /// Up to there all that was no record is passed over.
    PassedOver,
    /// The partition ends before the block that was announced, at this offset: it may have lost records.
    BeforeAnnounced(i64),
}

/// One assigned partition, as the polling thread sees it.
#[derive(Debug)]
pub struct Intake {
    /// Where its blocks go; `None` once the partition was stopped.
    lane: Option<Lane>,
    epoch: u64,
    open: Open,
    opened_at: Instant,
    announced: Option<Announcement>,
    verify: Option<Previous>,
    incarnation: u32,
    in_flight: Arc<InFlight>,
    end: End,
    /// Offsets at which there was nothing, says [`Intake::told_end`].
    passed_over: Range<i64>,
    /// Its block is full, and nobody takes it.
    pub paused: bool,
    /// Memory is short, and it holds more than its share.
    pub over_share: bool,
}

impl Intake {
    /// Begins at `start`.
    pub fn new(start: Start, epoch: u64, incarnation: u32, in_flight: &Arc<InFlight>, lane: Lane) -> Self {
        Self {
            lane: Some(lane),
            epoch,
            open: Open::new(start.committed, start.previous, in_flight),
            opened_at: Instant::now(),
            announced: start.announced,
            verify: start.previous,
            incarnation,
            in_flight: Arc::clone(in_flight),
            end: End::Ahead,
            passed_over: 0..0,
            paused: false,
            over_share: false,
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// The topic is not the one that was settled up to here; the partition must stop.
    pub fn accept(&mut self, record: &Record<'_>) -> Result<(), Refusal> {
        if self.lane.is_none() {
            return Ok(());
        }
        self.end = End::Ahead;
        if let Some(previous) = self.verify.take()
            && record.offset <= previous.offset
        {
            if record.offset < previous.offset {
                self.verify = Some(previous);
            } else if fingerprint(record) != previous.hash {
                return Err(Refusal::AnotherRecord {
                    offset: record.offset,
                    incarnation: self.incarnation,
                });
            }
            return Ok(());
        }
        if record.offset < self.open.next() {
            if self.passed_over.contains(&record.offset) {
                return Err(Refusal::PassedOver {
                    offset: record.offset,
                });
            }
            return Ok(());
        }
        if self.announced.is_some_and(|a| record.offset >= a.end) {
            self.close();
        }
        if self.open.is_empty() {
            self.opened_at = Instant::now();
        }
        self.open.push(record);
        if self.announced.is_some_and(|a| record.offset + 1 == a.end) {
            self.close();
        }
        Ok(())
    }

    /// The end of the partition was reached.
    pub fn reached_end(&mut self) {
        self.end = End::Reached;
    }

    /// What the client had for the worker has been polled.
    pub fn drained(&mut self) {
        self.end.drained();
    }

    /// The client throws away what it has, and fetches it again later.
    pub fn refetches(&mut self) {
        self.end = End::Ahead;
    }

    /// The client's statistics say at which offset it last reached the end. What lies between the last record and there
    /// (markers of transactions, what compaction took) will never be a record: an announced block that ends there gets
    /// no more, and the rest is settled as a block without records.
    pub fn told_end(&mut self, end: i64) -> AtEnd {
        let Some(lane) = self.lane.as_ref().filter(|_| self.end.is_told(end)) else {
            return AtEnd::Nothing;
        };
        match self.announced {
            Some(announced) if end < announced.end => return AtEnd::BeforeAnnounced(announced.end),
            Some(announced) => self.passed_over = self.open.next()..announced.end,
            None if self.open.is_empty() && lane.outstanding().blocks() == 0 && self.open.next() < end => {
                self.passed_over = self.open.next()..end;
                self.open.pass_over(end);
            }
            None => return AtEnd::Nothing,
        }
        self.close();
        AtEnd::PassedOver
    }

    /// Closes the open block where it is due. Answers whether the partition must be paused: its block is full
    /// and cannot be handed on.
    pub fn close_due(&mut self, bounds: Bounds, age: Duration) -> bool {
        let Some(lane) = self.lane.as_ref().filter(|lane| !lane.is_stopped()) else {
            return true;
        };
        if self.announced.is_some() || self.open.is_empty() {
            return false;
        }
        let full = self.open.len() >= bounds.rows || self.open.bytes() >= bounds.bytes;
        let old = self.opened_at.elapsed() >= age;
        let outstanding = lane.outstanding().blocks();
        if (full && outstanding < MOST_OUTSTANDING) || (old && outstanding < IDLE_OUTSTANDING) {
            self.close();
            return false;
        }
        full
    }

    /// Whether the block is full, so that the next record must not be taken before [`Intake::close_due`].
    pub fn is_full(&self, bounds: Bounds) -> bool {
        self.announced.is_none() && (self.open.len() >= bounds.rows || self.open.bytes() >= bounds.bytes)
    }

    /// Closes the open block if nothing of this partition is under way: memory is short, and this frees it.
    pub fn close_if_idle(&mut self) {
        if self.announced.is_none()
            && !self.open.is_empty()
            && self
                .lane
                .as_ref()
                .is_some_and(|lane| lane.outstanding().blocks() == 0)
        {
            self.close();
        }
    }

    fn close(&mut self) {
        let Some(lane) = &self.lane else { return };
        let cut = self.announced.take().map_or(Cut::Free, Cut::Announced);
        let slot = lane.outstanding().take(self.open.bytes());
        let block = self.open.close(cut, self.epoch, slot);
        lane.offer(block);
    }

    /// Whether it has something to write.
    pub fn is_active(&self) -> bool {
        !self.open.is_empty() || self.is_working()
    }

    /// Bytes of its records in memory.
    pub fn held(&self) -> u64 {
        let outstanding = self.lane.as_ref().map_or(0, |lane| lane.outstanding().bytes());
        self.open.bytes() as u64 + outstanding
    }

    /// Whether an announced block is being read, which must be whole.
    pub fn is_announced(&self) -> bool {
        self.announced.is_some()
    }

    /// Whether blocks of it are under way.
    pub fn is_working(&self) -> bool {
        self.lane
            .as_ref()
            .is_some_and(|lane| lane.outstanding().blocks() > 0)
    }

    /// Whether its tasks have ended by themselves: the partition was dropped.
    pub fn is_dropped(&self) -> bool {
        self.lane.as_ref().is_some_and(Lane::is_dropped)
    }

    /// Takes nothing more; what was read and not handed on is forgotten. The caller ends the lane.
    pub fn stop(&mut self) -> Option<Lane> {
        self.open = Open::new(self.open.next(), None, &self.in_flight);
        self.announced = None;
        self.lane.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counts_if_it_is_told_again_once_nothing_waits() {
        let mut end = End::Ahead;
        end.drained();
        assert!(!end.is_told(7) && !end.is_told(7), "records still come");
        end = End::Reached;
        assert!(!end.is_told(7), "perhaps of records that wait to be polled");
        assert!(!end.is_told(7), "they still wait");
        end.drained();
        assert!(!end.is_told(9), "more came since");
        assert!(!end.is_told(9));
        end.drained();
        assert!(end.is_told(9) && end.is_told(9));
    }
}
