//! One primary as it looks from outside, over one connection: what a round of [`sample`](super::sample) asks it, and what
//! is told of it. Never decides when, nor how many keys.

use ::redis::{FromRedisValue as _, RedisResult, Value};

use super::Server;
use super::info::{number, text};
use super::kinds::kind_of;
use crate::telemetry::{RedisKind, RedisSeries};

/// Elements of a collection that are weighed; the rest is taken to be like them.
const ELEMENTS: usize = 5;
/// What a round has seen counts so much in the next one: half of it is gone after 14 rounds, and some 4,000 keys count
/// at any time.
const FADES: f64 = 0.95;

/// What is known of one primary.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) series: RedisSeries,
    cursor: u64,
    seen: Seen,
    counts: Option<Counts>,
    pub(super) life: Option<Life>,
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

/// Which run of a server it is, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Life {
    run: String,
    keys: u64,
}

impl Look {
    pub(super) fn new(series: RedisSeries) -> Self {
        Self {
            series,
            cursor: 0,
            seen: Seen::nothing(),
            counts: None,
            life: None,
        }
    }

    /// Looks once, at `share` keys.
    pub(super) async fn round(&mut self, server: &Server, prefix: &str, share: usize) -> RedisResult<()> {
        let mut ask = ::redis::pipe();
        ask.cmd("INFO").arg("everything");
        ask.cmd("DBSIZE");
        ask.cmd("SCAN").arg(self.cursor).arg("COUNT").arg(share);
        let answers = server.pipeline(&ask).await?;
        let (info, keys, (cursor, mut met)): (String, u64, (u64, Vec<Vec<u8>>)) =
            ::redis::from_redis_value(Value::Array(answers))?;
        self.tell(&info);
        self.life = Some(Life {
            run: text(&info, "run_id").to_owned(),
            keys,
        });

        // Not every user may ask, and all else goes on without it.
        let mut config = ::redis::pipe();
        config.cmd("CONFIG").arg("GET").arg("save");
        let save = server.pipeline(&config).await;
        if let Ok((save,)) =
            save.and_then(|answers| Ok(<((String, String),)>::from_redis_value(Value::Array(answers))?))
        {
            self.series.set_rdb_enabled(!save.1.is_empty());
        }

        // SCAN may answer more than it was asked for; so many are weighed at the most.
        met.truncate(2 * share);
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
            for (key, bytes) in met.iter().zip(server.send(&weigh).await?) {
                // Nothing, where it is gone meanwhile, or its slot is on the way to another node.
                if let Ok(Some(bytes)) = Option::<u64>::from_redis_value(bytes) {
                    self.seen.add(kind_of(prefix, key), bytes as f64);
                }
            }
        }
        for &kind in RedisKind::ALL {
            let (keys, bytes) = self.seen.estimate(kind, keys as f64);
            self.series.set_kind(kind, keys, bytes);
        }
        Ok(())
    }

    /// Whether the server was started since `before` and has lost most of its keys: the mark is at one node alone.
    pub(super) fn lost_keys(&self, before: Option<&Life>) -> bool {
        matches!((before, &self.life), (Some(before), Some(now))
            if before.run != now.run && now.keys < before.keys / 2)
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
    use crate::telemetry::{RedisServer, redis_series};

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
    fn a_node_that_was_started_with_less_than_half_of_its_keys_has_lost_them() {
        let life = |run: &str, keys| Life {
            run: run.to_owned(),
            keys,
        };
        for (before, now, lost) in [
            (None, life("b", 0), false),
            (Some(life("a", 10)), life("a", 0), false),
            (Some(life("a", 10)), life("b", 5), false),
            (Some(life("a", 10)), life("b", 4), true),
        ] {
            let mut look = Look::new(redis_series(RedisServer::State, None));
            look.life = Some(now);
            assert_eq!(
                look.lost_keys(before.as_ref()),
                lost,
                "{before:?} {:?}",
                look.life
            );
        }
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
