//! Limits: over any window and all workers together, overridden per token, waited for, and replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use redis::Commands as _;

use crate::harness::events::origin;
use crate::harness::kafka::Record;
use crate::harness::monitor::Monitor;
use crate::harness::wait::{eventually, seen};
use crate::harness::{Scene, variable};

fn event(partition: i32, token: &str, n: usize) -> Record {
    Record::of(
        partition,
        format!(r#"{{"token":"{token}","event":"e","distinct_id":"d","properties":{{"n":{n}}}}}"#),
    )
}

/// Rows of each token.
fn rows_by_token(scene: &Scene) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for row in scene.rows() {
        *counts.entry(row.token).or_default() += 1;
    }
    counts
}

#[test]
fn four_workers_never_let_more_than_the_limit_pass_in_any_window() {
    const LIMIT: usize = 1_000;
    const WINDOW_SECONDS: usize = 5;
    const WINDOWS: usize = 4;
    // Redis tells every write with its own time; nobody else writes to this one.
    let mut scene = Scene::private("flood", 8);
    scene.set("rate_limit.limit", &LIMIT.to_string());
    scene.set("rate_limit.window_seconds", &WINDOW_SECONDS.to_string());
    let monitor = Monitor::start(&scene);
    let workers = [
        scene.start().ready(),
        scene.start().ready(),
        scene.start().ready(),
        scene.start().ready(),
    ];
    eventually("every worker has its share", Duration::from_mins(1), || {
        let shares: Vec<_> = workers
            .iter()
            .map(|worker| worker.metric("sluice_assigned_partitions"))
            .collect();
        seen(
            shares.iter().all(|share| *share == Some(2.0)),
            format_args!("{shares:?}"),
        )
    });
    let mut sent = Vec::new();
    // A flood for as long as the windows last: five times what may pass, on every partition.
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs((WINDOW_SECONDS * WINDOWS) as u64) {
        let from = sent.len();
        sent.extend(
            scene.produce(
                (from..from + 400)
                    .map(|n| event((n % 8) as i32, "flood", n))
                    .collect(),
            ),
        );
        std::thread::sleep(Duration::from_millis(250));
    }
    scene.settled();
    let permits = monitor.permits("rate:{flood}");

    let passed: usize = permits.iter().map(|(_, count)| count).sum();
    assert_eq!(
        passed,
        scene.clickhouse.count(&scene.database),
        "every permit is a row"
    );
    assert_eq!(
        scene.rejects(&scene.overflow).len(),
        sent.len() - passed,
        "the rest is in overflow"
    );
    let window = Duration::from_secs(WINDOW_SECONDS as u64);
    let most = most_in_a_window(&permits, window);
    assert!(most <= LIMIT, "{most} permits in one window");
    let (first, last) = (permits[0].0, permits[permits.len() - 1].0);
    // Whole windows from the first permit on; what begins after the last of them does not count.
    let whole = last.checked_sub(first).unwrap().as_secs() as usize / WINDOW_SECONDS;
    let end = first + window * whole as u32;
    let used: usize = permits.iter().filter(|(at, _)| *at < end).map(|(_, n)| n).sum();
    // How much is used under a flood that never ebbs is for `permits` to say: this one depends on the machine.
    eprintln!(
        "four workers: at most {most} permits in any window, {used} of {} used",
        whole * LIMIT
    );
    for worker in workers {
        assert_eq!(worker.terminate().code(), Some(0));
    }
}

/// On every Redis: see `every_redis`.
pub(crate) fn the_first_pass(mut scene: Scene) {
    scene.set("rate_limit.limit", "100");
    let sent = scene.produce(
        (0..600)
            .map(|n| event(0, if n % 6 == 5 { "calm" } else { "flood" }, n))
            .collect(),
    );
    let worker = scene.start().ready();
    scene.settled();
    let flood: Vec<i64> = sent.iter().map(|r| r.offset).filter(|n| n % 6 != 5).collect();
    let passed: Vec<i64> = scene
        .rows()
        .iter()
        .filter(|row| row.token == "flood")
        .map(|row| row.offset)
        .collect();
    assert_eq!(passed, flood[..100], "the first in the order of offsets");
    assert_eq!(rows_by_token(&scene)["calm"], 100);
    let overflow = scene.kafka.read(&scene.overflow);
    let over: BTreeSet<i64> = overflow.iter().map(|record| origin(record).1).collect();
    assert_eq!(over, flood[100..].iter().copied().collect());
    for record in &overflow {
        let (partition, offset) = origin(record);
        let original = &sent[offset as usize];
        assert_eq!((partition, &record.payload), (0, &original.payload));
        assert_eq!(record.header_text("sluice-topic"), Some(scene.topic.as_str()));
        assert_eq!(record.header_text("sluice-incarnation"), Some("0"));
        assert!(
            record
                .header_text("sluice-reason")
                .is_some_and(|reason| !reason.is_empty())
        );
    }
    assert_eq!(
        worker.metric("sluice_events_total{outcome=\"limited\"}"),
        Some(400.0)
    );
}

#[test]
fn a_tokens_own_limit_is_taken_from_redis_without_a_restart() {
    let mut scene = Scene::new("override", 1);
    scene.set("rate_limit.limit", "50");
    let mut redis = scene.redis();
    let limit = |token: &str| scene.key(&format!("config:rate_limit:{{{token}}}"));
    redis.set::<_, _, ()>(limit("more"), "200").unwrap();
    redis.set::<_, _, ()>(limit("window"), "70/60").unwrap();
    redis.set::<_, _, ()>(limit("blocked"), "0").unwrap();
    redis.set::<_, _, ()>(limit("free"), "unlimited").unwrap();
    redis.set::<_, _, ()>(limit("wrong"), "a lot").unwrap();
    let tokens = ["more", "window", "blocked", "free", "wrong", "plain"];
    let flood = |scene: &Scene| {
        scene.produce(
            tokens
                .iter()
                .flat_map(|token| (0..300).map(move |n| event(0, token, n)))
                .collect(),
        );
    };
    flood(&scene);
    let worker = scene.start().ready();
    scene.settled();
    let expected = |more, window, free| {
        [
            ("more", more),
            ("window", window),
            ("free", free),
            ("wrong", 50),
            ("plain", 50),
        ]
        .map(|(token, rows)| (token.to_owned(), rows))
        .into()
    };
    assert_eq!(rows_by_token(&scene), expected(200, 70, 300));

    redis.set::<_, _, ()>(limit("more"), "250").unwrap();
    eventually("the new limit is in use", Duration::from_secs(30), || {
        flood(&scene);
        scene.settled();
        let rows = rows_by_token(&scene);
        seen(rows["more"] == 250, format_args!("{rows:?}"))
    });
    assert!(
        worker.metric("sluice_bad_overrides_total") > Some(0.0),
        "a limit that cannot be read is told"
    );
}

#[test]
fn a_token_that_is_not_on_the_allow_list_goes_to_overflow() {
    let mut scene = Scene::new("allowed", 1);
    scene.set("rate_limit.limit", "50");
    scene.set("rate_limit.allow_list", "true");
    let mut redis = scene.redis();
    let list = scene.key("config:tokens");
    redis.sadd::<_, _, ()>(&list, &["known", "free"][..]).unwrap();
    // A limit of its own does not make a token known.
    for token in ["free", "stranger"] {
        let limit = scene.key(&format!("config:rate_limit:{{{token}}}"));
        redis.set::<_, _, ()>(limit, "unlimited").unwrap();
    }
    let flood = |scene: &Scene| {
        let tokens = ["known", "free", "stranger"];
        let events = tokens
            .iter()
            .flat_map(|token| (0..100).map(move |n| event(0, token, n)));
        scene.produce(events.collect());
        scene.settled();
    };
    let worker = scene.start().ready();
    flood(&scene);
    let expected = [("known", 50), ("free", 100)].map(|(token, rows)| (token.to_owned(), rows));
    assert_eq!(rows_by_token(&scene), expected.into());
    assert_eq!(scene.rejects(&scene.overflow).len(), 150);

    redis.sadd::<_, _, ()>(&list, "stranger").unwrap();
    eventually("the new token is known", Duration::from_secs(30), || {
        flood(&scene);
        let rows = rows_by_token(&scene);
        seen(rows.contains_key("stranger"), format_args!("{rows:?}"))
    });
    assert_eq!(worker.metric("sluice_bad_overrides_total"), Some(0.0));
    // Gone, as after a loss of data: nothing goes to overflow for it.
    redis.del::<_, ()>(&list).unwrap();
    scene.produce((0..10).map(|n| event(0, "late", n)).collect());
    eventually("the loss is told", Duration::from_secs(30), || {
        let told = scene.logged("config:tokens is empty");
        seen(told > 0, told)
    });
    worker.waits(0, "allow_list", "config:tokens is empty");
    let check = scene.sluice(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    let told = String::from_utf8_lossy(&check.stdout);
    assert!(told.contains("config:tokens is empty"), "{told}");
    let sent = scene.rejects(&scene.overflow).len();
    redis
        .sadd::<_, _, ()>(&list, &["known", "free", "late"][..])
        .unwrap();
    scene.settled();
    assert_eq!(rows_by_token(&scene)["late"], 10);
    assert_eq!(scene.rejects(&scene.overflow).len(), sent);
    redis.del::<_, ()>(&list).unwrap();
    redis.set::<_, _, ()>(&list, "known,free").unwrap();
    eventually("a list that is none is told", Duration::from_secs(30), || {
        flood(&scene);
        let told = worker.metric("sluice_bad_overrides_total");
        seen(told > Some(0.0), format_args!("{told:?}"))
    });
    assert_eq!(worker.terminate().code(), Some(0));
}

/// A flood over one token's limit, and a second worker that works the overflow off.
fn worked_off(name: &str, limit: usize, window_seconds: u64, events: usize) {
    let mut scene = Scene::private(name, 1);
    scene.set("rate_limit.limit", &limit.to_string());
    scene.set("rate_limit.window_seconds", &window_seconds.to_string());
    let monitor = Monitor::start(&scene);
    let sent = scene.produce((0..events).map(|n| event(0, "t", n)).collect());
    let first = scene.start().ready();
    scene.settled();
    // The same table, claims and limits; its own group, and rejects of its own.
    let again = format!("{}_again", scene.overflow);
    scene.kafka.create_topics(&[(&again, 1)]);
    let group = format!("{}_overflow", scene.group);
    let settings = [
        ("kafka.topic", scene.overflow.as_str()),
        ("kafka.overflow_topic", &again),
        ("kafka.group_id", &group),
        ("rate_limit.when_over", "wait"),
    ];
    let second = scene.start_with(&settings).ready();
    let windows = (events / limit) as u64;
    let patience = Duration::from_secs(60 + 2 * windows * window_seconds);
    scene.group_settled(&group, &scene.overflow, patience);
    let rows = scene.rows();
    let uuids: BTreeSet<&str> = rows.iter().map(|row| row.uuid.as_str()).collect();
    assert_eq!(
        (rows.len(), uuids.len()),
        (sent.len(), sent.len()),
        "each event has one row in the end"
    );
    assert_eq!(scene.kafka.read(&again).len(), 0, "nothing goes round in circles");
    let most = most_in_a_window(&monitor.permits("rate:{t}"), Duration::from_secs(window_seconds));
    assert_eq!(most, limit, "the most permits in any window");
    let written_by = |command: &mut Command| {
        let output = command.args(["verify", "--json"]).output().unwrap();
        let ledger: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{ledger}");
        (
            ledger["written"].as_u64().unwrap(),
            ledger["records"].as_u64().unwrap(),
        )
    };
    let here = written_by(&mut scene.command());
    let over = written_by(
        scene
            .command()
            .envs(settings.map(|(key, value)| (variable(key), value))),
    );
    assert_eq!(here.0 + over.0, events as u64);
    assert_eq!((here.1, over.0), (events as u64, over.1));
    eprintln!(
        "{events} events: {} at once, {} from overflow, at most {most} of {limit} in any {window_seconds} s, in {:?}",
        here.0,
        over.0,
        scene.age()
    );
    for worker in [first, second] {
        assert_eq!(worker.terminate().code(), Some(0));
    }
}

/// The most permits within any span of time.
fn most_in_a_window(permits: &[(Duration, usize)], window: Duration) -> usize {
    let from = |start: Duration| -> usize {
        let within = permits
            .iter()
            .filter(|(at, _)| *at >= start && *at < start + window);
        within.map(|(_, count)| count).sum()
    };
    permits.iter().map(|(at, _)| from(*at)).max().unwrap_or(0)
}

#[test]
fn overflow_is_worked_off_within_the_limit_by_a_second_worker_that_waits() {
    worked_off("waits", 100, 3, 350);
}

#[test]
#[ignore = "takes three minutes: make test ARGS=\"--ignored a_flood_ten\""]
fn a_flood_ten_times_over_its_limit_is_worked_off() {
    worked_off("tentimes", 1_000, 20, 10_000);
}

#[test]
fn a_replayed_reject_takes_over_its_claim_and_is_written_once() {
    let mut scene = Scene::new("replay", 1);
    scene.set("rate_limit.limit", "20");
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events ADD CONSTRAINT mended CHECK event != 'broken'",
        scene.database
    ));
    let with_id = |n: usize| {
        Record::of(
            0,
            format!(r#"{{"token":"a","event":"e","distinct_id":"d","uuid":"id {n}"}}"#),
        )
    };
    let broken = Record::of(
        0,
        r#"{"token":"b","event":"broken","distinct_id":"d","uuid":"b"}"#,
    );
    let mut records: Vec<Record> = (0..30).map(with_id).collect();
    records.push(broken.clone());
    let sent = scene.produce(records);
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(scene.clickhouse.count(&scene.database), 20);

    // The operator mends what was wrong, and sends every reject again as it is; some of them twice.
    scene.clickhouse.run(&format!(
        "ALTER TABLE {}.events DROP CONSTRAINT mended",
        scene.database
    ));
    scene
        .redis()
        .set::<_, _, ()>(scene.key("config:rate_limit:{a}"), "unlimited")
        .unwrap();
    let mut rejects = scene.kafka.read(&scene.overflow);
    rejects.extend(scene.kafka.read(&scene.dead_letters));
    assert_eq!(rejects.len(), 11);
    let twice = rejects[..3].to_vec();
    let again = |records: Vec<Record>| {
        scene.produce(
            records
                .into_iter()
                .map(|record| Record {
                    timestamp: None,
                    ..record
                })
                .collect(),
        );
        scene.settled();
    };
    // Until the worker has read the new limit, events may go to overflow once more.
    eventually("the new limit is read", Duration::from_secs(20), || {
        let before = scene.kafka.read(&scene.overflow).len();
        scene.produce(vec![event(0, "a", 0)]);
        scene.settled();
        seen(
            scene.kafka.read(&scene.overflow).len() == before,
            "a probe went to overflow",
        )
    });
    let probes = scene.clickhouse.count(&scene.database) - 20;
    again(rejects);
    again(twice);
    // The same event from its client once more is a duplicate as ever.
    again(vec![with_id(25), broken]);
    let rows = scene.rows();
    assert_eq!(rows.len() - probes, sent.len(), "each event has one row");
    let uuids: BTreeSet<&str> = rows.iter().map(|row| row.uuid.as_str()).collect();
    assert_eq!(uuids.len(), rows.len());
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_token_that_is_not_listed_does_not_hold_up_a_partition_that_waits() {
    let mut scene = Scene::new("strangers", 1);
    scene.set("rate_limit.when_over", "wait");
    scene.set("rate_limit.allow_list", "true");
    let list = scene.key("config:tokens");
    scene.redis().sadd::<_, _, ()>(&list, "known").unwrap();
    scene.produce(
        (0..20)
            .map(|n| event(0, ["stranger", "known"][n % 2], n))
            .collect(),
    );
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(rows_by_token(&scene), [("known".to_owned(), 10)].into());
    assert_eq!(scene.rejects(&scene.overflow).len(), 10);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_partition_that_waits_hears_of_a_new_limit() {
    let mut scene = Scene::new("unblocked", 2);
    scene.set("rate_limit.when_over", "wait");
    let limit = scene.key("config:rate_limit:{t}");
    scene.redis().set::<_, _, ()>(&limit, "1/2592000").unwrap();
    let blocked = scene.key("config:rate_limit:{blocked}");
    scene.redis().set::<_, _, ()>(&blocked, "0").unwrap();
    scene.produce((0..10).map(|n| event(0, "t", n)).collect());
    scene.produce((0..5).map(|n| event(1, "blocked", n)).collect());
    scene.produce(vec![event(1, "free", 0)]);
    let worker = scene.start().ready();
    eventually("what may pass is written", Duration::from_secs(30), || {
        let rows = rows_by_token(&scene);
        seen(rows.contains_key("free"), format_args!("{rows:?}"))
    });
    eventually("for a blocked one nobody waits", Duration::from_secs(30), || {
        let over = scene.rejects(&scene.overflow).len();
        seen(over == 5, over)
    });
    assert!(!rows_by_token(&scene).contains_key("t"), "its block waits");
    let status = worker.waits(0, "permits", "token \"t\" is over its limit of 1 in 2592000 s");
    assert_eq!(status, 200, "as it is meant to do");
    scene.redis().set::<_, _, ()>(&limit, "unlimited").unwrap();
    scene.settled_within(Duration::from_secs(30));
    assert_eq!(
        rows_by_token(&scene),
        [("t", 10), ("free", 1)]
            .map(|(token, rows)| (token.to_owned(), rows))
            .into()
    );
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_partition_that_waits_does_not_hold_up_the_others() {
    let mut scene = Scene::new("shares", 2);
    scene.set("rate_limit.when_over", "wait");
    // Memory for two blocks: the waiting partition alone would take four.
    scene.set("batch.max_bytes", "524288");
    scene.set("worker.max_in_flight_bytes", "1048576");
    let limit = scene.key("config:rate_limit:{waits}");
    scene.redis().set::<_, _, ()>(&limit, "1/2592000").unwrap();
    let padding = "x".repeat(20_000);
    let waiting = (0..300).map(|n| {
        Record::of(
            0,
            format!(
                r#"{{"token":"waits","event":"e","distinct_id":"d{n}","properties":{{"p":"{padding}"}}}}"#
            ),
        )
    });
    scene.produce(waiting.collect());
    let worker = scene.start().ready();
    eventually("the waiting partition is paused", Duration::from_mins(1), || {
        let paused = worker.metric("sluice_paused_partitions").unwrap_or(0.0);
        seen(paused > 0.0, paused)
    });
    // More than once: it goes on, and does not only get what was on its way when memory became short.
    for round in 1..=3 {
        let first = (round - 1) * 50;
        scene.produce((first..first + 50).map(|n| event(1, "free", n)).collect());
        eventually("the other one is written", Duration::from_mins(1), || {
            let rows = scene.clickhouse.count(&scene.database);
            seen(rows == round * 50, rows)
        });
    }
    scene.redis().set::<_, _, ()>(&limit, "unlimited").unwrap();
    scene.settled();
    assert_eq!(scene.clickhouse.count(&scene.database), 450);
    assert_eq!(worker.terminate().code(), Some(0));
}
