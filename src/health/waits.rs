//! What is being waited for, by whom, and for how long: a service that fails, permits, a list of tokens.
//!
//! Owns the list of waits, and how often they are told in the log. Decides nothing: whoever waits goes on by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::telemetry::{WaitsFor, metrics};

/// A wait is shown once it has lasted so long: restarts and elections are shorter.
const SHOWN: Duration = Duration::from_secs(5);
/// A wait is told and counted once it has lasted so long.
pub(super) const LONG: Duration = Duration::from_secs(30);
/// The same failure is told so often at the most, whoever meets it.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// What is still waited for is told again after so long.
const TOLD_AGAIN: Duration = Duration::from_mins(5);

/// All waits of this process.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    waits: BTreeMap<u64, Entry>,
    /// When a failure was told last.
    failures: HashMap<(WaitsFor, &'static str), Instant>,
    /// When long waits were told last.
    long: HashMap<WaitsFor, Instant>,
}

#[derive(Debug)]
struct Entry {
    partition: Option<i32>,
    why: WaitsFor,
    what: String,
    since: Instant,
}

/// One wait in the answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The partition that waits; none, if it is the whole worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// What for, as in `sluice_waiting_partitions`.
    pub why: &'static str,
    /// What was attempted and how it failed, or whose permits are missing.
    pub what: String,
    /// For how long.
    pub for_seconds: u64,
}

/// Who may come to wait: a partition, or the worker as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Waiter<'a> {
    pub(super) waits: &'a Waits,
    pub(super) partition: Option<i32>,
}

/// A wait under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Wait<'a> {
    waits: &'a Waits,
    id: u64,
}

impl<'a> Waiter<'a> {
    /// Begins to wait. `what` is shown to whoever asks `/readyz`: no secret and no text of a client library in it.
    pub fn waits_for(self, why: WaitsFor, what: String) -> Wait<'a> {
        let mut state = self.waits.lock();
        let id = state.next;
        state.next += 1;
        let entry = Entry {
            partition: self.partition,
            why,
            what,
            since: Instant::now(),
        };
        state.waits.insert(id, entry);
        Wait {
            waits: self.waits,
            id,
        }
    }

    /// Whether the failure of `what` is to be told in the log: the first one is, and one in half a minute. With many
    /// partitions, and some attempts a second of each, an outage would drown everything else.
    pub fn tells(self, why: WaitsFor, what: &'static str) -> bool {
        self.waits.lock().tells((why, what), Instant::now())
    }
}

impl Wait<'_> {
    /// What is waited for by now.
    pub fn is_for(&self, what: String) {
        if let Some(entry) = self.waits.lock().waits.get_mut(&self.id) {
            entry.what = what;
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waits.lock().waits.remove(&self.id);
    }
}

impl Waits {
    /// Tells long waits by metrics and log. Call it every few seconds.
    pub(super) fn tell(&self, now: Instant) {
        let mut state = self.lock();
        for &why in WaitsFor::ALL {
            let long = state
                .waits
                .values()
                .filter(|entry| entry.why == why && entry.lasts(now) >= LONG);
            let long: Vec<(Option<i32>, &str)> =
                long.map(|entry| (entry.partition, entry.what.as_str())).collect();
            let partitions: BTreeSet<Option<i32>> = long.iter().map(|(partition, _)| *partition).collect();
            metrics().waiting_partitions.of(why).set(partitions.len() as f64);
            let told = state.long.get(&why).copied();
            match (long.first(), told) {
                (Some((_, what)), None) => {
                    tell_of(why, &partitions, what);
                    state.long.insert(why, now);
                }
                (Some((_, what)), Some(told)) if now.saturating_duration_since(told) >= TOLD_AGAIN => {
                    tell_of(why, &partitions, what);
                    state.long.insert(why, now);
                }
                (None, Some(_)) => {
                    tracing::info!(why = why.name(), "no partition waits any more");
                    state.long.remove(&why);
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
    }

    /// What has been waited for long enough to be shown, the longest wait first.
    pub(super) fn shown(&self, now: Instant) -> Vec<Waiting> {
        let state = self.lock();
        let mut shown: Vec<&Entry> = state
            .waits
            .values()
            .filter(|entry| entry.lasts(now) >= SHOWN)
            .collect();
        shown.sort_by_key(|entry| entry.since);
        let waiting = |entry: &Entry| Waiting {
            partition: entry.partition,
            why: entry.why.name(),
            what: entry.what.clone(),
            for_seconds: entry.lasts(now).as_secs(),
        };
        shown.into_iter().map(waiting).collect()
    }

    #[cfg(test)]
    pub(super) fn begin_earlier(&self, by: Duration) {
        for entry in self.lock().waits.values_mut() {
            entry.since = entry.since.checked_sub(by).unwrap();
        }
    }

    /// The state is never left half changed, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tells(&mut self, failure: (WaitsFor, &'static str), now: Instant) -> bool {
        let told = self.failures.get(&failure);
        let tells = told.is_none_or(|told| now.saturating_duration_since(*told) >= TOLD_EVERY);
        if tells {
            self.failures.insert(failure, now);
        }
        tells
    }
}

impl Entry {
    fn lasts(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

fn tell_of(why: WaitsFor, partitions: &BTreeSet<Option<i32>>, what: &str) {
    let name = |partition: &Option<i32>| {
        partition.map_or_else(|| "all".to_owned(), |partition| partition.to_string())
    };
    let named: Vec<String> = partitions.iter().map(name).collect();
    tracing::warn!(
        why = why.name(),
        partitions = named.join(", "),
        what,
        "waiting for more than half a minute"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(waits: &Waits, partition: i32) -> Waiter<'_> {
        Waiter {
            waits,
            partition: Some(partition),
        }
    }

    #[test]
    fn a_wait_is_shown_once_it_lasts_and_until_it_ends() {
        let waits = Waits::default();
        let wait = waiter(&waits, 3).waits_for(WaitsFor::Permits, "token \"a\"".to_owned());
        let other = waiter(&waits, 4).waits_for(WaitsFor::Redis, "claim".to_owned());
        let now = Instant::now();
        assert_eq!(waits.shown(now), [], "not for long");
        wait.is_for("token \"b\"".to_owned());
        let shown = waits.shown(now + SHOWN);
        assert_eq!(shown.len(), 2);
        assert_eq!((shown[0].partition, shown[0].why), (Some(3), "permits"));
        assert_eq!(shown[0].what, "token \"b\"");
        drop(wait);
        assert_eq!(waits.shown(now + SHOWN).len(), 1);
        drop(other);
        assert_eq!(waits.shown(now + LONG), []);
    }

    #[test]
    fn the_same_failure_is_told_once_in_half_a_minute_whoever_meets_it() {
        let waits = Waits::default();
        assert!(waiter(&waits, 1).tells(WaitsFor::Redis, "claim"));
        assert!(!waiter(&waits, 2).tells(WaitsFor::Redis, "claim"));
        assert!(waiter(&waits, 2).tells(WaitsFor::Redis, "permit"), "another one");
        let later = Instant::now() + TOLD_EVERY;
        assert!(waits.lock().tells((WaitsFor::Redis, "claim"), later));
        assert!(!waits.lock().tells((WaitsFor::Redis, "claim"), later));
    }

    #[test]
    fn what_is_waited_for_is_told_when_it_is_long_and_forgotten_when_it_ends() {
        let waits = Waits::default();
        let wait = waiter(&waits, 1).waits_for(WaitsFor::Redis, "claim".to_owned());
        let now = Instant::now();
        let told = |at| {
            waits.tell(at);
            waits.lock().long.get(&WaitsFor::Redis).copied()
        };
        assert_eq!(told(now), None);
        let long = now + LONG;
        assert_eq!(told(long), Some(long));
        assert_eq!(told(long + LONG), Some(long), "told once");
        assert_eq!(told(long + TOLD_AGAIN), Some(long + TOLD_AGAIN));
        drop(wait);
        assert_eq!(told(long + TOLD_AGAIN), None);
    }
}
