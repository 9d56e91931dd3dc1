//! Asks each service, again and again, whether it answers.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Health;
use crate::telemetry::Service;

/// Together the longest time until a service that is gone is noticed: well below the 10 s that `/readyz` has.
const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(3);

type Probe = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Asks services and tells a [`Health`] what they said.
pub struct Prober {
    health: Arc<Health>,
    probes: Vec<(Service, Probe)>,
    interval: Duration,
    timeout: Duration,
}

impl Prober {
    /// A prober that asks nothing yet.
    pub fn new(health: Arc<Health>) -> Self {
        Self {
            health,
            probes: Vec::new(),
            interval: INTERVAL,
            timeout: TIMEOUT,
        }
    }

    /// Asks `service` by calling `probe`, whose error is the reason that is shown, without secrets. A blocking
    /// client belongs on a blocking thread, with a time-out of its own.
    #[must_use]
    pub fn with<F, R>(mut self, service: Service, probe: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.probes.push((service, Box::new(move || probe().boxed())));
        self
    }

    /// Asks until it is dropped, every service at its own pace: one that hangs delays no other.
    pub async fn run(self) {
        join_all(
            self.probes
                .iter()
                .map(|(service, probe)| self.ask(*service, probe)),
        )
        .await;
    }

    async fn ask(&self, service: Service, probe: &Probe) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match timeout(self.timeout, probe()).await {
                Ok(Ok(())) => self.health.up(service),
                Ok(Err(reason)) => self.health.down(service, reason),
                Err(_) => self
                    .health
                    .down(service, format!("no answer within {:?}", self.timeout)),
            }
        }
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.probes.iter().map(|(service, _)| service))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    async fn reasons_become(health: &Health, expected: &[&str]) {
        let reached = async {
            while health.readiness().reasons != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(
            timeout(Duration::from_secs(10), reached).await.is_ok(),
            "{:?}",
            health.readiness()
        );
    }

    #[tokio::test]
    async fn a_service_that_goes_and_comes_back_is_noticed_beside_one_that_hangs() {
        let hangs = "clickhouse is down: no answer within 20ms";
        let health = Health::new(&[Service::Redis, Service::ClickHouse]);
        let answers = Arc::new(AtomicBool::new(true));
        let probe = Arc::clone(&answers);
        let mut prober = Prober::new(Arc::clone(&health))
            .with(Service::ClickHouse, std::future::pending)
            .with(Service::Redis, move || {
                let up = probe.load(Ordering::Relaxed);
                async move {
                    if up {
                        Ok(())
                    } else {
                        Err("connection refused".to_owned())
                    }
                }
            });
        (prober.interval, prober.timeout) = (Duration::from_millis(10), Duration::from_millis(20));
        let task = tokio::spawn(prober.run());
        reasons_become(&health, &[hangs]).await;
        answers.store(false, Ordering::Relaxed);
        reasons_become(&health, &["redis is down: connection refused", hangs]).await;
        answers.store(true, Ordering::Relaxed);
        reasons_become(&health, &[hangs]).await;
        task.abort();
    }
}
