//! Questions that the model was asked, and its answers.

use crate::check::{counterexample, holds};
use crate::guard::Remedy;
use crate::properties::*;
use crate::scenario::{Fault, Scenario, WaitAtStart};
use crate::scenarios::Size::Small;
use crate::scenarios::*;

fn tells(question: &str, scenario: &Scenario, property: &'static str) {
    let story = counterexample(scenario, property);
    println!("{question}\n{}: not so that {property}\n{story}", scenario.name);
}

#[test]
fn offsets_that_were_set_back_while_an_insert_is_on_its_way() {
    use WaitAtStart::*;
    for wait in [Never, IfRows, IfRowsAskAgain] {
        tells(
            &format!("rewound: {wait:?}"),
            &rewind(Small).wait_at_start(wait),
            NO_RECORD_TWICE,
        );
    }
    for wait in [IfForeignOrRows, UnlessOurs] {
        holds(&rewind(Small).wait_at_start(wait));
    }
}

#[test]
fn offsets_that_are_gone_while_an_insert_is_on_its_way() {
    use WaitAtStart::*;
    for wait in [Never, IfRows] {
        tells(
            &format!("expired: {wait:?}"),
            &expired(Small).wait_at_start(wait),
            NO_RECORD_TWICE,
        );
    }
    for wait in [IfRowsAskAgain, IfForeignOrRows] {
        holds(&expired(Small).wait_at_start(wait));
    }
    // Not even the first insert ever has landed.
    let at_once = Scenario {
        no_excuse: true,
        ..expired(Small)
    };
    tells("gone at once", &at_once, NO_RECORD_TWICE);
    holds(&at_once.wait_at_start(UnlessOurs));
}

#[test]
fn records_that_come_in_the_place_of_lost_ones_whose_rows_landed() {
    let scenario = Scenario {
        no_excuse: true,
        ..truncation(Small)
    };
    tells("other records under an announcement", &scenario, NOTHING_LOST);
    holds(&scenario.with(Remedy::StopAtOtherRows));
}

#[test]
fn an_insert_acknowledged_for_the_token_that_somebody_else_lost() {
    let scenario = Scenario {
        window: 9,
        ..Scenario::new("counted early")
    };
    let scenario = scenario
        .record(0, 0, 0)
        .workers(2)
        .fault(Fault::Expel, 1)
        .fault(Fault::TokenOnly, 1);
    let promised = Scenario {
        no_excuse: true,
        ..scenario.clone()
    };
    tells("a row is counted before it is there", &promised, COUNTED_ONCE);
    // It comes there before the group goes past it.
    holds(&scenario);
}

#[test]
fn a_commit_that_hangs_after_the_look_at_the_epoch() {
    let scenario = zombie(Small)
        .fault(Fault::HangBeforeGuard, 0)
        .fault(Fault::HangAfterGuard, 1);
    tells(
        "a commit that hangs after the look at the epoch",
        &scenario,
        NO_RECORD_TWICE,
    );
    holds(&scenario.with(Remedy::LeaveWhenStuck));
}

#[test]
fn a_token_that_is_forgotten_after_its_rows_were_lost() {
    let scenario = Scenario::new("one lost row")
        .record(0, 0, 0)
        .fault(Fault::TokenOnly, 1)
        .fault(Fault::TimeOut, 1)
        .fault(Fault::Tick, 2);
    tells(
        "another token at once, while the first can be forgotten",
        &scenario,
        NO_RECORD_TWICE,
    );
    holds(&scenario.with(Remedy::AnnounceOtherToken));
}

#[test]
fn a_claim_that_expires_while_its_block_is_not_settled() {
    let scenario = Scenario {
        no_excuse: true,
        ..forgetful_claims(Small)
    };
    tells("a claim that expires", &scenario, NO_EVENT_TWICE);
    holds(&forgetful_claims(Small));
}

#[test]
fn a_constraint_dropped_after_its_dead_letter() {
    let scenario = dead_letters(Small).fault(Fault::DropConstraint, 1);
    tells("a constraint is dropped", &scenario, ONE_OUTCOME);
}

#[test]
fn a_replay_of_what_was_never_rejected() {
    let mut scenario = duplicates(Small);
    scenario.records[1].replays = Some(0);
    tells(
        "headers that name a record that was not rejected",
        &scenario,
        NO_EVENT_TWICE,
    );
}

#[test]
fn a_zombie_that_takes_a_rewind_for_its_own() {
    let scenario = rewind_with_limits(Small).workers(2).fault(Fault::Expel, 1);
    tells("a zombie insists on its permits after a rewind", &scenario, LIMIT);
}

#[test]
fn a_young_block_sent_again_whole_by_a_clock_that_is_ahead() {
    let scenario = Scenario {
        views: true,
        deadline: 3,
        window: 6,
        ahead: [2, 0, 0],
        ..Scenario::new("views, clock ahead")
    };
    let scenario = scenario
        .record(0, 0, 0)
        .fault(Fault::Crash, 1)
        .fault(Fault::Tick, 8);
    tells("a window of two deadlines", &scenario, NO_RECORD_TWICE);
    holds(&Scenario {
        window: 9,
        ..scenario.clone()
    });
    // Without views, two are enough.
    holds(&Scenario {
        views: false,
        ..scenario
    });
}
