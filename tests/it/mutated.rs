//! Mutated records through the real worker: whatever they are, each is accounted for.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use sluice::event::{self, Decoded, Place};

use crate::cases::{Case, Cases};
use crate::harness::Scene;
use crate::harness::events::origin;
use crate::harness::kafka::Record;
use crate::harness::told::OFFENCES;

const RECORDS: u64 = 20_000;
const PARTITIONS: i32 = 2;
/// What a topic takes by default, less what a batch has around a record.
const LARGEST: usize = 1_000_000;

/// The case as this scene's topic may hold it: no time that the broker refuses, or that retention would take at once.
fn record(scene: &Scene, index: u64, case: Case) -> Record {
    const RECENT_MS: u64 = 5 * 24 * 3600 * 1000;
    let now = jiff::Timestamp::now().as_millisecond();
    let text = |name: Vec<u8>| String::from_utf8(name).expect("names of headers are text");
    let headers = case.headers.into_iter().map(|(name, value)| {
        let name = text(name);
        match value {
            // A coordinate of this topic, which a claim may stand for.
            Some(topic) if name == "sluice-topic" && topic == b"events" => {
                (name, Some(scene.topic.clone().into()))
            }
            value => (name, value),
        }
    });
    let usual = case.timestamp % 1000 == 0;
    Record {
        partition: (index % PARTITIONS as u64) as i32,
        key: case.key,
        payload: case.payload,
        headers: headers.collect(),
        timestamp: (!usual).then(|| now - (case.timestamp.unsigned_abs() % RECENT_MS) as i64),
        offset: 0,
    }
}

/// What the decoder by itself makes of a record of this topic: what the event says, or the reason.
fn decoded(topic: &str, record: &Record) -> Result<[String; 6], String> {
    let mut headers = Vec::new();
    for (name, value) in &record.headers {
        event::Headers::encode(&mut headers, name.as_bytes(), value.as_deref());
    }
    let place = Place {
        topic,
        incarnation: 0,
        partition: record.partition,
    };
    let record = event::Record {
        offset: record.offset,
        timestamp: record.timestamp.unwrap_or(-1),
        key: record.key.as_deref(),
        payload: record.payload.as_deref(),
        headers: event::Headers(&headers),
    };
    let mut out = Decoded::default();
    event::decode(&place, 0, &record, &mut out);
    if let Some(rejected) = out.rejected.first() {
        return Err(rejected.reason.to_string());
    }
    let event = &out.events[0];
    Ok([
        uuid::Uuid::from_u128(event.uuid).to_string(),
        out.tokens[0].clone(),
        out.str(event.event).to_owned(),
        out.str(event.distinct_id).to_owned(),
        event.timestamp.to_string(),
        out.str(event.properties).to_owned(),
    ])
}

#[test]
fn every_mutated_record_is_accounted_for() {
    let mut scene = Scene::new("mutated", PARTITIONS);
    // The seeds have few tokens, so some of them are over it.
    scene.set("rate_limit.limit", "300");
    let cases = Cases::new(7);
    let records = (0..RECORDS)
        .map(|index| (index, cases.case(index)))
        .filter(|(_, case)| {
            case.payload
                .as_ref()
                .is_none_or(|payload| payload.len() < LARGEST)
        })
        .map(|(index, case)| record(&scene, index, case));
    let sent = scene.produce(records.collect());
    let worker = scene.start().ready();
    scene.settled();

    let output = scene.sluice(&["verify", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let ledger: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(output.status.code(), Some(0), "{ledger}");
    let count = |name: &str| ledger[name].as_u64().unwrap();
    assert_eq!(count("records"), sent.len() as u64, "{ledger}");
    let outcomes = ["written", "duplicates", "limited", "dead_letters"];
    assert_eq!(
        outcomes.map(count).iter().sum::<u64>(),
        count("records"),
        "{ledger}"
    );
    for name in outcomes {
        assert!(count(name) > 100, "too few {name} to prove anything: {ledger}");
    }
    for name in OFFENCES {
        assert_eq!(ledger[name].as_array().map(Vec::len), Some(0), "{name}: {ledger}");
    }
    let reasons: BTreeMap<String, u64> = serde_json::from_value(ledger["reasons"].clone()).unwrap();
    let alone: HashMap<(i32, i64), Result<[String; 6], String>> = scene
        .kafka
        .read(&scene.topic)
        .iter()
        .map(|record| (record.place(), decoded(&scene.topic, record)))
        .collect();
    let mut rejected: BTreeMap<String, u64> = BTreeMap::new();
    for reason in alone.values().filter_map(|outcome| outcome.as_ref().err()) {
        *rejected.entry(reason.clone()).or_default() += 1;
    }
    assert_eq!(reasons, rejected, "the worker rejects what the decoder rejects");
    for record in scene.rejects(&scene.overflow) {
        let again = decoded(&scene.overflow, &record);
        assert_eq!(
            again,
            alone[&origin(&record)],
            "an event over the limit stays what it is"
        );
    }
    let counted = |outcome: &str| worker.metric(&format!("sluice_events_total{{outcome=\"{outcome}\"}}"));
    for (name, outcome) in outcomes
        .into_iter()
        .zip(["written", "duplicate", "limited", "dead_letter"])
    {
        assert_eq!(counted(outcome), Some(count(name) as f64), "{outcome}: {ledger}");
    }
    // One process from beginning to end, and nothing in it broke off.
    assert_eq!(worker.terminate().code(), Some(0));
    assert_eq!((scene.logged("panic"), scene.logged("ERROR")), (0, 0));
}
