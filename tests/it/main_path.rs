//! Records in, rows out: what every column, key and topic holds afterwards.

use crate::harness::Scene;
use crate::harness::events::{Ledger, Load, check_remembered};
use crate::harness::redises::Redises;

#[test]
fn a_load_with_duplicates_and_bad_records_is_settled_and_remembered() {
    settles(&Scene::new("load", 4));
}

#[test]
fn so_it_is_with_redis_behind_sentinels() {
    settles(&Scene::with_redis("loadsentinel", 4, Redises::sentinel()));
}

#[test]
fn so_it_is_with_redis_as_a_cluster() {
    settles(&Scene::with_redis("loadcluster", 4, Redises::cluster(3, 0)));
}

/// A worker settles a load, and remembers it.
pub(crate) fn settles(scene: &Scene) {
    let mut load = Load::new(4);
    let mut sent = scene.produce(load.take(3_000));
    let worker = scene.start().ready();
    scene.some_rows();
    sent.extend(scene.produce(load.take(3_000)));
    scene.settled();
    let ledger = Ledger::check(&sent, scene);
    assert_eq!(ledger.limited, 0);
    check_remembered(scene, &scene.rows());
    let counted = |outcome: &str| worker.metric(&format!("sluice_events_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(counted("written"), Some(ledger.written as f64));
    assert_eq!(counted("duplicate"), Some(ledger.duplicates as f64));
    assert_eq!(counted("dead_letter"), Some(ledger.dead_letters as f64));
    assert_eq!(worker.terminate().code(), Some(0));
}
