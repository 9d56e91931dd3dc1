//! How a stage meets a service that fails: it tries again until the service is back or the partition is given away.
//!
//! Back-pressure follows by itself: a block that waits here keeps its memory, and the polling thread pauses.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::telemetry::{Service, metrics};

const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Delays between attempts: exponential, jittered, without an end.
fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Repeats `attempt` until it succeeds. Each failure is counted and logged with `what` was attempted.
pub(super) async fn until_done<T, E, F>(service: Service, what: &'static str, attempt: impl FnMut() -> F) -> T
where
    E: std::error::Error,
    F: Future<Output = Result<T, E>>,
{
    let mut attempt = attempt;
    let mut delays = delays();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => {
                metrics().retries.of(service).increment(1);
                tracing::warn!(
                    service = service.name(),
                    what,
                    error = chain(&error),
                    "a service failed; trying again"
                );
                tokio::time::sleep(delays.next().unwrap_or(LONGEST)).await;
            }
        }
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
