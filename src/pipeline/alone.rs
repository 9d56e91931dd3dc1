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
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::claim::id;
use super::limits::Limit;
use super::{Outcome, Partition};
use crate::config::OnRedisDown;
use crate::event::Decoded;
use crate::telemetry::{Service, metrics};

/// How long Redis must have been gone: a restart or a failover is waited for.
const AFTER: Duration = Duration::from_secs(10);
/// Tokens that have a limiter of their own.
const MOST_LIMITERS: usize = 100_000;
/// Limiters that are as good as new are looked for so often at the most.
const SWEEP: Duration = Duration::from_secs(1);

/// What slows tokens down without Redis; one for all partitions of a worker.
#[derive(Debug, Default)]
pub(super) struct Slowing(Mutex<Limiters>);

/// Whose a limiter is: a token's, or (`None`) that of all for whom there is no room. These share one, so that made-up
/// tokens can slow each other down, but get nobody a limit anew.
type Whose = (Option<String>, Limit);

#[derive(Debug, Default)]
struct Limiters {
    known: HashMap<Whose, Used>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Used {
    limiter: Arc<DefaultDirectRateLimiter>,
    last: Instant,
}

impl Slowing {
    /// Waits until so many events of a token fit under its limit; for ever, if the limit is 0.
    async fn wait(&self, token: &str, limit: Limit, events: usize) {
        let Some(most) = limit.events else { return };
        let Some(quota) = quota(limit, most) else {
            return std::future::pending().await;
        };
        let mut rest = events as u32;
        while let Some(n) = NonZeroU32::new(rest) {
            let limiter = self.limiter(token, limit, quota);
            let part = n.min(quota.burst_size());
            if limiter.until_n_ready(part).await.is_err() {
                return;
            }
            rest -= part.get();
        }
    }

    fn limiter(&self, token: &str, limit: Limit, quota: Quota) -> Arc<DefaultDirectRateLimiter> {
        let mut limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut whose = (Some(token.to_owned()), limit);
        if !limiters.known.contains_key(&whose) && !limiters.have_room(now) {
            whose.0 = None;
        }
        let used = limiters.known.entry(whose).or_insert_with(|| Used {
            limiter: Arc::new(RateLimiter::direct(quota)),
            last: now,
        });
        used.last = now;
        Arc::clone(&used.limiter)
    }
}

impl Limiters {
    /// Whether another token can have a limiter of its own. Those that nobody has used for their window are forgotten: a
    /// new one would let as many pass.
    fn have_room(&mut self, now: Instant) -> bool {
        let is_due = self.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP);
        if self.known.len() >= MOST_LIMITERS && is_due {
            self.swept = Some(now);
            self.known.retain(|(_, limit), used| {
                let window = Duration::from_secs(limit.window_seconds);
                Arc::strong_count(&used.limiter) > 1 || now.duration_since(used.last) < window
            });
        }
        self.known.len() < MOST_LIMITERS
    }
}

/// As many at once as a window has, and the same again in each window; `None` if that is none.
fn quota(limit: Limit, most: u64) -> Option<Quota> {
    let each = Duration::from_secs(limit.window_seconds)
        .checked_div(u32::try_from(most).unwrap_or(u32::MAX))?
        .max(Duration::from_nanos(1));
    Some(Quota::with_period(each)?.allow_burst(burst(most)))
}

fn burst(most: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(most).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

impl Partition {
    /// Whether a block may be judged without Redis.
    pub(super) fn may_go_alone(&self) -> bool {
        self.worker.config.rate_limit.on_redis_down == OnRedisDown::Local
    }

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
        self.look_up_passing(decoded, &mut outcomes).await;
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

    /// Makes duplicates of those that pass so far, and that the table has rows of, from other records.
    pub(super) async fn look_up_passing(&self, decoded: &Decoded, outcomes: &mut [Outcome]) {
        let passing: Vec<usize> = (0..outcomes.len())
            .filter(|&i| outcomes[i] == Outcome::Pass)
            .collect();
        if !passing.is_empty() {
            self.look_up(decoded, &passing, outcomes).await;
        }
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

    #[test]
    fn made_up_tokens_get_nobody_a_limiter_anew() {
        let slowing = Slowing::default();
        let limit = limit(Some(10));
        let quota = quota(limit, 10).unwrap();
        let limiter = |token: &str| slowing.limiter(token, limit, quota);
        let first = limiter("t");
        // Held, as by a partition that waits: however long this takes, they are in use.
        let held: Vec<_> = (1..MOST_LIMITERS).map(|n| limiter(&n.to_string())).collect();
        let shared = limiter("one more");
        assert!(
            Arc::ptr_eq(&shared, &limiter("and another")),
            "they share the rest"
        );
        assert!(Arc::ptr_eq(&first, &limiter("t")));
        drop((held, shared));
        // Nobody has used them for a window: as good as new.
        let mut limiters = slowing.0.lock().unwrap();
        let later = Instant::now() + Duration::from_secs(2);
        assert!(limiters.have_room(later));
        assert_eq!(limiters.known.len(), 1, "what is in use");
    }

    #[tokio::test]
    async fn a_blocked_token_waits_for_redis() {
        let slowing = Slowing::default();
        let blocked = slowing.wait("t", limit(Some(0)), 1);
        assert!(futures::poll!(std::pin::pin!(blocked)).is_pending());
    }
}
