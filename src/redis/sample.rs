//! Redis as it looks from outside, round after round: memory by kind of key, and how each primary is (see `look`).
//!
//! Owns what a look costs: every round asks a bounded number of small questions, over a connection of its own, and
//! never one whose answer grows with the server. A walk through the keys (`SCAN`) goes on from round to round; the keys
//! that it meets are weighed (`MEMORY USAGE`), and their shares are put in proportion to the number of all keys. A round
//! is about 1 ms of the server's CPU (200 keys; `tests/it/redis_seen.rs` measures it), at the default of one in 15
//! seconds 1 part in 15,000 of a core for each process that looks. The primaries of a Cluster share these 200 keys.
//!
//! Changes nothing, and a failure is counted and is nobody's reason to stop.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ::redis::{RedisError, RedisResult};
use futures::future::join_all;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::keys::Keys;
use super::look::Look;
use super::{Redis, Server};
use crate::health::Health;
use crate::telemetry::{RedisLooks, RedisServer, redis_looks, redis_series};

/// How many keys a round asks `SCAN` for: of all primaries of a Cluster together, each gets its share.
const KEYS_A_ROUND: usize = 200;
/// But so many of each at the least.
const LEAST_KEYS: usize = 20;
/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at one Redis, each of its primaries, again and again.
#[derive(Debug)]
pub struct Sampler {
    redis: Redis,
    server: RedisServer,
    prefix: String,
    /// Where the first worker left its mark: in the state alone.
    mark_at: Option<String>,
    mark: Mark,
    looks: RedisLooks,
    /// Told once the state is found to have lost its memory.
    health: Arc<Health>,
    /// One for each primary of a Cluster, by its address; else a single one, whoever is the primary.
    primaries: HashMap<String, Look>,
}

/// The mark as it was seen last. It holds a secret.
#[derive(Default)]
struct Mark(Option<Vec<u8>>);

impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mark")
    }
}

impl Sampler {
    /// Looks through `redis` at what is `server` to us; `prefix` is that of our keys.
    pub fn new(redis: Redis, server: RedisServer, prefix: &str, health: Arc<Health>) -> Self {
        Self {
            redis,
            server,
            prefix: prefix.to_owned(),
            mark_at: (server == RedisServer::State).then(|| Keys::new(prefix).layout()),
            mark: Mark::default(),
            looks: redis_looks(server),
            health,
            primaries: HashMap::new(),
        }
    }

    /// Looks until it is dropped.
    pub async fn run(mut self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.round().await {
                self.looks.failures.increment(1);
                tracing::debug!(error = error.category(), "Redis could not be looked at");
            }
        }
    }

    /// Looks once at each primary.
    ///
    /// # Errors
    /// One of them did not answer, or does not let this user ask. The others were looked at.
    pub async fn round(&mut self) -> RedisResult<()> {
        let servers = in_time(self.redis.servers()).await?;
        let nodes = self.redis.is_cluster();
        let name = |server: &Server| if nodes { server.address() } else { String::new() };
        let names: HashSet<String> = servers.iter().map(name).collect();
        self.primaries.retain(|name, look| {
            let stays = names.contains(name);
            if !stays {
                look.series.is_gone();
            }
            stays
        });
        let keys = KEYS_A_ROUND.div_ceil(servers.len().max(1)).max(LEAST_KEYS);
        let prefix = &self.prefix;
        let asked: Vec<_> = servers
            .iter()
            .map(|server| {
                let name = name(server);
                let known = self.primaries.remove(&name);
                let node = nodes.then_some(name.as_str());
                let mut look = known.unwrap_or_else(|| Look::new(redis_series(self.server, node)));
                async move {
                    let life = look.life.clone();
                    let ended = in_time(look.round(server, prefix, keys)).await;
                    let lost = look.lost_keys(life.as_ref());
                    (name, look, ended, lost)
                }
            })
            .collect();
        let mut failed = None;
        for (name, look, ended, lost) in join_all(asked).await {
            // A cache may forget.
            if nodes && lost && self.server == RedisServer::State {
                self.tell_of_loss(&name);
            }
            self.primaries.insert(name, look);
            failed = failed.or(ended.err());
        }
        self.watch_mark().await;
        failed.map_or(Ok(()), Err)
    }

    /// The mark of the claims' layout never changes while Redis remembers. Without it the server came back empty, with
    /// another one it is another's memory: workers that run have the old one's secret and numbers, those that start have
    /// not, and neither sees the other's claims.
    async fn watch_mark(&mut self) {
        let Some(key) = &self.mark_at else { return };
        let mut get = ::redis::cmd("GET");
        get.arg(key);
        // Not every user may ask.
        if let Ok(now) = in_time(self.redis.command(&get)).await
            && changed(&mut self.mark.0, now)
        {
            self.tell_of_loss("");
        }
    }

    fn tell_of_loss(&self, node: &str) {
        self.looks.forgotten.increment(1);
        self.looks.forgot.set(1);
        self.health.redis_forgot();
        tracing::error!(
            node,
            "Redis no longer holds what it held, the mark of the claims or most keys of a node: it came back empty, or was \
             restored; stop all workers and the read API, and start them again"
        );
    }
}

/// What is looked for, if it comes in time.
async fn in_time<T>(look: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(PATIENCE, look).await.unwrap_or_else(|_| {
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
        Err(RedisError::from(late))
    })
}

/// Whether a mark that was there is there no more.
fn changed(mark: &mut Option<Vec<u8>>, now: Option<Vec<u8>>) -> bool {
    let changed = mark.is_some() && *mark != now;
    *mark = now;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_goes_or_is_anothers_is_told_once() {
        let mut mark = None;
        let mut told = |now: Option<&[u8]>| changed(&mut mark, now.map(<[u8]>::to_vec));
        assert!(!told(None) && !told(Some(b"a")) && !told(Some(b"a")));
        assert!(told(Some(b"b")) && !told(Some(b"b")));
        assert!(told(None) && !told(None) && !told(Some(b"c")));
    }
}
