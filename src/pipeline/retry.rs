//! How a stage meets a service that fails: it tries again until the service is back or the partition is given away.
//!
//! Back-pressure follows by itself: a block that waits here keeps its memory, and the polling thread pauses. That it waits
//! is seen from outside, in the log at once, and in `/readyz` and the metrics when it lasts.

use std::time::Duration;

use ::redis::RedisError;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use rdkafka::error::KafkaError;

use crate::causes::with_causes;
use crate::clickhouse;
use crate::health::{Wait, Waiter};
use crate::kafka::committer::CommitError;
use crate::redis::told;
use crate::telemetry::{Service, metrics};

const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Delays between attempts: exponential, jittered, without an end.
pub(super) fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A service's failure.
pub(super) trait Failure: std::error::Error + Sized {
    /// What it is, in words for everybody: no secret, and no text of a client library.
    fn told(&self) -> String;

    /// What it is, for the log.
    fn logged(&self) -> String {
        with_causes(self)
    }
}

/// Meets the failures of one piece of work, which is tried again after each.
pub(super) struct Trying<'a> {
    waiter: Waiter<'a>,
    service: Service,
    what: &'static str,
    wait: Option<Wait<'a>>,
}

impl<'a> Trying<'a> {
    /// Nothing has failed yet.
    pub(super) fn new(waiter: Waiter<'a>, service: Service, what: &'static str) -> Self {
        Self {
            waiter,
            service,
            what,
            wait: None,
        }
    }

    /// Counts and tells a failure, and pauses before the next attempt.
    pub(super) async fn again(&mut self, failure: &impl Failure, pause: Option<Duration>) {
        metrics().retries.of(self.service).increment(1);
        let (service, what) = (self.service.name(), self.what);
        if self.waiter.tells(self.service.into(), what) {
            tracing::warn!(
                service,
                what,
                error = failure.logged(),
                "a service failed; trying again"
            );
        } else {
            tracing::debug!(
                service,
                what,
                error = failure.logged(),
                "a service failed; trying again"
            );
        }
        let told = format!("{what}: {}", failure.told());
        match &self.wait {
            Some(wait) => wait.is_for(told),
            None => self.wait = Some(self.waiter.waits_for(self.service.into(), told)),
        }
        tokio::time::sleep(pause.unwrap_or(LONGEST)).await;
    }
}

/// Repeats `attempt` until it succeeds. Each failure is counted, and told with `what` was attempted.
pub(super) async fn until_done<T, E, F>(
    waiter: Waiter<'_>,
    service: Service,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> T
where
    E: Failure,
    F: Future<Output = Result<T, E>>,
{
    let mut trying = Trying::new(waiter, service, what);
    let mut delays = delays();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(failure) => trying.again(&failure, delays.next()).await,
        }
    }
}

impl Failure for RedisError {
    fn told(&self) -> String {
        told::told(self)
    }

    fn logged(&self) -> String {
        told::logged(self)
    }
}

impl Failure for ::clickhouse::error::Error {
    fn told(&self) -> String {
        clickhouse::error::told(self)
    }
}

impl Failure for KafkaError {
    fn told(&self) -> String {
        self.rdkafka_error_code()
            .map_or_else(|| "it failed".to_owned(), |code| code.to_string())
    }
}

impl Failure for CommitError {
    fn told(&self) -> String {
        match self {
            Self::Refused => "it is not ours any more".to_owned(),
            Self::Failed(error) => error.told(),
        }
    }
}
