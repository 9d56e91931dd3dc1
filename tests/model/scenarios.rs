//! The scenarios: each a few records and a few faults, chosen so that one part of the protocol is under strain. The
//! small ones run with every `make test`, the large ones with `make prove`.

use crate::scenario::{Fault, Kind, Record, Scenario};

/// How far a scenario goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
}

impl Size {
    fn of(self, small: u8, large: u8) -> u8 {
        match self {
            Self::Small => small,
            Self::Large => large,
        }
    }
}

/// All of them.
pub(crate) fn all(size: Size) -> Vec<Scenario> {
    [
        crash,
        server_dies,
        zombie,
        zombie_with_limits,
        takeover_midway,
        views,
        server_with_views_dies,
        clock_ahead,
        duplicates,
        limits,
        limits_switched,
        dead_letters,
        replay,
        rewind,
        rewind_with_limits,
        expired,
        retention,
        truncation,
        forgetful_permits,
        forgetful_claims,
    ]
    .map(|scenario| scenario(size))
    .to_vec()
}

/// A worker dies at every step; answers are lost, inserts land late, or only in one month.
pub(crate) fn crash(size: Size) -> Scenario {
    let mut scenario = Scenario::new("crash").record(0, 0, 0).record(0, 1, 1);
    if size == Size::Large {
        scenario = scenario.record(0, 2, 0);
    }
    scenario
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::TimeOut, 1)
        .fault(Fault::PartLands, size.of(0, 1))
        .fault(Fault::Tick, 2)
}

/// The table's server dies with a token noted, and without the rows; it does not forget the token before the block is
/// settled.
pub(crate) fn server_dies(size: Size) -> Scenario {
    let scenario = Scenario {
        window: 9,
        ..Scenario::new("server dies")
    };
    scenario
        .record(0, 0, 0)
        .record(0, 1, 1)
        .workers(size.of(1, 2).into())
        .fault(Fault::TokenOnly, 1)
        .fault(Fault::Crash, 1)
        .fault(Fault::Expel, size.of(0, 1))
        .fault(Fault::TimeOut, size.of(0, 1))
        .fault(Fault::Tick, size.of(0, 3))
}

/// A worker is thrown out of the group, goes on, and comes back; a commit of it hangs.
pub(crate) fn zombie(size: Size) -> Scenario {
    Scenario::new("zombie")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .workers(2)
        .fault(Fault::Expel, 1)
        .fault(Fault::Crash, 1)
        .fault(Fault::HangBeforeGuard, 1)
        .fault(Fault::Tick, size.of(0, 2))
}

/// A worker that was thrown out goes on asking for permits.
pub(crate) fn zombie_with_limits(size: Size) -> Scenario {
    Scenario::new("zombie with limits")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .limit(3, 0)
        .workers(2)
        .fault(Fault::Expel, size.of(1, 2))
        .fault(Fault::Crash, size.of(0, 1))
}

/// Recovery upon recovery: whoever recovers is replaced midway, while the one before still inserts under the old time.
pub(crate) fn takeover_midway(size: Size) -> Scenario {
    Scenario::new("takeover midway")
        .record(0, 0, 0)
        .record(0, 1, 1)
        .workers(size.of(2, 3).into())
        .fault(Fault::Expel, size.of(1, 2))
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::Tick, 1)
}

/// Views stand behind the table, so that a young block is sent again whole.
pub(crate) fn views(size: Size) -> Scenario {
    let scenario = Scenario {
        views: true,
        ..Scenario::new("views")
    };
    scenario
        .record(0, 0, 0)
        .record(0, 1, 1)
        .workers(size.of(1, 2).into())
        .fault(Fault::Crash, 1)
        .fault(Fault::TimeOut, 1)
        .fault(Fault::Expel, size.of(0, 1))
        .fault(Fault::Tick, size.of(2, 3))
}

/// The same, and the table's server dies with a token noted, and without the rows.
pub(crate) fn server_with_views_dies(size: Size) -> Scenario {
    Scenario {
        name: "server with views dies",
        views: true,
        ..server_dies(size)
    }
}

/// One worker's clock is ahead of the server's, by less than the deadline.
pub(crate) fn clock_ahead(size: Size) -> Scenario {
    let scenario = Scenario {
        deadline: 2,
        window: 4,
        ahead: [1, 0, 0],
        ..Scenario::new("clock ahead")
    };
    scenario
        .record(0, 0, 0)
        .record(0, 1, 0)
        .workers(size.of(1, 2).into())
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::Tick, size.of(5, 6))
}

/// The same event in two partitions, and twice in one.
pub(crate) fn duplicates(size: Size) -> Scenario {
    let scenario = Scenario::new("duplicates").record(0, 0, 0).record(1, 0, 0);
    match size {
        Size::Small => scenario.workers(2).fault(Fault::Expel, 1),
        Size::Large => scenario
            .record(0, 0, 0)
            .workers(2)
            .fault(Fault::Crash, 1)
            .fault(Fault::Expel, 1)
            .fault(Fault::TimeOut, 1),
    }
}

/// More events than the limit, in two partitions.
pub(crate) fn limits(size: Size) -> Scenario {
    let scenario = Scenario::new("limits")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .record(1, 2, 0);
    scenario
        .limit(2, 0)
        .workers(size.of(1, 2).into())
        .fault(Fault::Crash, size.of(1, 0))
        .fault(Fault::Expel, size.of(0, 1))
        .fault(Fault::TimeOut, size.of(0, 1))
}

/// Limits are switched on or off while blocks are under way.
pub(crate) fn limits_switched(size: Size) -> Scenario {
    let scenario = Scenario::new("limits switched").record(0, 0, 0).record(0, 1, 0);
    scenario
        .limit(1, 0)
        .fault(Fault::SwitchLimits, size.of(1, 2))
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::TimeOut, 1)
        .fault(Fault::Tick, size.of(0, 1))
}

/// A record that is no event, and a row that the table refuses for good.
pub(crate) fn dead_letters(size: Size) -> Scenario {
    Scenario::new("dead letters")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .but(|record| record.kind = Kind::Refused)
        .record(0, 2, 0)
        .but(|record| record.kind = Kind::Bad)
        .block(size.of(2, 3))
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::TimeOut, 1)
        .fault(Fault::Tick, 1)
}

/// An event over the limit is replayed, twice, as soon as it is in the overflow topic: also before its own block is
/// settled.
pub(crate) fn replay(size: Size) -> Scenario {
    let replays = |record: &mut Record| (record.replays, record.later) = (Some(0), true);
    let scenario = Scenario::new("replay")
        .record(0, 0, 0)
        .record(1, 0, 0)
        .but(replays)
        .record(1, 0, 0)
        .but(replays);
    scenario
        .limit(1, 1)
        .workers(size.of(1, 2).into())
        .fault(Fault::SwitchLimits, 1)
        .fault(Fault::Crash, 1)
        .fault(Fault::Expel, size.of(0, 1))
}

/// An operator sets the offset back.
pub(crate) fn rewind(size: Size) -> Scenario {
    Scenario::new("rewind")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .workers(size.of(1, 2).into())
        .fault(Fault::Rewind, 1)
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::Expel, size.of(0, 1))
        .fault(Fault::TimeOut, size.of(0, 1))
}

/// An operator sets the offset back, where some events were over the limit, and the limit's window has passed since.
pub(crate) fn rewind_with_limits(size: Size) -> Scenario {
    Scenario::new("rewind with limits")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .limit(1, 1)
        .fault(Fault::Rewind, 1)
        .fault(Fault::Slide, 1)
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::TimeOut, size.of(0, 1))
        .fault(Fault::Tick, size.of(0, 1))
}

/// The broker forgets the committed offset: not while the very first insert of the partition is on its way.
pub(crate) fn expired(size: Size) -> Scenario {
    Scenario::new("expired offsets")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .workers(size.of(1, 2).into())
        .fault(Fault::Expire, 1)
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::Expel, size.of(0, 1))
}

/// Retention takes records under an announcement.
pub(crate) fn retention(size: Size) -> Scenario {
    Scenario::new("retention")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .workers(size.of(1, 2).into())
        .fault(Fault::Retention, size.of(1, 2))
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::Expel, size.of(0, 1))
        .fault(Fault::Tick, 1)
}

/// A broker loses the end of a partition, and other records come in its place.
pub(crate) fn truncation(size: Size) -> Scenario {
    Scenario::new("truncation")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .record(0, 2, 0)
        .but(|record| (record.offset, record.renewed) = (1, true))
        .workers(size.of(1, 2).into())
        .fault(Fault::Truncate, 1)
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::Expel, size.of(0, 1))
        .fault(Fault::TimeOut, size.of(0, 1))
        .fault(Fault::Tick, size.of(0, 2))
}

/// Redis forgets which events passed and how many.
pub(crate) fn forgetful_permits(size: Size) -> Scenario {
    Scenario::new("Redis forgets permits")
        .record(0, 0, 0)
        .record(0, 1, 0)
        .limit(2, 1)
        .fault(Fault::ForgetPermits, 1)
        .fault(Fault::ForgetWatermarks, size.of(0, 1))
        .fault(Fault::Crash, size.of(1, 2))
        .fault(Fault::TimeOut, size.of(0, 1))
        .fault(Fault::Tick, size.of(0, 1))
}

/// Redis forgets whose an event is.
pub(crate) fn forgetful_claims(size: Size) -> Scenario {
    let scenario = Scenario::new("Redis forgets claims")
        .record(0, 0, 0)
        .record(1, 0, 0);
    match size {
        Size::Small => scenario,
        Size::Large => scenario.record(0, 1, 0),
    }
    .fault(Fault::ForgetClaims, size.of(1, 2))
    .fault(Fault::Crash, 1)
    .fault(Fault::TimeOut, size.of(0, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{circle, run};

    /// No run goes round in circles.
    fn ends(scenarios: &[Scenario], most: usize) {
        for scenario in scenarios {
            let (found, states) = circle(scenario, most);
            println!("{:<24} {states:>10} states without a circle", scenario.name);
            assert!(!found, "{} goes round in a circle", scenario.name);
        }
    }

    #[test]
    fn every_scenario_holds() {
        run(&all(Size::Small));
    }

    #[test]
    fn every_run_ends() {
        ends(&all(Size::Small), usize::MAX);
    }

    #[test]
    #[ignore = "minutes: `make prove`"]
    fn every_scenario_holds_within_larger_bounds() {
        run(&all(Size::Large));
    }

    #[test]
    #[ignore = "minutes: `make prove`"]
    fn every_run_ends_within_larger_bounds() {
        ends(&all(Size::Large), 300_000);
    }
}
