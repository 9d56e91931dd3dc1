//! Without Redis, `rate_limit.on_redis_down = "local"`: events flow on, and none is lost.

use std::time::Duration;

use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::kafka::Record;
use crate::harness::stack::Service;
use crate::harness::wait::{eventually, seen};

const PATIENCE: Duration = Duration::from_mins(1);

fn event(partition: i32, token: &str, id: usize) -> Record {
    Record::of(
        partition,
        format!(
            r#"{{"token":"{token}","event":"e","distinct_id":"d","uuid":"id {id}","timestamp":"2024-01-31T10:00:00Z","$set":{{"id":{id}}}}}"#
        ),
    )
}

fn rows(scene: &Scene, rows: usize) {
    eventually("the rows are there", PATIENCE, || {
        let now = scene.clickhouse.count(&scene.database);
        seen(now == rows, now)
    });
}

#[test]
fn without_redis_events_flow_on_and_duplicates_are_told_by_the_table() {
    let mut scene = Scene::private("alone", 2);
    scene.set("rate_limit.on_redis_down", "local");
    let blocked = scene.key("config:rate_limit:{blocked}");
    scene.redis().set::<_, _, ()>(blocked, "0").unwrap();
    let mut worker = scene.start().ready();
    scene.produce((0..100).map(|id| event(0, "t", id)).collect());
    scene.produce(vec![event(1, "blocked", 0)]);
    scene.settled();
    rows(&scene, 100);

    let stack = scene.stack.as_ref().unwrap();
    stack.stop(Service::Redis);
    // Half of them again, some new ones, and one of these twice; a token that is blocked waits for Redis.
    scene.produce((50..150).chain([149]).map(|id| event(0, "t", id)).collect());
    scene.produce(vec![event(1, "blocked", 1)]);
    rows(&scene, 150);
    eventually("the partition's offset is committed", PATIENCE, || {
        // With the next block's announcement, or because the partition is idle.
        let committed = scene.kafka.committed(&scene.group, &scene.topic, 2)?;
        let first = committed[0].as_ref().map(|(offset, _)| *offset);
        seen(first == Some(201), format_args!("{first:?}"))
    });
    assert_eq!(worker.metric("sluice_events_without_redis_total"), Some(101.0));
    assert!(worker.metric("sluice_blocks_unremembered_total") > Some(0.0));
    worker.waits(1, "blocked_token", "token \"blocked\" is blocked");
    let waiting = r#"sluice_waiting_partitions{why="blocked_token"}"#;
    eventually("a long wait is told", PATIENCE, || {
        let partitions = worker.metric(waiting);
        seen(partitions == Some(1.0), format_args!("{partitions:?}"))
    });
    assert!(scene.logged("waiting for more than half a minute") > 0);
    assert_eq!(worker.ended(), None);

    stack.start(Service::Redis);
    eventually("the worker knows that Redis is back", PATIENCE, || {
        let (status, body) = worker.readiness()?;
        seen(status == 200, format_args!("{status} {body}"))
    });
    scene.produce((0..160).map(|id| event(0, "t", id)).collect());
    scene.settled();
    // What was written without Redis has no claim; its event's time is older than the window, so the table tells.
    rows(&scene, 160);
    assert_eq!(scene.rejects(&scene.overflow).len(), 2, "what was blocked");
    let user: String = scene.redis().hget(scene.key("user:{t:d}"), "id").unwrap();
    assert_eq!(user, "159");
    let verify = scene.sluice(&["verify", "--json"]);
    let ledger: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
    assert_eq!(verify.status.code(), Some(0), "{ledger}");
    assert_eq!(
        (&ledger["written"], &ledger["duplicates"]),
        (&160.into(), &201.into())
    );
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_block_judged_without_redis_is_recovered_without_a_second_row() {
    let mut scene = Scene::private("alonerecovered", 1);
    scene.set("rate_limit.on_redis_down", "local");
    // Of now: its age tells nobody to look in the table.
    let now = jiff::Timestamp::now();
    let resent = Record::of(
        0,
        format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"the same","timestamp":"{now}"}}"#),
    );
    let first = scene.start_failing("after-announce=1*off->1*return", &[]).ready();
    let stack = scene.stack.as_ref().unwrap();
    stack.stop(Service::Redis);
    scene.produce(vec![resent.clone()]);
    rows(&scene, 1);
    // Taken for a duplicate by its row, and never claimed. The block is announced, and nobody knows what became of it.
    scene.produce(vec![resent]);
    first.dies();
    stack.start(Service::Redis);
    let worker = scene.start().ready();
    scene.settled();
    rows(&scene, 1);
    assert_eq!(scene.rejects(&scene.overflow), [], "what it was must be seen");
    assert_eq!(
        worker.metric(r#"sluice_blocks_total{kind="recovery"}"#),
        Some(1.0)
    );
    assert_eq!(worker.terminate().code(), Some(0));
}
