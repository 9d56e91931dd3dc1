//! Resends that come after their first claim has expired. That an old block is no duplicate of itself is seen in `corners`,
//! where a view lacks it.

use crate::harness::Scene;
use crate::harness::kafka::Record;

fn settle(scene: &Scene) {
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
}

/// An event of some days ago, sent now.
fn old(id: &str, days: i64) -> Record {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
    let day = at.strftime("%Y-%m-%d");
    Record::of(
        0,
        format!(
            r#"{{"token":"t","event":"a\tb'\\n","distinct_id":"d","uuid":"{id}","timestamp":"{day}T12:00:00Z"}}"#
        ),
    )
}

/// Every claim expires.
fn forget(scene: &Scene) {
    for key in scene.keys().iter().filter(|key| key.starts_with("event:dedup:")) {
        redis::cmd("DEL")
            .arg(scene.key(key))
            .exec(&mut scene.redis())
            .unwrap();
    }
}

fn offsets(scene: &Scene) -> Vec<i64> {
    scene.rows().iter().map(|row| row.offset).collect()
}

#[test]
fn a_resend_weeks_later_is_a_duplicate_and_a_new_old_event_is_none() {
    let scene = Scene::new("beyond", 1);
    scene.produce(vec![old("1", 20), old("2", 20)]);
    settle(&scene);
    forget(&scene);
    scene.produce(vec![old("1", 20), old("3", 20), old("2", 0)]);
    settle(&scene);
    assert_eq!(offsets(&scene), [0, 1, 3, 4], "what is not old is not looked for");
}

#[test]
fn by_content_a_resend_weeks_later_is_told_by_its_content() {
    let mut scene = Scene::new("beyondcontent", 1);
    scene.set("dedup.by", "content");
    scene.produce(vec![old("1", 20)]);
    settle(&scene);
    forget(&scene);
    scene.produce(vec![old("another id", 20), old("1", 21)]);
    settle(&scene);
    assert_eq!(offsets(&scene), [0, 2]);
}

#[test]
fn switched_off_the_table_is_not_asked() {
    let mut scene = Scene::new("beyondoff", 1);
    scene.set("dedup.beyond_window", "false");
    scene.produce(vec![old("1", 20)]);
    settle(&scene);
    forget(&scene);
    scene.produce(vec![old("1", 20)]);
    settle(&scene);
    assert_eq!(offsets(&scene).len(), 2);
}

#[test]
fn what_happened_today_is_not_old_and_costs_no_query() {
    let scene = Scene::new("beyondnone", 1);
    let hours_ago = |hours| jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours);
    let event = |hours: i64| {
        let payload = format!(
            r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"{hours}","timestamp":"{}"}}"#,
            hours_ago(hours)
        );
        Record::of(0, payload)
    };
    scene.produce([0, 12, 23].map(event).into());
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.metric("sluice_beyond_window_lookups_total"), Some(0.0));
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_worker_that_is_behind_by_more_than_the_window_looks_for_what_has_expired() {
    let scene = Scene::new("beyondbehind", 1);
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(48);
    // Sent soon after its event, and read two days later.
    let sent = |minutes: i64| Record {
        timestamp: Some(at.as_millisecond() + minutes * 60_000),
        ..Record::of(
            0,
            format!(r#"{{"token":"t","event":"e","distinct_id":"d","uuid":"1","timestamp":"{at}"}}"#),
        )
    };
    scene.produce(vec![sent(1)]);
    settle(&scene);
    forget(&scene);
    scene.produce(vec![sent(5)]);
    settle(&scene);
    assert_eq!(offsets(&scene), [0]);
}
