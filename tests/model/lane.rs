//! How a worker's lane begins and ends, and how it prepares a block: everything that happens before the block is
//! announced. A step a function, in the order of the data path.

use crate::guard::Guard;
use crate::scenario::{Kind, Scenario, WaitAtStart};
use crate::services::{self, Answer};
use crate::state::{Attempt, Block, Lane, Offset, Set, State};

/// A worker's lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) worker: usize,
    pub(crate) partition: usize,
}

pub(crate) fn lane(state: &State, at: At) -> Option<&Lane> {
    state.workers[at.worker].lanes[at.partition].as_ref()
}

pub(crate) fn lane_mut(state: &mut State, at: At) -> &mut Lane {
    state.workers[at.worker].lanes[at.partition]
        .as_mut()
        .expect("a lane")
}

/// The partition is assigned and starts: `kafka/rebalance.rs`, `kafka/start.rs`, `position::start`.
pub(crate) fn assign(s: &Scenario, state: &mut State, at: At) {
    let topic = state.topic[at.partition];
    let group = &mut state.group[at.partition];
    group.owner = Some(at.worker as u8);
    let commit = group.committed;
    let start = commit.map_or(topic.low, |commit| commit.offset);
    let announced = commit.and_then(|commit| commit.announced);
    if announced.map_or(start, |a| a.end.max(start)) > topic.high {
        group.stopped = true;
        return;
    }
    let announced = announced.filter(|a| a.end > start && s.has(Guard::Announcement));
    let ours = commit.is_some_and(|commit| commit.ours);
    let highest = services::highest(s, &state.table, at.partition);
    let waits = match s.wait_at_start {
        WaitAtStart::Never => false,
        WaitAtStart::IfRows | WaitAtStart::IfRowsAskAgain => !ours && highest >= Some(start),
        WaitAtStart::IfForeignOrRows => !ours && (commit.is_some() || highest.is_some()),
        WaitAtStart::UnlessOurs => !ours,
    };
    state.workers[at.worker].lanes[at.partition] = Some(Lane {
        acknowledged: start,
        settled: start,
        next: start,
        announced,
        highest,
        not_before: if waits { state.now + 2 * s.deadline } else { 0 },
        preparing: None,
        settling: None,
    });
}

/// Where the next block may end: `kafka/intake.rs`.
pub(crate) fn cuts(s: &Scenario, state: &State, at: At) -> Vec<Offset> {
    let topic = state.topic[at.partition];
    let Some(lane) = lane(state, at).filter(|lane| lane.preparing.is_none() && lane.not_before <= state.now)
    else {
        return Vec::new();
    };
    match lane.announced {
        Some(announced) if s.has(Guard::ExactCut) => vec![announced.end],
        // What is no record at the end is passed over, once nothing else is on hand: `Intake::told_end`.
        _ if topic.low == topic.high && lane.next < topic.high && lane.settling.is_none() => vec![topic.high],
        // A free block ends after a record.
        _ => ((lane.next + 1).max(topic.low + 1)..=topic.high.min(lane.next.max(topic.low) + s.block))
            .collect(),
    }
}

/// A block is closed, decoded, and its events are claimed: `kafka/intake.rs`, `pipeline/decode.rs`,
/// `pipeline/claim.rs`.
pub(crate) fn claim(s: &Scenario, state: &mut State, at: At, end: Offset) {
    let asks_again = s.wait_at_start != WaitAtStart::IfRows && lane_mut(state, at).not_before > 0;
    let highest = services::highest(s, &state.table, at.partition);
    let lane = lane_mut(state, at);
    if asks_again {
        lane.highest = highest;
        lane.not_before = 0;
    }
    let start = lane.next;
    let known = lane.announced;
    if known.is_none_or(|a| a.end <= end) {
        lane.announced = None;
    }
    lane.next = end;
    let is_repeat = s.has(Guard::Highest) && Some(start) <= lane.highest;
    let announced = known.filter(|_| s.has(Guard::ExactCut));
    if announced.is_some() && end > state.topic[at.partition].high && s.has(Guard::StopAtShortEnd) {
        return stop(s, state, at);
    }
    let records = s.existing(state, at.partition, start, end);
    let recovery = known.is_some() || is_repeat;
    if recovery && !one_row_agrees(s, state, records) {
        return stop(s, state, at);
    }
    let unlimited = match announced.filter(|_| s.has(Guard::UnlimitedAnnounced)) {
        Some(announced) => announced.unlimited,
        None => state.limits_off && !(recovery && s.has(Guard::UnlimitedAnnounced)),
    };
    let bad = |r: &usize| match s.records[*r].kind {
        Kind::Bad => true,
        // Judged by the clock, an event turns bad as time goes by.
        Kind::Event => !s.has(Guard::PureDecode) && state.now > 0,
        Kind::Refused => false,
    };
    let bad: Set = records.iter().filter(bad).collect();
    let mut pass = Set::default();
    for record in (records - bad).iter() {
        if services::claim(s, &mut state.redis, record) {
            pass.insert(record);
        }
    }
    lane_mut(state, at).preparing = Some(Block {
        start,
        end,
        records,
        announced,
        attempt: if recovery {
            Attempt::Recovery
        } else {
            Attempt::Fresh
        },
        unlimited,
        permitted: unlimited || pass.is_empty(),
        bad,
        pass,
        over: Set::default(),
        refused: Set::default(),
        rejected: Set::default(),
        first: announced.filter(|a| a.digest == records).and_then(|a| a.first),
        given_up: (announced.map_or(0, |a| a.given_up), 0),
    });
}

/// Whether, of the rows that the table has at these offsets, if any, one is of its record:
/// `recovery::compare_with_rows`.
fn one_row_agrees(s: &Scenario, state: &State, records: Set) -> bool {
    let events = records
        .iter()
        .filter(|&r| s.records[r].kind != Kind::Bad)
        .collect();
    let compared = services::present(s, &state.table, events);
    compared.is_empty() || compared.iter().any(|record| state.table.rows[record] > 0)
}

/// The partition stops, loudly, until an operator has looked; but whoever owns it by now finds out for himself.
pub(crate) fn stop(s: &Scenario, state: &mut State, at: At) {
    state.group[at.partition].stopped = !state.workers[at.worker].expelled;
    drop_lane(s, state, at);
}

/// The permits of the block's candidates: `pipeline/permit.rs`, `permit.lua`.
pub(crate) fn permit(s: &Scenario, state: &mut State, at: At) {
    let limit = s.limit.filter(|_| !state.limits_off);
    let lane = state.workers[at.worker].lanes[at.partition]
        .as_mut()
        .expect("a lane");
    let committed = lane.acknowledged;
    let block = lane.preparing.as_mut().expect("a block");
    let candidates: Vec<Offset> = block.pass.iter().map(|r| s.records[r].offset).collect();
    let mut ask = |rewound| {
        let block = (&candidates[..], block.end);
        services::permit(
            s,
            &mut state.redis,
            at.partition,
            committed,
            block,
            (limit, rewound),
        )
    };
    let mut answer = ask(false);
    if let Answer::Stale(stored) = answer {
        // Kafka says whether somebody else has gone on, or the offsets were rewound.
        let known = state.group[at.partition].committed;
        if known.is_some_and(|commit| commit.offset >= stored) && s.has(Guard::InsistOnlyIfRewound) {
            return leave(s, state, at.worker);
        }
        answer = ask(true);
    }
    let Answer::Decided(segments) = answer else {
        unreachable!("a call that insists is not stale")
    };
    let passes = |record: &usize| {
        let offset = s.records[*record].offset;
        let segment = segments.iter().find(|segment| offset < segment.to);
        segment.is_some_and(|segment| offset < segment.passed)
    };
    let pass: Set = block.pass.iter().filter(passes).collect();
    block.over = block.pass - pass;
    block.pass = pass;
    block.permitted = true;
}

/// The lane ends; whatever it has on its way goes on without it.
pub(crate) fn drop_lane(s: &Scenario, state: &mut State, at: At) {
    let Some(lane) = state.workers[at.worker].lanes[at.partition].take() else {
        return;
    };
    let me = Some((at.worker as u8, at.partition as u8));
    for insert in &mut state.table.in_flight {
        insert.waits = insert.waits.filter(|_| insert.waits != me);
    }
    state.table.in_flight.sort_unstable();
    if !s.has(Guard::ClaimStays) {
        let blocks = lane
            .preparing
            .into_iter()
            .chain(lane.settling.map(|(block, _)| block));
        for record in blocks.flat_map(|block| block.records.iter().collect::<Vec<_>>()) {
            let claim = &mut state.redis.claims[s.records[record].id];
            *claim = claim.filter(|owner| usize::from(*owner) != record);
        }
    }
}

/// The worker's consumer is made anew: it leaves the group, and its lanes end.
pub(crate) fn leave(s: &Scenario, state: &mut State, worker: usize) {
    for partition in 0..s.partitions() {
        drop_lane(s, state, At { worker, partition });
        let group = &mut state.group[partition];
        group.owner = group.owner.filter(|owner| usize::from(*owner) != worker);
    }
}

/// An expelled worker polls, hears that it has lost its partitions, and joins the group again.
pub(crate) fn rejoin(s: &Scenario, state: &mut State, worker: usize) {
    leave(s, state, worker);
    state.workers[worker].expelled = false;
}
