//! What happens around the workers: time, operators, retention, crashes; and what goes wrong, each as often as its
//! budget says.

use crate::guard::Guard;
use crate::lane;
use crate::scenario::{Fault, Scenario};
use crate::services;
use crate::settle;
use crate::state::{Commit, Insert, Offset, State, Worker};
use crate::steps::{Step, lanes};

/// What may happen around the workers at any time.
pub(crate) fn surroundings(s: &Scenario, state: &State, steps: &mut Vec<Step>) {
    let unheard = state
        .table
        .in_flight
        .iter()
        .filter(|insert| insert.waits.is_none());
    steps.extend(unheard.map(|&insert| Step::Land(insert)));
    let window = if s.has(Guard::Window) {
        s.window
    } else {
        s.deadline
    };
    let old = state
        .table
        .window
        .iter()
        .filter(|known| known.since + window <= state.now);
    steps.extend(old.map(|&known| Step::Forget(known)));
    for partition in 0..s.partitions() {
        let next = s.at(state, partition, state.topic[partition].high);
        if let Some(record) = next.map(|next| s.records[next])
            && record
                .replays
                .is_none_or(|of| (state.overflow | state.dead_letters).contains(of))
        {
            steps.push(Step::Produce(partition));
        }
    }
}

/// What may go wrong, as long as the budget lasts.
pub(crate) fn faults(s: &Scenario, state: &State, steps: &mut Vec<Step>) {
    let left = |fault: Fault| state.faults_left[fault as usize] > 0;
    for worker in 0..s.workers {
        let working = state.workers[worker] != Worker::default();
        if left(Fault::Crash) && working {
            steps.push(Step::Crash(worker));
        }
        if left(Fault::Expel) && working && !state.workers[worker].expelled {
            steps.push(Step::Expel(worker));
        }
    }
    for &insert in &state.table.in_flight {
        if left(Fault::TimeOut) && insert.waits.is_some() {
            steps.push(Step::TimeOut(insert));
        }
        let mut months = services::months(s, insert);
        months.retain(|&month| !services::is_remembered(&state.table, insert, month));
        if services::in_time(s, state, insert) {
            let parts = months.iter().map(|&month| Step::PartLands(insert, month));
            steps.extend(parts.filter(|_| left(Fault::PartLands) && services::months(s, insert).len() > 1));
            let tokens = months.iter().map(|&month| Step::TokenOnly(insert, month));
            steps.extend(tokens.filter(|_| left(Fault::TokenOnly)));
        }
    }
    for at in lanes(s).filter(|&at| settle::may_announce(s, state, at)) {
        let hangs = [Fault::HangBeforeGuard, Fault::HangAfterGuard]
            .into_iter()
            .filter(|&hang| left(hang));
        steps.extend(hangs.map(|hang| Step::Hang(at, hang)));
    }
    let nobody_owns = state.group.iter().all(|group| group.owner.is_none());
    for partition in 0..s.partitions() {
        let committed = state.group[partition].committed;
        if left(Fault::Rewind) && nobody_owns {
            let to = 0..=committed.map_or(0, |commit| commit.offset);
            steps.extend(
                to.filter(|_| committed.is_some())
                    .map(|to| Step::Rewind(partition, to)),
            );
        }
        let has_begun = services::highest(s, &state.table, partition).is_some() || !is_busy(state, partition);
        if left(Fault::Expire) && nobody_owns && committed.is_some() && (has_begun || s.no_excuse) {
            steps.push(Step::Expire(partition));
        }
        let topic = state.topic[partition];
        if left(Fault::Retention) && topic.low < topic.high {
            steps.push(Step::Retention(partition));
        }
        // One that a worker has read is noticed at the next start: by the end of the partition, or by the record
        // before the committed offset.
        if left(Fault::Truncate) && topic.low < topic.high && read_by_anybody(state, partition) < topic.high {
            steps.push(Step::Truncate(partition));
        }
    }
    if left(Fault::ForgetClaims) {
        let claimed = state
            .redis
            .claims
            .iter()
            .enumerate()
            .filter(|(_, claim)| claim.is_some());
        steps.extend(claimed.map(|(id, _)| Step::ForgetClaim(id)));
    }
    let all = [
        (Fault::Tick, Step::Tick),
        (Fault::ForgetPermits, Step::ForgetPermits),
        (Fault::ForgetWatermarks, Step::ForgetWatermarks),
        (Fault::DropConstraint, Step::DropConstraint),
        (Fault::SwitchLimits, Step::SwitchLimits),
        (Fault::Slide, Step::Slide),
    ];
    steps.extend(
        all.into_iter()
            .filter(|(fault, _)| left(*fault))
            .map(|(_, step)| step),
    );
}

/// Whether anybody inserts into a partition, or is about to.
fn is_busy(state: &State, partition: usize) -> bool {
    let mut lanes = state
        .workers
        .iter()
        .filter_map(|worker| worker.lanes[partition].as_ref());
    let mut inserts = state.table.in_flight.iter();
    lanes.any(|lane| lane.settling.is_some())
        || inserts.any(|insert| usize::from(insert.token.partition) == partition)
}

/// How far a partition was read by the workers that there are, or settled by those that were.
fn read_by_anybody(state: &State, partition: usize) -> Offset {
    let lanes = state
        .workers
        .iter()
        .filter_map(|worker| worker.lanes[partition].as_ref());
    let furthest = lanes.map(|lane| lane.next).max().unwrap_or(0);
    furthest.max(Scenario::committed(state, partition))
}

/// The budget that a step is taken from.
pub(crate) fn fault_of(step: Step) -> Option<Fault> {
    Some(match step {
        Step::Crash(_) => Fault::Crash,
        Step::Expel(_) => Fault::Expel,
        Step::TimeOut(_) => Fault::TimeOut,
        Step::PartLands(..) => Fault::PartLands,
        Step::TokenOnly(..) => Fault::TokenOnly,
        Step::Tick => Fault::Tick,
        Step::Rewind(..) => Fault::Rewind,
        Step::Expire(_) => Fault::Expire,
        Step::Hang(_, fault) => fault,
        Step::Retention(_) => Fault::Retention,
        Step::Truncate(_) => Fault::Truncate,
        Step::ForgetClaim(_) => Fault::ForgetClaims,
        Step::ForgetPermits => Fault::ForgetPermits,
        Step::ForgetWatermarks => Fault::ForgetWatermarks,
        Step::DropConstraint => Fault::DropConstraint,
        Step::SwitchLimits => Fault::SwitchLimits,
        Step::Slide => Fault::Slide,
        _ => return None,
    })
}

/// What such a step does.
pub(crate) fn take(s: &Scenario, state: &mut State, step: Step) {
    match step {
        Step::PartLands(insert, month) => {
            services::land_month(s, state, insert, month);
            settle::doubt(state, insert);
        }
        Step::TokenOnly(insert, month) => {
            services::note(state, insert, month);
            settle::doubt(state, insert);
            // The server had it, and died: only who waits for the answer sends it again.
            if insert.waits.is_none() {
                state.table.in_flight.retain(|other| *other != insert);
            }
        }
        Step::Tick => tick(s, state),
        Step::Forget(known) => state.table.window.retain(|other| *other != known),
        Step::Produce(partition) => state.topic[partition].high += 1,
        Step::Crash(worker) => {
            lane::leave(s, state, worker);
            state.workers[worker] = Worker::default();
        }
        Step::Expel(worker) => {
            state.workers[worker].expelled = true;
            for group in &mut state.group {
                group.owner = group.owner.filter(|owner| usize::from(*owner) != worker);
            }
        }
        Step::Rewind(partition, offset) => {
            state.group[partition].committed = Some(Commit {
                offset,
                ours: false,
                announced: None,
            });
        }
        Step::Expire(partition) => state.group[partition].committed = None,
        Step::Retention(partition) => {
            let low = state.topic[partition].low;
            lose(s, state, partition, low);
            state.topic[partition].low += 1;
        }
        Step::Truncate(partition) => {
            let last = state.topic[partition].high - 1;
            lose(s, state, partition, last);
            state.topic[partition].high = last;
            state.topic[partition].renewed_from = Some(last);
        }
        Step::ForgetClaim(id) => state.redis.claims[id] = None,
        Step::ForgetPermits => {
            state.redis.decided = Default::default();
            state.redis.used = 0;
        }
        Step::ForgetWatermarks => state.redis.applied = Default::default(),
        Step::DropConstraint => state.table.takes_all = true,
        Step::Slide => state.redis.used = 0,
        Step::SwitchLimits => state.limits_off = !state.limits_off,
        _ => unreachable!("{step} is a worker's"),
    }
}

/// A moment passes. Inserts that nobody waits for and that are too old now will never land.
fn tick(s: &Scenario, state: &mut State) {
    state.now += 1;
    if s.has(Guard::InTime) {
        let (now, deadline) = (state.now, s.deadline);
        let lands = |insert: &Insert| insert.waits.is_some() || insert.time + deadline > now;
        state.table.in_flight.retain(lands);
    }
}

/// The topic no longer has a record; one that was not settled is nobody's to settle.
fn lose(s: &Scenario, state: &mut State, partition: usize, offset: Offset) {
    if let Some(record) = s.at(state, partition, offset)
        && offset >= Scenario::committed(state, partition)
    {
        state.taken.insert(record);
    }
}
