//! Goes through all states of a scenario, and tells what was found.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::scenario::Scenario;
use crate::state::State;
use crate::steps::Step;
use crate::story::story;

/// What became of a scenario.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    pub(crate) took: Duration,
    /// A property that does not hold, and a way there.
    pub(crate) broken: Option<(&'static str, String)>,
}

/// Goes through all states, on so many threads, until a property does not hold: `which`, or any. On one thread the way
/// there is a shortest one.
pub(crate) fn check(scenario: &Scenario, which: Option<&'static str>, threads: usize) -> Verdict {
    let start = Instant::now();
    let finish = which.map_or(HasDiscoveries::AnyFailures, |property| {
        HasDiscoveries::AllOf([property].into())
    });
    let checker = scenario
        .clone()
        .checker()
        .threads(threads)
        .finish_when(finish)
        .spawn_bfs()
        .join();
    let broken = checker
        .discoveries()
        .into_iter()
        .filter(|(property, _)| which.is_none_or(|which| which == *property))
        .min_by_key(|(_, path)| path.clone().into_actions().len());
    Verdict {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: start.elapsed(),
        broken: broken.map(|(property, path)| (property, story(scenario, path))),
    }
}

/// A shortest way to break a property; panics if there is none.
pub(crate) fn counterexample(scenario: &Scenario, property: &'static str) -> String {
    let verdict = check(scenario, Some(property), 1);
    let (_, story) = verdict.broken.unwrap_or_else(|| {
        panic!(
            "{}, without {:?}: {property}, in all of {} states",
            scenario.name, scenario.without, verdict.states
        )
    });
    story
}

/// Goes through all states of all scenarios, prints what was found, and fails if anything was.
pub(crate) fn run(scenarios: &[Scenario]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{:<24} {:>10} {:>6} {:>9}  verdict",
        "scenario", "states", "depth", "time"
    );
    let mut broken = Vec::new();
    let mut total = 0;
    for scenario in scenarios {
        let verdict = check(scenario, None, threads);
        let outcome = verdict.broken.as_ref().map_or("holds", |(property, _)| property);
        println!(
            "{:<24} {:>10} {:>6} {:>8.1}s  {outcome}",
            scenario.name,
            verdict.states,
            verdict.depth,
            verdict.took.as_secs_f64()
        );
        total += verdict.states;
        broken.extend(
            verdict
                .broken
                .map(|(property, story)| format!("{}: {property}\n{story}", scenario.name)),
        );
    }
    println!("{:<24} {total:>10}", "all");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Whether some state can be reached from itself, and how many states were looked at: all, or the first `most`. If none
/// can, every run ends.
pub(crate) fn circle(scenario: &Scenario, most: usize) -> (bool, usize) {
    let expand = |state: &State| {
        let mut steps = Vec::new();
        scenario.actions(state, &mut steps);
        steps
    };
    let hasher = RandomState::new();
    let fingerprint = |state: &State| hasher.hash_one(state);
    let first = scenario.initial();
    // Whether each state that was seen is on the way from the first one to the present one.
    let mut on_the_way: HashMap<u64, bool> = HashMap::from([(fingerprint(&first), true)]);
    let mut way: Vec<(State, Vec<Step>)> = vec![(first.clone(), expand(&first))];
    while let Some((state, steps)) = way.last_mut() {
        let Some(step) = steps.pop() else {
            on_the_way.insert(fingerprint(state), false);
            way.pop();
            continue;
        };
        let Some(next) = scenario.next_state(state, step) else {
            continue;
        };
        match on_the_way.insert(fingerprint(&next), true) {
            Some(true) => return (true, on_the_way.len()),
            Some(false) => {
                on_the_way.insert(fingerprint(&next), false);
            }
            None if on_the_way.len() >= most => return (false, on_the_way.len()),
            None => {
                let steps = expand(&next);
                way.push((next, steps));
            }
        }
    }
    (false, on_the_way.len())
}

/// Panics if any property does not hold.
pub(crate) fn holds(scenario: &Scenario) {
    let verdict = check(scenario, None, 2);
    if let Some((property, story)) = verdict.broken {
        panic!("{}: {property}\n{story}", scenario.name);
    }
}
