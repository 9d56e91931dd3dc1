//! A service is gone under load: the worker lives on, says which one, and catches up by itself.

use std::time::{Duration, Instant};

use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::events::{Ledger, check_remembered};
use crate::harness::kafka::Record;
use crate::harness::load::under_load;
use crate::harness::redis_server::Server;
use crate::harness::stack::Service;
use crate::harness::wait::{eventually, seen};

/// The contract's times.
const UNREADY_WITHIN: Duration = Duration::from_secs(10);
const READY_WITHIN: Duration = Duration::from_mins(1);
/// How long a service stays away once its absence is known; together with that more than 12 s.
const GONE_FOR: Duration = Duration::from_secs(8);
const PARTITIONS: i32 = 4;

/// How a service goes and comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Stopped: connections are refused.
    Stopped,
    /// Frozen: connections stay open, and nothing answers.
    Frozen,
}

fn outage(name: &str, service: Service, way: Way) {
    let scene = Scene::private(name, PARTITIONS);
    let stack = scene.stack.as_ref().unwrap();
    let mut worker = scene.start().ready();
    let sent = under_load(&scene, || {
        scene.some_rows();
        match way {
            Way::Stopped => stack.stop(service),
            Way::Frozen => stack.pause(service),
        }
        eventually("/readyz names the service that is gone", UNREADY_WITHIN, || {
            let (status, body) = worker.readiness()?;
            let reasons = body["reasons"].to_string();
            seen(
                status == 503 && reasons.contains(&format!("{} is down", service.name())),
                format_args!("{status} {body}"),
            )
        });
        let (_, body) = worker.readiness().unwrap();
        assert_eq!(
            body["reasons"].as_array().map(Vec::len),
            Some(1),
            "only {}: {body}",
            service.name()
        );
        let (status, _) = worker.admin("/healthz").unwrap();
        assert_eq!(status, 200, "a worker without {} is alive", service.name());
        std::thread::sleep(GONE_FOR);
        match way {
            Way::Stopped => stack.start(service),
            Way::Frozen => stack.resume(service),
        }
        eventually("/readyz is 200 again", READY_WITHIN, || {
            let (status, body) = worker.readiness()?;
            seen(status == 200, format_args!("{status} {body}"))
        });
        assert_eq!(worker.ended(), None);
        let before = scene.clickhouse.count(&scene.database);
        eventually("the table grows again", READY_WITHIN, || {
            let now = scene.clickhouse.count(&scene.database);
            seen(now > before, now)
        });
    });
    scene.settled();
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn without_kafka_for_a_while_nothing_is_lost_and_nothing_is_there_twice() {
    outage("nokafka", Service::Kafka, Way::Stopped);
}

#[test]
fn without_redis_for_a_while_nothing_is_lost_and_nothing_is_there_twice() {
    outage("noredis", Service::Redis, Way::Stopped);
}

#[test]
fn without_clickhouse_for_a_while_nothing_is_lost_and_nothing_is_there_twice() {
    outage("noclickhouse", Service::ClickHouse, Way::Stopped);
}

#[test]
fn with_a_frozen_kafka_nothing_is_lost_and_nothing_is_there_twice() {
    outage("coldkafka", Service::Kafka, Way::Frozen);
}

#[test]
fn with_a_frozen_redis_nothing_is_lost_and_nothing_is_there_twice() {
    outage("coldredis", Service::Redis, Way::Frozen);
}

#[test]
fn with_a_frozen_clickhouse_nothing_is_lost_and_nothing_is_there_twice() {
    outage("coldclickhouse", Service::ClickHouse, Way::Frozen);
}

#[test]
fn a_worker_says_that_it_stands_still_for_redis_is_full() {
    let scene = Scene::private("fullredis", 1);
    let event = |id: usize| {
        let now = jiff::Timestamp::now();
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"id {id}","timestamp":"{now}"}}"#),
        )
    };
    scene.produce(vec![event(0)]);
    let worker = scene.start().ready();
    scene.settled();
    let max_memory = |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg(&["SET", "maxmemory", bytes]);
        set.exec(&mut scene.redis()).unwrap();
    };
    max_memory("1mb");
    scene.produce((1..100).map(event).collect());
    // It answers, so it is not down.
    let status = worker.waits(0, "redis", "its memory is full (maxmemory)");
    assert_eq!(status, 200, "not for long");
    let waiting = r#"sluice_waiting_partitions{why="redis"}"#;
    eventually("a long wait is told", READY_WITHIN, || {
        let (status, body) = worker.readiness()?;
        let reasons = body["reasons"].to_string();
        let partitions = worker.metric(waiting);
        seen(
            status == 503 && reasons.contains("nothing was settled") && partitions == Some(1.0),
            format_args!("{partitions:?} {body}"),
        )
    });
    let told = scene.logged("a service failed; trying again");
    assert!((1..=6).contains(&told), "{told} lines in half a minute");
    max_memory("0");
    eventually("it goes on", READY_WITHIN, || {
        let (status, body) = worker.readiness()?;
        let partitions = worker.metric(waiting);
        seen(
            status == 200 && body["waiting"].is_null() && partitions == Some(0.0),
            format_args!("{partitions:?} {body}"),
        )
    });
    scene.settled();
    assert_eq!(scene.clickhouse.count(&scene.database), 100);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_worker_whose_clock_is_off_says_so_and_does_not_hammer() {
    let scene = Scene::new("clock", 1);
    let worker = scene.start().ready();
    // To the table, all announcements are an hour old.
    let shift = |hours: u32| {
        let now = format!("(nowInBlock64(3) + INTERVAL {hours} HOUR)");
        scene.clickhouse.run(&format!(
            "ALTER TABLE {}.events DROP CONSTRAINT in_time, ADD CONSTRAINT in_time CHECK ingested_at > {now} - \
             INTERVAL 60 SECOND AND ingested_at < {now} + INTERVAL 60 SECOND",
            scene.database
        ));
    };
    shift(1);
    let began = Instant::now();
    scene.produce(
        (0..10)
            .map(|n| Record::of(0, format!(r#"{{"token":"t","event":"e","distinct_id":"{n}"}}"#)))
            .collect(),
    );
    eventually("it announces again and again", READY_WITHIN, || {
        let announced = worker.metric("sluice_commits_total");
        seen(announced >= Some(6.0), format_args!("{announced:?}"))
    });
    // The pauses before the sixth: 100, 200, 400, 800 and 1,600 ms at the least.
    assert!(
        began.elapsed() > Duration::from_secs(3),
        "six times in {:?}",
        began.elapsed()
    );
    assert!(scene.logged("compare the clocks") > 0);
    worker.waits(0, "clickhouse", "refused for its time");
    shift(0);
    scene.settled();
    assert_eq!(scene.clickhouse.count(&scene.database), 10);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_partition_without_a_leader_does_not_hold_up_the_others() {
    let scene = Scene::private_of("leaderless", 6, 3);
    let stack = scene.stack.as_ref().unwrap();
    let event = |n| {
        Record::of(
            n % 6,
            format!(r#"{{"token":"t","event":"e","distinct_id":"{n}"}}"#),
        )
    };
    scene.produce((0..600).map(event).collect());
    stack.stop(Service::ThirdBroker);
    let worker = scene.start();
    eventually("the other partitions are written", READY_WITHIN, || {
        let rows = scene.clickhouse.count(&scene.database);
        seen(rows == 400, rows)
    });
    let (_, body) = worker.readiness().unwrap();
    assert_eq!(
        body["stopped"].as_object().map(serde_json::Map::len),
        Some(2),
        "{body}"
    );
    stack.start(Service::ThirdBroker);
    scene.settled_within(Duration::from_secs(50));
    assert_eq!(scene.clickhouse.count(&scene.database), 600);
    let restarts = worker.metric("sluice_consumer_restarts_total");
    assert!(restarts.is_none_or(|n| n < 1.0), "{restarts:?}");
    assert_eq!(worker.metric("sluice_stopped_partitions"), Some(0.0));
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn without_the_cache_nobody_waits_and_profiles_are_dropped_once_it_is_back() {
    let scene = Scene::new("nocache", 1);
    let folder = tempfile::tempdir().unwrap();
    let cache = Server::start(folder.path(), &[]);
    let url = format!("redis://{}", cache.address());
    let profile = scene.key("cache:user:{t:d}");
    let keep = || cache.ask::<()>(&["SET", &profile, "old"]).unwrap();
    let changes = |value: usize| {
        let event = format!(r#"{{"token":"t","event":"e","distinct_id":"d","$set":{{"n":{value}}}}}"#);
        scene.produce(vec![Record::of(0, event)]);
        scene.settled();
    };
    keep();
    let worker = scene.start_with(&[("redis.cache_url", &url)]).ready();
    changes(1);
    assert_eq!(cache.ask::<usize>(&["EXISTS", &profile]).unwrap(), 0);

    keep();
    cache.freeze();
    changes(2);
    changes(3);
    let n: String = scene.redis().hget(scene.key("user:{t:d}"), "n").unwrap();
    assert_eq!(n, "3", "what counts is remembered meanwhile");
    assert_eq!(worker.readiness().unwrap().0, 200);
    cache.thaw();
    eventually("the profile is dropped", READY_WITHIN, || {
        let left: usize = cache
            .ask(&["EXISTS", &profile])
            .map_err(|error| error.to_string())?;
        seen(left == 0, left)
    });
    assert_eq!(worker.metric("sluice_stale_profiles_total"), Some(0.0));
    assert_eq!(worker.terminate().code(), Some(0));
}
