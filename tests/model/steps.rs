//! What can happen next: the steps, and those that workers and services take by themselves.

use stateright::{Model, Property};

use crate::faults;
use crate::lane::{self, At};
use crate::properties;
use crate::recover;
use crate::scenario::{Fault, Scenario};
use crate::settle;
use crate::state::{Insert, Offset, Phase, Remembered, State};

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
    /// The server dies with the token of one table partition of an insert noted, and the rows not there.
    TokenOnly(Insert, u8),
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

/// Every worker on every partition.
pub(crate) fn lanes(s: &Scenario) -> impl Iterator<Item = At> {
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
        if settle::may_announce(s, state, at) {
            steps.push(Step::Announce(at));
        }
        match lane.settling {
            Some((_, Phase::Ask { .. } | Phase::AskFirst)) => steps.push(Step::Ask(at)),
            Some((_, Phase::AnnounceLast { .. })) => steps.push(Step::Announce(at)),
            Some((_, Phase::AskAgain { .. })) => steps.push(Step::AskAgain(at)),
            _ => {}
        }
        if !settle::due_rejects(state, at).is_empty() {
            steps.push(Step::Reject(at));
        }
        if settle::may_remember(s, state, at) {
            steps.push(Step::Remember(at));
        }
        if settle::may_advance(state, at) {
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
    if lanes(s).any(|at| settle::waits(s, state, at)) {
        steps.push(Step::Tick);
    }
}

/// Workers that have nothing are alike: only the first of them is assigned something.
fn is_first_of_its_like(s: &Scenario, state: &State, worker: usize) -> bool {
    let same =
        |other: usize| state.workers[other] == state.workers[worker] && s.ahead[other] == s.ahead[worker];
    !(0..worker).any(same)
}

impl Model for Scenario {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        progress(self, state, steps);
        faults::surroundings(self, state, steps);
        faults::faults(self, state, steps);
        steps.sort_by_key(|step| *step == Step::Tick);
        steps.dedup();
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        if let Some(fault) = faults::fault_of(step) {
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
        Step::Announce(at) => settle::announce(s, state, at),
        Step::Ask(at) => recover::ask(s, state, at),
        Step::AskAgain(at) => recover::ask_again(s, state, at),
        Step::Reject(at) => settle::reject(state, at),
        Step::Remember(at) => settle::remember(s, state, at),
        Step::Advance(at) => settle::advance(s, state, at),
        Step::Deliver(at) => settle::deliver(s, state, at),
        Step::Land(insert) => settle::land(s, state, insert),
        Step::Rejoin(worker) => lane::rejoin(s, state, worker),
        Step::Hang(at, fault) => settle::hang(s, state, at, fault),
        Step::TimeOut(insert) => settle::time_out(s, state, insert),
        _ => faults::take(s, state, step),
    }
}
