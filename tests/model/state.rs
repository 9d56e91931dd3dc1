//! What a state of the world is: the topic and the group, the table, Redis, and the workers. Values only; what happens
//! to them is in the other files.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

use crate::scenario::Fault;

/// Most partitions, workers, records and ids of a scenario.
pub(crate) const PARTITIONS: usize = 2;
pub(crate) const WORKERS: usize = 3;
pub(crate) const RECORDS: usize = 8;
pub(crate) const IDS: usize = 4;

/// An offset in a partition.
pub(crate) type Offset = u8;
/// Ticks of the clock.
pub(crate) type Time = u8;

/// A set of records, by their number in the scenario.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Set(u8);

/// The whole world.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The server's clock.
    pub(crate) now: Time,
    /// How many of each fault may still happen.
    pub(crate) faults_left: [u8; Fault::COUNT],
    pub(crate) topic: [Topic; PARTITIONS],
    pub(crate) group: [Group; PARTITIONS],
    pub(crate) table: Table,
    pub(crate) redis: Redis,
    /// Records with a copy in the overflow topic, and in the dead-letter topic.
    pub(crate) overflow: Set,
    pub(crate) dead_letters: Set,
    pub(crate) workers: [Worker; WORKERS],
    /// `rate_limit.enabled`, for every worker that prepares a block from now on.
    pub(crate) limits_off: bool,
    /// How often each record was counted by `remember`.
    pub(crate) counted: [u8; RECORDS],
    /// Records that retention or a broker took before they were settled.
    pub(crate) taken: Set,
}

/// One partition of the topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Topic {
    /// The first offset that still exists.
    pub(crate) low: Offset,
    /// The offset after the last.
    pub(crate) high: Offset,
    /// From here on other records stand where some were lost.
    pub(crate) renewed_from: Option<Offset>,
}

/// One partition in the eyes of the group's coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) committed: Option<Commit>,
    /// The member that it is assigned to.
    pub(crate) owner: Option<u8>,
    /// Stopped, loudly, until an operator has looked.
    pub(crate) stopped: bool,
}

/// A committed offset with its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Commit {
    pub(crate) offset: Offset,
    /// A worker committed it; else somebody set it by hand.
    pub(crate) ours: bool,
    pub(crate) announced: Option<Announcement>,
}

/// The announcement in a commit's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Announcement {
    pub(crate) end: Offset,
    /// The records themselves stand for their digest.
    pub(crate) digest: Set,
    pub(crate) time: Time,
    pub(crate) unlimited: bool,
    /// When the block was announced first, if every row of it came under this token.
    pub(crate) first: Option<Time>,
    /// Tokens of this block that are given up. Not in the code.
    pub(crate) given_up: u8,
}

/// The table `events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Table {
    /// How many rows each record has.
    pub(crate) rows: [u8; RECORDS],
    /// Tokens that are remembered.
    pub(crate) window: Vec<Remembered>,
    /// Inserts that were sent and have not ended. Sorted: their order says nothing.
    pub(crate) in_flight: Vec<Insert>,
    /// Whether the constraint is gone that refuses some rows for good.
    pub(crate) takes_all: bool,
}

/// The deduplication token of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    pub(crate) partition: u8,
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    pub(crate) digest: Set,
    /// Tells the tokens of one announcement apart: the first is 0.
    pub(crate) number: u8,
    /// 0, unless a guard is out that makes every attempt's token another.
    pub(crate) salt: Time,
}

/// A token as the table remembers it: for one table partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Remembered {
    pub(crate) token: Token,
    pub(crate) month: u8,
    pub(crate) since: Time,
}

/// An insert on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Insert {
    pub(crate) token: Token,
    /// `ingested_at` of its rows.
    pub(crate) time: Time,
    pub(crate) rows: Set,
    /// Worker and partition that wait for the answer; `None` once nobody does.
    pub(crate) waits: Option<(u8, u8)>,
}

/// Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    /// The record that owns each id.
    pub(crate) claims: [Option<u8>; IDS],
    /// Permits that were charged; the window of time is longer than any run of the model.
    pub(crate) used: u8,
    /// `decided`, of each partition.
    pub(crate) decided: [Option<Decided>; PARTITIONS],
    /// `applied`, of each partition: the watermark of `remember`.
    pub(crate) applied: [Offset; PARTITIONS],
}

/// What was decided in a partition: see `permit.lua`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Decided {
    pub(crate) commit: Offset,
    pub(crate) segments: Vec<Segment>,
}

/// Offsets below `to` passed if they are below `passed` (the script says "at or below", with -1 for none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    pub(crate) to: Offset,
    pub(crate) passed: Offset,
}

/// A worker's process. One that has crashed is at once a new one, without lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    /// The group has dropped it and it does not know: it was frozen, or its heartbeats did not get through. It goes on.
    pub(crate) expelled: bool,
    pub(crate) lanes: [Option<Lane>; PARTITIONS],
    /// A commit that stands still on its way to the broker.
    pub(crate) stuck: [Option<Stuck>; PARTITIONS],
}

/// A commit that stands still, and may outlive the lane that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stuck {
    pub(crate) commit: Commit,
    /// The committing thread has looked at the epoch already.
    pub(crate) past_guard: bool,
}

/// A partition's tasks in one assignment: `pipeline/lane.rs`, `kafka/intake.rs`, `pipeline/frontier.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lane {
    /// The last offset that Kafka has acknowledged.
    pub(crate) acknowledged: Offset,
    /// Everything below is settled.
    pub(crate) settled: Offset,
    /// Where the next block starts.
    pub(crate) next: Offset,
    /// The block that an earlier attempt announced, until it is cut.
    pub(crate) announced: Option<Announcement>,
    /// The highest offset in the table, as it was asked for once.
    pub(crate) highest: Option<Offset>,
    /// No block is prepared before then.
    pub(crate) not_before: Time,
    /// The block that is being prepared, or is.
    pub(crate) preparing: Option<Block>,
    /// The block that is being settled, and how far it is.
    pub(crate) settling: Option<(Block, Phase)>,
}

/// A block and what was decided of its records; those in no set are duplicates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Block {
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    pub(crate) records: Set,
    /// Cut as announced.
    pub(crate) announced: Option<Announcement>,
    pub(crate) attempt: Attempt,
    pub(crate) unlimited: bool,
    /// Its permits are asked for, or need not be.
    pub(crate) permitted: bool,
    /// Not events.
    pub(crate) bad: Set,
    pub(crate) pass: Set,
    pub(crate) over: Set,
    /// Refused by the table for good.
    pub(crate) refused: Set,
    /// Rejects that were sent.
    pub(crate) rejected: Set,
    /// When it was announced first.
    pub(crate) first: Option<Time>,
    /// Tokens that are given up, and until when an insert under one may land. Not in the code.
    pub(crate) given_up: (u8, Time),
}

/// What is known of a block's inserts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Attempt {
    /// It is written for the first time.
    Fresh,
    /// And one of its inserts has ended nobody knows how.
    Doubtful,
    /// Perhaps it was written before.
    Recovery,
}

/// How far a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Next: announce it, with the present time.
    Announce,
    /// The announcement was sent and is not acknowledged. Also an advance, once the block is gone.
    Announcing,
    /// Without a guard: next, ask what the table has, before the announcement.
    AskFirst,
    /// Without a guard: next, announce, and then write what was missing before.
    AnnounceLast { present: Set },
    /// Next: ask what the table has, and send the insert.
    Ask { time: Time },
    /// An insert was sent, under the token of this number.
    Write { time: Time, number: u8 },
    /// Next: ask what the table has now.
    AskAgain { time: Time, number: u8 },
    /// Next: rejects that are left, then remember.
    Finish,
}

impl Set {
    pub(crate) fn contains(self, record: usize) -> bool {
        self.0 & (1 << record) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn insert(&mut self, record: usize) {
        self.0 |= 1 << record;
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..RECORDS).filter(move |&record| self.contains(record))
    }
}

impl BitOr for Set {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Set {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Set {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<I: IntoIterator<Item = usize>>(records: I) -> Self {
        Self(records.into_iter().fold(0, |set, record| set | 1 << record))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
