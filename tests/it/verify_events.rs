//! `sluice verify` of what became of an event that came more than once: a replay that is lost, and one that has rows of two
//! records.

use std::time::Duration;

use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::events::origin;
use crate::harness::kafka::Record;
use crate::harness::told::{copy_rows, delete_rows, row_at, settle, verify};
use crate::harness::wait::{eventually, seen};

const PATIENCE: Duration = Duration::from_mins(1);

fn event(partition: i32, id: &str) -> Record {
    Record::of(
        partition,
        format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"{id}"}}"#),
    )
}

fn limit(scene: &Scene, limit: &str) {
    let key = scene.key("config:rate_limit:{t}");
    scene.redis().set::<_, _, ()>(key, limit).unwrap();
}

/// Sends the reject of a record back to where it came from.
fn replay(scene: &Scene, from: &str, of: (i32, i64), partition: i32) {
    let copies = scene.kafka.read(from);
    let copy = copies.into_iter().find(|copy| origin(copy) == of).unwrap();
    scene.produce(vec![Record {
        partition,
        timestamp: None,
        ..copy
    }]);
    settle(scene);
}

/// Redis loses its claims.
fn forget_claims(scene: &Scene) {
    for key in scene.keys().iter().filter(|key| key.contains("dedup")) {
        scene.redis().del::<_, ()>(scene.key(key)).unwrap();
    }
}

#[test]
fn a_replay_that_is_lost_is_not_settled_by_what_it_replays_and_one_that_came_too_late_is() {
    let scene = Scene::new("lostreplay", 2);
    limit(&scene, "0");
    scene.produce(vec![event(0, "a"), event(0, "a")]); // (0, 0): to overflow; (0, 1): of it
    settle(&scene);
    replay(&scene, &scene.overflow, (0, 0), 1); // (1, 0): to overflow again
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [3, 0, 1, 2, 0]);

    // The claim that it wants has been taken over.
    replay(&scene, &scene.overflow, (0, 0), 0); // (0, 2): of (1, 0)
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [4, 0, 2, 2, 0]);

    limit(&scene, "100");
    replay(&scene, &scene.overflow, (1, 0), 1); // (1, 1): written
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [5, 1, 2, 2, 0]);
    // Both copies lead to it. What came too late stays a duplicate of (1, 0).
    delete_rows(&scene, &row_at((1, 1)));
    let told = verify(&scene, &[]);
    told.offends(&[(1, 1)], &[], &[]);
    assert_eq!(told.counts(), [5, 0, 2, 2, 0]);
}

#[test]
fn a_replay_of_what_was_refused_is_a_duplicate_only_if_that_was_written_after_all() {
    let scene = Scene::new("lostrefused", 1);
    let table = format!("{}.events", scene.database);
    let run = |sql: &str| scene.clickhouse.run(&format!("ALTER TABLE {table} {sql}"));
    run("ADD CONSTRAINT none CHECK event != 'e'");
    scene.produce(vec![event(0, "a")]);
    settle(&scene);
    run("DROP CONSTRAINT none");
    replay(&scene, &scene.dead_letters, (0, 0), 0);
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert_eq!(told.counts(), [2, 1, 0, 0, 1]);
    // As if the first one had been written all the same.
    copy_rows(&scene, &row_at((0, 1)), ", 0 AS kafka_offset");
    delete_rows(&scene, &row_at((0, 1)));
    let told = verify(&scene, &[]);
    told.offends_by(&[("both", &[(0, 0)])]);
    assert_eq!(told.counts(), [2, 1, 1, 0, 0]);
    delete_rows(&scene, "1");
    verify(&scene, &[]).offends(&[(0, 1)], &[], &[]);
}

#[test]
fn an_event_that_redis_let_through_twice_is_repeated_within_the_window_and_noted_beyond() {
    let mut scene = Scene::new("repeated", 2);
    scene.produce(vec![event(0, "a"), event(0, "b"), event(1, "c")]);
    settle(&scene);
    forget_claims(&scene);
    eventually("a second has passed since they were written", PATIENCE, || {
        let sql = "SELECT now64(3) > max(ingested_at) + INTERVAL 1 SECOND";
        let passed = scene
            .clickhouse
            .run(&format!("{sql} FROM {}.events", scene.database));
        seen(passed.trim() == "1", passed)
    });
    // Another token's event, and one that comes for the first time, repeat none.
    let other = r#"{"token":"u","event":"e","distinct_id":"d","uuid":"a"}"#;
    scene.produce(vec![
        event(0, "d"),
        event(1, "a"),
        event(0, "c"),
        event(0, "a"),
        Record::of(0, other),
    ]);
    settle(&scene);
    let repeats = [(0, 3), (1, 1)];
    let told = verify(&scene, &[]);
    assert_eq!(told.counts(), [8, 7, 1, 0, 0]);
    // Of the two that came together, one is a duplicate of the other.
    assert_eq!(told.count("repeated_count"), 2);
    let places = told.places("repeated");
    assert!(places == repeats || places == [(0, 3), (0, 4)], "{places:?}");
    told.offends_by(&[("repeated", &places)]);
    // Wherever the first ones are.
    let first = ["--partition", "0", "--from", "2"];
    let within: Vec<(i32, i64)> = places.iter().copied().filter(|at| at.0 == 0).collect();
    verify(&scene, &first).offends_by(&[("repeated", &within)]);

    // Beyond the window it is by design.
    scene.set("dedup.window_seconds", "1");
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    assert!(
        told.notes_that("2 records repeat an event that was written 1 s or more before"),
        "{told:?}"
    );
}

#[test]
fn by_content_events_are_repeated_by_what_they_say_and_not_by_their_ids() {
    let mut scene = Scene::new("repeatedcontent", 1);
    scene.set("dedup.by", "content");
    // Or the table would tell the worker.
    scene.set("dedup.beyond_window", "false");
    let timed = |user: &str, uuid: &str| {
        Record::of(
            0,
            format!(
                r#"{{"token":"t","event":"e","distinct_id":"{user}","uuid":"{uuid}","timestamp":"2026-01-01T00:00:00Z"}}"#
            ),
        )
    };
    scene.produce(vec![timed("u", "1"), timed("v", "2")]);
    settle(&scene);
    forget_claims(&scene);
    scene.produce(vec![timed("w", "1"), timed("u", "3")]);
    settle(&scene);
    let told = verify(&scene, &[]);
    assert_eq!(told.counts(), [4, 4, 0, 0, 0]);
    told.offends_by(&[("repeated", &[(0, 3)])]);
}
