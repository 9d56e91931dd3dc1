//! A primary of Redis is killed under load: events flow again by themselves, none is lost, and what Redis forgot is told.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Scene;
use crate::harness::load::under_load;
use crate::harness::redises::Redises;
use crate::harness::wait::seen;

/// Within this time the others must have made a new primary, and the worker found it; with two seconds until it is missed.
const FLOWS_WITHIN: Duration = Duration::from_mins(1);
/// A pause in the rows that is none of blocks.
const GAP: Duration = Duration::from_millis(1_500);
/// So long the load goes on afterwards.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// Watches the table from now on: how long it is until rows come again after a pause.
fn until_rows_flow_again(scene: &Scene) -> Duration {
    let count = || scene.clickhouse.count(&scene.database);
    let begun = Instant::now();
    let (mut last, mut rows) = (begun, count());
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = count();
        if now > rows {
            if last.elapsed() > GAP {
                return begun.elapsed();
            }
            (last, rows) = (Instant::now(), now);
        }
        assert!(begun.elapsed() < FLOWS_WITHIN, "no rows for {:?}", last.elapsed());
    }
}

fn a_primary_is_killed(name: &str, redises: Redises) {
    let scene = Scene::with_redis(name, 4, redises);
    let redises = scene.redises.as_ref().unwrap();
    let mut worker = scene.start().ready();
    let sent = under_load(&scene, || {
        scene.some_rows();
        redises.primaries()[0].kill();
        let flows = until_rows_flow_again(&scene);
        eprintln!("{name}: rows again {} ms after the kill", flows.as_millis());
        std::thread::sleep(AFTERWARDS);
    });
    scene.settled();
    assert_eq!(worker.ended(), None);
    let failovers = worker.metric("sluice_redis_failovers_total");
    assert!(failovers.is_some_and(|n| n >= 1.0), "{failovers:?}");
    crate::harness::wait::eventually("the worker is ready", FLOWS_WITHIN, || {
        let (status, body) = worker.readiness()?;
        seen(status == 200, body)
    });
    let output = scene.sluice(&["verify", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |name: &str| told[format!("{name}_count")].as_u64().unwrap();
    eprintln!(
        "{name}: {} records, {} written, {} duplicates, {} repeated because their claim was lost",
        told["records"],
        told["written"],
        told["duplicates"],
        count("repeated")
    );
    assert_eq!(told["records"], sent.len());
    for offence in ["missing", "twice", "both", "stray"] {
        assert_eq!(count(offence), 0, "{offence}: {told}");
    }
    // What the primary had not yet told its replicas: the claims of some milliseconds.
    assert!(count("repeated") < sent.len() as u64 / 50, "{told}");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn when_the_primary_behind_sentinels_is_killed_events_flow_again_and_none_is_lost() {
    a_primary_is_killed("killsentinel", Redises::sentinel());
}

#[test]
fn when_a_primary_of_a_cluster_is_killed_events_flow_again_and_none_is_lost() {
    a_primary_is_killed("killcluster", Redises::cluster(3, 1));
}
