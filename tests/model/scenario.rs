//! What a scenario is: a few records, a few workers, and how many of which faults may happen. Small enough to be gone
//! through to the last state.

use crate::guard::{Guard, Remedy};
use crate::state::{Commit, Offset, RECORDS, Set, State, Time};

/// One record of the topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) partition: usize,
    pub(crate) offset: Offset,
    /// What it is deduplicated by.
    pub(crate) id: usize,
    /// The table partition that its row falls into.
    pub(crate) month: u8,
    pub(crate) kind: Kind,
    /// The record that it is a replay of; it is produced once that one was rejected.
    pub(crate) replays: Option<usize>,
    /// Not there from the beginning.
    pub(crate) later: bool,
    /// It comes in the place of a record that was lost.
    pub(crate) renewed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Event,
    /// Not an event: a dead letter.
    Bad,
    /// An event whose row the table refuses for good, as long as its constraint stands.
    Refused,
}

/// What may go wrong. Each has a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    Crash,
    Expel,
    TimeOut,
    PartLands,
    TokenOnly,
    Tick,
    Rewind,
    Expire,
    HangBeforeGuard,
    HangAfterGuard,
    Retention,
    Truncate,
    ForgetClaims,
    ForgetPermits,
    ForgetWatermarks,
    DropConstraint,
    SwitchLimits,
    Slide,
}

impl Fault {
    pub(crate) const COUNT: usize = 18;
}

/// When a lane waits before its first block for two deadlines, because inserts that no announcement tells of may be on
/// their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitAtStart {
    /// Never.
    Never,
    /// Not after a commit of ours; else if the table has rows at or above the start. The highest offset is asked for
    /// before.
    IfRows,
    /// The same, and the highest offset is asked for once more afterwards.
    IfRowsAskAgain,
    /// As the code has it (`lane::may_be_preceded`): after a commit that is not ours; and where nothing is committed, if
    /// the table has any row of the partition. The highest offset is asked for once more afterwards.
    IfForeignOrRows,
    /// Unless a commit of ours is there. The highest offset is asked for once more afterwards.
    UnlessOurs,
}

/// A scenario: the model's input.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) records: Vec<Record>,
    pub(crate) workers: usize,
    /// Records of a block at most.
    pub(crate) block: Offset,
    /// `insert_deadline_seconds`, in ticks.
    pub(crate) deadline: Time,
    /// How long the table remembers a token at least.
    pub(crate) window: Time,
    /// Views stand behind the table.
    pub(crate) views: bool,
    /// How far the clock of each worker is ahead of the server's.
    pub(crate) ahead: [Time; crate::state::WORKERS],
    /// The limit of the one token that all events have, and how much of it is used; `None`: limits are off.
    pub(crate) limit: Option<u8>,
    pub(crate) used: u8,
    pub(crate) faults: [u8; Fault::COUNT],
    /// What the code does to be correct, unless a test takes it out.
    pub(crate) without: Option<Guard>,
    pub(crate) wait_at_start: WaitAtStart,
    /// What the code does not do, and a test adds.
    pub(crate) with: Option<Remedy>,
    /// Properties are asked for also where they are not promised.
    pub(crate) no_excuse: bool,
}

impl Scenario {
    /// No records, one worker, blocks of two, and no faults.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            records: Vec::new(),
            workers: 1,
            block: 2,
            deadline: 1,
            window: 2,
            views: false,
            ahead: [0; crate::state::WORKERS],
            limit: None,
            used: 0,
            faults: [0; Fault::COUNT],
            without: None,
            wait_at_start: WaitAtStart::IfForeignOrRows,
            with: None,
            no_excuse: false,
        }
    }

    /// Appends a record to a partition.
    pub(crate) fn record(mut self, partition: usize, id: usize, month: u8) -> Self {
        assert!(self.records.len() < RECORDS, "{} has too many records", self.name);
        let before = self
            .records
            .iter()
            .filter(|r| r.partition == partition && !r.renewed);
        self.records.push(Record {
            partition,
            offset: before.count() as Offset,
            id,
            month,
            kind: Kind::Event,
            replays: None,
            later: false,
            renewed: false,
        });
        self
    }

    /// Changes the record appended last.
    pub(crate) fn but(mut self, change: impl FnOnce(&mut Record)) -> Self {
        change(self.records.last_mut().expect("a record"));
        self
    }

    pub(crate) fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    pub(crate) fn block(self, block: Offset) -> Self {
        Self { block, ..self }
    }

    pub(crate) fn limit(self, limit: u8, used: u8) -> Self {
        Self {
            limit: Some(limit),
            used,
            ..self
        }
    }

    pub(crate) fn fault(mut self, fault: Fault, times: u8) -> Self {
        self.faults[fault as usize] = times;
        self
    }

    pub(crate) fn without(self, guard: Guard) -> Self {
        Self {
            without: Some(guard),
            ..self
        }
    }

    pub(crate) fn wait_at_start(self, wait_at_start: WaitAtStart) -> Self {
        Self {
            wait_at_start,
            ..self
        }
    }

    /// Whether the guard stands.
    pub(crate) fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    pub(crate) fn with(self, remedy: Remedy) -> Self {
        Self {
            with: Some(remedy),
            ..self
        }
    }

    /// Whether the remedy is added.
    pub(crate) fn also(&self, remedy: Remedy) -> bool {
        self.with == Some(remedy)
    }

    /// Whether a promise is not given, because one of these may happen.
    pub(crate) fn excused(&self, faults: &[Fault]) -> bool {
        !self.no_excuse && faults.iter().any(|&fault| self.faults[fault as usize] > 0)
    }

    pub(crate) fn partitions(&self) -> usize {
        self.records.iter().map(|r| r.partition + 1).max().unwrap_or(0)
    }

    /// The state before anything has happened.
    pub(crate) fn initial(&self) -> State {
        let mut state = State {
            faults_left: self.faults,
            limits_off: self.limit.is_none(),
            ..State::default()
        };
        state.redis.used = self.used;
        for record in self.records.iter().filter(|r| !r.later && !r.renewed) {
            state.topic[record.partition].high += 1;
        }
        state
    }

    /// The record at an offset, whether it exists yet, still, or not.
    pub(crate) fn at(&self, state: &State, partition: usize, offset: Offset) -> Option<usize> {
        let renewed = state.topic[partition]
            .renewed_from
            .is_some_and(|from| offset >= from);
        self.records
            .iter()
            .position(|r| r.partition == partition && r.offset == offset && r.renewed == renewed)
    }

    /// The records that exist of `[start, end)`.
    pub(crate) fn existing(&self, state: &State, partition: usize, start: Offset, end: Offset) -> Set {
        let topic = state.topic[partition];
        (start.max(topic.low)..end.min(topic.high))
            .filter_map(|offset| self.at(state, partition, offset))
            .collect()
    }

    /// Where the group is, in a partition.
    pub(crate) fn committed(state: &State, partition: usize) -> Offset {
        state.group[partition]
            .committed
            .map_or(0, |commit: Commit| commit.offset)
    }
}
