//! The guards of the protocol: each may be taken out, alone, and then something must go wrong somewhere. The numbers
//! are those of the design's points.

/// A part of the protocol that a test takes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Guard {
    /// 7: a block is announced before it is written. `pipeline/announce.rs`
    Announcement,
    /// 3: an announced block is cut exactly as announced. `kafka/intake.rs`
    ExactCut,
    /// 7: nothing is committed for a partition that is not owned in the epoch of the block. `kafka/committer.rs`
    Epoch,
    /// 8, 10: the token is made of the announcement, the same at every attempt. `pipeline/write.rs`
    SameToken,
    /// 10: before a recovery writes, it asks what is there. `pipeline/recovery.rs`
    FirstQuery,
    /// 10: the new time is announced before that question, not after. `pipeline/recovery.rs`
    TimeBeforeQuery,
    /// 10: after a recovery has written, it asks again. `pipeline/recovery.rs`
    SecondQuery,
    /// An acknowledgement that may be for the token alone is looked after. `pipeline/complete.rs`
    Completion,
    /// 9: the table refuses what is too old. `clickhouse/schema.rs`
    InTime,
    /// 9: the table remembers tokens for two deadlines, not for one. `clickhouse/schema.rs`, `sluice check`
    Window,
    /// 2: a block at or below the highest offset in the table is a recovery. `pipeline/mod.rs`, `pipeline/lane.rs`
    Highest,
    /// 5: a claim's value is the record's coordinate. `claim/mod.rs`
    ClaimIsCoordinate,
    /// 5: a claim is never given back. `claim/mod.rs`
    ClaimStays,
    /// 15: a replay takes over the claim. `claim/takeover.lua`
    TakeOver,
    /// 15: and only that of the coordinate that it was rejected at. `claim/takeover.lua`
    TakeOverIsExact,
    /// 6: permits are decided once and remembered. `permit.lua`
    RememberedPermits,
    /// A call with an older commit than Redis knows is stale: nothing is answered from what is kept for later offsets.
    /// `permit.lua`
    StaleAnswer,
    /// And who gets this answer insists only if Kafka says that the offsets were rewound. `pipeline/permit.rs`
    InsistOnlyIfRewound,
    /// An announcement says whether permits were asked for. `kafka/metadata.rs`, `pipeline/permit.rs`
    UnlimitedAnnounced,
    /// 4: decoding judges by the record alone. `event/decode.rs`
    PureDecode,
    /// 13: counters have a watermark. `remember_token.lua`
    Watermark,
    /// 13: only what is acknowledged is remembered. `pipeline/mod.rs`
    RememberAcknowledged,
    /// 14: a block is settled once its rejects are acknowledged too. `pipeline/mod.rs`
    RejectsBeforeAdvance,
    /// 11: where the records changed, inserts of the old announcement are waited out. `pipeline/recovery.rs`
    WaitOutLost,
    /// An announced block that the topic does not reach stops the partition. `kafka/intake.rs`, `kafka/position.rs`
    StopAtShortEnd,
}

/// What the code does not do, and would have to do for more than it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Remedy {
    /// A recovery stops if any row is of another record.
    StopAtOtherRows,
    /// A worker whose commit hangs comes back as a new member, whose old commits the broker refuses.
    LeaveWhenStuck,
    /// Rows that the table lost with their token noted are written under another token only after an announcement of
    /// it, once nothing under the first can land.
    AnnounceOtherToken,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::counterexample;
    use crate::properties::*;
    use crate::scenario::Scenario;
    use crate::scenarios::{Size::Small, *};

    #[test]
    fn no_guard_can_be_taken_out() {
        let cases: Vec<(Guard, Scenario, &'static str)> = vec![
            (Guard::Announcement, crash(Small), NO_RECORD_TWICE),
            (Guard::ExactCut, crash(Small), NO_RECORD_TWICE),
            (Guard::Epoch, zombie(Small), NO_RECORD_TWICE),
            (Guard::SameToken, crash(Small), NO_RECORD_TWICE),
            (Guard::FirstQuery, crash(Small), NO_RECORD_TWICE),
            (Guard::TimeBeforeQuery, crash(Small), NO_RECORD_TWICE),
            (Guard::SecondQuery, forgetful_permits(Small), NOTHING_LOST),
            (Guard::Completion, server_dies(Small), NOTHING_LOST),
            (Guard::InTime, crash(Small), NO_RECORD_TWICE),
            (Guard::Window, clock_ahead(Small), NO_RECORD_TWICE),
            (Guard::Highest, rewind(Small), NO_RECORD_TWICE),
            (Guard::ClaimIsCoordinate, crash(Small), NOTHING_LOST),
            (Guard::ClaimStays, duplicates(Small), NO_EVENT_TWICE),
            (Guard::TakeOver, replay(Small), NOTHING_LOST),
            (Guard::TakeOverIsExact, replay(Small), NO_EVENT_TWICE),
            (Guard::RememberedPermits, limits(Small), ONE_OUTCOME),
            (Guard::StaleAnswer, rewind_with_limits(Small), LIMIT),
            (
                Guard::InsistOnlyIfRewound,
                zombie_with_limits(Small),
                CHARGED_ONCE,
            ),
            (Guard::UnlimitedAnnounced, limits_switched(Small), ONE_OUTCOME),
            (Guard::PureDecode, crash(Small), ONE_OUTCOME),
            (Guard::Watermark, crash(Small), COUNTED_ONCE),
            (Guard::RememberAcknowledged, dead_letters(Small), COUNTED_ONCE),
            (Guard::RejectsBeforeAdvance, dead_letters(Small), NOTHING_LOST),
            (Guard::WaitOutLost, retention(Small), NO_RECORD_TWICE),
            (Guard::StopAtShortEnd, truncation(Small), NOTHING_LOST),
        ];
        for (guard, scenario, property) in cases {
            let story = counterexample(&scenario.clone().without(guard), property);
            println!(
                "without {guard:?}, in {:?}: not so that {property}\n{story}",
                scenario.name
            );
        }
    }
}
