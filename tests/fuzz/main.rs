//! Bad input at scale: mutated records through the decoder, held to what must be true of every outcome and to a second
//! reading that is written from the rules (`reference`).
//!
//! `SLUICE_FUZZ_SEED` and `SLUICE_FUZZ_RECORDS` choose other cases, or more. A failure tells the seed, the index and
//! the smallest input that still fails.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells its story on standard error"
)]

mod cases;
mod compare;
mod config;
mod outcome;
mod reference;
mod run;
mod shrink;

use std::env;

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn fuzz(records: u64) {
    let seed = setting("SLUICE_FUZZ_SEED", 1);
    let figures = run::run(seed, setting("SLUICE_FUZZ_RECORDS", records));
    eprintln!("{figures}");
    assert!(figures.failures.is_empty(), "seed {seed}: see above");
    assert!(figures.is_varied(), "seed {seed}: some outcome never happened");
}

#[test]
fn mutated_records_have_the_outcome_that_the_rules_give() {
    fuzz(100_000);
}

#[test]
#[ignore = "ten million records: make prove"]
fn ten_million_mutated_records_have_the_outcome_that_the_rules_give() {
    fuzz(10_000_000);
}
