//! Rebuilding users: what comes out is what the stream had built, also beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::clickhouse::Row;
use crate::harness::kafka::Record;
use crate::tasks::done;

const PARTITIONS: i32 = 4;

/// An event of a user. One user's are in one partition, and not in the order of their times.
fn event(user: usize, n: usize) -> Record {
    let (token, time) = (user % 7, (n * 7919) % 86_400);
    let set = match n % 5 {
        0 => format!(r#","$set":{{"plan":"p{n}","n":{n}}},"$set_once":{{"first":{n}}}"#),
        1 => format!(r#","$set_once":{{"first":{n},"once{n}":1e-7}},"$unset":["plan"]"#),
        2 => format!(r#","properties":{{"$set":{{"n":{n},"big":9007199254740993}}}}"#),
        3 => r#","$unset":["big","first"]"#.to_owned(),
        _ => String::new(),
    };
    Record::of(
        user as i32 % PARTITIONS,
        format!(
            r#"{{"token":"t{token}","event":"event {} with a name that is too long for a timeline","distinct_id":"user {user}","uuid":"{}","timestamp":"2026-01-01T{:02}:{:02}:{:02}Z"{set}}}"#,
            n % 3,
            uuid::Uuid::now_v7(),
            time / 3600,
            time / 60 % 60,
            time % 60,
        ),
    )
}

/// All users' hashes and timelines. Of the hidden fields, those that the workers write.
type Remembered = BTreeMap<String, BTreeMap<String, String>>;

fn remembered(scene: &Scene) -> Remembered {
    let mut redis = scene.redis();
    let keys: Vec<String> = scene.keys();
    let keys = keys
        .iter()
        .filter(|key| key.starts_with("user:") || key.starts_with("timeline:"));
    keys.map(|key| {
        let full = scene.key(key);
        let left: i64 = redis.ttl(&full).unwrap();
        assert!((29 * 86_400..=30 * 86_400).contains(&left), "{key}: {left}");
        let content: BTreeMap<String, String> = if key.starts_with("user:") {
            let fields: BTreeMap<String, String> = redis.hgetall(&full).unwrap();
            let own = ["\0whole", "\0first_seen", "\0last_seen"];
            fields
                .into_iter()
                .filter(|(name, _)| !own.contains(&name.as_str()))
                .collect()
        } else {
            let members: Vec<(String, i64)> = redis.zrange_withscores(&full, 0, -1).unwrap();
            members
                .into_iter()
                .map(|(member, score)| (member, score.to_string()))
                .collect()
        };
        (key.clone(), content)
    })
    .collect()
}

fn forget(scene: &Scene) {
    let mut redis = scene.redis();
    let keys: Vec<String> = scene.keys();
    let keys: Vec<String> = keys
        .iter()
        .filter(|key| key.starts_with("user:") || key.starts_with("timeline:"))
        .map(|key| scene.key(key))
        .collect();
    for some in keys.chunks(10_000) {
        redis.del::<_, ()>(some).unwrap();
    }
}

fn assert_same(found: &Remembered, expected: &Remembered) {
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let different: Vec<&&String> = keys
        .iter()
        .filter(|key| found.get(**key) != expected.get(**key))
        .collect();
    if let Some(first) = different.first() {
        panic!(
            "{} of {} keys differ, the first: {first}\nfound    {:?}\nexpected {:?}",
            different.len(),
            keys.len(),
            found.get(**first),
            expected.get(**first)
        );
    }
}

#[test]
fn ten_thousand_users_are_rebuilt_as_the_stream_had_built_them() {
    let mut scene = Scene::new("rebuilt", PARTITIONS);
    scene.set("dedup.beyond_window", "false");
    let worker = scene.start().ready();
    let events = (0..6).flat_map(|n| (0..10_000).map(move |user| event(user, n)));
    scene.produce(events.collect());
    // One with more than a timeline keeps, many of them at the same time.
    scene.produce((0..250).map(|n| event(7, n % 20)).collect());
    scene.settled();
    let streamed = remembered(&scene);
    assert_eq!(streamed.len(), 20_000);
    assert_eq!(worker.terminate().code(), Some(0));

    forget(&scene);
    let tasks = scene
        .start_tasks(&[("tasks.users_per_second", "1000000")])
        .ready();
    let begun = Instant::now();
    let said = done(&scene, &["add", "rebuild-users", "--all", "--wait"]);
    eprintln!(
        "10,000 users rebuilt in {:?}, at the most {} MB",
        begun.elapsed(),
        tasks.peak_memory() >> 20
    );
    assert!(said.contains("done: 10000 users"), "{said}");
    assert_same(&remembered(&scene), &streamed);

    // What is wrong is made right; what is right stays.
    let mut redis = scene.redis();
    let (hash, timeline) = (
        scene.key("user:{t0:user 7}"),
        scene.key("timeline:user:{t0:user 7}"),
    );
    redis.hset::<_, _, _, ()>(&hash, "stale", "1").unwrap();
    redis.hset::<_, _, _, ()>(&hash, "n", "\"wrong\"").unwrap();
    let late = 4_000_000_000_000_i64;
    redis
        .zadd::<_, _, _, ()>(&timeline, "00000000-0000-0000-0000-000000000000:gone", late)
        .unwrap();
    done(
        &scene,
        &[
            "add",
            "rebuild-users",
            "--token",
            "t0",
            "--user",
            "user 7",
            "--wait",
        ],
    );
    assert_same(&remembered(&scene), &streamed);

    // A hash that is ahead of what the workers noted, and that stands still, is made right; its watermark stays.
    let offset = "\0offset:0:3";
    redis.hset::<_, _, _, ()>(&hash, "n", "\"wrong\"").unwrap();
    redis.hset::<_, _, _, ()>(&hash, offset, 1_i64 << 40).unwrap();
    done(&scene, &["add", "rebuild-users", "--token", "t0", "--wait"]);
    assert_eq!(redis.hget::<_, _, i64>(&hash, offset).unwrap(), 1 << 40);
    let right = streamed["user:{t0:user 7}"][offset].clone();
    redis.hset::<_, _, _, ()>(&hash, offset, right).unwrap();
    assert_same(&remembered(&scene), &streamed);
    assert_eq!(tasks.terminate().code(), Some(0));
}

#[test]
fn users_whose_changes_do_not_fit_the_servers_memory_are_sorted_on_disk() {
    let mut scene = Scene::new("rebuilt_on_disk", PARTITIONS);
    scene.set("dedup.beyond_window", "false");
    let worker = scene.start().ready();
    scene.produce(
        (0..20)
            .flat_map(|n| (0..200).map(move |user| event(user, n)))
            .collect(),
    );
    scene.settled();
    let streamed = remembered(&scene);
    assert_eq!(worker.terminate().code(), Some(0));
    forget(&scene);
    let tasks = scene.start_failing_tasks("memory-is-short=return").ready();
    let said = done(&scene, &["add", "rebuild-users", "--all", "--wait"]);
    assert!(said.contains("done: 200 users"), "{said}");
    assert!(scene.logged("users with very many changes") > 0);
    assert_same(&remembered(&scene), &streamed);
    assert_eq!(tasks.terminate().code(), Some(0));
}

/// What the rows say of each user: a fold of the test's own, by offset.
fn folded(rows: &[Row]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut users = BTreeMap::<String, BTreeMap<String, String>>::new();
    // They come by partition and offset, and one user's are in one partition.
    for row in rows {
        let properties: serde_json::Value = serde_json::from_str(&row.properties).unwrap();
        let user = users
            .entry(format!("user:{{{}:{}}}", row.token, row.distinct_id))
            .or_default();
        for (name, value) in properties["$set"].as_object().into_iter().flatten() {
            user.insert(name.clone(), value.to_string());
        }
        for (name, value) in properties["$set_once"].as_object().into_iter().flatten() {
            user.entry(name.clone()).or_insert(value.to_string());
        }
        for name in properties["$unset"].as_array().into_iter().flatten() {
            user.remove(name.as_str().unwrap());
        }
    }
    users
}

#[test]
fn a_rebuild_beside_the_stream_neither_loses_nor_doubles_what_comes_meanwhile() {
    let mut scene = Scene::new("beside", PARTITIONS);
    scene.set("dedup.beyond_window", "false");
    scene.set("tasks.max_attempts", "100");
    let worker = scene.start().ready();
    let users = 400;
    scene.produce((0..users).map(|user| event(user, 0)).collect());
    scene.settled();
    let tasks = scene.start_tasks(&[]).ready();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each user changes every few seconds, and one every second.
            for n in 1.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let busy = (n * 8..n * 8 + 8).map(|user| user % users);
                let busiest = 0..usize::from(n % 20 == 0);
                scene.produce(busy.chain(busiest).map(|user| event(user, n)).collect());
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let end = EndOnDrop(&over);
        for _ in 0..3 {
            forget(&scene);
            let said = done(&scene, &["add", "rebuild-users", "--all", "--wait"]);
            assert!(said.contains(&format!("done: {users} users")), "{said}");
        }
        drop(end);
    });
    scene.settled();
    let rows = scene.rows();
    let mut found = remembered(&scene);
    let timelines: Remembered = found
        .iter()
        .filter(|(key, _)| key.starts_with("timeline:"))
        .map(|(key, content)| (key.clone(), content.clone()))
        .collect();
    found.retain(|key, _| key.starts_with("user:"));
    for user in found.values_mut() {
        user.retain(|name, _| !name.starts_with('\0'));
    }
    assert_same(&found, &folded(&rows));
    eprintln!("{} rows beside three rebuilds", rows.len());

    // And once more in peace, which must change nothing, timelines included.
    done(&scene, &["add", "rebuild-users", "--all", "--wait"]);
    let mut again = remembered(&scene);
    again.retain(|key, _| key.starts_with("timeline:"));
    assert_same(&timelines, &again);
    assert_eq!(tasks.terminate().code(), Some(0));
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn what_redis_lost_last_is_rebuilt_and_the_stream_goes_on_from_there() {
    let mut scene = Scene::new("lost_last", PARTITIONS);
    scene.set("dedup.beyond_window", "false");
    let worker = scene.start().ready();
    let users = 40;
    scene.produce(
        (0..6)
            .flat_map(|n| (0..users).map(move |user| event(user, n)))
            .collect(),
    );
    scene.settled();
    let streamed = remembered(&scene);
    let tasks = scene.start_tasks(&[]).ready();
    let mut redis = scene.redis();
    let noted: Vec<String> = (0..7)
        .map(|token| scene.key(&format!("applied:{{t{token}}}")))
        .collect();
    // As after a second that was not on disk: users are gone, and what was noted of their tokens is that of before.
    forget(&scene);
    for key in &noted {
        let fields: Vec<String> = redis.hkeys(key).unwrap();
        assert!(!fields.is_empty(), "{key}");
        for field in fields {
            redis.hset::<_, _, _, ()>(key, field, 7).unwrap();
        }
    }
    done(&scene, &["add", "rebuild-users", "--all", "--wait"]);
    assert_same(&remembered(&scene), &streamed);

    // What was noted is gone, the users are not: they are ahead of nothing that is known, and yet not given up.
    for key in &noted {
        redis.del::<_, ()>(key).unwrap();
    }
    for user in 0..users {
        let key = scene.key(&format!("user:{{t{}:user {user}}}", user % 7));
        redis.hset::<_, _, _, ()>(key, "n", "\"wrong\"").unwrap();
    }
    done(&scene, &["add", "rebuild-users", "--all", "--wait"]);
    assert_same(&remembered(&scene), &streamed);

    // The stream goes on upon what was rebuilt, with nothing lost and nothing doubled.
    scene.produce(
        (6..9)
            .flat_map(|n| (0..users).map(move |user| event(user, n)))
            .collect(),
    );
    scene.settled();
    let rows = scene.rows();
    let mut found = remembered(&scene);
    found.retain(|key, _| key.starts_with("user:"));
    for user in found.values_mut() {
        user.retain(|name, _| !name.starts_with('\0'));
    }
    assert_same(&found, &folded(&rows));
    assert_eq!(tasks.terminate().code(), Some(0));
    assert_eq!(worker.terminate().code(), Some(0));
}

/// Ends what a thread does until then, also where a test fails.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
