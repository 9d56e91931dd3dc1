//! Chaos: the real binary on the real services, events flowing, and faults drawn from a seed.
//!
//! The schedule (which fault, after how many records, on whom) is a pure function of the seed. What the processes do
//! between, and so which moment of a block a fault meets, is not. A fault counts only if it meets events in flight. A
//! round is exact if every record ended in one destination, once, and if what Redis and a view behind the table know
//! agrees.
//!
//! `make chaos ROUNDS=50 SEED=1` plays many rounds. With `WITHOUT=announcement` (a guard of the protocol, see
//! `faults::without`) it must fail: that is how the suite shows that it would see a loss or a repeat.

mod acts;
mod fault;
mod judge;
mod plan;
mod report;
mod round;
mod services;
mod world;

use std::path::Path;

use self::plan::Plan;

/// Faults beside each other in a round.
const FAULTS: usize = 6;
/// In the round that belongs to all tests.
const FEW_FAULTS: usize = 3;
const SHORT_SEED: u64 = 6;

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        _ => otherwise,
    }
}

/// The faults that take the named guards out, in the language of `src/faults.rs`.
fn without(guards: &str) -> String {
    let guards = guards.split(',').filter(|guard| !guard.is_empty());
    let known = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let off = |guard: &str| {
        let name = format!("without-{guard}");
        assert!(
            known.contains(&format!("\"{name}\"")),
            "there is no guard {guard:?}"
        );
        format!("{name}=return")
    };
    let off: Vec<String> = guards.map(off).collect();
    off.join(";")
}

/// The text of all source files below a folder.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                std::fs::read_to_string(path).unwrap()
            }
        })
        .collect()
}

#[test]
fn a_round_of_chaos_is_exact() {
    let outcome = round::play(&Plan::of(SHORT_SEED, FEW_FAULTS), &round::stack(), "");
    assert!(outcome.exact);
    assert!(
        outcome.hits.iter().any(|hit| hit.met.in_flight.is_some()),
        "events were in flight"
    );
}

#[test]
#[ignore = "takes half a minute a round: make chaos"]
fn rounds_of_chaos_are_exact() {
    let (rounds, first) = (number("CHAOS_ROUNDS", 50), number("CHAOS_SEED", 1));
    let guards = std::env::var("CHAOS_WITHOUT").unwrap_or_default();
    let stop = number("CHAOS_STOP", 0) != 0;
    let stack = round::stack();
    let mut outcomes = Vec::new();
    for seed in first..first + rounds {
        let plan = Plan::against(&guards, seed, FAULTS);
        let outcome = round::play(&plan, &stack, &without(&guards));
        let exact = outcome.exact;
        outcomes.push(outcome);
        if !exact && stop {
            break;
        }
    }
    let failed = report::print(&outcomes);
    assert_eq!(failed, 0, "rounds that are not exact");
}
