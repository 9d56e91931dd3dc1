//! The two questions of a recovery, and what is done about their answers.

use crate::guard::{Guard, Remedy};
use crate::lane::{At, stop};
use crate::scenario::Scenario;
use crate::services;
use crate::settle::{clock, insert, send, settling, stale};
use crate::state::{Attempt, Phase, Set, State};

/// A recovery asks what the table has, and sends what is missing: `pipeline/recovery.rs`, `pipeline/write.rs`.
pub(crate) fn ask(s: &Scenario, state: &mut State, at: At) {
    let block = settling(state, at).0.clone();
    let records = block.records;
    let of_others = |record: usize| state.table.rows[record] == 0;
    if s.also(Remedy::StopAtOtherRows) && services::present(s, &state.table, records).iter().any(of_others) {
        return stop(s, state, at);
    }
    // Where views stand behind the table, a young block is sent again whole: `recovery::Partition::sends`.
    let is_young = |first| clock(s, state, at) < first + s.deadline;
    let present = if block.first.is_some_and(is_young) || !s.has(Guard::FirstQuery) {
        Set::default()
    } else {
        services::present(s, &state.table, records)
    };
    match *settling(state, at).1 {
        Phase::Ask { time } => send(s, state, at, time, present),
        _ => *settling(state, at).1 = Phase::AnnounceLast { present },
    }
}

/// Tokens of one announcement: the code has four beyond the first.
const MOST_TOKENS: u8 = 2;

/// The table is asked again. What was acknowledged and is nowhere, nor anything of the block in its month, is written
/// under a token of its own: `pipeline/complete.rs`. At last, of a recovery, what is there is written, and what passed
/// and is not there was decided otherwise: `pipeline/recovery.rs`.
pub(crate) fn ask_again(s: &Scenario, state: &mut State, at: At) {
    let block = settling(state, at).0.clone();
    let present = services::present(s, &state.table, block.records) - block.bad;
    let inhabited = |r: usize| {
        present
            .iter()
            .any(|other| s.records[other].month == s.records[r].month)
    };
    let lost: Set = block.pass.iter().filter(|&r| !inhabited(r)).collect();
    if let Phase::AskAgain { time, number } = *settling(state, at).1
        && !lost.is_empty()
        && number + block.given_up.0 < MOST_TOKENS
        && s.has(Guard::Completion)
    {
        if s.also(Remedy::AnnounceOtherToken) {
            settling(state, at).0.given_up = (number + block.given_up.0 + 1, time + 2 * s.deadline);
            return stale(state, at);
        }
        if clock(s, state, at) >= time + s.deadline {
            return stale(state, at);
        }
        return insert(s, state, at, lost, (time, number + 1));
    }
    let (block, phase) = settling(state, at);
    *phase = Phase::Finish;
    if block.attempt == Attempt::Recovery && s.has(Guard::SecondQuery) {
        block.over = (block.over | block.pass) - present;
        block.refused = block.refused - present;
        block.pass = present;
    }
}
