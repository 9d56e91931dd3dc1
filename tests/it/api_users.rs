//! Profiles, timelines and recent actions: what the worker wrote, and what is made again from the table.

use redis::Commands as _;
use serde_json::{Value, json};

use crate::api_server::{ALPHA, Row, Server, insert};
use crate::harness::Scene;
use crate::harness::kafka::Record;
use crate::harness::redises::Redises;

const RESTORE: &str = include_str!("../../src/api/restore_user.lua");

fn row(event: &'static str, user: &'static str, time: &'static str, properties: Value) -> Row<'static> {
    Row {
        token: "alpha",
        event,
        user,
        time,
        properties,
    }
}

#[test]
fn what_a_worker_wrote_is_read_back() {
    reads_back(&Scene::new("read_back", 1));
}

#[test]
fn what_a_worker_wrote_is_read_back_from_a_cluster() {
    reads_back(&Scene::with_redis("read_cluster", 1, Redises::cluster(3, 0)));
}

/// A worker writes, and the API reads it.
pub(crate) fn reads_back(scene: &Scene) {
    let event = |n: u32, user: &str, more: &str| {
        let (uuid, minute) = (uuid::Uuid::from_u128(u128::from(n)), n % 60);
        Record::of(
            0,
            format!(
                r#"{{"token":"alpha","event":"event {n}","distinct_id":"{user}","uuid":"{uuid}","timestamp":"2026-01-01T00:{minute:02}:00.{n:03}Z","properties":{{{more}}}}}"#
            ),
        )
    };
    let worker = scene.start().ready();
    scene.produce(vec![
        event(
            1,
            "team/ann é",
            r#""$set":{"plan":"free","big":9007199254740993}"#,
        ),
        event(
            2,
            "team/ann é",
            r#""$set":{"plan":"pro"},"$set_once":{"first":1e-7,"plan":"x"}"#,
        ),
        event(3, "team/ann é", r#""$unset":["never"]"#),
        event(4, "bob", ""),
    ]);
    scene.settled();
    let server = Server::start(scene, &[]);
    let session = server.session(ALPHA);
    let path = "/v1/users/team%2Fann%20%C3%A9";

    let answer = server.get(path, &session);
    assert_eq!(answer.cache(), "miss");
    assert!(answer.body.contains(r#""big":9007199254740993"#), "{answer:?}");
    assert!(answer.body.contains(r#""first":1e-7"#), "{answer:?}");
    let profile = answer.json();
    assert_eq!(profile["distinct_id"], "team/ann é");
    assert_eq!(profile["properties"]["plan"], "pro");
    assert_eq!(profile["first_seen"], "2026-01-01T00:01:00.001Z");
    assert_eq!(profile["last_seen"], "2026-01-01T00:03:00.003Z");
    assert_eq!(profile["complete"], true);
    // A cache that is slow to connect to (TLS, a busy machine) is not waited for.
    let mut told = vec![answer.body];
    crate::harness::wait::eventually("the profile is cached", crate::harness::SETTLED_WITHIN, || {
        let again = server.get(path, &session);
        let hit = again.cache() == "hit";
        assert!(!hit || told.contains(&again.body), "{again:?}");
        told.push(again.body);
        crate::harness::wait::seen(hit, "a miss")
    });

    let timeline = server
        .get(&format!("{path}/timeline?limit=2"), &session)
        .expect(200);
    let entry = |n: u128| {
        json!({
            "time": format!("2026-01-01T00:0{n}:00.00{n}Z"), "uuid": uuid::Uuid::from_u128(n).to_string(), "event": format!("event {n}"),
        })
    };
    assert_eq!(
        timeline,
        json!({ "distinct_id": "team/ann é", "events": [entry(3), entry(2)] })
    );
    let actions = server.get("/v1/recent-actions", ALPHA).expect(200);
    let events: Vec<&Value> = actions["actions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["event"])
        .collect();
    assert_eq!(events, ["event 4", "event 3", "event 2", "event 1"]);
    assert_eq!(actions["actions"][0]["distinct_id"], "bob");

    // A change deletes the cached profile, and the hash that was completed meanwhile takes it.
    scene.produce(vec![event(
        5,
        "team/ann é",
        r#""$set":{"plan":"team"},"$unset":["big"]"#,
    )]);
    scene.settled();
    let changed =
        crate::harness::wait::eventually("the change shows", crate::harness::SETTLED_WITHIN, || {
            let profile = server.get(path, &session).json();
            if profile["properties"] == json!({ "first": 1e-7, "plan": "team" }) {
                Ok(profile)
            } else {
                Err(profile.to_string())
            }
        });
    assert_eq!(changed["last_seen"], "2026-01-01T00:05:00.005Z");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_profile_whose_hash_has_expired_is_made_from_the_users_events() {
    let scene = Scene::new("expired", 1);
    insert(
        &scene,
        &[
            // Not in the order of their times: they are applied as they came, as the worker applies them.
            row(
                "c",
                "u",
                "2026-03-01T00:00:00Z",
                json!({ "$set": { "plan": "pro" }, "$unset": ["trial"] }),
            ),
            row(
                "a",
                "u",
                "2026-01-01T00:00:00Z",
                json!({ "$set": { "plan": "free", "trial": true } }),
            ),
            row(
                "b",
                "u",
                "2026-02-01T00:00:00Z",
                json!({ "$set_once": { "plan": "x", "from": "ad" } }),
            ),
            row(
                "$groupidentify",
                "u",
                "2026-04-01T00:00:00Z",
                json!({ "$set": { "plan": "group's" } }),
            ),
            row("d", "u", "2026-05-01T00:00:00Z", json!({ "set": 1 })),
            row("a", "no properties", "2026-01-01T00:00:00Z", json!({})),
        ],
    );
    let server = Server::start(&scene, &[]);
    let mut redis = scene.redis();
    let (hash, cached) = (scene.key("user:{alpha:u}"), scene.key("cache:user:{alpha:u}"));
    let expected = json!({ "from": "ad", "plan": "free", "trial": true });
    for expired in [true, false] {
        let answer = server.get("/v1/users/u", ALPHA);
        assert_eq!(answer.cache(), if expired { "miss" } else { "hit" });
        let profile = answer.expect(200);
        assert_eq!(profile["properties"], expected);
        assert_eq!(profile["first_seen"], "2026-01-01T00:00:00Z");
        assert_eq!(profile["last_seen"], "2026-05-01T00:00:00Z");
    }
    let ttl: u64 = redis.ttl(&cached).unwrap();
    assert!((3_000..=3_600).contains(&ttl), "{ttl}");
    // The hash is whole again: the table is not asked any more.
    assert_eq!(redis.hget::<_, _, String>(&hash, "plan").unwrap(), "\"free\"");
    redis.del::<_, ()>(&cached).unwrap();
    redis
        .hset::<_, _, _, ()>(&hash, "plan", "\"by the worker\"")
        .unwrap();
    let profile = server.get("/v1/users/u", ALPHA).expect(200);
    assert_eq!(profile["properties"]["plan"], "by the worker");
    assert_eq!(profile["first_seen"], "2026-01-01T00:00:00Z");

    // A hash that was begun after the old one expired hides nothing.
    redis.del::<_, ()>((&hash, &cached)).unwrap();
    redis
        .hset_multiple::<_, _, _, ()>(&hash, &[("from", "\"mail\""), ("\0offset:0:0", "7")])
        .unwrap();
    let profile = server.get("/v1/users/u", ALPHA).expect(200);
    assert_eq!(profile["properties"], expected);
    assert_eq!(redis.hget::<_, _, String>(&hash, "from").unwrap(), "\"ad\"");
    assert_eq!(redis.hget::<_, _, String>(&hash, "\0offset:0:0").unwrap(), "7");

    let profile = server.get("/v1/users/no%20properties", ALPHA).expect(200);
    assert_eq!(profile["properties"], json!({}));
    server.get("/v1/users/never%20seen", ALPHA).problem(404);
    // As long an id as clients like to send, cut where the worker cuts.
    let long = "x".repeat(200);
    let name = Row {
        user: &long,
        ..row("a", "", "2026-01-01T00:00:00Z", json!({}))
    };
    insert(&scene, &[name]);
    server.get(&format!("/v1/users/{long}yyy"), ALPHA).expect(200);
}

#[test]
fn an_answer_made_of_old_properties_is_not_kept() {
    let scene = Scene::new("lease", 1);
    insert(
        &scene,
        &[row(
            "a",
            "u",
            "2026-01-01T00:00:00Z",
            json!({ "$set": { "plan": "free" } }),
        )],
    );
    let server = Server::start(&scene, &[]);
    let mut redis = scene.redis();
    let cached = scene.key("cache:user:{alpha:u}");
    // Another reader is at work: its lease is neither an answer nor taken away.
    redis.set::<_, _, ()>(&cached, "\0lease:another").unwrap();
    for _ in 0..2 {
        let answer = server.get("/v1/users/u", ALPHA);
        assert_eq!((answer.status, answer.cache()), (200, "miss"));
        assert_eq!(redis.get::<_, String>(&cached).unwrap(), "\0lease:another");
    }
    redis.del::<_, ()>(&cached).unwrap();
    assert_eq!(server.get("/v1/users/u", ALPHA).cache(), "miss");
    assert_eq!(server.get("/v1/users/u", ALPHA).cache(), "hit");

    // The worker applied a record between the reading of a hash and its being restored.
    let hash = scene.key("user:{alpha:v}");
    redis
        .hset_multiple::<_, _, _, ()>(&hash, &[("plan", "\"new\""), ("\0offset:0:0", "8")])
        .unwrap();
    let script = redis::Script::new(RESTORE);
    let restore =
        |offsets: &[(&str, &str)], connection: &mut crate::harness::any_redis::AnyConnection| -> i64 {
            let mut call = script.key(&hash);
            call.arg(100).arg("\0offset:").arg(offsets.len());
            for (name, value) in offsets {
                call.arg(*name).arg(*value);
            }
            call.arg("\0whole").arg(1).arg("plan").arg("\"old\"");
            call.invoke(connection).unwrap()
        };
    for read in [
        &[][..],
        &[("\0offset:0:0", "7")],
        &[("\0offset:0:0", "8"), ("\0offset:0:1", "3")],
    ] {
        assert_eq!(restore(read, &mut redis), 0, "{read:?}");
        assert_eq!(redis.hget::<_, _, String>(&hash, "plan").unwrap(), "\"new\"");
    }
    assert_eq!(restore(&[("\0offset:0:0", "8")], &mut redis), 1);
    assert_eq!(redis.hget::<_, _, String>(&hash, "plan").unwrap(), "\"old\"");
}
