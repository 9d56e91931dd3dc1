//! Corners: what a topic, a table or a clock may look like once in a year. Each ends with an exact ledger.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::Commands as _;

use crate::columns::{of_coordinate, record_time};
use crate::harness::Scene;
use crate::harness::clickhouse::Row;
use crate::harness::events::{Ledger, Load, check_remembered, origin};
use crate::harness::kafka::{Record, Transaction};
use crate::harness::proxy::{Manner, Proxy};
use crate::harness::wait::{eventually, seen};

const PATIENCE: Duration = Duration::from_mins(1);
/// The dead are missed soon.
const SOON_MISSED: &str = r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#;
/// What a worker says of a block of which views may lack rows.
const VIEWS_DOUBTFUL: &str = "the views behind the table may lack rows";
/// Dies at the first block that comes so far.
const DIES_AFTER_ANNOUNCE: &str = "after-announce=1*return";

fn settle(scene: &Scene) {
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
}

fn event(n: u64) -> Record {
    Record::of(
        0,
        format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"id {n}"}}"#),
    )
}

/// A field of what the group's commit of partition 0 says of an announced block.
fn announced(scene: &Scene, field: &str) -> String {
    let prefix = format!("{field}=");
    eventually("a block is announced", PATIENCE, || {
        let committed = scene.kafka.committed(&scene.group, &scene.topic, 1)?.remove(0);
        let (_, metadata) = committed.ok_or("nothing is committed")?;
        let found = metadata.split(';').find_map(|part| part.strip_prefix(&prefix));
        found.map(str::to_owned).ok_or(metadata)
    })
}

#[test]
fn an_insert_from_before_a_rewind_is_too_late() {
    let mut scene = Scene::new("rewindlate", 1);
    scene.set("kafka.options", SOON_MISSED);
    scene.set_deadline(12);
    let proxy = Proxy::to(scene.clickhouse.url());
    let mut load = Load::new(1);
    let mut sent = scene.produce(load.take(100));
    let worker = scene.start_with(&[("clickhouse.url", proxy.url())]).ready();
    scene.settled();
    proxy.set(Manner::HoldsInserts);
    sent.extend(scene.produce(load.take(300)));
    eventually("an insert is held up", PATIENCE, || {
        seen(proxy.held() == 1, proxy.held())
    });
    worker.kill();
    // What an operator's tool commits says nothing of the block that was under way.
    scene.kafka.commit(&scene.group, &scene.topic, &[(0, 50)]);

    let second = scene.start().ready();
    scene.settled();
    let ledger = Ledger::check(&sent, &scene);
    proxy.set(Manner::Open);
    let landed = eventually("the late insert has its answer", PATIENCE, || {
        proxy.landed().pop().ok_or_else(|| "none".to_owned())
    });
    assert!(!landed.contains(" 200 "), "{landed}");
    assert_eq!(Ledger::check(&sent, &scene), ledger);
    assert_eq!(second.terminate().code(), Some(0));
}

#[test]
fn inserts_that_land_while_they_are_waited_out_are_seen() {
    let mut scene = Scene::new("rewindwait", 2);
    scene.set("kafka.options", SOON_MISSED);
    scene.set_deadline(20);
    let proxy = Proxy::to(scene.clickhouse.url());
    let mut load = Load::new(2);
    let mut sent = scene.produce(load.take(200));
    let worker = scene.start_with(&[("clickhouse.url", proxy.url())]).ready();
    scene.settled();
    proxy.set(Manner::HoldsInserts);
    sent.extend(scene.produce(load.take(400)));
    let held = eventually("inserts are held up", PATIENCE, || {
        let committed = scene.kafka.committed(&scene.group, &scene.topic, 2)?;
        let starts: Option<Vec<i64>> = committed
            .into_iter()
            .map(|committed| {
                committed
                    .filter(|(_, metadata)| metadata.contains(";e="))
                    .map(|(start, _)| start)
            })
            .collect();
        starts
            .filter(|_| proxy.held() == 2)
            .ok_or_else(|| proxy.held().to_string())
    });
    worker.kill();
    // One is set below the table's rows. The other is left where it is, but for what was said of its block: the table
    // has no row at or above it.
    scene
        .kafka
        .commit(&scene.group, &scene.topic, &[(0, held[0] / 2), (1, held[1])]);

    // Cut otherwise, no token of before is made again.
    let second = scene.start_with(&[("batch.max_rows", "70")]).ready();
    eventually("both are waited out", PATIENCE, || {
        let waits = scene.logged("waiting until no insert of before can land");
        seen(waits == 2, waits)
    });
    proxy.set(Manner::Open);
    eventually("the late inserts have their answers", PATIENCE, || {
        seen(proxy.landed().len() == 2, format_args!("{:?}", proxy.landed()))
    });
    scene.settled();
    Ledger::check(&sent, &scene);
    assert_eq!(second.terminate().code(), Some(0));
}

#[test]
fn a_topic_of_transactions_is_settled_to_its_very_end() {
    let mut scene = Scene::new("transactions", 1);
    scene.set("kafka.options", SOON_MISSED);
    let transact = |from, end| {
        scene
            .kafka
            .transact(&scene.topic, (from..from + 50).map(event).collect(), end)
    };
    let first = transact(0, Transaction::Committed);
    transact(50, Transaction::Aborted);
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(
        scene.rows().iter().map(|row| row.offset).collect::<Vec<_>>(),
        first.iter().map(|record| record.offset).collect::<Vec<_>>()
    );
    // More comes after markers that were passed over, and markers follow once more.
    transact(100, Transaction::Aborted);
    transact(150, Transaction::Committed);
    scene.settled();
    assert_eq!(scene.rows().len(), 100);
    assert_eq!(worker.terminate().code(), Some(0));

    // A worker dies with the announcement of a block whose last offset is a marker's.
    let high = scene.kafka.bounds(&scene.topic)[0].1;
    let announcement = format!("v1;i=0;e={high};d={:032x};t=1700000000000", 7);
    scene.kafka.commit_with(
        &scene.group,
        &scene.topic,
        &[(0, high - 20)],
        &[Some((0, announcement))],
    );
    settle(&scene);
    assert_eq!(scene.rows().len(), 100);
}

#[test]
fn a_block_that_was_compacted_under_its_announcement_is_settled_with_what_is_left() {
    let mut scene = Scene::new("compacted", 1);
    scene.set("kafka.options", SOON_MISSED);
    scene.set_deadline(5);
    scene.kafka.configure(
        &scene.topic,
        &[
            ("cleanup.policy", "compact"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("segment.ms", "1000"),
        ],
    );
    let keyed = |n: u64| Record {
        key: Some((n % 30).to_string().into_bytes()),
        ..event(n)
    };
    // Once the insert has not landed, and once it has and nobody heard of it.
    for (from, moment) in [(0, DIES_AFTER_ANNOUNCE), (1_000, "after-insert=1*return")] {
        let sent = scene.produce((from..from + 100).map(keyed).collect());
        scene.start_failing(moment, &[]).ready().dies();
        let rows_before = scene.rows();
        // The segment closes with the first record that comes after its time, and is then compacted.
        let mut next = from + 100;
        eventually("the block's records are compacted", PATIENCE, || {
            scene.produce(vec![keyed(next)]);
            next += 1;
            std::thread::sleep(Duration::from_millis(500));
            let left = scene.kafka.read(&scene.topic);
            let of_block = left.iter().filter(|r| r.offset <= sent[99].offset).count();
            seen(of_block < 60, of_block)
        });
        settle(&scene);
        // What is there still was there when it was read; compaction may have taken more before.
        let left = scene.kafka.read(&scene.topic);
        let rows = scene.rows();
        let places: BTreeSet<(i32, i64)> = rows.iter().map(Row::place).collect();
        assert_eq!(places.len(), rows.len(), "no record is there twice");
        assert!(
            left.iter().all(|record| places.contains(&record.place())),
            "every record that was left has its row"
        );
        assert!(
            rows_before.iter().all(|row| rows.contains(row)),
            "what had landed stays"
        );
    }
    assert!(scene.logged("the records of an announced block have changed") >= 2);
    assert!(scene.kafka.read(&scene.overflow).is_empty());
}

#[test]
fn a_record_larger_than_a_block_is_a_block() {
    let mut scene = Scene::new("large", 1);
    scene.set("batch.max_bytes", "65536");
    let large = |n: u64| {
        let filler = "x".repeat(900_000);
        let payload = format!(
            r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"large {n}","filler":"{filler}"}}"#
        );
        Record::of(0, payload)
    };
    let records = (0..20).flat_map(|n| [event(n), large(n), event(n)]).collect();
    scene.produce(records);
    settle(&scene);
    assert_eq!(
        scene.rows().len(),
        40,
        "the large ones and the small ones, each once"
    );
    assert!(scene.kafka.read(&scene.dead_letters).is_empty());
}

#[test]
fn partitions_that_are_added_are_read_from_their_first_record() {
    let mut scene = Scene::new("grows", 2);
    scene.set(
        "kafka.options",
        r#"{"topic.metadata.refresh.interval.ms":"1000"}"#,
    );
    let of = |partition, n| Record {
        partition,
        ..event(n)
    };
    scene.produce((0..100).map(|n| of(n as i32 % 2, n)).collect());
    let worker = scene.start().ready();
    scene.settled();
    scene.kafka.grow(&scene.topic, 5);
    // Half of these are there before any worker knows of the new partitions.
    scene.produce((100..600).map(|n| of(n as i32 % 5, n)).collect());
    scene.settled();
    assert_eq!(scene.rows().len(), 600);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_reject_that_cannot_be_produced_holds_its_partition_until_it_can() {
    let scene = Scene::new("toolarge", 2);
    scene
        .kafka
        .configure(&scene.dead_letters, &[("max.message.bytes", "2000")]);
    // Compression does not make it small.
    let noise: Vec<u8> = (0..1_800_u64)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    let bad = Record::of(0, noise);
    let of = |partition, n| Record {
        partition,
        ..event(n)
    };
    let records = [of(0, 0), bad, of(0, 1)].into_iter();
    scene.produce(records.chain((2..300).map(|n| of(1, n))).collect());
    let worker = scene.start().ready();
    eventually("the other partition goes on", PATIENCE, || {
        let committed = scene.kafka.committed(&scene.group, &scene.topic, 2)?;
        seen(
            committed[1].as_ref().is_some_and(|(offset, _)| *offset == 298),
            format_args!("{committed:?}"),
        )
    });
    eventually("it is told what to do", PATIENCE, || {
        seen(
            scene.logged("max.message.bytes") > 0,
            "nothing of max.message.bytes",
        )
    });
    assert!(scene.kafka.read(&scene.dead_letters).is_empty());
    let committed = scene.kafka.committed(&scene.group, &scene.topic, 2).unwrap();
    assert!(committed[0].as_ref().is_none_or(|(offset, _)| *offset <= 1));

    scene
        .kafka
        .configure(&scene.dead_letters, &[("max.message.bytes", "1000000")]);
    scene.settled();
    assert_eq!(scene.kafka.read(&scene.dead_letters).len(), 1);
    assert_eq!(scene.rows().len(), 300);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_block_that_landed_in_one_of_its_months_is_completed() {
    let mut scene = Scene::new("halfway", 1);
    scene.set("kafka.options", SOON_MISSED);
    scene.set("batch.max_age_ms", "1000");
    let of_month = |n: u64| {
        let month = n % 3 + 1;
        Record::of(
            0,
            format!(
                r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"00000000-0000-0000-0000-{n:012}","timestamp":"2024-0{month}-05T00:00:00Z"}}"#
            ),
        )
    };
    scene.produce((0..300).map(of_month).collect());
    scene.start_failing(DIES_AFTER_ANNOUNCE, &[]).ready().dies();
    let (end, digest): (i64, _) = (announced(&scene, "e").parse().unwrap(), announced(&scene, "d"));
    // What a server that stopped half way has of the insert: one month of the three, and its token.
    let time = announced(&scene, "t");
    let token = format!("{}/{}/0/0/0-{end}/{digest}", scene.group, scene.topic);
    let columns = "uuid, token, event, distinct_id, timestamp, properties, kafka_topic, kafka_incarnation, kafka_partition, \
                   kafka_offset, ingested_at";
    scene.clickhouse.run(&format!(
        "INSERT INTO {}.events ({columns}) SETTINGS insert_deduplication_token = '{token}', async_insert = 0 \
         SELECT toUUID(concat('00000000-0000-0000-0000-', leftPad(toString(number), 12, '0'))), 't', 'landed', 'd', \
         '2024-02-05 00:00:00', '{{}}', '{}', 0, 0, number, fromUnixTimestamp64Milli({time}) \
         FROM numbers({end}) WHERE number % 3 = 1",
        scene.database, scene.topic
    ));
    let landed = scene.clickhouse.count(&scene.database);
    assert!(landed > 0 && landed < 300, "{landed}");
    settle(&scene);
    let rows = scene.rows();
    assert_eq!(
        rows.iter().map(|row| row.offset).collect::<Vec<_>>(),
        (0..300).collect::<Vec<_>>()
    );
    assert_eq!(rows.iter().filter(|row| row.event == "landed").count(), landed);
    assert_eq!(scene.kafka.read(&scene.overflow).len(), 0);
}

#[test]
fn a_token_that_the_table_has_forgotten_is_not_needed_for_rows_that_are_there() {
    let mut scene = Scene::new("forgotten", 1);
    scene.set("kafka.options", SOON_MISSED);
    let mut load = Load::new(1);
    let sent = scene.produce(load.take(500));
    // The insert has landed, nobody heard of it, and then the table remembers no token at all.
    scene.start_failing("after-insert=1*return", &[]).ready().dies();
    let landed = scene.rows();
    assert!(!landed.is_empty());
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events MODIFY SETTING non_replicated_deduplication_window = 0",
        scene.database
    ));
    settle(&scene);
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
    assert!(landed.iter().all(|row| scene.rows().contains(row)));
}

/// Puts a view behind the table. As if the server had been killed between the table's part and the view's, the table has
/// rows that the view has not.
fn copy_from_now_on(scene: &Scene) {
    scene.clickhouse.run(&format!(
        "CREATE TABLE {0}.copies (partition UInt32, offset UInt64) ENGINE = MergeTree ORDER BY (partition, offset) \
         SETTINGS non_replicated_deduplication_window = 1000",
        scene.database
    ));
    scene.clickhouse.run(&format!(
        "CREATE MATERIALIZED VIEW {0}.copying TO {0}.copies AS \
         SELECT kafka_partition AS partition, kafka_offset AS offset FROM {0}.events",
        scene.database
    ));
}

#[test]
fn a_view_that_missed_what_the_table_has_gets_it_when_the_block_is_recovered() {
    let mut scene = Scene::new("view", 1);
    scene.set("kafka.options", SOON_MISSED);
    let mut load = Load::new(1);
    let sent = scene.produce(load.take(500));
    scene.start_failing("after-insert=1*return", &[]).ready().dies();
    let landed = scene.rows();
    assert!(!landed.is_empty());
    copy_from_now_on(&scene);
    settle(&scene);
    Ledger::check(&sent, &scene);
    let copies = scene.clickhouse.run(&format!(
        "SELECT offset FROM {}.copies ORDER BY offset FORMAT TSV",
        scene.database
    ));
    let copies: Vec<i64> = copies.lines().map(|line| line.parse().unwrap()).collect();
    let offsets: Vec<i64> = scene.rows().iter().map(|row| row.offset).collect();
    assert_eq!(copies, offsets, "the view has each row once");
    assert_eq!(scene.logged(VIEWS_DOUBTFUL), 0);
}

#[test]
fn a_view_that_may_lack_a_block_that_came_back_too_late_is_told_of() {
    let mut scene = Scene::new("lateview", 1);
    scene.set("kafka.options", SOON_MISSED);
    scene.set_deadline(2);
    let mut load = Load::new(1);
    let sent = scene.produce(load.take(500));
    scene.start_failing("after-insert=1*return", &[]).ready().dies();
    assert!(!scene.rows().is_empty());
    copy_from_now_on(&scene);
    eventually("the announcement is too old", PATIENCE, || {
        let age = scene.clickhouse.run(&format!(
            "SELECT now64(3) > max(ingested_at) + INTERVAL 2 SECOND FROM {}.events FORMAT TSV",
            scene.database
        ));
        seen(age.trim() == "1", age)
    });
    settle(&scene);
    Ledger::check(&sent, &scene);
    assert_eq!(scene.logged(VIEWS_DOUBTFUL), 1);
}

#[test]
fn workers_whose_clocks_disagree_recover_each_others_blocks() {
    let mut scene = Scene::new("clocks", 1);
    scene.set("kafka.options", SOON_MISSED);
    let mut load = Load::new(1);
    let mut sent = Vec::new();
    // Ahead and behind, within the table's deadline of 60 s and beyond the other's.
    for (faults, other) in [
        ("clock=return(50000)", "clock=return(-50000)"),
        ("clock=return(-50000)", "clock=return(50000)"),
    ] {
        sent.extend(scene.produce(load.take(400)));
        for moment in [DIES_AFTER_ANNOUNCE, "after-insert=1*return"] {
            scene.start_failing(&format!("{faults};{moment}"), &[]).dies();
        }
        let worker = scene.start_failing(other, &[]).ready();
        scene.settled();
        assert_eq!(worker.terminate().code(), Some(0));
    }
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
}

#[test]
fn a_clock_that_is_off_by_more_than_the_deadline_stops_its_worker_and_loses_nothing() {
    let mut scene = Scene::new("clockoff", 1);
    scene.set("kafka.options", SOON_MISSED);
    let mut load = Load::new(1);
    let sent = scene.produce(load.take(400));
    for faults in ["clock=return(90000)", "clock=return(-90000)"] {
        let said = scene.logged("compare the clocks");
        let worker = scene.start_failing(faults, &[]).ready();
        eventually("it says so", PATIENCE, || {
            seen(scene.logged("compare the clocks") > said, "nothing of the clocks")
        });
        assert!(scene.rows().is_empty());
        worker.kill();
    }
    settle(&scene);
    Ledger::check(&sent, &scene);
}

#[test]
fn a_replay_that_overtakes_its_block_is_written_once() {
    let mut scene = Scene::new("overtakes", 1);
    scene.set("kafka.options", SOON_MISSED);
    scene.set("rate_limit.limit", "20");
    scene.set("rate_limit.window_seconds", "3600");
    scene.produce((0..60).map(event).collect());
    // The rejects of the block are out, and neither its rows nor its commit.
    scene
        .start_failing("after-reject=1*return;mid-insert=return(60000)", &[])
        .ready()
        .dies();
    assert_eq!(scene.rejects(&scene.overflow).len(), 40);
    assert!(scene.rows().is_empty());

    let group = format!("{}_overflow", scene.group);
    let again = format!("{}_again", scene.overflow);
    scene.kafka.create_topics(&[(&again, 1)]);
    let settings = [
        ("kafka.topic", scene.overflow.as_str()),
        ("kafka.overflow_topic", &again),
        ("kafka.group_id", &group),
        ("rate_limit.enabled", "false"),
    ];
    let overtaking = scene.start_with(&settings).ready();
    scene.group_settled(&group, &scene.overflow, PATIENCE);
    assert_eq!(scene.rows().len(), 40);
    settle(&scene);
    let rows = scene.rows();
    let mut uuids: Vec<&str> = rows.iter().map(|row| row.uuid.as_str()).collect();
    uuids.sort_unstable();
    uuids.dedup();
    assert_eq!((rows.len(), uuids.len()), (60, 60), "each event has one row");
    let over: Vec<i64> = scene
        .rejects(&scene.overflow)
        .iter()
        .map(|reject| origin(reject).1)
        .collect();
    assert_eq!(
        over,
        (20..60).collect::<Vec<_>>(),
        "and the first record its outcome"
    );
    assert_eq!(overtaking.terminate().code(), Some(0));
    scene.kafka.delete_topics(&[&again]);
}

#[test]
fn an_event_that_comes_back_from_overflow_keeps_its_time_and_its_uuid() {
    let scene = Scene::new("comesback", 1);
    let limit = scene.key("config:rate_limit:{t}");
    scene.redis().set::<_, _, ()>(&limit, "0").unwrap();
    let nameless = Record {
        timestamp: Some(record_time()),
        ..Record::of(0, r#"{"token":"t","event":"e","distinct_id":"d","uuid":""}"#)
    };
    let worker = scene.start().ready();
    let sent = scene.produce(vec![nameless]).remove(0);
    scene.settled();
    // Limited twice, so that the coordinate which it was rejected at is no longer the first.
    for rejects in [1, 2] {
        let mut over = scene.kafka.read(&scene.overflow);
        assert_eq!(over.len(), rejects);
        if rejects == 2 {
            scene.redis().set::<_, _, ()>(&limit, "unlimited").unwrap();
            eventually("the new limit is read", PATIENCE, || {
                let before = scene.kafka.read(&scene.overflow).len();
                scene.produce(vec![event(0)]);
                scene.settled();
                seen(
                    scene.kafka.read(&scene.overflow).len() == before,
                    "a probe went to overflow",
                )
            });
        }
        let back = Record {
            timestamp: None,
            ..over.swap_remove(rejects - 1)
        };
        scene.produce(vec![back]);
        scene.settled();
    }
    let rows = scene.rows();
    let uuid = of_coordinate(&scene, &sent);
    let row = rows.iter().find(|row| row.uuid == uuid).unwrap();
    assert_eq!(Some(row.timestamp), sent.timestamp);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn by_content_events_that_share_an_id_have_a_row_each() {
    let mut scene = Scene::new("contentid", 1);
    scene.set("dedup.by", "content");
    let at = |second: u32| {
        Record::of(
            0,
            format!(
                r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"batch","timestamp":"2026-01-01T00:00:0{second}Z"}}"#
            ),
        )
    };
    scene.produce((0..5).map(at).chain((0..5).map(at)).collect());
    settle(&scene);
    let offsets: Vec<i64> = scene.rows().iter().map(|row| row.offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
}
