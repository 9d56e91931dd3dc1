//! Committed offsets that are rewound, gone, or of another topic; and blocks that were announced and not finished.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::Scene;
use crate::harness::events::{Ledger, Load, check_remembered};
use crate::harness::kafka::Record;
use crate::harness::stack::Service;
use crate::harness::wait::{eventually, seen};

const PATIENCE: Duration = Duration::from_mins(1);
/// Seconds. A partition whose offset was rewound waits for twice as long.
const REWIND_DEADLINE: u32 = 5;

fn settle(scene: &Scene) {
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn after_a_rewind_nothing_is_lost_and_nothing_is_there_twice() {
    let mut scene = Scene::new("rewound", 3);
    scene.set_deadline(REWIND_DEADLINE);
    let mut load = Load::new(3);
    let mut sent = scene.produce(load.take(2_000));
    settle(&scene);
    let before = scene.rows();
    // To the beginning, to the middle, and by a single record.
    let ends: Vec<i64> = scene
        .kafka
        .bounds(&scene.topic)
        .iter()
        .map(|(_, end)| *end)
        .collect();
    scene.kafka.commit(
        &scene.group,
        &scene.topic,
        &[(0, 0), (1, ends[1] / 2), (2, ends[2] - 1)],
    );
    sent.extend(scene.produce(load.take(1_000)));
    settle(&scene);
    Ledger::check(&sent, &scene);
    let after = scene.rows();
    check_remembered(&scene, &after);
    assert!(
        before.iter().all(|row| after.contains(row)),
        "what was written stays as it was"
    );
}

#[test]
fn after_the_offsets_expired_nothing_is_lost_and_nothing_is_there_twice() {
    let mut scene = Scene::new("expired", 3);
    scene.set_deadline(REWIND_DEADLINE);
    let mut load = Load::new(3);
    let mut sent = scene.produce(load.take(2_000));
    settle(&scene);
    scene.kafka.delete_group(&scene.group);
    sent.extend(scene.produce(load.take(1_000)));
    settle(&scene);
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
}

#[test]
fn a_rewind_of_limited_events_charges_nobody_twice_and_keeps_what_was_written() {
    let mut scene = Scene::new("rewoundlimit", 1);
    scene.set_deadline(REWIND_DEADLINE);
    scene.set("rate_limit.limit", "300");
    let payload = |n| format!(r#"{{"token":"t","event":"e","distinct_id":"d","properties":{{"n":{n}}}}}"#);
    let sent = scene.produce((0..500).map(|n| Record::of(0, payload(n))).collect());
    settle(&scene);
    let before = scene.rows();
    assert_eq!(before.len(), 300);
    scene.kafka.commit(&scene.group, &scene.topic, &[(0, 100)]);
    settle(&scene);
    assert_eq!(scene.rows(), before);
    let over: BTreeSet<i64> = scene
        .rejects(&scene.overflow)
        .iter()
        .map(|r| crate::harness::events::origin(r).1)
        .collect();
    assert_eq!(over, (300..500).collect::<BTreeSet<i64>>());
    assert_eq!(sent.len(), 500);
}

#[test]
fn after_a_rewind_an_owner_that_catches_up_with_itself_is_no_zombie() {
    let mut scene = Scene::new("caughtup", 1);
    scene.set_deadline(REWIND_DEADLINE);
    let of = |token: &str| {
        let event = format!(r#"{{"token":"{token}","event":"e","distinct_id":"d"}}"#);
        scene.produce((0..10).map(|_| Record::of(0, event.clone())).collect())
    };
    of("a");
    settle(&scene);
    // What is decided of this token carries the commit 10.
    of("b");
    settle(&scene);
    scene.kafka.commit(&scene.group, &scene.topic, &[(0, 0)]);
    scene.set("batch.max_rows", "10");
    // Its second block is called stale while the first is under way; Kafka is asked once that one is committed.
    let worker = scene
        .start_failing("before-asking-kafka=return(3000)", &[])
        .ready();
    scene.settled();
    assert_eq!(scene.logged("the partition is dropped"), 0);
    assert_eq!(worker.metric("sluice_consumer_restarts_total"), Some(0.0));
    assert_eq!(worker.terminate().code(), Some(0));
    assert_eq!(scene.rows().len(), 20);
    assert_eq!(scene.rejects(&scene.overflow).len(), 0);
}

#[test]
fn an_announced_block_is_recovered_with_the_very_same_cut() {
    let mut scene = Scene::private("announced", 1);
    // The dead are missed soon.
    scene.set(
        "kafka.options",
        r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#,
    );
    // The whole of each load in one block.
    scene.set("batch.max_age_ms", "2000");
    // A block whose events are old would not be announced before ClickHouse has been asked for them.
    scene.set("dedup.beyond_window", "false");
    let mut load = Load::new(1);
    let mut sent = scene.produce(load.take(100));
    settle(&scene);

    // First with a ClickHouse that is gone: the insert has not landed. Then with one that is frozen: it lands late.
    for frozen in [false, true] {
        let stack = scene.stack.as_ref().unwrap();
        let worker = scene.start().ready();
        // It has asked ClickHouse what it must know before it can begin.
        sent.extend(scene.produce(load.take(20)));
        scene.settled();
        if frozen {
            stack.pause(Service::ClickHouse);
        } else {
            stack.stop(Service::ClickHouse);
        }
        sent.extend(scene.produce(load.take(700)));
        let (start, end) = eventually("a block is announced", PATIENCE, || {
            let committed = scene.kafka.committed(&scene.group, &scene.topic, 1)?.remove(0);
            let (offset, metadata) = committed.ok_or("nothing is committed")?;
            let end = metadata
                .split(';')
                .find_map(|field| field.strip_prefix("e=")?.parse::<i64>().ok());
            Ok((offset, end.ok_or(metadata)?))
        });
        assert!(
            end > start + 100,
            "a block worth cutting otherwise: {start} to {end}"
        );
        worker.kill();
        if frozen {
            stack.resume(Service::ClickHouse);
        } else {
            stack.start(Service::ClickHouse);
        }
        scene
            .clickhouse
            .run(&format!("SYSTEM STOP MERGES {}.events", scene.database));
        // Left to itself, this worker would cut blocks of ten.
        let worker = scene.start_with(&[("batch.max_rows", "10")]).ready();
        scene.settled();
        assert_eq!(worker.terminate().code(), Some(0));
        let times: BTreeSet<i64> = scene
            .rows()
            .iter()
            .filter(|row| (start..end).contains(&row.offset))
            .map(|row| row.ingested_at)
            .collect();
        assert_eq!(
            times.len(),
            1,
            "all rows of [{start}, {end}) were written together"
        );
    }
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
}

#[test]
fn a_topic_made_anew_stops_its_partitions_until_the_incarnation_is_raised() {
    let mut scene = Scene::new("anew", 2);
    let mut load = Load::new(2);
    let first = scene.produce(load.take(400));
    settle(&scene);
    let old_rows = scene.rows();
    let old_dead = scene.rejects(&scene.dead_letters).len();
    let offsets: Vec<(i32, i64)> = (0..2)
        .map(|p| (p, first.iter().filter(|r| r.partition == p).count() as i64))
        .collect();
    let metadata = scene.kafka.committed(&scene.group, &scene.topic, 2).unwrap();

    scene.kafka.delete_topics(&[&scene.topic]);
    scene.kafka.create_topics(&[(&scene.topic, 2)]);
    // Kafka forgets the offsets of a deleted topic, sooner or later; they are back as they were, as after a restore.
    scene
        .kafka
        .commit_with(&scene.group, &scene.topic, &offsets, &metadata);
    // Partition 0 ends before the committed offset, partition 1 holds another record there.
    let mut second = load.take(600);
    second.retain(|record| record.partition == 1 || record.key.as_deref() < Some(b"key-6"));
    let second = scene.produce(second);
    let worker = scene.start().ready();
    eventually("both partitions are stopped", PATIENCE, || {
        let (status, body) = worker.readiness()?;
        let both = ["0", "1"].iter().all(|p| {
            body["stopped"][p]
                .as_str()
                .is_some_and(|why| why.contains("kafka.incarnation"))
        });
        seen(status == 200 && both, format_args!("{status} {body}"))
    });
    assert_eq!(worker.metric("sluice_stopped_partitions"), Some(2.0));
    assert_eq!(worker.terminate().code(), Some(0));
    assert_eq!(
        scene.rows(),
        old_rows,
        "nothing of the new topic was taken for the old one"
    );

    scene.set("kafka.incarnation", "1");
    settle(&scene);
    let rows = scene.rows();
    let (old, new): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.incarnation == 0);
    assert_eq!(old, old_rows);
    let dead: Vec<Record> = scene
        .rejects(&scene.dead_letters)
        .into_iter()
        .filter(|r| r.header_text("sluice-incarnation") == Some("1"))
        .collect();
    assert!(old_dead > 0 && !dead.is_empty());
    Ledger::check_in(&second, &new, &[], &dead);
}
#[test]
fn a_topic_made_anew_is_noticed_though_kafka_has_forgotten_its_offsets() {
    let mut scene = Scene::new("anewbare", 1);
    scene.set_deadline(REWIND_DEADLINE);
    // Some without an id, which is made from the coordinate; some with one, which must not be claimed by mistake.
    let event = |n: u32| {
        let id = if n.is_multiple_of(2) {
            String::new()
        } else {
            format!(r#""uuid":"id {n}","#)
        };
        Record::of(
            0,
            format!(r#"{{{id}"token":"t","event":"e","distinct_id":"d","properties":{{"n":{n}}}}}"#),
        )
    };
    scene.produce((0..50).map(event).collect());
    settle(&scene);
    let old_rows = scene.rows();
    scene.kafka.delete_topics(&[&scene.topic]);
    scene.kafka.create_topics(&[(&scene.topic, 1)]);
    eventually(
        "Kafka has forgotten the offsets of the old topic",
        PATIENCE,
        || {
            let committed = scene.kafka.committed(&scene.group, &scene.topic, 1)?.remove(0);
            seen(committed.is_none(), format_args!("{committed:?}"))
        },
    );
    scene.produce((100..150).map(event).collect());
    let worker = scene.start().ready();
    eventually("the partition is stopped", PATIENCE, || {
        let (_, body) = worker.readiness()?;
        let told = body["stopped"]["0"]
            .as_str()
            .is_some_and(|why| why.contains("kafka.incarnation"));
        seen(told, body)
    });
    assert_eq!(worker.metric("sluice_stopped_partitions"), Some(1.0));
    assert_eq!(worker.terminate().code(), Some(0));
    assert_eq!(scene.rows(), old_rows);

    scene.set("kafka.incarnation", "1");
    settle(&scene);
    let new: Vec<i64> = scene
        .rows()
        .iter()
        .filter(|row| row.incarnation == 1)
        .map(|row| row.offset)
        .collect();
    assert_eq!(
        new,
        (0..50).collect::<Vec<i64>>(),
        "every record of the new topic has a row"
    );
}

/// The metadata of an announcement that is long over.
fn old_announcement(end: i64) -> String {
    format!("v1;i=0;e={end};d={:032x};t=1700000000000", 7)
}

#[test]
fn records_that_took_the_place_of_lost_ones_are_not_passed_over() {
    // A broker that lost its newest records: the announced end is beyond the topic's, and then others come.
    let scene = Scene::new("truncated", 1);
    let mut load = Load::new(1);
    scene.produce(load.take(100));
    let low = scene.kafka.bounds(&scene.topic)[0].1 - 10;
    scene.kafka.commit_with(
        &scene.group,
        &scene.topic,
        &[(0, low)],
        &[Some((low, old_announcement(low + 60)))],
    );
    let worker = scene.start().ready();
    eventually("the partition is stopped", PATIENCE, || {
        let (_, body) = worker.readiness()?;
        let told = body["stopped"]["0"]
            .as_str()
            .is_some_and(|why| why.contains("beyond the end"));
        seen(told, body)
    });
    scene.produce(load.take(100));
    std::thread::sleep(Duration::from_secs(1));
    let committed = scene.kafka.committed(&scene.group, &scene.topic, 1).unwrap();
    assert_eq!(committed[0].as_ref().map(|(offset, _)| *offset), Some(low));
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn an_announced_block_whose_records_are_gone_and_whose_rows_are_there_is_settled() {
    let scene = Scene::new("retired", 1);
    let mut load = Load::new(1);
    scene.produce(load.take(100));
    settle(&scene);
    let before = scene.rows();
    let announced = (before[10].offset, before[40].offset);
    // Retention overtook a worker that had died between its insert and its commit.
    scene.kafka.delete_before(&scene.topic, 0, announced.1 + 10);
    scene.kafka.commit_with(
        &scene.group,
        &scene.topic,
        &[(0, announced.0)],
        &[Some((announced.0, old_announcement(announced.1)))],
    );
    settle(&scene);
    assert_eq!(scene.rows(), before);
}
