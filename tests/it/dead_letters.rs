//! Dead letters: each reason is sent through Kafka and read back byte for byte.

use std::collections::HashMap;

use sluice::event::{MAX_DEPTH, MAX_PAYLOAD, Reason};

use crate::columns::{of_coordinate, record_time};
use crate::harness::Scene;
use crate::harness::clickhouse::Row;
use crate::harness::events::origin;
use crate::harness::kafka::{NamedValue, Record};
use crate::harness::monitor::Monitor;
use crate::harness::raw_kafka::produce_with_headers;

/// A payload that earns the reason; `None` is a tombstone.
fn payload(reason: Reason) -> Option<Vec<u8>> {
    let event = |fields: &str| Some(format!("{{{fields}}}").into_bytes());
    match reason {
        Reason::Empty => None,
        Reason::TooLarge => {
            let start = r#"{"token":"t","event":"e","distinct_id":"d","properties":{"large":""#;
            let end = r#""}}"#;
            Some(
                [
                    start.as_bytes(),
                    &vec![b'x'; MAX_PAYLOAD + 1 - start.len() - end.len()],
                    end.as_bytes(),
                ]
                .concat(),
            )
        }
        Reason::NotUtf8 => Some(b"{\"token\":\"t\",\"event\":\"\xff\",\"distinct_id\":\"d\"}".to_vec()),
        Reason::NotJson => Some(b"{\"token\":\"t\",\"event\":\"e\",\"distinct_id\":\"d\"} and more".to_vec()),
        Reason::NotAnObject => Some(b" [1, 2]\n".to_vec()),
        Reason::TooDeep => {
            let levels = MAX_DEPTH as usize;
            event(&format!(
                r#""token":"t","event":"e","distinct_id":"d","deep":{}{}"#,
                "[".repeat(levels),
                "]".repeat(levels)
            ))
        }
        Reason::MissingToken => event(r#""token":" ","event":"e","distinct_id":"d""#),
        Reason::TokenTooLong => event(&format!(
            r#""token":"{}","event":"e","distinct_id":"d""#,
            "t".repeat(65)
        )),
        Reason::BadToken => event(r#""token":"jéton","event":"e","distinct_id":"d""#),
        Reason::MissingEvent => event(r#""token":"t","event":null,"distinct_id":"d""#),
        Reason::EventTooLong => event(&format!(
            r#""token":"t","event":"{}","distinct_id":"d""#,
            "é".repeat(1001)
        )),
        Reason::BadEvent => event(r#""token":"t","event":"a\u0000b","distinct_id":"d""#),
        Reason::MissingDistinctId => event(r#""token":"t","event":"e","distinct_id":"""#),
        Reason::BadDistinctId => event(r#""token":"t","event":"e","distinct_id":"\ud83d""#),
        Reason::BadTimestamp => event(r#""token":"t","event":"e","distinct_id":"d","timestamp":"yesterday""#),
        Reason::PropertiesNotAnObject => {
            event(r#""token":"t","event":"e","distinct_id":"d","properties":[1]"#)
        }
        Reason::Refused => event(r#""token":"t","event":"refund","distinct_id":"d""#),
    }
}

/// Headers that a careless copy would spoil: null, empty, binary, and the same name twice.
fn own_headers() -> Vec<NamedValue> {
    vec![
        ("trace".to_owned(), Some(b"1".to_vec())),
        ("null".to_owned(), None),
        ("trace".to_owned(), Some(vec![0, 0xff, b'\n'])),
        ("empty".to_owned(), Some(Vec::new())),
        // A stale one of ours: it must not stand beside the new one.
        ("sluice-reason".to_owned(), Some(b"stale".to_vec())),
    ]
}

fn expected(sent: &Record, scene: &Scene, reason: &str) -> Record {
    let mut headers = own_headers();
    headers.pop();
    let ours = [
        ("sluice-reason", reason.to_owned()),
        ("sluice-topic", scene.topic.clone()),
        ("sluice-incarnation", "0".to_owned()),
        ("sluice-partition", sent.partition.to_string()),
        ("sluice-offset", sent.offset.to_string()),
    ];
    if reason == Reason::Refused.as_str() {
        // An event without an id and a time of its own takes along what it has of its place.
        headers.push(("uuid".to_owned(), Some(of_coordinate(scene, sent).into_bytes())));
        headers.push((
            "timestamp".to_owned(),
            Some(sent.timestamp.unwrap().to_string().into_bytes()),
        ));
    }
    headers.extend(ours.map(|(name, value)| (name.to_owned(), Some(value.into_bytes()))));
    Record {
        key: sent.key.clone(),
        payload: sent.payload.clone(),
        headers,
        ..Record::default()
    }
}

#[test]
fn every_reason_is_read_back_from_the_dead_letters_byte_for_byte() {
    let scene = Scene::new("reasons", 2);
    // What an operator may add: the rows that break it can never be written.
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events ADD CONSTRAINT no_refunds CHECK event != 'refund'",
        scene.database
    ));
    let good = Record::of(0, r#"{"token":"t","event":"e","distinct_id":"d"}"#);
    let mut records = vec![good.clone()];
    for (n, reason) in Reason::ALL.into_iter().enumerate() {
        let key = [
            None,
            Some(Vec::new()),
            Some(b"key".to_vec()),
            Some(vec![0, 0xfe, b'{']),
        ][n % 4]
            .clone();
        records.push(Record {
            key,
            payload: payload(reason),
            headers: own_headers(),
            timestamp: Some(record_time()),
            ..Record::of(n as i32 % 2, "")
        });
    }
    // No bytes at all are as good as a tombstone, but not the same.
    records.push(Record {
        headers: own_headers(),
        ..Record::of(1, "")
    });
    records.push(Record { partition: 1, ..good });
    let sent = scene.produce(records);
    let worker = scene.start().ready();
    scene.settled();

    let reasons: Vec<&str> = Reason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .chain([Reason::Empty.as_str()])
        .collect();
    let bad = &sent[1..=reasons.len()];
    let read = scene.kafka.read(&scene.dead_letters);
    assert_eq!(
        read.len(),
        bad.len(),
        "each is rejected once: {:?}",
        read.iter().map(origin).collect::<Vec<_>>()
    );
    let found: HashMap<(i32, i64), Record> =
        read.into_iter().map(|record| (origin(&record), record)).collect();
    for (sent, reason) in bad.iter().zip(reasons) {
        let mut letter = found
            .get(&sent.place())
            .unwrap_or_else(|| panic!("{reason} is missing"))
            .clone();
        (letter.partition, letter.offset, letter.timestamp) = (0, 0, None);
        assert_eq!(letter, expected(sent, &scene, reason), "{reason}");
        let counted = worker.metric(&format!("sluice_dead_letters_total{{reason=\"{reason}\"}}"));
        assert!(counted >= Some(1.0), "{reason} is counted: {counted:?}");
    }
    let rows: Vec<(i32, i64)> = scene.rows().iter().map(Row::place).collect();
    assert_eq!(
        rows,
        [sent[0].place(), sent[sent.len() - 1].place()],
        "the good ones are written"
    );
    assert_eq!(
        worker.metric("sluice_events_total{outcome=\"dead_letter\"}"),
        Some(bad.len() as f64)
    );
}

#[test]
fn a_row_that_the_table_refuses_costs_only_itself() {
    let mut scene = Scene::new("refused", 1);
    scene.set("batch.max_age_ms", "1000");
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events ADD CONSTRAINT no_refunds CHECK event != 'refund'",
        scene.database
    ));
    let records = (0..500).map(|n| {
        let event = if matches!(n, 0 | 77 | 78 | 499) {
            "refund"
        } else {
            "purchase"
        };
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"{event}","distinct_id":"d{n}"}}"#),
        )
    });
    scene.produce(records.collect());
    let worker = scene.start().ready();
    scene.settled();
    let refused: Vec<i64> = scene
        .rejects(&scene.dead_letters)
        .iter()
        .map(|letter| origin(letter).1)
        .collect();
    assert_eq!(refused, [0, 77, 78, 499]);
    assert_eq!(scene.clickhouse.count(&scene.database), 496);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_header_whose_name_is_not_utf8_harms_nobody() {
    let scene = Scene::new("hostile", 1);
    let headers: [(&[u8], &[u8]); 3] = [(b"token", b"t"), (b"\xff\xfe\0", b"x"), (b"trace", b"1")];
    let payloads = [r#"{"event":"good","distinct_id":"d"}"#, "bad"];
    for payload in payloads {
        produce_with_headers(
            scene.kafka.brokers(),
            &scene.topic,
            0,
            payload.as_bytes(),
            &headers,
        );
    }
    let worker = scene.start().ready();
    scene.settled();
    let rows = scene.rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].event.as_str(), rows[0].token.as_str()),
        ("good", "t"),
        "the headers beside it count"
    );
    let letters = scene.rejects(&scene.dead_letters);
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].payload.as_deref(), letters[0].header_text("trace")),
        (Some(&b"bad"[..]), Some("1"))
    );
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_refused_row_that_speaks_of_the_deadline_is_a_dead_letter() {
    // ClickHouse tells the refused row's values in its error, and a producer chooses them.
    let scene = Scene::new("speaks", 1);
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events ADD CONSTRAINT no_refunds CHECK event NOT LIKE '%refund%'",
        scene.database
    ));
    let event = |event: &str| {
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"{event}","distinct_id":"d"}}"#),
        )
    };
    scene.produce(vec![
        event("purchase"),
        event("Constraint `in_time` for table refund"),
        event("purchase"),
    ]);
    let worker = scene.start().ready();
    scene.settled();
    let letters: Vec<i64> = scene
        .rejects(&scene.dead_letters)
        .iter()
        .map(|letter| origin(letter).1)
        .collect();
    assert_eq!(letters, [1]);
    assert_eq!(scene.clickhouse.count(&scene.database), 2);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn finding_refused_rows_may_take_longer_than_the_deadline() {
    let mut scene = Scene::new("manybad", 1);
    scene.set_deadline(2);
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events ADD CONSTRAINT no_refunds CHECK event != 'refund'",
        scene.database
    ));
    scene.set("batch.max_age_ms", "1000");
    let records = (0..600).map(|n| {
        let event = if n % 2 == 0 { "refund" } else { "purchase" };
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"{event}","distinct_id":"d{n}"}}"#),
        )
    });
    scene.produce(records.collect());
    let worker = scene.start().ready();
    scene.settled();
    let refused: Vec<i64> = scene
        .rejects(&scene.dead_letters)
        .iter()
        .map(|letter| origin(letter).1)
        .collect();
    assert_eq!(refused, (0..600).step_by(2).collect::<Vec<i64>>());
    assert_eq!(scene.clickhouse.count(&scene.database), 300);
    assert!(scene.rejects(&scene.overflow).is_empty());
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn headers_that_name_topics_that_there_are_not_cost_redis_one_question_a_block() {
    let scene = Scene::new("forged", 1);
    let forged = |n: u32| {
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"{n}"}}"#),
        )
        .header("sluice-reason", "over_limit")
        .header("sluice-topic", &format!("nowhere-{n}"))
        .header("sluice-incarnation", "0")
        .header("sluice-partition", "0")
        .header("sluice-offset", "0")
    };
    scene.produce((0..500).map(forged).collect());
    let monitor = Monitor::of(&scene, format!("\"{}config:sources\"", scene.prefix));
    let worker = scene.start().ready();
    scene.settled();
    let blocks = worker.metric("sluice_blocks_total{kind=\"fresh\"}");
    assert_eq!(worker.terminate().code(), Some(0));
    assert_eq!(scene.rows().len(), 500);
    let asked = monitor.heard();
    let asked: Vec<&String> = asked.iter().filter(|line| line.contains("\"HGETALL\"")).collect();
    assert!(
        !asked.is_empty() && asked.len() as f64 <= blocks.unwrap(),
        "{asked:?} for {blocks:?} blocks"
    );
}
