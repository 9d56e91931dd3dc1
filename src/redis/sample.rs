//! A Redis server as it looks from outside: memory by kind of key, and how it is.
//!
//! Owns what a look costs: every round asks a bounded number of small questions, over a connection of its own, and
//! never one whose answer grows with the server. A walk through the keys (`SCAN`) goes on from round to round; the keys
//! that it meets are weighed (`MEMORY USAGE`), and their shares are put in proportion to the number of all keys. A round
//! is about 1 ms of the server's CPU (200 keys; `tests/it/redis_seen.rs` measures it), at the default of one in 15
//! seconds 1 part in 15,000 of a core for each process that looks.
//!
//! Changes nothing, and a failure is counted and is nobody's reason to stop.

use std::time::Duration;

use ::redis::{FromRedisValue as _, RedisResult, Value};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Redis;
use super::info::{number, text};
use super::keys::Keys;
use super::kinds::kind_of;
use crate::telemetry::{RedisKind, RedisSeries, RedisServer, redis_series};

/// How many keys a round asks `SCAN` for.
const KEYS_A_ROUND: usize = 200;
/// `SCAN` may answer more; so many are weighed at the most.
const MOST_KEYS: usize = 2 * KEYS_A_ROUND;
/// Elements of a collection that are weighed; the rest is taken to be like them.
const ELEMENTS: usize = 5;
/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a round has seen counts so much in the next one: half of it is gone after 14 rounds, and some 4,000 keys count
/// at any time.
const FADES: f64 = 0.95;

/// Looks at one server, again and again.
pub struct Sampler {
    redis: Redis,
    prefix: String,
    /// Where the first worker left its mark: on the state's server alone.
    mark_at: Option<String>,
    /// The mark as it was seen last. It holds a secret.
    mark: Option<Vec<u8>>,
    series: RedisSeries,
    cursor: u64,
    seen: Seen,
    counts: Option<Counts>,
}

/// Keys and bytes of each kind among the keys that were met of late.
#[derive(Clone, Debug)]
struct Seen(Vec<(f64, f64)>);

/// What the server counts since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    evicted: u64,
    expired: u64,
    hits: u64,
    misses: u64,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler")
            .field("series", &self.series)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Sampler {
    /// Looks through `redis` at the server that is `server` to us; `prefix` is that of our keys.
    pub fn new(redis: Redis, server: RedisServer, prefix: &str) -> Self {
        Self {
            redis,
            prefix: prefix.to_owned(),
            mark_at: (server == RedisServer::State).then(|| Keys::new(prefix).layout()),
            mark: None,
            series: redis_series(server),
            cursor: 0,
            seen: Seen::nothing(),
            counts: None,
        }
    }

    /// Looks until it is dropped.
    pub async fn run(mut self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let failed = match timeout(PATIENCE, self.round()).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.category().to_owned(),
                Err(_) => "no answer in time".to_owned(),
            };
            self.series.sample_failures.increment(1);
            tracing::debug!(error = failed, "Redis could not be looked at");
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// Redis did not answer, or does not let this user ask.
    pub async fn round(&mut self) -> RedisResult<()> {
        let mut ask = ::redis::pipe();
        ask.cmd("INFO").arg("everything");
        ask.cmd("DBSIZE");
        ask.cmd("SCAN").arg(self.cursor).arg("COUNT").arg(KEYS_A_ROUND);
        let answers = self.redis.pipeline(&ask).await?;
        let (info, keys, (cursor, mut met)): (String, u64, (u64, Vec<Vec<u8>>)) =
            ::redis::from_redis_value(Value::Array(answers))?;
        self.tell(&info);
        self.watch_mark().await;

        // Not every user may ask, and all else goes on without it.
        let mut config = ::redis::cmd("CONFIG");
        config.arg("GET").arg("save");
        if let Ok((_, save)) = self.redis.command::<(String, String)>(&config).await {
            self.series.set_rdb_enabled(!save.is_empty());
        }

        met.truncate(MOST_KEYS);
        if self.cursor == 0 && cursor == 0 {
            // That was all there is.
            self.seen = Seen::nothing();
        }
        self.cursor = cursor;
        self.seen.fade();
        if !met.is_empty() {
            let mut weigh = ::redis::pipe();
            for key in &met {
                weigh
                    .cmd("MEMORY")
                    .arg("USAGE")
                    .arg(key)
                    .arg("SAMPLES")
                    .arg(ELEMENTS);
            }
            for (key, bytes) in met.iter().zip(self.redis.pipeline(&weigh).await?) {
                // Nothing, where it is gone meanwhile.
                if let Some(bytes) = Option::<u64>::from_redis_value(bytes)? {
                    self.seen.add(kind_of(&self.prefix, key), bytes as f64);
                }
            }
        }
        for &kind in RedisKind::ALL {
            let (keys, bytes) = self.seen.estimate(kind, keys as f64);
            self.series.set_kind(kind, keys, bytes);
        }
        Ok(())
    }

    /// The mark of the claims' layout never changes while Redis remembers. Without it the server came back empty, with
    /// another one it is another's memory: workers that run have the old one's secret and numbers, those that start have
    /// not, and neither sees the other's claims.
    async fn watch_mark(&mut self) {
        let Some(key) = &self.mark_at else { return };
        let mut get = ::redis::cmd("GET");
        get.arg(key);
        // Not every user may ask.
        if let Ok(now) = self.redis.command(&get).await
            && changed(&mut self.mark, now)
        {
            self.series.forgotten.increment(1);
            tracing::error!(
                "Redis no longer holds the mark of the claims that it held: it came back empty, or was restored; stop all \
                 workers and the read API, and start them again"
            );
        }
    }

    /// Sets what `INFO` says.
    fn tell(&mut self, info: &str) {
        let series = &self.series;
        for (gauge, name) in [
            (&series.used_memory, "used_memory"),
            (&series.max_memory, "maxmemory"),
            (&series.fragmentation, "mem_fragmentation_ratio"),
            (&series.replicas, "connected_slaves"),
            (&series.aof_enabled, "aof_enabled"),
        ] {
            gauge.set(number(info, name).unwrap_or_default());
        }
        let one_if = |so: bool| f64::from(u8::from(so));
        let ok = |name| one_if(text(info, name) == "ok");
        series.evicts.set(one_if(evicts(info)));
        series.enough_replicas.set(one_if(!wants_replicas(info)));
        series.rdb_ok.set(ok("rdb_last_bgsave_status"));
        series
            .aof_ok
            .set(ok("aof_last_write_status").min(ok("aof_last_bgrewrite_status")));
        if let (Some(now), Some(saved)) = (
            number(info, "server_time_usec"),
            number(info, "rdb_last_save_time"),
        ) {
            series.rdb_age.set((now / 1e6 - saved).max(0.0));
        }
        let counts = Counts::of(info);
        if let Some(before) = self.counts.replace(counts) {
            for (counter, before, now) in [
                (&series.evicted, before.evicted, counts.evicted),
                (&series.expired, before.expired, counts.expired),
                (&series.hits, before.hits, counts.hits),
                (&series.misses, before.misses, counts.misses),
            ] {
                counter.increment(grown(before, now));
            }
        }
    }
}

/// Whether the server takes keys away when its memory is full.
pub fn evicts(info: &str) -> bool {
    let policy = text(info, "maxmemory_policy");
    number(info, "maxmemory").is_some_and(|most| most > 0.0) && !matches!(policy, "" | "noeviction")
}

/// Whether the server wants replicas and has none that is near enough: then it refuses to write. (It tells how many are
/// near enough only where it wants some.)
pub fn wants_replicas(info: &str) -> bool {
    text(info, "role") != "slave" && number(info, "min_slaves_good_slaves") == Some(0.0)
}

/// Whether a mark that was there is there no more.
fn changed(mark: &mut Option<Vec<u8>>, now: Option<Vec<u8>>) -> bool {
    let changed = mark.is_some() && *mark != now;
    *mark = now;
    changed
}

/// How far a count has come; one that is lower than before begins anew, with the server.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

impl Counts {
    fn of(info: &str) -> Self {
        let count = |name| text(info, name).parse().unwrap_or(0);
        Self {
            evicted: count("evicted_keys"),
            expired: count("expired_keys"),
            hits: count("keyspace_hits"),
            misses: count("keyspace_misses"),
        }
    }
}

impl Seen {
    fn nothing() -> Self {
        Self(vec![(0.0, 0.0); RedisKind::ALL.len()])
    }

    fn fade(&mut self) {
        for (keys, bytes) in &mut self.0 {
            *keys *= FADES;
            *bytes *= FADES;
        }
    }

    fn add(&mut self, kind: RedisKind, of: f64) {
        let (keys, bytes) = &mut self.0[kind as usize];
        *keys += 1.0;
        *bytes += of;
    }

    /// Keys and bytes of a kind, where there are `all` keys.
    fn estimate(&self, kind: RedisKind, all: f64) -> (f64, f64) {
        let met: f64 = self.0.iter().map(|(keys, _)| keys).sum();
        if met == 0.0 {
            return (0.0, 0.0);
        }
        let (keys, bytes) = self.0[kind as usize];
        (all * keys / met, all * bytes / met)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_what_was_met_are_put_in_proportion_and_fade() {
        let mut seen = Seen::nothing();
        assert_eq!(seen.estimate(RedisKind::Claims, 9.0), (0.0, 0.0));
        for _ in 0..30 {
            seen.add(RedisKind::Claims, 50.0);
        }
        for _ in 0..10 {
            seen.add(RedisKind::Users, 1_000.0);
        }
        assert_eq!(seen.estimate(RedisKind::Claims, 4_000.0), (3_000.0, 150_000.0));
        assert_eq!(seen.estimate(RedisKind::Users, 4_000.0), (1_000.0, 1_000_000.0));
        for _ in 0..200 {
            seen.fade();
            seen.add(RedisKind::Users, 1_000.0);
        }
        assert!(seen.estimate(RedisKind::Claims, 4_000.0).0 < 1.0, "{seen:?}");
    }

    #[test]
    fn a_mark_that_goes_or_is_anothers_is_told_once() {
        let mut mark = None;
        let mut told = |now: Option<&[u8]>| changed(&mut mark, now.map(<[u8]>::to_vec));
        assert!(!told(None) && !told(Some(b"a")) && !told(Some(b"a")));
        assert!(told(Some(b"b")) && !told(Some(b"b")));
        assert!(told(None) && !told(None) && !told(Some(b"c")));
    }

    #[test]
    fn counts_go_on_over_a_restart_of_the_server() {
        assert_eq!(grown(5, 9), 4);
        assert_eq!(grown(9, 2), 2);
    }

    #[test]
    fn eviction_and_missing_replicas_are_read_from_what_the_server_says() {
        let info =
            "role:master\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\nmin_slaves_good_slaves:0\r\n";
        assert!(evicts(info) && wants_replicas(info));
        assert!(!evicts(&info.replace("allkeys-lru", "noeviction")));
        assert!(!evicts(&info.replace("maxmemory:100", "maxmemory:0")));
        assert!(!wants_replicas(&info.replace("good_slaves:0", "good_slaves:1")));
        assert!(!wants_replicas(&info.replace("master", "slave")));
        assert!(!evicts("") && !wants_replicas(""));
    }
}
