//! The table at the end: what was done how often, with how many events in flight, and how many rounds were exact.

use std::collections::BTreeMap;

use super::round::Outcome;

/// Prints it. Answers how many rounds were not exact.
pub(super) fn print(outcomes: &[Outcome]) -> usize {
    let mut kinds: BTreeMap<&str, (usize, Vec<u64>)> = BTreeMap::new();
    for hit in outcomes.iter().flat_map(|outcome| &outcome.hits) {
        let (all, in_flight) = kinds.entry(hit.kind).or_default();
        *all += 1;
        in_flight.extend(hit.met.in_flight);
    }
    eprintln!(
        "\n{:<36} {:>7} {:>10} {:>8} {:>8}",
        "fault", "played", "in flight", "min", "median"
    );
    let (mut all, mut counted) = (0, 0);
    for (kind, (played, mut in_flight)) in kinds {
        in_flight.sort_unstable();
        let number = |n: Option<&u64>| n.map_or_else(|| "-".to_owned(), ToString::to_string);
        eprintln!(
            "{kind:<36} {played:>7} {:>10} {:>8} {:>8}",
            in_flight.len(),
            number(in_flight.first()),
            number(in_flight.get(in_flight.len() / 2)),
        );
        all += played;
        counted += in_flight.len();
    }
    let exact = outcomes.iter().filter(|outcome| outcome.exact).count();
    let took: u64 = outcomes.iter().map(|outcome| outcome.took.as_secs()).sum();
    eprintln!(
        "\n{counted} of {all} faults met events in flight; {exact} of {} rounds exact, {took} s",
        outcomes.len()
    );
    let failed: Vec<u64> = outcomes.iter().filter(|o| !o.exact).map(|o| o.seed).collect();
    if !failed.is_empty() {
        eprintln!("not exact: seeds {failed:?}; again by: make chaos ROUNDS=1 SEED=n");
    }
    failed.len()
}
