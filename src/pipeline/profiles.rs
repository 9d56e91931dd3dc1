//! Profiles: what the read path has cached of users that have changed is dropped.
//!
//! Owns the changes that the cache has not been told of yet. Never holds up a partition while the cache is away: it may
//! be a server of its own, and nothing that is promised stands there. What cannot be kept in mind stays in the cache
//! until it expires, and is counted.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Pipeline, RedisResult};
use tokio::time::{sleep, timeout};

use super::retry::delays;
use crate::redis::{COMMANDS_AT_ONCE, Redis};
use crate::telemetry::metrics;

/// Bytes of keys that wait to be dropped while the cache is away.
const MOST_WAITING: usize = 16 << 20;
/// How long the cache may take before it counts as away.
const PATIENCE: Duration = Duration::from_millis(500);

/// Drops cached profiles; one for all partitions of a worker.
#[derive(Debug)]
pub(super) struct Profiles {
    cache: Redis,
    /// Keys to be dropped once the cache is back; `None` while it is there.
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    keys: HashSet<String>,
    bytes: usize,
}

impl Profiles {
    pub(super) fn new(cache: Redis) -> Arc<Self> {
        Arc::new(Self {
            cache,
            waiting: Mutex::default(),
        })
    }

    /// Drops these keys: now, or once the cache is back.
    pub(super) async fn drop(self: &Arc<Self>, keys: Vec<String>) {
        if keys.is_empty() || self.lock().as_mut().map(|waiting| waiting.put(&keys)).is_some() {
            return;
        }
        let why = match timeout(PATIENCE, self.send(&keys)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        let is_first = {
            let mut waiting = self.lock();
            let is_first = waiting.is_none();
            waiting.get_or_insert_default().put(&keys);
            is_first
        };
        if is_first {
            tracing::warn!(
                error = why,
                "the cache does not answer: profiles of users that change meanwhile are dropped once it is back"
            );
            tokio::spawn(Arc::clone(self).catch_up());
        }
    }

    /// Drops what waits, and what comes to it meanwhile.
    async fn catch_up(self: Arc<Self>) {
        while let Some(keys) = self.next() {
            let keys: Vec<String> = keys.into_iter().collect();
            let mut delays = delays();
            // Nobody waits for it, and that the cache is away was told when it began.
            while self.send(&keys).await.is_err() {
                sleep(delays.next().unwrap_or(PATIENCE)).await;
            }
        }
    }

    /// What waits; `None`, and from now on none does, if that is nothing.
    fn next(&self) -> Option<HashSet<String>> {
        let mut waiting = self.lock();
        match waiting.as_mut().map(std::mem::take) {
            Some(Waiting { keys, .. }) if !keys.is_empty() => Some(keys),
            _ => {
                *waiting = None;
                None
            }
        }
    }

    async fn send(&self, keys: &[String]) -> RedisResult<()> {
        for keys in keys.chunks(COMMANDS_AT_ONCE) {
            let mut pipe = Pipeline::with_capacity(keys.len());
            for key in keys {
                pipe.cmd("DEL").arg(key);
            }
            self.cache.pipeline(&pipe).await?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Keeps keys in mind, as far as there is room.
    fn put(&mut self, keys: &[String]) {
        for key in keys {
            if self.bytes + key.len() > MOST_WAITING {
                metrics()
                    .stale_profiles
                    .increment(u64::from(!self.keys.contains(key)));
            } else if self.keys.insert(key.clone()) {
                self.bytes += key.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_by_its_bytes_and_a_key_waits_once() {
        let mut waiting = Waiting::default();
        let key = |n: usize| format!("{n:0>1024}");
        for _ in 0..2 {
            waiting.put(&(0..100).map(key).collect::<Vec<_>>());
        }
        assert_eq!((waiting.keys.len(), waiting.bytes), (100, 100 << 10));
        waiting.put(&(0..=MOST_WAITING >> 10).map(key).collect::<Vec<_>>());
        assert_eq!(
            (waiting.keys.len(), waiting.bytes),
            (MOST_WAITING >> 10, MOST_WAITING)
        );
    }
}
