//! How a block is settled: announce, write and reject, remember, advance. A step a function, in the order of the data
//! path.

use crate::guard::{Guard, Remedy};
use crate::lane::{At, drop_lane, lane, lane_mut};
use crate::scenario::{Fault, Scenario};
use crate::services::{self, Ended};
use crate::state::{Announcement, Attempt, Block, Commit, Insert, Phase, Set, State, Stuck, Time, Token};

pub(crate) fn settling(state: &mut State, at: At) -> (&mut Block, &mut Phase) {
    let (block, phase) = lane_mut(state, at).settling.as_mut().expect("a block");
    (block, phase)
}

/// Whether a block can be announced now.
pub(crate) fn may_announce(s: &Scenario, state: &State, at: At) -> bool {
    announces(state, at).is_some_and(|block| clock(s, state, at) >= waits_until(s, block))
}

/// Whether a block stands still until a later time.
pub(crate) fn waits(s: &Scenario, state: &State, at: At) -> bool {
    let lane = lane(state, at);
    lane.is_some_and(|lane| lane.not_before > state.now)
        || announces(state, at).is_some_and(|block| clock(s, state, at) < waits_until(s, block))
}

/// The worker's clock.
pub(crate) fn clock(s: &Scenario, state: &State, at: At) -> Time {
    state.now + s.ahead[at.worker]
}

/// The block that is announced next.
fn announces(state: &State, at: At) -> Option<&Block> {
    let lane = lane(state, at)?;
    match &lane.settling {
        Some((block, Phase::Announce)) => Some(block),
        Some(_) => None,
        None => lane.preparing.as_ref().filter(|block| block.permitted),
    }
}

/// A block whose records changed since it was announced waits: `recovery::wait_out_a_lost_announcement`.
fn waits_until(s: &Scenario, block: &Block) -> Time {
    let lost = block
        .announced
        .filter(|a| a.digest != block.records && s.has(Guard::WaitOutLost));
    block
        .given_up
        .1
        .max(lost.map_or(0, |announced| announced.time + 2 * s.deadline))
}

/// The next block is taken, if none is under way.
fn take(s: &Scenario, state: &mut State, at: At) {
    let lane = lane_mut(state, at);
    if lane.settling.is_none() {
        let block = lane.preparing.take().expect("a block");
        lane.settling = Some((block, Phase::Announce));
    }
    let (block, phase) = settling(state, at);
    if block.attempt == Attempt::Recovery && !s.has(Guard::TimeBeforeQuery) && *phase == Phase::Announce {
        *phase = Phase::AskFirst;
    }
}

/// A block is announced with the present time: `pipeline/announce.rs`, `kafka/committer.rs`. A fresh one is sent.
pub(crate) fn announce(s: &Scenario, state: &mut State, at: At) {
    take(s, state, at);
    if settling(state, at).1 == &Phase::AskFirst {
        return;
    }
    let commit = announcement(s, state, at);
    announce_as(s, state, at, commit);
}

fn announcement(s: &Scenario, state: &mut State, at: At) -> Commit {
    let time = clock(s, state, at);
    let (block, _) = settling(state, at);
    if block.attempt == Attempt::Fresh && s.views {
        block.first = Some(time);
    }
    Commit {
        offset: block.start,
        ours: true,
        announced: Some(Announcement {
            end: block.end,
            digest: block.records,
            time,
            unlimited: block.unlimited,
            first: block.first,
            given_up: block.given_up.0,
        }),
    }
}

fn announce_as(s: &Scenario, state: &mut State, at: At, commit: Commit) {
    if s.has(Guard::Announcement) && !committed(s, state, at, commit) {
        return;
    }
    announced(s, state, at, commit.announced.expect("an announcement"));
}

/// The announcement is acknowledged.
fn announced(s: &Scenario, state: &mut State, at: At, announcement: Announcement) {
    let time = announcement.time;
    let (block, phase) = settling(state, at);
    match *phase {
        Phase::AnnounceLast { present } => send(s, state, at, time, present),
        _ if block.attempt == Attempt::Recovery => *phase = Phase::Ask { time },
        _ => send(s, state, at, time, Set::default()),
    }
}

/// The broker judges a commit by the member alone. Answers whether it was taken; if not, the lane is gone.
fn committed(s: &Scenario, state: &mut State, at: At, commit: Commit) -> bool {
    if state.workers[at.worker].expelled {
        drop_lane(s, state, at);
        return false;
    }
    state.group[at.partition].committed = Some(commit);
    lane_mut(state, at).acknowledged = commit.offset;
    true
}

/// The commit of an announcement stands still on its way; or it is refused for its generation, and sent again.
pub(crate) fn hang(s: &Scenario, state: &mut State, at: At, fault: Fault) {
    take(s, state, at);
    let commit = announcement(s, state, at);
    *settling(state, at).1 = Phase::Announcing;
    state.workers[at.worker].stuck[at.partition] = Some(Stuck {
        commit,
        past_guard: fault == Fault::HangAfterGuard,
    });
}

/// A commit that stood still goes on: the committing thread looks at the epoch, if it has not, and the broker at the
/// member.
pub(crate) fn deliver(s: &Scenario, state: &mut State, at: At) {
    let stuck = state.workers[at.worker].stuck[at.partition]
        .take()
        .expect("a commit");
    let waits = lane(state, at).is_some_and(|lane| matches!(lane.settling, Some((_, Phase::Announcing))));
    if waits {
        announce_as(s, state, at, stuck.commit);
    } else if (stuck.past_guard || !s.has(Guard::Epoch))
        && !state.workers[at.worker].expelled
        && !s.also(Remedy::LeaveWhenStuck)
    {
        state.group[at.partition].committed = Some(stuck.commit);
    }
}

/// The first insert of an announcement is sent, for what passed and is not there.
pub(crate) fn send(s: &Scenario, state: &mut State, at: At, time: Time, present: Set) {
    let pass = settling(state, at).0.pass;
    if !s.has(Guard::RememberAcknowledged) {
        services::remember(s, state, at.partition, pass);
    }
    insert(s, state, at, pass - present, (time, 0));
}

/// An insert is sent, without the rows that the table refuses for good: trial inserts find them. `pipeline/write.rs`
pub(crate) fn insert(s: &Scenario, state: &mut State, at: At, rows: Set, (time, number): (Time, u8)) {
    let refused = services::refused(s, &state.table, rows);
    let rows = rows - refused;
    let (block, phase) = settling(state, at);
    block.refused = block.refused | refused;
    block.pass = block.pass - refused;
    *phase = Phase::Write { time, number };
    if rows.is_empty() {
        return acknowledged(state, at);
    }
    let token = Token {
        partition: at.partition as u8,
        start: block.start,
        end: block.end,
        digest: block.records,
        number: block.given_up.0 + number,
        salt: if s.has(Guard::SameToken) || block.attempt != Attempt::Recovery {
            0
        } else {
            time + 1
        },
    };
    let waits = Some((at.worker as u8, at.partition as u8));
    state.table.in_flight.push(Insert {
        token,
        time,
        rows,
        waits,
    });
    state.table.in_flight.sort_unstable();
}

/// An insert ends; who waits for it hears how.
pub(crate) fn land(s: &Scenario, state: &mut State, insert: Insert) {
    let ended = services::land(s, state, insert);
    if let Some((worker, partition)) = insert.waits {
        let at = At {
            worker: worker.into(),
            partition: partition.into(),
        };
        match ended {
            Ended::Acknowledged => acknowledged(state, at),
            Ended::Refused => stale(state, at),
        }
    }
}

/// The client gives an insert up, and sends it again if it is not too old: `pipeline/write.rs`. The first may still
/// land.
pub(crate) fn time_out(s: &Scenario, state: &mut State, insert: Insert) {
    doubt(state, insert);
    let Some((worker, partition)) = insert.waits else {
        return;
    };
    let at = At {
        worker: worker.into(),
        partition: partition.into(),
    };
    state.table.in_flight.retain(|other| *other != insert);
    state.table.in_flight.push(Insert {
        waits: None,
        ..insert
    });
    if clock(s, state, at) >= insert.time + s.deadline {
        stale(state, at);
    } else {
        state.table.in_flight.push(insert);
    }
    state.table.in_flight.sort_unstable();
}

/// The insert is acknowledged. Where that may be for its token alone, it is looked after.
fn acknowledged(state: &mut State, at: At) {
    let (block, phase) = settling(state, at);
    *phase = match *phase {
        Phase::Write { time, number } if block.attempt != Attempt::Fresh => Phase::AskAgain { time, number },
        _ => Phase::Finish,
    };
}

/// An attempt at an insert ends nobody knows how.
pub(crate) fn doubt(state: &mut State, insert: Insert) {
    if let Some((worker, partition)) = insert.waits {
        let at = At {
            worker: worker.into(),
            partition: partition.into(),
        };
        let (block, _) = settling(state, at);
        if block.attempt == Attempt::Fresh {
            block.attempt = Attempt::Doubtful;
        }
    }
}

/// The announcement is too old: the block is recovered. The rejects of a fresh one were sent meanwhile.
pub(crate) fn stale(state: &mut State, at: At) {
    let (block, phase) = settling(state, at);
    *phase = Phase::Announce;
    let fresh = block.attempt != Attempt::Recovery;
    block.attempt = Attempt::Recovery;
    if fresh {
        let block = block.clone();
        send_rejects(state, at, block.over | block.bad);
    }
}

/// The rejects that can be sent now: of a fresh block at once, of a recovered one at its end; `pipeline/reject.rs`.
pub(crate) fn due_rejects(state: &State, at: At) -> Set {
    let Some((block, phase)) = lane(state, at).and_then(|lane| lane.settling.as_ref()) else {
        return Set::default();
    };
    let due = match phase {
        Phase::Finish => block.over | block.bad | block.refused,
        Phase::AskAgain { .. } => block.refused,
        Phase::Write { .. } if block.attempt != Attempt::Recovery => block.over | block.bad,
        _ => Set::default(),
    };
    due - block.rejected
}

/// Rejects are sent and acknowledged.
pub(crate) fn reject(state: &mut State, at: At) {
    let due = due_rejects(state, at);
    send_rejects(state, at, due);
}

fn send_rejects(state: &mut State, at: At, due: Set) {
    let (block, _) = settling(state, at);
    block.rejected = block.rejected | due;
    let over = due & block.over;
    state.overflow = state.overflow | over;
    state.dead_letters = state.dead_letters | (due - over);
}

/// Whether a block is done but for what is remembered of it.
pub(crate) fn may_remember(s: &Scenario, state: &State, at: At) -> bool {
    let finished = lane(state, at).is_some_and(|lane| matches!(lane.settling, Some((_, Phase::Finish))));
    finished && (due_rejects(state, at).is_empty() || !s.has(Guard::RejectsBeforeAdvance))
}

/// What is written is remembered, and the block is settled: `pipeline/remember.rs`, `pipeline/frontier.rs`.
pub(crate) fn remember(s: &Scenario, state: &mut State, at: At) {
    let (block, _) = lane_mut(state, at).settling.take().expect("a block");
    lane_mut(state, at).settled = block.end;
    if s.has(Guard::RememberAcknowledged) {
        services::remember(s, state, at.partition, block.pass);
    }
}

/// Whether something is settled that no announcement is about to commit.
pub(crate) fn may_advance(state: &State, at: At) -> bool {
    lane(state, at).is_some_and(|lane| {
        let next = lane.preparing.as_ref().is_some_and(|block| block.permitted);
        lane.settling.is_none() && lane.settled > lane.acknowledged && !next
    })
}

/// What is settled is committed.
pub(crate) fn advance(s: &Scenario, state: &mut State, at: At) {
    let commit = Commit {
        offset: lane_mut(state, at).settled,
        ours: true,
        announced: None,
    };
    committed(s, state, at, commit);
}
