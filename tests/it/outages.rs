//! A service is gone under load: the worker lives on, says which one, and catches up by itself.

use std::time::Duration;

use crate::harness::Scene;
use crate::harness::events::{Ledger, check_remembered};
use crate::harness::load::under_load;
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
