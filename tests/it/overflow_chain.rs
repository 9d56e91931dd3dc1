//! What comes back from the second overflow topic, as the README tells operators to bring it back.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::Commands as _;

use crate::harness::events::origin;
use crate::harness::kafka::Record;
use crate::harness::wait::{eventually, seen};
use crate::harness::{Scene, variable};

const PATIENCE: Duration = Duration::from_mins(1);
const NAMED: usize = 30;
const NAMELESS: usize = 10;

/// Events of a blocked token, a part of them without an id and a time of their own, and one of a token that is not.
fn events() -> Vec<Record> {
    let named = (0..NAMED).map(|n| {
        format!(
            r#"{{"token":"t","event":"named","distinct_id":"d","uuid":"00000000-0000-4000-8000-{n:012}","timestamp":"2026-01-01T00:00:00Z"}}"#
        )
    });
    let nameless =
        (0..NAMELESS).map(|n| format!(r#"{{"token":"t","event":"nameless {n}","distinct_id":"d"}}"#));
    let other = [r#"{"token":"other","event":"e","distinct_id":"d"}"#.to_owned()];
    let all = named.chain(nameless).chain(other);
    all.map(|event| Record::of(0, event)).collect()
}

/// The ledger of a worker with those settings, which must add up: records, rows, duplicates, limited.
fn ledger(scene: &Scene, settings: &[(&str, &str)]) -> [u64; 4] {
    let mut command = scene.command();
    command.envs(settings.iter().map(|(key, value)| (variable(key), value)));
    let output = command.args(["verify", "--json"]).output().unwrap();
    let ledger: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{ledger}");
    ["records", "written", "duplicates", "limited"].map(|name| ledger[name].as_u64().unwrap())
}

#[test]
fn events_that_were_blocked_twice_have_one_row_each_once_their_token_may_send() {
    let scene = Scene::new("overflow_chain", 1);
    let limit = scene.key("config:rate_limit:{t}");
    scene.redis().set::<_, _, ()>(&limit, "0").unwrap();
    let blocked = (NAMED + NAMELESS) as u64;
    let first = scene.start().ready();
    let sent = scene.produce(events());
    scene.settled();
    assert_eq!(scene.kafka.read(&scene.overflow).len() as u64, blocked);

    // It waits for permits, and not for those of a blocked token.
    let [again, last] = ["again", "last"].map(|name| format!("{}_{name}", scene.overflow));
    scene.kafka.create_topics(&[(&again, 1), (&last, 1)]);
    let [second_group, third_group] = ["second", "third"].map(|name| format!("{}_{name}", scene.group));
    let second_settings = [
        ("kafka.topic", scene.overflow.as_str()),
        ("kafka.overflow_topic", &again),
        ("kafka.group_id", &second_group),
        ("rate_limit.when_over", "wait"),
    ];
    let second = scene.start_with(&second_settings).ready();
    scene.group_settled(&second_group, &scene.overflow, PATIENCE);
    let over = scene.kafka.read(&again);
    assert_eq!(over.len() as u64, blocked);
    for (n, record) in over.iter().enumerate() {
        // Each names where it was rejected last, once.
        assert_eq!(record.header_text("sluice-topic"), Some(scene.overflow.as_str()));
        assert_eq!(origin(record), (0, n as i64));
        let names = record.headers.iter().filter(|(name, _)| name == "sluice-offset");
        assert_eq!(names.count(), 1);
    }
    // A reject may be sent again after a crash: a copy of what is there.
    scene.kafka.produce(
        &again,
        vec![Record {
            timestamp: None,
            ..over[3].clone()
        }],
    );

    scene.redis().set::<_, _, ()>(&limit, "unlimited").unwrap();
    let third_settings = [
        ("kafka.topic", again.as_str()),
        ("kafka.overflow_topic", &last),
        ("kafka.group_id", &third_group),
        ("rate_limit.when_over", "wait"),
    ];
    let third = scene.start_with(&third_settings).ready();
    scene.group_settled(&third_group, &again, PATIENCE);
    assert_eq!(scene.kafka.read(&last).len(), 0);
    let one_each = || {
        let rows = scene.rows();
        let uuids: BTreeSet<&str> = rows.iter().map(|row| row.uuid.as_str()).collect();
        assert_eq!((rows.len(), uuids.len()), (sent.len(), sent.len()));
        rows
    };
    let read = scene.kafka.read(&scene.topic);
    for row in one_each() {
        if row.event.starts_with("nameless") {
            // Of when it was sent, and not of when it came back.
            let number: usize = row.event.rsplit(' ').next().unwrap().parse().unwrap();
            assert_eq!(Some(row.timestamp), read[NAMED + number].timestamp, "{row:?}");
        }
    }
    assert_eq!(ledger(&scene, &[]), [blocked + 1, 1, 0, blocked]);
    assert_eq!(ledger(&scene, &second_settings), [blocked, 0, 0, blocked]);
    assert_eq!(ledger(&scene, &third_settings), [blocked + 1, blocked, 1, 0]);

    // Whoever sends them once more, now that they may be sent, sends duplicates.
    let probe = || Record::of(0, r#"{"token":"t","event":"probe","distinct_id":"d"}"#);
    eventually("the first worker has heard of the new limit", PATIENCE, || {
        let before = scene.kafka.read(&scene.overflow).len();
        scene.produce(vec![probe()]);
        scene.settled();
        let after = scene.kafka.read(&scene.overflow).len();
        seen(after == before, "a probe went to overflow")
    });
    scene.produce(events().drain(..NAMED).collect());
    scene.settled();
    let rows = scene.rows();
    let named = rows.iter().filter(|row| row.event == "named");
    assert_eq!(named.count(), NAMED);
    for worker in [first, second, third] {
        assert_eq!(worker.terminate().code(), Some(0));
    }
    scene.kafka.delete_topics(&[&again, &last]);
}
