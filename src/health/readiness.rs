//! What `/readyz` answers: put together from what is known at this moment. Keeps nothing.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::waits::LONG;
use super::{Health, ServiceHealth, State, Waiting};
use crate::telemetry::WaitsFor;

/// A worker that has not polled for so long is not ready: its partitions stand still.
const POLL_READY: Duration = Duration::from_secs(8);
/// What is to be done where Redis has lost what it held.
const FORGOT: &str =
    "Redis no longer holds what it held: stop all workers and the read API, and start them again";

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether everything this process needs is there.
    pub ready: bool,
    /// Why not, a sentence a reason.
    pub reasons: Vec<String>,
    /// Each service.
    pub services: Vec<ServiceReadiness>,
    /// Partitions that wait for an operator, each with its reason. The others go on, so these do not make the
    /// process unready; alert on `sluice_stopped_partitions`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stopped: BTreeMap<i32, String>,
    /// What partitions have been waiting for, for some seconds at least. Only if nothing at all is settled meanwhile
    /// is the process not ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
    /// What an operator must do, though the process can do its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<&'static str>,
}

/// One service in the answer of `/readyz`.
#[derive(Debug, Serialize)]
pub struct ServiceReadiness {
    /// Its name.
    pub name: &'static str,
    /// Whether it answers.
    pub up: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For how long that has been so.
    pub for_seconds: u64,
}

impl Health {
    /// Whether this process can do its work, and why not.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if let Some(idle) = self.since_poll().filter(|idle| *idle > POLL_READY) {
            reasons.push(format!("the worker has not polled for {} s", idle.as_secs()));
        }
        let services = self
            .lock()
            .iter()
            .map(ServiceHealth::readiness)
            .collect::<Vec<_>>();
        for ServiceReadiness { name, up, reason, .. } in &services {
            if !up {
                reasons.push(format!(
                    "{name} is down: {}",
                    reason.as_deref().unwrap_or("unknown")
                ));
            }
        }
        let waiting = self.waits.shown(Instant::now());
        if reasons.is_empty() {
            reasons.extend(self.stands_still(&waiting));
        }
        if reasons.is_empty() && self.starting.load(Ordering::Relaxed) {
            reasons.push("the worker is starting".to_owned());
        }
        let stopped = self
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Readiness {
            ready: reasons.is_empty(),
            reasons,
            services,
            stopped,
            waiting,
            restart: self.redis_forgot.load(Ordering::Relaxed).then_some(FORGOT),
        }
    }

    /// Why nothing moves, if that is so: something has been waited for for long, and nothing was settled meanwhile. Waiting
    /// for permits is what a worker does that works off overflow.
    fn stands_still(&self, waiting: &[Waiting]) -> Option<String> {
        let settled = Duration::from_millis(self.settled_at.load(Ordering::Relaxed));
        let idle = self.started.elapsed().saturating_sub(settled);
        let longest = waiting
            .iter()
            .find(|waiting| waiting.why != WaitsFor::Permits.name())
            .filter(|waiting| idle.as_secs().min(waiting.for_seconds) >= LONG.as_secs())?;
        let who = longest.partition.map_or_else(
            || "the worker".to_owned(),
            |partition| format!("partition {partition}"),
        );
        Some(format!(
            "nothing was settled for {} s: {who} waits for {} ({})",
            idle.as_secs(),
            longest.why,
            longest.what
        ))
    }
}

impl ServiceHealth {
    fn readiness(&self) -> ServiceReadiness {
        ServiceReadiness {
            name: self.service.name(),
            up: self.state == State::Up,
            reason: match &self.state {
                State::Untried => Some("it has not answered yet".to_owned()),
                State::Up => None,
                State::Down(reason) => Some(reason.clone()),
            },
            for_seconds: self.since.elapsed().as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Service;
    use std::sync::Arc;

    #[test]
    fn a_worker_that_settles_nothing_while_it_waits_is_not_ready() {
        let mut health = Arc::into_inner(Health::new(&[])).unwrap();
        let long_ago = |health: &mut Health| {
            health.started = health.started.checked_sub(LONG + Duration::from_secs(1)).unwrap();
            health.waits.begin_earlier(LONG);
        };
        let waits = |health: &Health, why| {
            std::mem::forget(
                health
                    .waiter(Some(3))
                    .waits_for(why, "its memory is full".to_owned()),
            );
        };
        waits(&health, WaitsFor::Permits);
        long_ago(&mut health);
        let readiness = health.readiness();
        assert!(
            readiness.ready && readiness.waiting[0].why == "permits",
            "{readiness:?}"
        );
        waits(&health, WaitsFor::Redis);
        assert!(health.readiness().ready, "not for long");
        long_ago(&mut health);
        let readiness = health.readiness();
        assert!(!readiness.ready, "{readiness:?}");
        assert!(
            readiness.reasons[0].contains("partition 3 waits for redis (its memory is full)"),
            "{readiness:?}"
        );
        health.settled();
        assert!(health.readiness().ready, "others go on");
    }

    #[test]
    fn a_worker_that_starts_is_not_ready() {
        let health = Health::new(&[]);
        health.starting(true);
        assert_eq!(health.readiness().reasons, ["the worker is starting"]);
        health.starting(false);
        assert!(health.readiness().ready);
    }

    #[test]
    fn a_redis_that_forgot_is_told_until_the_process_ends() {
        let health = Health::new(&[Service::Redis]);
        health.up(Service::Redis);
        assert_eq!(health.readiness().restart, None);
        health.redis_forgot();
        let readiness = health.readiness();
        assert!(readiness.ready && readiness.restart == Some(FORGOT));
    }
}
