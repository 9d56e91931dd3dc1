//! `sluice generate`: what it says it made is what there is, and the same seed makes the same.

use serde_json::Value;

use crate::harness::Scene;
use crate::harness::told::{settle, verify};

fn generate(scene: &Scene, arguments: &[&str]) -> Value {
    let output = scene.sluice(&[&["generate", "--json"], arguments].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {told}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_was_made_is_what_the_ledger_finds() {
    let mut scene = Scene::new("made", 3);
    scene.set("rate_limit.limit", "1000");
    let made = generate(
        &scene,
        &[
            "--count",
            "6000",
            "--bad",
            "0.02",
            "--hot-token",
            "flood",
            "--hot-share",
            "0.5",
            "--tokens",
            "300",
        ],
    );
    settle(&scene);
    let told = verify(&scene, &[]);
    told.offends(&[], &[], &[]);
    let count = |name: &str| made[name].as_u64().unwrap();
    assert_eq!(count("records"), 6_000);
    let limited = count("hot_events") - 1_000;
    assert!(limited > 500 && count("duplicates") > 500, "{made}");
    assert_eq!(
        told.counts(),
        [
            6_000,
            count("events") - limited,
            count("duplicates"),
            limited,
            count("bad_records")
        ]
    );
    assert_eq!(told.json["reasons"], made["bad"]);
}

#[test]
fn the_same_seed_makes_the_same_records_in_topics_that_it_creates() {
    let scene = Scene::new("seeds", 1);
    let topics = ["one", "two", "three"].map(|name| format!("{}_{name}", scene.topic));
    let made: Vec<_> = topics
        .iter()
        .zip(["7", "7", "8"])
        .map(|(topic, seed)| {
            let made = generate(
                &scene,
                &[
                    "--topic",
                    topic,
                    "--seed",
                    seed,
                    "--count",
                    "500",
                    "--create-topics",
                    "2",
                ],
            );
            let records = scene.kafka.read(topic);
            assert_eq!((made["records"].as_u64(), records.len()), (Some(500), 500));
            assert_eq!(
                scene.kafka.bounds(topic).len(),
                2,
                "it created the topic as wished"
            );
            let said: Vec<_> = records
                .into_iter()
                .map(|record| (record.partition, record.key, record.payload))
                .collect();
            said
        })
        .collect();
    assert!(made[0] == made[1], "the same seed");
    assert!(made[0] != made[2], "another seed");
    scene.kafka.delete_topics(&topics.each_ref().map(String::as_str));
}
