//! The files of `deploy/redis`, on real servers: they are accepted, what they say is in effect, and what they are for
//! comes true: collections stay small, a server alone refuses writes, and a failover leaves one that takes them.

use std::time::{Duration, Instant};

use redis::RedisResult;
use sluice::redis::keys::{Keys, TIMELINE_EVENTS, TIMELINE_MEMBER_BYTES};
use tempfile::TempDir;

use crate::harness::Scene;
use crate::harness::kafka::Record;
use crate::harness::redis_by_file::{RedisByFile, Secured, password};
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

/// A master, two replicas and three Sentinels that know one another.
struct Watched {
    folder: TempDir,
    master: RedisByFile,
    replicas: [RedisByFile; 2],
    sentinels: [RedisByFile; 3],
}

impl Watched {
    fn new(secured: Secured) -> Self {
        let folder = TempDir::new().unwrap();
        let under = folder.path();
        let master = RedisByFile::with(secured, "state.conf", under, &[]);
        let of = format!("127.0.0.1 {}", master.port);
        let replicas =
            [(); 2].map(|()| RedisByFile::with(secured, "replica.conf", under, &["--replicaof", &of]));
        let taken = || set(&master).map_err(|error| error.to_string());
        eventually("a replica has come", Duration::from_secs(30), taken);
        let sentinels = [(); 3].map(|()| RedisByFile::sentinel(secured, under, master.port));
        for sentinel in &sentinels {
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
        Self {
            folder,
            master,
            replicas,
            sentinels,
        }
    }

    /// The replica that the Sentinels name once the master at that port is gone, and that takes writes.
    fn successor(&self, lost: u16) -> &RedisByFile {
        eventually("a replica takes over", Duration::from_secs(50), || {
            let mut ask = redis::cmd("SENTINEL");
            ask.arg("GET-MASTER-ADDR-BY-NAME").arg(NAME);
            let (_, port): (String, u16) = ask
                .query(&mut self.sentinels[0].connect())
                .map_err(|error| error.to_string())?;
            seen(port != lost, "the old one")?;
            let mut replicas = self.replicas.iter();
            let successor = replicas.find(|replica| replica.port == port).unwrap();
            // The other replica follows it now, or this would be refused.
            set(successor).map_err(|error| error.to_string())?;
            Ok(successor)
        })
    }
}

/// What a Sentinel tells of the master.
fn told(sentinel: &RedisByFile, name: &str) -> Result<String, String> {
    let mut ask = redis::cmd("SENTINEL");
    ask.arg("MASTER").arg(NAME);
    let told: std::collections::HashMap<String, String> = ask
        .query(&mut sentinel.connect())
        .map_err(|error| error.to_string())?;
    told.get(name).cloned().ok_or_else(|| format!("no {name}"))
}

#[test]
fn three_sentinels_give_a_lost_master_a_successor_that_takes_writes() {
    let mut watched = Watched::new(Secured::No);
    for replica in &watched.replicas {
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
    for sentinel in &watched.sentinels {
        for (name, value) in [
            ("quorum", "2"),
            ("down-after-milliseconds", "5000"),
            ("failover-timeout", "60000"),
            ("parallel-syncs", "1"),
        ] {
            assert_eq!(told(sentinel, name).unwrap(), value, "{name}");
        }
    }
    let begin = Instant::now();
    let lost = watched.master.port;
    watched.master.stop();
    let successor = watched.successor(lost);
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

#[test]
fn the_user_of_the_file_has_the_documented_rule() {
    let users = include_str!("../../deploy/redis/users.acl");
    let docs = include_str!("../../docs/redis-connections.md");
    let rule = |text: &'static str| -> Vec<&str> {
        let line = text.lines().find(|line| line.starts_with("user sluice on "));
        let words = line.unwrap().split(' ').skip_while(|word| *word != "-@all");
        words.collect()
    };
    // And what a primary behind sentinels is asked.
    assert_eq!(rule(users), [rule(docs), vec!["+role"]].concat());
}

/// With what the files have commented out: nobody without a password, a failover, and a lost master that comes back.
#[test]
fn a_secured_set_up_is_the_files_without_their_comment_signs() {
    let mut watched = Watched::new(Secured::Yes);
    let servers = watched.replicas.iter().chain([&watched.master]);
    for server in servers.chain(&watched.sentinels) {
        let refused = server.told_to_strangers().unwrap_err();
        assert_eq!(refused.code(), Some("NOAUTH"), "{refused}");
    }

    let mut scene = Scene::new("secured_files", 1);
    let sentinels: Vec<String> = watched
        .sentinels
        .iter()
        .map(|sentinel| format!("127.0.0.1:{}", sentinel.port))
        .collect();
    let url = format!("redis://sluice:{}@{}", password("SLUICE"), sentinels.join(","));
    scene.set("redis.mode", "sentinel");
    scene.set("redis.url", &url);
    scene.set("redis.sentinel_service", NAME);
    scene.set("redis.sentinel_password", &password("SENTINELS"));
    let check = |primary: u16| {
        let output = scene.sluice(&["check"]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        for part in [
            format!("primary 127.0.0.1:{primary}, named by 3 of 3 sentinels"),
            "all that a worker sends".to_owned(),
        ] {
            assert!(text.contains(&part), "{part}: {text}");
        }
        assert!(!text.contains("s3cret"), "{text}");
    };
    check(watched.master.port);
    let event = |n: u32| Record::of(0, format!(r#"{{"token":"t","event":"e {n}","distinct_id":"d"}}"#));
    let worker = scene.start().ready();
    scene.produce((0..50).map(event).collect());
    scene.settled();

    let (lost, folder) = (watched.master.port, watched.master.folder());
    watched.master.stop();
    let successor = watched.successor(lost).port;
    scene.produce((50..100).map(event).collect());
    scene.settled_within(Duration::from_mins(1));
    assert_eq!(scene.rows().len(), 100);
    check(successor);
    assert_eq!(worker.terminate().code(), Some(0));

    // It is told whom to follow, and may; with the settings that Sentinel has had written.
    watched.master = RedisByFile::again(&folder, Secured::Yes, "state.conf", lost);
    eventually(
        "the lost master follows its successor",
        Duration::from_mins(1),
        || {
            let text = watched.master.text_of_info();
            let follows = [
                "role:slave".to_owned(),
                format!("master_port:{successor}"),
                "master_link_status:up".to_owned(),
            ];
            seen(follows.iter().all(|line| text.contains(line)), &text)
        },
    );
    // And so may every server once more, with the file as it stands now.
    for server in &mut watched.replicas {
        let (port, folder) = (server.port, server.folder());
        server.stop();
        *server = RedisByFile::again(&folder, Secured::Yes, "replica.conf", port);
    }
    drop(watched.folder);
}
