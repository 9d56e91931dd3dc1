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
use xxhash_rust::xxh3::xxh3_64;

use super::block::{Block, Cut};
use super::claim::id;
use super::limits::Limit;
use super::{Outcome, Partition};
use crate::config::OnRedisDown;
use crate::event::Decoded;
use crate::telemetry::{Service, WaitsFor, metrics};

/// How long Redis must have been gone: a restart or a failover is waited for.
const AFTER: Duration = Duration::from_secs(10);
/// Tokens that have a limiter of their own.
const MOST_LIMITERS: usize = 100_000;
/// Limiters that the others share.
const SHARED_LIMITERS: u64 = 1_024;
/// Limiters that are as good as new are looked for so often at the most.
const SWEEP: Duration = Duration::from_secs(1);
/// A window's events are waited for in so many parts: whoever waits for all at once is overtaken by others for ever.
const PARTS: u32 = 100;

/// What slows tokens down without Redis; one for all partitions of a worker.
#[derive(Debug, Default)]
pub(super) struct Slowing(Mutex<Limiters>);

/// Whose a limiter is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Token(String),
    /// Of those for whom there is no room, by their token's hash: made-up tokens can slow others down, but get nobody a
    /// limit anew.
    Others(u64),
}

type Limiter = Arc<DefaultDirectRateLimiter>;

#[derive(Debug, Default)]
struct Limiters {
    known: HashMap<(Whose, Limit), Limiter>,
    swept: Option<Instant>,
}

impl Slowing {
    /// Waits until so many events of a token fit under its limit; for ever, if the limit is 0.
    async fn wait(&self, token: &str, limit: Limit, events: usize) {
        let Some(most) = limit.events else { return };
        let Some(quota) = quota(limit, most) else {
            return std::future::pending().await;
        };
        let limiter = self.limiter(token, limit, quota);
        let most = NonZeroU32::new(quota.burst_size().get() / PARTS).unwrap_or(NonZeroU32::MIN);
        let mut rest = events as u32;
        while let Some(n) = NonZeroU32::new(rest) {
            let part = n.min(most);
            if limiter.until_n_ready(part).await.is_err() {
                return;
            }
            rest -= part.get();
        }
    }

    fn limiter(&self, token: &str, limit: Limit, quota: Quota) -> Limiter {
        let mut limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whose = (Whose::Token(token.to_owned()), limit);
        if !limiters.known.contains_key(&whose) && !limiters.have_room(Instant::now()) {
            whose.0 = Whose::Others(xxh3_64(token.as_bytes()) % SHARED_LIMITERS);
        }
        let new = || Arc::new(RateLimiter::direct(quota));
        Arc::clone(limiters.known.entry(whose).or_insert_with(new))
    }
}

impl Limiters {
    /// Whether another token can have a limiter of its own. Those that nobody holds and that would let a whole window's
    /// events pass now are forgotten: a new one would do the same.
    fn have_room(&mut self, now: Instant) -> bool {
        let is_due = self.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP);
        if self.known.len() >= MOST_LIMITERS && is_due {
            self.swept = Some(now);
            self.known.retain(|(_, limit), limiter| {
                let all = burst(limit.events.unwrap_or(u64::MAX));
                Arc::strong_count(limiter) > 1 || !matches!(limiter.check_n(all), Ok(Ok(())))
            });
        }
        self.known.len() < MOST_LIMITERS
    }
}

/// Why a token is waited for without Redis.
fn without_redis(token: &str, limit: Limit) -> String {
    match limit.events {
        Some(0) if limit.listed => {
            format!("token {token:?} is blocked, and its events can only be rejected with Redis")
        }
        Some(0) => format!("token {token:?} is not known to be on the allow-list, and Redis cannot be asked"),
        _ => format!("token {token:?} is slowed down to its limit without Redis"),
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
    /// Whether an earlier attempt at a block may have been without Redis: then it was announced as unlimited, or, if the
    /// announcement is gone, nothing tells.
    pub(super) fn may_have_been_alone(&self, block: &Block, unlimited: bool) -> bool {
        let config = &self.worker.config.rate_limit;
        match block.cut {
            Cut::Announced(_) => unlimited && (config.enabled || config.on_redis_down == OnRedisDown::Local),
            Cut::Free => config.on_redis_down == OnRedisDown::Local,
        }
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
            let waiting = worker.slowing.wait(token, limit, events);
            tokio::pin!(waiting);
            if futures::poll!(&mut waiting).is_ready() {
                continue;
            }
            let _wait = self.waiter().waits_for(
                if limit.events == Some(0) {
                    WaitsFor::BlockedToken
                } else {
                    WaitsFor::Permits
                },
                without_redis(token, limit),
            );
            waiting.await;
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
        let limit = Limit {
            window_seconds: 3_600,
            ..limit(Some(10))
        };
        let quota = quota(limit, 10).unwrap();
        let limiter = |token: &str| slowing.limiter(token, limit, quota);
        let held = limiter("t");
        // Used up, and held by nobody.
        let all = NonZeroU32::new(10).unwrap();
        assert_eq!(limiter("spent").check_n(all), Ok(Ok(())));
        for n in 2..MOST_LIMITERS {
            limiter(&n.to_string());
        }
        slowing.0.lock().unwrap().swept = Some(Instant::now() + Duration::from_hours(1));
        let shared = limiter("one more");
        assert!(
            Arc::ptr_eq(&shared, &limiter("one more")),
            "it has one among the shared"
        );
        assert!(Arc::ptr_eq(&held, &limiter("t")));
        let mut limiters = slowing.0.lock().unwrap();
        limiters.swept = None;
        assert!(limiters.have_room(Instant::now()));
        assert_eq!(
            limiters.known.len(),
            3,
            "what is held, what is used up, and the shared one"
        );
    }

    #[tokio::test]
    async fn a_blocked_token_waits_for_redis() {
        let slowing = Slowing::default();
        let blocked = slowing.wait("t", limit(Some(0)), 1);
        assert!(futures::poll!(std::pin::pin!(blocked)).is_pending());
    }
}
