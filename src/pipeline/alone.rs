//! Alone: how a worker goes on while Redis is gone, if `rate_limit.on_redis_down = "local"`.
//!
//! Owns when that begins, and what stands in for claims and permits. Nothing is rejected: a token that is over its limit
//! slows its partition down, each worker by a limiter of its own. The table is asked for the rows of every event; what it
//! cannot tell is a duplicate of an event that is being written. What is written so is announced as unlimited, so a
//! recovery asks nobody for decisions that were never taken. Nothing is lost. Never touches a block that was tried
//! before: its decisions stand in Redis, and are waited for.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::claim::id;
use super::limits::Limit;
use super::{Outcome, Partition};
use crate::config::OnRedisDown;
use crate::event::Decoded;
use crate::telemetry::{Service, metrics};

/// How long Redis must have been gone: a restart or a failover is waited for.
const AFTER: Duration = Duration::from_secs(10);
/// Tokens that have a limiter.
const MOST_LIMITERS: usize = 100_000;

/// What slows tokens down without Redis; one for all partitions of a worker.
#[derive(Debug, Default)]
pub(super) struct Slowing(Mutex<HashMap<String, (Limit, Arc<DefaultDirectRateLimiter>)>>);

impl Slowing {
    /// Waits until so many events of a token fit under its limit; for ever, if the limit is 0.
    async fn wait(&self, token: &str, limit: Limit, events: usize) {
        let Some(most) = limit.events else { return };
        let Some(limiter) = self.limiter(token, limit, most) else {
            return std::future::pending().await;
        };
        let mut rest = events as u32;
        while let Some(n) = NonZeroU32::new(rest) {
            let part = n.min(burst(most));
            if limiter.until_n_ready(part).await.is_err() {
                return;
            }
            rest -= part.get();
        }
    }

    fn limiter(&self, token: &str, limit: Limit, most: u64) -> Option<Arc<DefaultDirectRateLimiter>> {
        let each = Duration::from_secs(limit.window_seconds)
            .checked_div(u32::try_from(most).unwrap_or(u32::MAX))?
            .max(Duration::from_nanos(1));
        let quota = Quota::with_period(each)?.allow_burst(burst(most));
        let mut limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if limiters.len() >= MOST_LIMITERS && !limiters.contains_key(token) {
            limiters.clear();
        }
        let known = limiters.get(token).filter(|(of, _)| *of == limit);
        let limiter = known.map_or_else(
            || Arc::new(RateLimiter::direct(quota)),
            |(_, known)| Arc::clone(known),
        );
        limiters.insert(token.to_owned(), (limit, Arc::clone(&limiter)));
        Some(limiter)
    }
}

fn burst(most: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(most).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

impl Partition {
    /// Does what needs Redis. `None` if Redis is gone for long, and the worker may go on alone.
    pub(super) async fn unless_alone<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self.worker.config.rate_limit.on_redis_down {
            OnRedisDown::Pause => Some(work.await),
            OnRedisDown::Local => tokio::select! {
                biased;
                done = work => Some(done),
                () = self.worker.health.gone_for(Service::Redis, AFTER) => None,
            },
        }
    }

    /// What becomes of a block's events without Redis; `None` if Redis is back before the limits let them pass.
    pub(super) async fn judge_alone(&self, decoded: &Decoded) -> Option<Vec<Outcome>> {
        tokio::select! {
            () = self.worker.health.back(Service::Redis) => return None,
            () = self.slow_down(decoded) => {}
        }
        let by = self.worker.config.dedup.by;
        let mut seen = HashSet::with_capacity(decoded.events.len());
        let mut outcomes: Vec<Outcome> = decoded
            .events
            .iter()
            .map(|event| {
                let is_first = seen.insert((event.token, id(by, decoded, event)));
                if is_first {
                    Outcome::Pass
                } else {
                    Outcome::Duplicate
                }
            })
            .collect();
        let first: Vec<usize> = (0..outcomes.len())
            .filter(|&i| outcomes[i] == Outcome::Pass)
            .collect();
        if !first.is_empty() {
            self.look_up(decoded, &first, &mut outcomes).await;
        }
        metrics()
            .events_without_redis
            .increment(decoded.events.len() as u64);
        tracing::warn!(
            partition = self.number,
            events = decoded.events.len(),
            "Redis is gone: a block is judged without claims and permits"
        );
        Some(outcomes)
    }

    async fn slow_down(&self, decoded: &Decoded) {
        let worker = &self.worker;
        if !worker.config.rate_limit.enabled {
            return;
        }
        let mut events = vec![0; decoded.tokens.len()];
        for event in &decoded.events {
            events[event.token as usize] += 1;
        }
        let limits = worker.limits.known(&decoded.tokens);
        for ((token, limit), events) in decoded.tokens.iter().zip(limits).zip(events) {
            worker.slowing.wait(token, limit, events).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn limit(events: Option<u64>) -> Limit {
        Limit {
            events,
            window_seconds: 1,
            listed: true,
        }
    }

    #[tokio::test]
    async fn a_token_over_its_limit_is_slowed_down_and_another_is_not() {
        let slowing = Slowing::default();
        let start = Instant::now();
        slowing.wait("t", limit(Some(100)), 120).await;
        assert!(
            start.elapsed() >= Duration::from_millis(150),
            "20 more than at once"
        );
        let start = Instant::now();
        slowing.wait("other", limit(Some(1_000_000)), 100_000).await;
        slowing.wait("free", limit(None), usize::MAX).await;
        slowing.wait("t", limit(Some(1_000_000)), 100).await;
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "a new limit counts at once"
        );
    }

    #[tokio::test]
    async fn a_blocked_token_waits_for_redis() {
        let slowing = Slowing::default();
        let blocked = slowing.wait("t", limit(Some(0)), 1);
        assert!(futures::poll!(std::pin::pin!(blocked)).is_pending());
    }
}
