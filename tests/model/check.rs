//! Goes through all states of a scenario, and tells what was found.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::scenario::Scenario;
use crate::state::State;
use crate::steps::Step;

/// What became of a scenario.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    pub(crate) took: Duration,
    /// A property that does not hold, and a way there.
    pub(crate) broken: Option<(&'static str, String)>,
}

/// Goes through all states, on so many threads, until a property is found that does not hold.
pub(crate) fn check(scenario: &Scenario, threads: usize) -> Verdict {
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

/// A path as text: a step a line, and the state that it leads to.
fn story(scenario: &Scenario, path: Path<State, Step>) -> String {
    let last = path.last_state().clone();
    let mut text = String::new();
    for (n, step) in path.into_actions().iter().enumerate() {
        text.push_str(&format!("{:>4}  {}\n", n + 1, scenario.format_action(step)));
    }
    text.push_str(&format!("      {last:?}\n"));
    text
}
