//! What ClickHouse and Redis do with a request. Each function is one atomic step of a service.

use crate::guard::Guard;
use crate::scenario::{Kind, Scenario};
use crate::state::{Decided, Insert, Offset, Redis, Remembered, Segment, Set, State, Table};

/// How an insert ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Acknowledged,
    /// By the constraint `in_time`.
    Refused,
}

/// What `permit.lua` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Decided(Vec<Segment>),
    /// Redis knows of this later commit.
    Stale(Offset),
}

/// Ends an insert: each of its table partitions is added, unless it is there under this token.
pub(crate) fn land(s: &Scenario, state: &mut State, insert: Insert) -> Ended {
    let table = &mut state.table;
    table.in_flight.retain(|other| *other != insert);
    if !in_time(s, state, insert) {
        return Ended::Refused;
    }
    for month in months(s, insert) {
        land_month(s, state, insert, month);
    }
    Ended::Acknowledged
}

/// One table partition of an insert is added, unless it is there under this token.
pub(crate) fn land_month(s: &Scenario, state: &mut State, insert: Insert, month: u8) {
    if is_remembered(&state.table, insert, month) {
        return;
    }
    for record in insert.rows.iter().filter(|&r| s.records[r].month == month) {
        state.table.rows[record] += 1;
    }
    note(state, insert, month);
}

/// A token is noted, for one table partition.
pub(crate) fn note(state: &mut State, insert: Insert, month: u8) {
    let known = Remembered {
        token: insert.token,
        month,
        since: state.now,
    };
    state.table.window.push(known);
    state.table.window.sort_unstable();
}

/// The constraint `in_time`, judged as late as the server can.
pub(crate) fn in_time(s: &Scenario, state: &State, insert: Insert) -> bool {
    let within = insert.time + s.deadline > state.now && insert.time < state.now + s.deadline;
    within || !s.has(Guard::InTime)
}

pub(crate) fn is_remembered(table: &Table, insert: Insert, month: u8) -> bool {
    let same = |known: &Remembered| known.token == insert.token && known.month == month;
    table.window.iter().any(same)
}

/// The table partitions that an insert touches.
pub(crate) fn months(s: &Scenario, insert: Insert) -> Vec<u8> {
    let mut months: Vec<u8> = insert.rows.iter().map(|r| s.records[r].month).collect();
    months.sort_unstable();
    months.dedup();
    months
}

/// Which of the records stand at offsets that have rows.
pub(crate) fn present(s: &Scenario, table: &Table, records: Set) -> Set {
    let place = |record: usize| (s.records[record].partition, s.records[record].offset);
    let has_row = |record: &usize| {
        (0..s.records.len()).any(|other| place(other) == place(*record) && table.rows[other] > 0)
    };
    records.iter().filter(has_row).collect()
}

/// The highest offset that the table has of a partition.
pub(crate) fn highest(s: &Scenario, table: &Table, partition: usize) -> Option<Offset> {
    let of = |(record, &rows): (usize, &u8)| {
        (rows > 0 && s.records.get(record)?.partition == partition).then(|| s.records[record].offset)
    };
    table.rows.iter().enumerate().filter_map(of).max()
}

/// The rows that the table refuses for good.
pub(crate) fn refused(s: &Scenario, table: &Table, rows: Set) -> Set {
    let bad = |r: &usize| s.records[*r].kind == Kind::Refused && !table.takes_all;
    rows.iter().filter(bad).collect()
}

/// `SET … NX GET`, or `claim/takeover.lua` for a replay. Answers whether the record owns the claim afterwards.
pub(crate) fn claim(s: &Scenario, redis: &mut Redis, record: usize) -> bool {
    let claim = &mut redis.claims[s.records[record].id];
    let Some(owner) = *claim else {
        *claim = Some(record as u8);
        return true;
    };
    let owner = usize::from(owner);
    if let Some(rejected) = s.records[record].replays.filter(|_| s.has(Guard::TakeOver))
        && (owner == rejected || !s.has(Guard::TakeOverIsExact))
    {
        *claim = Some(record as u8);
        return true;
    }
    owner == record && s.has(Guard::ClaimIsCoordinate)
}

/// `permit.lua`: `candidates` are offsets, rising; `limit` is `None` for none.
pub(crate) fn permit(
    s: &Scenario,
    redis: &mut Redis,
    partition: usize,
    committed: Offset,
    (candidates, end): (&[Offset], Offset),
    (limit, rewound): (Option<u8>, bool),
) -> Answer {
    let stored = redis.decided[partition].clone();
    let mut kept = stored
        .as_ref()
        .map_or(Vec::new(), |stored| stored.segments.clone());
    if let Some(stored) = stored
        .map(|stored| stored.commit)
        .filter(|stored| committed < *stored)
        && s.has(Guard::StaleAnswer)
    {
        if !rewound {
            return Answer::Stale(stored);
        }
        kept.clear();
    }
    kept.retain(|segment| segment.to > committed);
    if !s.has(Guard::RememberedPermits) {
        kept.clear();
    }
    let decided = kept.last().map_or(committed, |segment| segment.to);
    let new: Vec<Offset> = candidates
        .iter()
        .copied()
        .filter(|&offset| offset >= decided)
        .collect();
    if new.is_empty() {
        return Answer::Decided(kept);
    }
    let permits = limit.map_or(new.len(), |limit| {
        new.len().min(usize::from(limit.saturating_sub(redis.used)))
    });
    if limit.is_some() {
        redis.used += permits as u8;
    }
    let passed = match permits {
        0 => 0,
        n if n == new.len() => end,
        n => new[n - 1] + 1,
    };
    if end > decided {
        match kept.last_mut() {
            // All of the segment before passed: one segment says both.
            Some(last) if last.passed == last.to => {
                *last = Segment {
                    to: end,
                    passed: passed.max(last.passed),
                }
            }
            _ => kept.push(Segment { to: end, passed }),
        }
    }
    redis.decided[partition] = Some(Decided {
        commit: committed,
        segments: kept.clone(),
    });
    Answer::Decided(kept)
}

/// `remember_token.lua`: counts what is written, each record once.
pub(crate) fn remember(s: &Scenario, state: &mut State, partition: usize, written: Set) {
    let from = if s.has(Guard::Watermark) {
        state.redis.applied[partition]
    } else {
        0
    };
    for record in written.iter() {
        let offset = s.records[record].offset;
        if offset >= from {
            state.counted[record] += 1;
            let applied = &mut state.redis.applied[partition];
            *applied = (*applied).max(offset + 1);
        }
    }
}
