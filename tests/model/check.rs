//! Goes through all states of a scenario, and tells what was found.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::iter::successors;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Path};

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

/// Goes through all states, on so many threads, until a property does not hold.
fn check(scenario: &Scenario, threads: usize) -> Verdict {
    let start = Instant::now();
    let checker = scenario
        .clone()
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let broken = checker
        .discoveries()
        .into_iter()
        .min_by_key(|(_, path)| path.clone().into_actions().len());
    Verdict {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: start.elapsed(),
        broken: broken.map(|(property, path)| (property, story(scenario, path))),
    }
}

/// A shortest way to break a property; panics if there is none. (The checker keeps the last one that it comes across
/// before it stops, not the first.)
pub(crate) fn counterexample(scenario: &Scenario, property: &'static str) -> String {
    let holds = scenario.property(property).condition;
    let first = scenario.initial();
    let hasher = RandomState::new();
    let mut known = HashSet::from([hasher.hash_one(&first)]);
    // Each state in the order of its distance, with the one before it and the step from there.
    let mut states: Vec<(State, Option<(usize, Step)>)> = vec![(first.clone(), None)];
    let mut at = 0;
    while let Some((state, _)) = states.get(at).cloned() {
        if !holds(scenario, &state) {
            let before = |&(at, _): &(usize, Step)| states[at].1;
            let mut way: Vec<Step> = successors(states[at].1, before).map(|(_, step)| step).collect();
            way.reverse();
            return story(
                scenario,
                Path::from_actions(scenario, first, &way).expect("the way there"),
            );
        }
        for step in steps(scenario, &state) {
            if let Some(next) = scenario.next_state(&state, step)
                && known.insert(hasher.hash_one(&next))
            {
                states.push((next, Some((at, step))));
            }
        }
        at += 1;
    }
    panic!(
        "{}, without {:?}: {property}, in all of {at} states",
        scenario.name, scenario.without
    )
}

/// What can happen next.
fn steps(scenario: &Scenario, state: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    scenario.actions(state, &mut steps);
    steps
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
        let verdict = check(scenario, threads);
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
    let hasher = RandomState::new();
    let fingerprint = |state: &State| hasher.hash_one(state);
    let first = scenario.initial();
    // Whether each state that was seen is on the way from the first one to the present one.
    let mut on_the_way: HashMap<u64, bool> = HashMap::from([(fingerprint(&first), true)]);
    let mut way: Vec<(State, Vec<Step>)> = vec![(first.clone(), steps(scenario, &first))];
    while let Some((state, left)) = way.last_mut() {
        let Some(step) = left.pop() else {
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
                let left = steps(scenario, &next);
                way.push((next, left));
            }
        }
    }
    (false, on_the_way.len())
}

/// Panics if any property does not hold.
pub(crate) fn holds(scenario: &Scenario) {
    let verdict = check(scenario, 2);
    if let Some((property, story)) = verdict.broken {
        panic!("{}: {property}\n{story}", scenario.name);
    }
}
