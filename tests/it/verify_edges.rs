//! `sluice verify` where the topics hold what no worker has put there, and where the group is on its way.

use std::time::Duration;

use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::events::origin;
use crate::harness::kafka::Record;
use crate::harness::told::{copy_rows, delete_rows, reject, row_at, settle, verify};
use crate::harness::wait::{eventually, seen};

const PATIENCE: Duration = Duration::from_mins(1);

fn event(partition: i32, fields: &str) -> Record {
    Record::of(
        partition,
        format!(r#"{{"event":"e","distinct_id":"d",{fields}}}"#),
    )
}

fn with_id(partition: i32, token: &str, id: &str) -> Record {
    event(partition, &format!(r#""token":"{token}","uuid":"{id}""#))
}

#[test]
fn an_id_is_settled_within_its_token_and_a_record_that_was_no_event_settles_none() {
    let scene = Scene::new("tokens", 1);
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events ADD CONSTRAINT no_refunds CHECK event != 'refund'",
        scene.database
    ));
    let refund = Record::of(
        0,
        r#"{"token":"r","event":"refund","distinct_id":"d","uuid":"refunded"}"#,
    );
    let now = jiff::Timestamp::now();
    let days_ago = |days: i64| now.as_millisecond() - days * 86_400_000;
    // Two days ahead of its record, but not of a copy that is made today.
    let too_new = Record {
        timestamp: Some(days_ago(5)),
        ..event(
            0,
            &format!(
                r#""token":"c","uuid":"x","timestamp":"{}""#,
                jiff::Timestamp::from_millisecond(days_ago(3)).unwrap()
            ),
        )
    };
    scene.produce(vec![
        with_id(0, "a", "x"), // 0
        with_id(0, "b", "x"), // 1
        with_id(0, "a", "x"), // 2: of 0
        with_id(0, "b", "x"), // 3: of 1
        too_new,              // 4
        with_id(0, "c", "x"), // 5
        refund.clone(),       // 6: refused
        refund,               // 7: of 6
    ]);
    settle(&scene);
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [8, 3, 3, 0, 2]);
    assert_eq!(
        told.json["reasons"],
        serde_json::json!({"bad_timestamp": 1, "refused": 1})
    );
    // The other token's row is no row of this one, and a dead letter that had claimed nothing is no original.
    delete_rows(&scene, "kafka_offset IN (1, 5)");
    verify(&scene, &[]).offends(&[(0, 1), (0, 3), (0, 5)], &[], &[]);
}

#[test]
fn by_content_a_duplicate_is_settled_by_text_and_by_the_records_own_time() {
    let mut scene = Scene::new("contents", 2);
    scene.set("dedup.by", "content");
    let limit = |token: &str| scene.key(&format!("config:rate_limit:{{{token}}}"));
    scene.redis().set::<_, _, ()>(limit("blocked"), "0").unwrap();
    let when = jiff::Timestamp::now().as_millisecond() - 60_000;
    let at = |record: Record| Record {
        timestamp: Some(when),
        ..record
    };
    let timed = |token: &str, user: &str, uuid: u32| {
        Record::of(
            0,
            format!(
                r#"{{"token":"{token}","event":"it's \\ e","distinct_id":"{user}","uuid":"{uuid}","timestamp":"2026-01-01T00:00:00Z"}}"#
            ),
        )
    };
    scene.produce(vec![
        timed("a", "u", 1),                              // 0
        timed("a", "u", 2),                              // 1: of 0
        timed("b", "u", 3),                              // 2
        timed("a", "v'", 4),                             // 3
        timed("a", "v'", 5),                             // 4: of 3
        at(event(0, r#""token":"blocked","uuid":"6""#)), // 5: to overflow
        at(event(0, r#""token":"blocked","uuid":"7""#)), // 6: of 5, as its record has the same time
        timed("blocked", "u", 8),                        // 7: to overflow
        timed("blocked", "u", 9),                        // 8: of 7
    ]);
    settle(&scene);
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [9, 3, 4, 2, 0]);
    // The originals before the range.
    let told = verify(&scene, &["--from", "6", "--partition", "0"]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [3, 0, 2, 1, 0]);
    delete_rows(&scene, &row_at((0, 0)));
    verify(&scene, &[]).offends(&[(0, 0), (0, 1)], &[], &[]);
}

#[test]
fn what_any_producer_may_write_is_noted_and_counts_for_nothing() {
    let mut scene = Scene::new("foreign", 1);
    let sent = scene.produce(vec![
        with_id(0, "t", "0"),
        with_id(0, "t", "1"),
        Record::of(0, "no event"),
        with_id(0, "t", "3"),
    ]);
    settle(&scene);
    delete_rows(&scene, "kafka_offset = 1");
    let letters = scene.kafka.read(&scene.dead_letters);
    assert_eq!((letters.len(), origin(&letters[0])), (1, (0, 2)));
    let of = |incarnation: &str, offset: &str| {
        with_id(0, "t", "1")
            .header("sluice-reason", "refused")
            .header("sluice-topic", &scene.topic)
            .header("sluice-incarnation", incarnation)
            .header("sluice-partition", "0")
            .header("sluice-offset", offset)
    };
    let foreign = [
        letters[0].clone(), // sent twice, it is the same
        Record {
            headers: Vec::new(),
            ..of("0", "1")
        },
        of("0", "one"),
        of("0", "-1"),
        Record {
            payload: None,
            ..of("0", "4000")
        },
    ];
    for topic in [&scene.dead_letters, &scene.overflow] {
        let from = usize::from(*topic == scene.overflow);
        scene.kafka.produce(topic, foreign[from..].to_vec());
    }
    let told = verify(&scene, &[]);
    told.offends(&[(0, 1)], &[], &[]);
    assert_eq!(told.counts(), [4, 2, 0, 0, 1]);
    assert_eq!(told.json["reasons"], serde_json::json!({"not_json": 1}));
    for topic in [&scene.dead_letters, &scene.overflow] {
        assert!(
            told.notes_that(&format!("3 records of {topic} name no coordinate")),
            "{told:?}"
        );
    }

    // Of another incarnation: its rows and rejects are of other records.
    copy_rows(&scene, "kafka_offset = 0", ", 7 AS kafka_incarnation");
    scene
        .kafka
        .produce(&scene.overflow, vec![reject(&scene, &sent[0], "over_limit")]);
    let told = verify(&scene, &[]);
    told.offends_by(&[("missing", &[(0, 1)]), ("both", &[(0, 0)])]);
    assert!(told.notes_that("incarnation 7"), "{told:?}");
    scene.set("kafka.incarnation", "7");
    let told = verify(&scene, &[]);
    assert_eq!((told.counts(), told.count("behind")), ([0; 5], 4));
    assert!(told.notes_that("are of another topic or incarnation"), "{told:?}");
}

#[test]
fn a_duplicate_of_a_record_ahead_of_the_group_is_settled_and_the_group_is_waited_for() {
    let mut scene = Scene::new("ahead", 2);
    // The worker waits for two of them, since no worker sets the offset below.
    scene.set_deadline(5);
    scene.produce((0..10).map(|n| with_id(1, "t", &n.to_string())).collect());
    settle(&scene);
    scene.produce(vec![with_id(0, "t", "alone"), with_id(0, "t", "7")]);
    settle(&scene);
    // As if the other partition had not been written yet.
    scene.kafka.commit(&scene.group, &scene.topic, &[(1, 6)]);
    delete_rows(&scene, "kafka_partition = 1 AND kafka_offset >= 6");
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [8, 7, 1, 0, 0]);
    assert_eq!((told.count("unsettled_duplicates"), told.count("behind")), (1, 4));
    assert!(told.notes_that("that the group has not come to"), "{told:?}");
    for (arguments, code) in [
        (["--settled-within", "0"].as_slice(), 1),
        (&["--settled-within", "1"], 1),
        (&["--settled-within", "0", "--partition", "0"], 0),
        (&["--settled-within", "0", "--to", "6"], 0),
        (&["--settled-within", "0", "--to", "7"], 1),
    ] {
        assert_eq!(verify(&scene, arguments).code, Some(code), "{arguments:?}");
    }
    // What nobody has come to does not hide what is lost.
    delete_rows(&scene, &row_at((0, 0)));
    verify(&scene, &[]).offends(&[(0, 0)], &[], &[]);

    std::thread::scope(|scope| {
        let waits = scope.spawn(|| verify(&scene, &["--settled-within", "60"]));
        let worker = scene.start().ready();
        let told = waits.join().unwrap();
        told.offends(&[(0, 0)], &[], &[]);
        assert_eq!(told.counts(), [12, 10, 1, 0, 0]);
        assert_eq!((told.count("unsettled_duplicates"), told.count("behind")), (0, 0));
        assert_eq!(worker.terminate().code(), Some(0));
    });
}

/// Sends records in a transaction, which is committed or aborted.
fn transaction(scene: &Scene, payloads: &[&str], commit: bool) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", scene.kafka.brokers())
        .set("transactional.id", &scene.name)
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    for payload in payloads {
        let record = BaseRecord::<[u8], str>::to(&scene.topic)
            .partition(0)
            .payload(*payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let ended = if commit {
        producer.commit_transaction(PATIENCE)
    } else {
        producer.abort_transaction(PATIENCE)
    };
    ended.unwrap();
}

fn compact(scene: &Scene) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", scene.kafka.brokers())
        .create()
        .unwrap();
    let config =
        AlterConfig::new(ResourceSpecifier::Topic(&scene.topic)).set("cleanup.policy", "compact,delete");
    for result in block_on(admin.alter_configs(&[config], &AdminOptions::new())).unwrap() {
        result.unwrap();
    }
}

#[test]
fn what_transactions_and_compaction_leave_is_no_record_and_none_is_waited_for() {
    let scene = Scene::new("gaps", 1);
    let payload = |id: u32| format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"{id}"}}"#);
    let payloads: Vec<String> = (0..6).map(payload).collect();
    let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
    // 0 and 1, an abort marker at 2; 3 and 4, a commit marker at 5; 6 and 7, a commit marker at 8.
    transaction(&scene, &payloads[..2], false);
    transaction(&scene, &payloads[2..4], true);
    transaction(&scene, &payloads[4..], true);
    let worker = scene.start().ready();
    eventually("all records are committed past", PATIENCE, || {
        let committed = scene.kafka.committed(&scene.group, &scene.topic, 1)?;
        let offset = committed[0].as_ref().map(|(offset, _)| *offset);
        seen(offset >= Some(8), format_args!("{offset:?}"))
    });
    assert_eq!(worker.terminate().code(), Some(0));
    let told = verify(&scene, &["--settled-within", "0"]);
    told.offends(&[], &[], &[]);
    assert_eq!((told.counts(), told.count("behind")), ([4, 4, 0, 0, 0], 0));
    assert!(
        told.notes_that("4 offsets of the range hold no record"),
        "{told:?}"
    );

    // A row where there never was a record.
    copy_rows(&scene, "kafka_offset = 4", ", 5 AS kafka_offset");
    verify(&scene, &[]).offends(&[], &[], &[(0, 5)]);
    verify(&scene, &["--to", "5"]).offends(&[], &[], &[]);
    // Unless compaction may have taken it.
    compact(&scene);
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert!(
        told.notes_that("1 rows are at offsets where the topic, which is compacted"),
        "{told:?}"
    );

    // What retention has taken is out of the range, and no offence.
    scene.kafka.delete_before(&scene.topic, 0, 7);
    let told = verify(&scene, &["--from", "3"]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [1, 1, 0, 0, 0]);
    assert!(
        told.notes_that("retention has removed 4 offsets of the range"),
        "{told:?}"
    );
}
