//! The scenarios.

use crate::scenario::{Fault, Scenario};

/// Two records of two months in one partition; crashes, lost answers, parts that land.
pub(crate) fn crash() -> Scenario {
    Scenario::new("crash")
        .record(0, 0, 0)
        .record(0, 1, 1)
        .fault(Fault::Crash, 2)
        .fault(Fault::TimeOut, 1)
        .fault(Fault::PartLands, 1)
        .fault(Fault::Tick, 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;
    use crate::guard::Guard;

    #[test]
    fn every_scenario_holds() {
        let verdict = check(&crash(), 2);
        println!("{verdict:?}");
        assert!(verdict.broken.is_none(), "{}", verdict.broken.unwrap().1);
    }

    #[test]
    fn without_a_guard() {
        for guard in [
            Guard::Announcement,
            Guard::SameToken,
            Guard::ExactCut,
            Guard::FirstQuery,
            Guard::TimeBeforeQuery,
            Guard::InTime,
        ] {
            let verdict = check(&crash().without(guard), 1);
            println!(
                "{guard:?} {} {}",
                verdict.states,
                verdict.broken.map_or(String::new(), |(p, s)| format!("{p}\n{s}"))
            );
        }
    }
}
