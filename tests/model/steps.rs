//! What can happen next. `progress` is what the workers and services do by themselves, `surroundings` what may happen
//! around them, `faults` what goes wrong, each as often as its budget says.

use stateright::{Model, Property};

use crate::guard::Guard;
use crate::lane::{self, At};
use crate::properties;
use crate::scenario::{Fault, Scenario};
use crate::services;
use crate::state::{Commit, Insert, Offset, Remembered, Stage, State};

/// One step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The coordinator assigns a partition, and it starts.
    Assign(At),
    /// A block is cut, decoded and claimed.
    Claim(At, Offset),
    /// Its permits are decided.
    Permit(At),
    /// It is announced; a fresh one is sent to the table.
    Announce(At),
    /// A recovery asks the table, and sends what is missing.
    Ask(At),
    /// A recovery asks the table once more.
    AskAgain(At),
    /// Rejects are acknowledged by Kafka.
    Reject(At),
    /// What is written is remembered; the block is settled.
    Remember(At),
    /// What is settled is committed.
    Advance(At),
    /// A commit that stood still goes on.
    Deliver(At),
    /// An insert lands, or is refused for its age.
    Land(Insert),
    /// An expelled worker joins the group again.
    Rejoin(usize),
    /// A moment passes.
    Tick,
    /// The table forgets a token.
    Forget(Remembered),
    /// The next record of a partition is produced.
    Produce(usize),
    /// A worker dies; a new process takes its place.
    Crash(usize),
    /// The group drops a member that goes on all the same.
    Expel(usize),
    /// A worker gives up waiting for an insert's answer, and sends it again.
    TimeOut(Insert),
    /// One table partition of an insert lands; the rest fails, and is tried again if somebody waits.
    PartLands(Insert, u8),
    /// An operator sets a partition's offset.
    Rewind(usize, Offset),
    /// The broker forgets a partition's offset.
    Expire(usize),
    /// A commit stands still, before or after the committing thread has looked at the epoch.
    Hang(At, Fault),
    /// Retention takes the first record of a partition.
    Retention(usize),
    /// A broker loses the last record of a partition.
    Truncate(usize),
    /// Redis forgets the claim of an id: it expired, or a failover lost it.
    ForgetClaim(usize),
    /// Redis forgets what was decided, and what was charged.
    ForgetPermits,
    /// Redis forgets the watermarks of `remember`.
    ForgetWatermarks,
    /// The window of the rate limit has passed: what was charged is free again.
    Slide,
    /// An operator drops the constraint that refuses rows.
    DropConstraint,
    /// An operator switches the limits on or off.
    SwitchLimits,
}

fn lanes(s: &Scenario) -> impl Iterator<Item = At> {
    let partitions = s.partitions();
    (0..s.workers).flat_map(move |worker| (0..partitions).map(move |partition| At { worker, partition }))
}

/// What workers and services do by themselves. Where there is nothing left to do, all must be settled.
pub(crate) fn progress(s: &Scenario, state: &State, steps: &mut Vec<Step>) {
    for at in lanes(s) {
        let worker = &state.workers[at.worker];
        let group = state.group[at.partition];
        if worker.stuck[at.partition].is_some() {
            steps.push(Step::Deliver(at));
        }
        if group.stopped {
            continue;
        }
        let Some(lane) = &worker.lanes[at.partition] else {
            if group.owner.is_none() && !worker.expelled && is_first_of_its_like(s, state, at.worker) {
                steps.push(Step::Assign(at));
            }
            continue;
        };
        steps.extend(
            lane::cuts(s, state, at)
                .into_iter()
                .map(|end| Step::Claim(at, end)),
        );
        if lane.preparing.as_ref().is_some_and(|block| !block.permitted) {
            steps.push(Step::Permit(at));
        }
        if lane::may_announce(s, state, at) {
            steps.push(Step::Announce(at));
        }
        match lane.settling {
            Some((_, Stage::Ask { .. } | Stage::AskFirst)) => steps.push(Step::Ask(at)),
            Some((_, Stage::AnnounceLast { .. })) => steps.push(Step::Announce(at)),
            Some((_, Stage::AskAgain)) => steps.push(Step::AskAgain(at)),
            _ => {}
        }
        if !lane::due_rejects(state, at).is_empty() {
            steps.push(Step::Reject(at));
        }
        if lane::may_remember(s, state, at) {
            steps.push(Step::Remember(at));
        }
        if lane::may_advance(state, at) {
            steps.push(Step::Advance(at));
        }
    }
    let answered = state
        .table
        .in_flight
        .iter()
        .filter(|insert| insert.waits.is_some());
    steps.extend(answered.map(|&insert| Step::Land(insert)));
    steps.extend(
        (0..s.workers)
            .filter(|&w| state.workers[w].expelled)
            .map(Step::Rejoin),
    );
    if lanes(s).any(|at| lane::waits(s, state, at)) {
        steps.push(Step::Tick);
    }
}

/// Workers that have nothing are alike: only the first of them is assigned something.
fn is_first_of_its_like(s: &Scenario, state: &State, worker: usize) -> bool {
    let same =
        |other: usize| state.workers[other] == state.workers[worker] && s.ahead[other] == s.ahead[worker];
    !(0..worker).any(same)
}

/// What may happen around the workers at any time.
fn surroundings(s: &Scenario, state: &State, steps: &mut Vec<Step>) {
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
fn faults(s: &Scenario, state: &State, steps: &mut Vec<Step>) {
    let left = |fault: Fault| state.faults_left[fault as usize] > 0;
    for worker in 0..s.workers {
        let working = state.workers[worker] != crate::state::Worker::default();
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
        let months = services::months(s, insert);
        if left(Fault::PartLands) && months.len() > 1 && services::in_time(s, state, insert) {
            let open = months
                .iter()
                .filter(|&&month| !services::is_remembered(&state.table, insert, month));
            steps.extend(open.map(|&month| Step::PartLands(insert, month)));
        }
    }
    for at in lanes(s).filter(|&at| lane::may_announce(s, state, at)) {
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
        if left(Fault::Expire) && nobody_owns && committed.is_some() {
            steps.push(Step::Expire(partition));
        }
        let topic = state.topic[partition];
        if left(Fault::Retention) && topic.low < topic.high {
            steps.push(Step::Retention(partition));
        }
        if left(Fault::Truncate) && topic.low < topic.high {
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

/// The budget that a step is taken from.
fn fault_of(step: Step) -> Option<Fault> {
    Some(match step {
        Step::Crash(_) => Fault::Crash,
        Step::Expel(_) => Fault::Expel,
        Step::TimeOut(_) => Fault::TimeOut,
        Step::PartLands(..) => Fault::PartLands,
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

impl Model for Scenario {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        progress(self, state, steps);
        surroundings(self, state, steps);
        faults(self, state, steps);
        steps.sort_by_key(|step| *step == Step::Tick);
        steps.dedup();
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        if let Some(fault) = fault_of(step) {
            // A tick that somebody waits for is taken from the budget too, as long as it lasts.
            let left = &mut state.faults_left[fault as usize];
            *left = left.saturating_sub(1);
        }
        take(self, &mut state, step);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }

    fn format_action(&self, step: &Step) -> String {
        step.to_string()
    }
}

fn take(s: &Scenario, state: &mut State, step: Step) {
    match step {
        Step::Assign(at) => lane::assign(s, state, at),
        Step::Claim(at, end) => lane::claim(s, state, at, end),
        Step::Permit(at) => lane::permit(s, state, at),
        Step::Announce(at) => lane::announce(s, state, at),
        Step::Ask(at) => lane::ask(s, state, at),
        Step::AskAgain(at) => lane::ask_again(s, state, at),
        Step::Reject(at) => lane::reject(state, at),
        Step::Remember(at) => lane::remember(s, state, at),
        Step::Advance(at) => lane::advance(s, state, at),
        Step::Deliver(at) => lane::deliver(s, state, at),
        Step::Land(insert) => lane::land(s, state, insert),
        Step::Rejoin(worker) => lane::rejoin(s, state, worker),
        Step::Hang(at, fault) => lane::hang(s, state, at, fault),
        Step::TimeOut(insert) => lane::time_out(s, state, insert),
        Step::PartLands(insert, month) => services::land_month(s, state, insert, month),
        Step::Tick => tick(s, state),
        Step::Forget(known) => state.table.window.retain(|other| *other != known),
        Step::Produce(partition) => state.topic[partition].high += 1,
        Step::Crash(worker) => {
            lane::leave(s, state, worker);
            state.workers[worker] = crate::state::Worker::default();
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
