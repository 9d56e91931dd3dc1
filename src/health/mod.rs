//! What is ready, and why not.
//!
//! Owns the state that `/healthz` and `/readyz` tell: whether each service answers, as the [`Prober`] and the worker see
//! it, whether the worker still polls, and what its partitions wait for (`waits`). `readiness` puts the answer together. It
//! decides nothing: back-pressure is the pipeline's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::telemetry::{self, Service};

pub use admin::{BindError, bind, serve};
pub use prober::Prober;
pub use readiness::{Readiness, ServiceReadiness};
pub use waits::{Wait, Waiter, Waiting};

mod admin;
mod prober;
pub mod probes;
mod readiness;
mod waits;

use waits::Waits;

/// A worker that has not polled for so long is stuck, and only a restart will help. Services being gone is no
/// reason: the loop goes round without them.
const POLL_ALIVE: Duration = Duration::from_mins(1);

/// What is known about this process's readiness; shared, and cheap to tell.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds after `started` of the last turn of the poll loop; [`NOT_POLLING`] for none expected.
    polled_at: AtomicU64,
    services: Mutex<Vec<ServiceHealth>>,
    /// Told whenever a service goes or comes back.
    changes: watch::Sender<()>,
    /// Partitions that wait for an operator, each with its reason.
    stopped: Mutex<BTreeMap<i32, String>>,
    waits: Waits,
    /// Whether a worker has begun to start, and is not ready to poll.
    starting: AtomicBool,
    /// Milliseconds after `started` of the last block that was settled.
    settled_at: AtomicU64,
    /// Whether Redis was found without what it had held.
    redis_forgot: AtomicBool,
}

/// No worker runs in this process.
const NOT_POLLING: u64 = u64::MAX;

#[derive(Debug)]
struct ServiceHealth {
    service: Service,
    state: State,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Untried,
    Up,
    Down(String),
}

impl Health {
    /// The health of a process that needs these services. None is ready before it has answered once.
    pub fn new(services: &[Service]) -> Arc<Self> {
        let now = Instant::now();
        let untried = |&service| ServiceHealth {
            service,
            state: State::Untried,
            since: now,
        };
        Arc::new(Self {
            started: now,
            polled_at: AtomicU64::new(NOT_POLLING),
            services: Mutex::new(services.iter().map(untried).collect()),
            changes: watch::Sender::new(()),
            stopped: Mutex::default(),
            waits: Waits::default(),
            starting: AtomicBool::new(false),
            settled_at: AtomicU64::new(0),
            redis_forgot: AtomicBool::new(false),
        })
    }

    /// Whether a worker is starting: until it has, the process does not do what it was asked to.
    pub fn starting(&self, starting: bool) {
        self.starting.store(starting, Ordering::Relaxed);
    }

    /// The worker's poll loop went round. The first call is the promise that it will go on doing so: make it
    /// when the loop begins.
    pub fn polled(&self) {
        self.polled_at.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// The poll loop ended in good order: nobody waits for its next turn.
    pub fn polling_ended(&self) {
        self.polled_at.store(NOT_POLLING, Ordering::Relaxed);
    }

    /// A block was settled.
    pub fn settled(&self) {
        self.settled_at.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// A partition that may come to wait; `None` is the worker as a whole.
    pub fn waiter(&self, partition: Option<i32>) -> Waiter<'_> {
        Waiter {
            waits: &self.waits,
            partition,
        }
    }

    /// Tells long waits by metrics and log; to be called every few seconds.
    pub fn tell_waits(&self) {
        self.waits.tell(Instant::now());
    }

    /// The state's Redis has lost what it held. That stays so for this process: what it has read at its start is of the
    /// old memory.
    pub fn redis_forgot(&self) {
        self.redis_forgot.store(true, Ordering::Relaxed);
    }

    /// A service answered.
    pub fn up(&self, service: Service) {
        self.set(service, State::Up);
    }

    /// A service did not answer. The reason is shown to whoever asks `/readyz`: no secret in it.
    pub fn down(&self, service: Service, reason: impl Into<String>) {
        self.set(service, State::Down(reason.into()));
    }

    /// For how long a service has answered; `None` if it does not.
    pub fn up_for(&self, service: Service) -> Option<Duration> {
        let services = self.lock();
        let health = services.iter().find(|health| health.service == service)?;
        (health.state == State::Up).then(|| health.since.elapsed())
    }

    /// Returns once a service has been gone for so long, without an answer between.
    pub async fn gone_for(&self, service: Service, long: Duration) {
        let mut news = self.changes.subscribe();
        loop {
            news.borrow_and_update();
            match self.down_for(service) {
                None => {
                    // The sender lives as long as this.
                    news.changed().await.unwrap_or_default();
                }
                Some(gone) if gone >= long => return,
                Some(gone) => {
                    tokio::select! {
                        () = tokio::time::sleep(long.saturating_sub(gone)) => {}
                        changed = news.changed() => changed.unwrap_or_default(),
                    }
                }
            }
        }
    }

    /// Returns once a service answers.
    pub async fn back(&self, service: Service) {
        let mut news = self.changes.subscribe();
        loop {
            news.borrow_and_update();
            if self.up_for(service).is_some() {
                return;
            }
            news.changed().await.unwrap_or_default();
        }
    }

    /// For how long a service has not answered; `None` if it does.
    fn down_for(&self, service: Service) -> Option<Duration> {
        let services = self.lock();
        let health = services.iter().find(|health| health.service == service)?;
        matches!(health.state, State::Down(_)).then(|| health.since.elapsed())
    }

    /// A partition is stopped until an operator has looked.
    pub fn partition_stopped(&self, partition: i32, reason: String) {
        self.stopped(|stopped| stopped.insert(partition, reason));
    }

    /// A partition is no longer this worker's.
    pub fn partition_gone(&self, partition: i32) {
        self.stopped(|stopped| stopped.remove(&partition));
    }

    fn stopped(&self, change: impl FnOnce(&mut BTreeMap<i32, String>) -> Option<String>) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stopped);
        telemetry::metrics().stopped_partitions.set(stopped.len() as f64);
    }

    /// Whether the poll loop moves, or how long it has not.
    pub fn alive(&self) -> Result<(), Duration> {
        match self.since_poll() {
            Some(idle) if idle > POLL_ALIVE => Err(idle),
            _ => Ok(()),
        }
    }

    fn set(&self, service: Service, state: State) {
        let mut services = self.lock();
        let Some(health) = services.iter_mut().find(|health| health.service == service) else {
            return;
        };
        let is_up = state == State::Up;
        // A new reason for the same outage is kept, but is no new outage.
        let changed = is_up != (health.state == State::Up) || health.state == State::Untried;
        let lasted = health.since.elapsed();
        if changed {
            health.since = Instant::now();
            telemetry::metrics()
                .service_up
                .of(service)
                .set(f64::from(u8::from(is_up)));
            match (&state, &health.state) {
                (State::Down(reason), _) => {
                    tracing::warn!(service = service.name(), error = reason, "service is down");
                }
                (_, State::Down(_)) => {
                    tracing::info!(
                        service = service.name(),
                        down_seconds = lasted.as_secs_f64(),
                        "service is back"
                    );
                }
                _ => tracing::debug!(service = service.name(), "service answers"),
            }
        }
        health.state = state;
        drop(services);
        if changed {
            self.changes.send_replace(());
        }
    }

    fn since_poll(&self) -> Option<Duration> {
        match self.polled_at.load(Ordering::Relaxed) {
            NOT_POLLING => None,
            at => Some(Duration::from_millis(self.elapsed_ms().saturating_sub(at))),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The list is never left half changed, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Vec<ServiceHealth>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_once_every_service_answered_and_names_those_that_do_not() {
        let health = Health::new(&[Service::Kafka, Service::Redis]);
        assert_eq!(health.readiness().reasons.len(), 2);
        health.up(Service::Kafka);
        assert_eq!(health.up_for(Service::Redis), None);
        health.up(Service::Redis);
        assert!(health.readiness().ready && health.up_for(Service::Redis).is_some());
        health.down(Service::Redis, "connection refused");
        assert_eq!(health.up_for(Service::Redis), None);
        let readiness = health.readiness();
        assert_eq!(readiness.reasons, ["redis is down: connection refused"]);
        health.up(Service::Redis);
        assert!(health.readiness().ready);
    }

    #[tokio::test]
    async fn a_service_is_gone_once_it_has_been_down_for_long_and_back_once_it_answers() {
        let (health, long) = (Health::new(&[Service::Redis]), Duration::from_millis(100));
        health.up(Service::Redis);
        let gone = health.gone_for(Service::Redis, long);
        tokio::pin!(gone);
        assert!(futures::poll!(&mut gone).is_pending());
        health.down(Service::Redis, "gone");
        assert!(futures::poll!(&mut gone).is_pending(), "not for long");
        health.up(Service::Redis);
        health.back(Service::Redis).await;
        health.down(Service::Redis, "gone");
        let start = Instant::now();
        gone.await;
        assert!(start.elapsed() >= long);
        let back = health.back(Service::Redis);
        tokio::pin!(back);
        assert!(futures::poll!(&mut back).is_pending());
        health.up(Service::Redis);
        back.await;
    }

    #[test]
    fn a_service_that_is_not_needed_changes_nothing() {
        let health = Health::new(&[Service::Redis]);
        health.up(Service::Redis);
        health.down(Service::Kafka, "gone");
        assert!(health.readiness().ready);
    }

    #[test]
    fn a_worker_that_stands_still_is_not_ready_and_later_not_alive() {
        let mut health = Arc::into_inner(Health::new(&[])).unwrap();
        assert!(health.readiness().ready && health.alive().is_ok());
        health.polled();
        assert!(health.readiness().ready && health.alive().is_ok());
        health.started = health.started.checked_sub(Duration::from_secs(9)).unwrap();
        assert!(!health.readiness().ready && health.alive().is_ok());
        health.started = health.started.checked_sub(Duration::from_mins(1)).unwrap();
        assert!(health.alive().is_err());
        health.polling_ended();
        assert!(health.readiness().ready && health.alive().is_ok());
    }
}
