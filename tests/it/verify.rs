//! `sluice verify`: a mixed run adds up, each offence that is planted by hand is found by its coordinate, and a range
//! is settled like the whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redis::Commands as _;
use serde_json::Value;

use crate::harness::Scene;
use crate::harness::clickhouse::Row;
use crate::harness::events::{Ledger, Load, origin};
use crate::harness::kafka::Record;
use crate::harness::told::{Offence, copy_rows, delete_rows, reject, row_at, settle, verify};

fn limit(scene: &Scene, token: &str, limit: &str) {
    let key = scene.key(&format!("config:rate_limit:{{{token}}}"));
    scene.redis().set::<_, _, ()>(key, limit).unwrap();
}

/// A row whose event comes once.
fn single(sent: &[Record], rows: &[Row], nth: usize) -> (i32, i64) {
    let mut copies: HashMap<&Option<Vec<u8>>, usize> = HashMap::new();
    for record in sent {
        *copies.entry(&record.key).or_default() += 1;
    }
    let alone: BTreeSet<(i32, i64)> = sent
        .iter()
        .filter(|record| copies[&record.key] == 1)
        .map(Record::place)
        .collect();
    rows.iter()
        .map(Row::place)
        .filter(|place| alone.contains(place))
        .nth(nth)
        .unwrap()
}

#[test]
fn a_mixed_run_adds_up_and_each_offence_is_found_by_its_coordinate() {
    let scene = Scene::new("offences", 4);
    limit(&scene, "alpha", "300");
    let sent = scene.produce(Load::new(4).take(3_000));
    settle(&scene);
    let truth = Ledger::check(&sent, &scene);
    assert!(truth.limited > 100 && truth.duplicates > 100, "{truth:?}");

    let told = verify(&scene, &[]);
    let expected = [
        sent.len(),
        truth.written,
        truth.duplicates,
        truth.limited,
        truth.dead_letters,
    ];
    assert_eq!(told.counts(), expected.map(|count| count as u64));
    told.offends(&[], &[], &[]);
    assert_eq!(
        told.json["reasons"],
        serde_json::json!({"not_json": truth.dead_letters})
    );
    assert_eq!(told.notes(), Vec::<&str>::new());
    assert_eq!((told.count("behind"), told.count("unsettled_duplicates")), (0, 0));
    let ends: BTreeMap<i32, i64> = (0..)
        .zip(scene.kafka.bounds(&scene.topic))
        .map(|(p, (_, end))| (p, end))
        .collect();
    let ranges: Vec<Value> = ends
        .iter()
        .map(|(partition, end)| serde_json::json!({"partition": partition, "from": 0, "to": end}))
        .collect();
    assert_eq!(told.json["ranges"], Value::from(ranges));
    // Slower, and with both ends named, it is the same.
    let same = verify(
        &scene,
        &[
            "--from",
            "0",
            "--to",
            "1000000",
            "--max-records-per-second",
            "5000",
            "--settled-within",
            "0",
        ],
    );
    assert_eq!((same.code, &same.json), (told.code, &told.json));

    // In two destinations.
    let rows = scene.rows();
    let in_both = single(&sent, &rows, 0);
    let of = sent.iter().find(|record| record.place() == in_both).unwrap();
    let copy = reject(&scene, of, "over_limit");
    scene.kafka.produce(&scene.overflow, vec![copy.clone(), copy]);
    let told = verify(&scene, &[]);
    let both: Offence<'_> = ("both", &[in_both]);
    told.offends_by(&[both]);
    assert_eq!(told.count("written"), truth.written as u64);

    let deleted = single(&sent, &rows, 5);
    delete_rows(&scene, &row_at(deleted));
    verify(&scene, &[]).offends_by(&[both, ("missing", &[deleted])]);

    let doubled = single(&sent, &rows, 9);
    copy_rows(&scene, &row_at(doubled), "");
    let twice: Offence<'_> = ("twice", &[doubled]);
    verify(&scene, &[]).offends_by(&[both, ("missing", &[deleted]), twice]);

    // A dead letter that retention has taken.
    let letters = scene.kafka.read(&scene.dead_letters);
    let (first, second) = (origin(&letters[0]), origin(&letters[1]));
    assert_ne!(first, second);
    scene.kafka.delete_before(&scene.dead_letters, 0, 1);
    let mut missing = [deleted, first];
    missing.sort_unstable();
    let told = verify(&scene, &[]);
    let missing = ("missing", missing.as_slice());
    told.offends_by(&[both, missing, twice]);
    assert!(told.notes_that("retention has removed 1 records"), "{told:?}");

    // Rows that no record stands behind: beyond the end, and of a partition that is not there.
    let beyond = (2, ends[&2] + 5);
    for (partition, offset) in [beyond, (77, 3)] {
        let place = format!(", {partition} AS kafka_partition, {offset} AS kafka_offset");
        copy_rows(&scene, &row_at(single(&sent, &rows, 20)), &place);
    }
    verify(&scene, &[]).offends_by(&[both, missing, twice, ("stray", &[beyond, (77, 3)])]);

    // And as text.
    let output = scene.sluice(&["verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for line in [
        "IT DOES NOT ADD UP, 2 missing, 1 twice, 1 both, 0 repeated, 2 stray".to_owned(),
        format!("stray (partition:offset): {}:{} 77:3", beyond.0, beyond.1),
        format!("both (partition:offset): {}:{}", in_both.0, in_both.1),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
}

/// An event whose record has that time. `id` names it within its token.
fn event(partition: i32, token: &str, id: &str, time_ms: i64) -> Record {
    Record {
        timestamp: Some(time_ms),
        ..Record::of(
            partition,
            format!(r#"{{"token":"{token}","event":"e","distinct_id":"d","uuid":"{id}"}}"#),
        )
    }
}

fn rfc_3339(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).unwrap().to_string()
}

#[test]
fn a_range_is_settled_wherever_the_originals_of_its_duplicates_are() {
    let scene = Scene::new("ranges", 2);
    limit(&scene, "blocked", "0");
    let begin = jiff::Timestamp::now().as_millisecond() - 3_600_000;
    let at = |offset: i64| begin + offset * 1_000;
    // What comes first is in the other partition, from 0 to 300.
    let first = (0..300).map(|n| {
        let token = if n < 290 { "a" } else { "blocked" };
        event(1, token, &format!("first {n}"), at(n))
    });
    scene.produce(first.collect());
    settle(&scene);
    let second = (0..300).map(|n| match n {
        // Originals before the range in the same partition, after it in the other one, as a row and in overflow.
        100..110 => event(0, "a", &format!("second {}", n - 100), at(n)),
        150..160 => event(0, "a", &format!("first {}", n + 100), at(n)),
        190..195 => event(0, "blocked", &format!("first {}", n + 100), at(n)),
        _ => event(0, "a", &format!("second {n}"), at(n)),
    });
    scene.produce(second.collect());
    settle(&scene);
    delete_rows(&scene, "kafka_partition = 0 AND kafka_offset IN (99, 120, 200)");

    let told = verify(&scene, &["--from", "100", "--to", "200"]);
    told.offends(&[(0, 120)], &[], &[]);
    assert_eq!(told.counts(), [200, 174, 25, 0, 0]);
    let told = verify(&scene, &["--from", "100", "--to", "200", "--partition", "1"]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [100, 100, 0, 0, 0]);
    assert_eq!(
        told.json["ranges"],
        serde_json::json!([{"partition": 1, "from": 100, "to": 200}])
    );

    let told = verify(
        &scene,
        &["--from", &rfc_3339(at(120)), "--to", &rfc_3339(at(201))],
    );
    told.offends(&[(0, 120), (0, 200)], &[], &[]);
    assert_eq!(told.counts(), [162, 145, 15, 0, 0]);
    let told = verify(&scene, &["--from", "2h", "--partition", "0,1"]);
    told.offends(&[(0, 99), (0, 120), (0, 200)], &[], &[]);
    assert_eq!(told.counts(), [600, 562, 25, 10, 0]);
    // To the end of what there is, and then nothing more.
    let told = verify(&scene, &["--from", "200", "--to", "1h"]);
    assert_eq!((told.counts(), told.code), ([0; 5], Some(0)));
    assert!(told.notes_that("no record of the range"), "{told:?}");
    let told = verify(&scene, &["--from", "290", "--to", "5000"]);
    assert_eq!((told.counts(), told.count("behind")), ([20, 10, 0, 10, 0], 0));
}

#[test]
fn bad_ranges_are_refused_and_named() {
    let scene = Scene::new("badranges", 1);
    for (arguments, names) in [
        (vec!["--from", "5", "--to", "5"], "offset 5"),
        (
            vec!["--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z"],
            "2026-01-02T00:00:00Z",
        ),
        (vec!["--from", "1h", "--to", "2h"], "the range ends at"),
        (vec!["--from", "yesterday"], "yesterday"),
        (vec!["--from", "-5"], "-5"),
        (vec!["--to", "2026-01-01"], "2026-01-01"),
        (vec!["--partition", "x"], "x"),
        (vec!["--partition", "0,-1"], "-1"),
        (vec!["--partition", "0,7"], "no partition 7"),
        (vec!["--max-records-per-second", "0"], "0"),
        (vec!["--settled-within", "soon"], "soon"),
        (vec!["--topic", "another"], "--topic"),
    ] {
        let output = scene.sluice(&[&["verify"], arguments.as_slice()].concat());
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(names), "{arguments:?} names {names}: {told}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_overflow_topic_has_a_ledger_of_its_own() {
    let mut scene = Scene::new("overflows", 2);
    scene.set("rate_limit.limit", "40");
    let time = jiff::Timestamp::now().as_millisecond();
    let records = (0..100).map(|n| event(n % 2, "t", &format!("id {}", n % 90), time));
    scene.produce(records.collect());
    settle(&scene);
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [100, 40, 10, 50, 0]);

    // The overflow topic's own worker: its configuration says what is read, by whom, and where rejects go.
    let (topic, overflow, group) = (scene.topic.clone(), scene.overflow.clone(), scene.group.clone());
    let again = format!("{overflow}_again");
    scene.kafka.create_topics(&[(&again, 1)]);
    for (key, value) in [
        ("kafka.topic", overflow.clone()),
        ("kafka.overflow_topic", again.clone()),
        ("kafka.group_id", format!("{group}_overflow")),
        ("rate_limit.limit", "1000000".to_owned()),
    ] {
        scene.set(key, &value);
    }
    let before = verify(&scene, &[]);
    assert_eq!((before.counts(), before.count("behind")), ([0; 5], 50));
    let worker = scene.start().ready();
    scene.group_settled(
        &format!("{group}_overflow"),
        &overflow,
        crate::harness::SETTLED_WITHIN,
    );
    assert_eq!(worker.terminate().code(), Some(0));
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [50, 50, 0, 0, 0]);
    // Rejects stand where the client put them.
    let copies: Vec<_> = scene
        .rows()
        .into_iter()
        .filter(|row| row.topic == overflow)
        .collect();
    let place = (copies[3].partition, copies[3].offset);
    delete_rows(
        &scene,
        &format!("kafka_topic = '{overflow}' AND {}", row_at(place)),
    );
    verify(&scene, &[]).offends(&[place], &[], &[]);
    // The topic itself is settled as before: its overflow copies are still there.
    for (key, value) in [
        ("kafka.topic", &topic),
        ("kafka.overflow_topic", &overflow),
        ("kafka.group_id", &group),
    ] {
        scene.set(key, value);
    }
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [100, 40, 10, 50, 0]);
    scene.kafka.delete_topics(&[&again]);
}
