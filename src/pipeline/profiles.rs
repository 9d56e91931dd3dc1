//! Profiles: what the read path has cached of users that have changed is dropped.
//!
//! Owns the changes that the cache has not been told of yet. Never holds up a partition while the cache is away: it may
//! be a server of its own, and nothing that is promised stands there. What cannot be kept in mind stays in the cache
//! until it expires, and is counted.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::{Pipeline, RedisResult};

use super::retry::until_done;
use crate::redis::{COMMANDS_AT_ONCE, Redis};
use crate::telemetry::{Service, metrics};

/// Profiles that wait to be dropped while the cache is away.
const MOST_WAITING: usize = 100_000;

/// Drops cached profiles; one for all partitions of a worker.
#[derive(Debug)]
pub(super) struct Profiles {
    cache: Redis,
    /// Keys to be dropped once the cache is back; `None` while it is there.
    waiting: Mutex<Option<HashSet<String>>>,
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
        if keys.is_empty() || self.lock().as_mut().map(|waiting| put(waiting, &keys)).is_some() {
            return;
        }
        let Err(error) = self.send(&keys).await else {
            return;
        };
        let is_first = {
            let mut waiting = self.lock();
            let is_first = waiting.is_none();
            put(waiting.get_or_insert_default(), &keys);
            is_first
        };
        if is_first {
            tracing::warn!(
                error = error.to_string(),
                "the cache does not answer: profiles of users that change meanwhile are dropped once it is back"
            );
            tokio::spawn(Arc::clone(self).catch_up());
        }
    }

    /// Drops what waits, and what comes to it meanwhile.
    async fn catch_up(self: Arc<Self>) {
        while let Some(keys) = self.next() {
            let keys: Vec<String> = keys.into_iter().collect();
            let send = async || self.send(&keys).await;
            until_done(Service::Redis, "drop cached profiles", send).await;
        }
    }

    /// What waits; `None`, and from now on none does, if that is nothing.
    fn next(&self) -> Option<HashSet<String>> {
        let mut waiting = self.lock();
        match waiting.as_mut().map(std::mem::take) {
            Some(keys) if !keys.is_empty() => Some(keys),
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

    fn lock(&self) -> MutexGuard<'_, Option<HashSet<String>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps keys in mind, as far as there is room.
fn put(waiting: &mut HashSet<String>, keys: &[String]) {
    for key in keys {
        if waiting.len() < MOST_WAITING {
            waiting.insert(key.clone());
        } else if !waiting.contains(key) {
            metrics().stale_profiles.increment(1);
        }
    }
}
