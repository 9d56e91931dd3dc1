//! Inserts whose answer is lost, and inserts that land after somebody else has recovered their block: what the
//! deduplication token is for.

use std::time::Duration;

use crate::harness::Scene;
use crate::harness::events::{Ledger, Load};
use crate::harness::load::under_load;
use crate::harness::proxy::{Cut, Manner, Proxy};
use crate::harness::wait::{eventually, seen};

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn inserts_whose_answers_are_lost_are_there_once() {
    let scene = Scene::new("answers", 3);
    let proxy = Proxy::to(scene.clickhouse.url());
    let worker = scene.start_with(&[("clickhouse.url", proxy.url())]).ready();
    let sent = under_load(&scene, || {
        scene.some_rows();
        proxy.set(Manner::LosesAnswers);
        eventually("inserts are sent again", PATIENCE, || {
            let again = worker.metric("sluice_insert_retries_total");
            seen(again > Some(5.0), format_args!("{again:?}"))
        });
        proxy.set(Manner::Open);
    });
    scene.settled();
    Ledger::check(&sent, &scene);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn an_insert_that_lands_after_its_block_was_recovered_changes_nothing() {
    let mut scene = Scene::new("late", 1);
    scene.set(
        "kafka.options",
        r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#,
    );
    let proxy = Proxy::to(scene.clickhouse.url());
    let mut load = Load::new(1);
    let mut sent = scene.produce(load.take(50));
    let worker = scene.start_with(&[("clickhouse.url", proxy.url())]).ready();
    scene.settled();
    proxy.set(Manner::HoldsInserts);
    sent.extend(scene.produce(load.take(500)));
    eventually("an insert is held up", PATIENCE, || {
        seen(proxy.held() == 1, proxy.held())
    });
    worker.kill();

    let second = scene.start().ready();
    scene.settled();
    assert!(scene.logged("a block was recovered") > 0);
    let ledger = Ledger::check(&sent, &scene);
    proxy.set(Manner::Open);
    let landed = eventually("the late insert has its answer", PATIENCE, || {
        proxy.landed().pop().ok_or_else(|| "none".to_owned())
    });
    // It was taken, not refused: it is its token that made nothing of it.
    assert!(landed.contains(" 200 "), "{landed}");
    assert_eq!(Ledger::check(&sent, &scene), ledger);
    assert_eq!(second.terminate().code(), Some(0));
}

/// `ClickHouse` notes an insert's token before its rows are there. Killed in between (seen about once in a thousand
/// parts that were under way), it remembers the token of rows that it does not have, and skips what comes again. Here
/// the rows are taken away, and their token stays.
fn forget_the_rows(scene: &Scene) {
    let table = format!("{}.events", scene.database);
    scene.clickhouse.run(&format!("SYSTEM START MERGES {table}"));
    scene.clickhouse.run(&format!(
        "ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 2"
    ));
    assert_eq!(scene.clickhouse.count(&scene.database), 0);
}

#[test]
fn rows_that_the_server_lost_with_their_token_remembered_are_written_again() {
    let scene = Scene::new("losttoken", 1);
    let proxy = Proxy::to(scene.clickhouse.url());
    let worker = scene.start_with(&[("clickhouse.url", proxy.url())]).ready();
    // The insert is done and its answer lost; its repeat waits.
    proxy.cut(Cut::Answer, true, 1);
    proxy.set(Manner::HoldsInserts);
    let sent = scene.produce(Load::new(1).over_months(3).take(500));
    eventually("the insert comes again", PATIENCE, || {
        seen(proxy.held() == 1, proxy.held())
    });
    scene.some_rows();
    forget_the_rows(&scene);
    proxy.set(Manner::Open);
    scene.settled();
    Ledger::check(&sent, &scene);
    assert_eq!(
        worker.metric("sluice_lost_rows_total"),
        Some(scene.clickhouse.count(&scene.database) as f64)
    );
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn rows_that_the_server_lost_before_their_block_is_recovered_are_written_and_not_rejected() {
    let mut scene = Scene::new("lostrecovery", 1);
    scene.set(
        "kafka.options",
        r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#,
    );
    let mut dying = scene.start_failing("after-insert=1*return", &[]);
    let sent = scene.produce(Load::new(1).over_months(3).take(500));
    eventually("the worker dies after its insert", PATIENCE, || {
        seen(dying.ended().is_some(), "it lives")
    });
    forget_the_rows(&scene);
    let worker = scene.start().ready();
    scene.settled();
    let ledger = Ledger::check(&sent, &scene);
    assert_eq!(ledger.limited, 0, "{ledger:?}");
    assert_eq!(worker.terminate().code(), Some(0));
}
