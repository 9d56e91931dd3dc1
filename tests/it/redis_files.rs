//! The files of `deploy/redis`, on real servers: they are accepted, what they say is in effect, and what they are for
//! comes true: collections stay small, a server alone refuses writes, and a failover leaves one that takes them.

use std::time::{Duration, Instant};

use redis::RedisResult;
use sluice::redis::keys::{Keys, TIMELINE_EVENTS, TIMELINE_MEMBER_BYTES};
use tempfile::TempDir;

use crate::harness::redis_by_file::RedisByFile;
use crate::harness::wait::{eventually, seen};

/// Without a replica, for what needs none.
const ALONE: [&str; 2] = ["--min-replicas-to-write", "0"];
const NAME: &str = "sluice-state";

fn assert_settings(server: &RedisByFile, wanted: &[(&str, &str)]) {
    let settings = server.settings();
    for (name, value) in wanted {
        assert_eq!(settings.get(*name).map(String::as_str), Some(*value), "{name}");
    }
}

fn set(server: &RedisByFile) -> RedisResult<()> {
    redis::cmd("SET").arg("a").arg(1).exec(&mut server.connect())
}

#[test]
fn the_states_file_evicts_nothing_persists_everything_and_packs_small_collections() {
    let folder = TempDir::new().unwrap();
    let server = RedisByFile::with_file("state.conf", folder.path(), &[]);
    assert_settings(
        &server,
        &[
            ("maxmemory", "4294967296"),
            ("maxmemory-policy", "noeviction"),
            ("hash-max-listpack-entries", "128"),
            ("hash-max-listpack-value", "512"),
            ("zset-max-listpack-entries", "128"),
            ("zset-max-listpack-value", "64"),
            ("list-max-listpack-size", "-2"),
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
            ("save", "900 1 300 10 60 10000"),
            ("min-replicas-to-write", "1"),
            ("min-replicas-max-lag", "10"),
        ],
    );
    let refused = set(&server).unwrap_err();
    assert_eq!(refused.code(), Some("NOREPLICAS"), "{refused}");
}

#[test]
fn the_caches_file_evicts_by_lru_and_has_no_disk() {
    let folder = TempDir::new().unwrap();
    let server = RedisByFile::with_file("cache.conf", folder.path(), &[]);
    assert_settings(
        &server,
        &[
            ("maxmemory", "2147483648"),
            ("maxmemory-policy", "allkeys-lru"),
            ("appendonly", "no"),
            ("save", ""),
            ("min-replicas-to-write", "0"),
        ],
    );
    set(&server).unwrap();
}

#[test]
fn a_full_timeline_stays_a_listpack_and_one_beyond_the_limits_does_not() {
    let folder = TempDir::new().unwrap();
    let server = RedisByFile::with_file("state.conf", folder.path(), &ALONE);
    let mut connection = server.connect();
    let keys = Keys::new("");
    let mut encoding = |user: &str, events: usize, bytes: usize| -> String {
        let key = keys.timeline("token", user);
        let mut add = redis::cmd("ZADD");
        add.arg(&key);
        for n in 0..events {
            add.arg(1_706_745_000_000 + n).arg(format!("{n:0bytes$}"));
        }
        add.exec(&mut connection).unwrap();
        let mut ask = redis::cmd("OBJECT");
        ask.arg("ENCODING").arg(&key).query(&mut connection).unwrap()
    };
    assert_eq!(
        encoding("full", TIMELINE_EVENTS, TIMELINE_MEMBER_BYTES),
        "listpack"
    );
    // The limits are what keeps it so.
    assert_eq!(encoding("long", 1, TIMELINE_MEMBER_BYTES + 1), "skiplist");
    assert_eq!(encoding("many", 129, TIMELINE_MEMBER_BYTES), "skiplist");
}

#[test]
fn three_sentinels_give_a_lost_master_a_successor_that_takes_writes() {
    let folder = TempDir::new().unwrap();
    let under = folder.path();
    let master = RedisByFile::with_file("state.conf", under, &[]);
    let of = format!("127.0.0.1 {}", master.port);
    let replicas = [(); 2].map(|()| RedisByFile::with_file("replica.conf", under, &["--replicaof", &of]));
    let taken = || set(&master).map_err(|error| error.to_string());
    eventually("a replica has come", Duration::from_secs(30), taken);
    for replica in &replicas {
        assert_settings(
            replica,
            &[
                ("maxmemory-policy", "noeviction"),
                ("appendonly", "yes"),
                ("min-replicas-to-write", "1"),
                ("replica-serve-stale-data", "no"),
            ],
        );
    }

    let sentinels = [(); 3].map(|()| RedisByFile::sentinel(under, master.port));
    let told = |sentinel: &RedisByFile, name: &str| -> Result<String, String> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("MASTER").arg(NAME);
        let told: std::collections::HashMap<String, String> = ask
            .query(&mut sentinel.connect())
            .map_err(|error| error.to_string())?;
        told.get(name).cloned().ok_or_else(|| format!("no {name}"))
    };
    for sentinel in &sentinels {
        for (name, value) in [
            ("quorum", "2"),
            ("down-after-milliseconds", "5000"),
            ("failover-timeout", "60000"),
            ("parallel-syncs", "1"),
        ] {
            assert_eq!(told(sentinel, name).unwrap(), value, "{name}");
        }
        eventually("all know one another", Duration::from_secs(40), || {
            let (replicas, others) = (
                told(sentinel, "num-slaves")?,
                told(sentinel, "num-other-sentinels")?,
            );
            seen(
                (replicas.as_str(), others.as_str()) == ("2", "2"),
                format_args!("{replicas} replicas, {others} other Sentinels"),
            )
        });
    }

    let begin = Instant::now();
    let lost = master.port;
    master.kill();
    let successor = eventually("a replica takes over", Duration::from_secs(50), || {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(NAME);
        let (_, port): (String, u16) = ask
            .query(&mut sentinels[0].connect())
            .map_err(|error| error.to_string())?;
        seen(port != lost, "the old one")?;
        let successor = replicas.iter().find(|replica| replica.port == port).unwrap();
        // The other replica follows it now, or this would be refused.
        set(successor).map_err(|error| error.to_string())?;
        Ok(successor)
    });
    let took = begin.elapsed();
    eprintln!(
        "writes were taken again {:.1} s after the master was killed",
        took.as_secs_f64()
    );
    let kept: u32 = redis::cmd("GET")
        .arg("a")
        .query(&mut successor.connect())
        .unwrap();
    assert_eq!(kept, 1);
}
