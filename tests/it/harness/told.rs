//! `sluice verify` as a test runs it, and the offences that it is to find.

use serde_json::Value;

use super::Scene;
use super::kafka::Record;

/// All that does not add up.
pub(crate) const OFFENCES: [&str; 5] = ["missing", "twice", "both", "repeated", "stray"];

/// Offenders of a kind.
pub(crate) type Offence<'a> = (&'a str, &'a [(i32, i64)]);

/// A ledger as the command told it, and its exit code.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) json: Value,
}

impl Told {
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.json[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {self:?}"))
    }

    /// Offenders by partition and offset.
    pub(crate) fn places(&self, kind: &str) -> Vec<(i32, i64)> {
        let place = |at: &Value| {
            (
                at["partition"].as_i64().unwrap() as i32,
                at["offset"].as_i64().unwrap(),
            )
        };
        self.json[kind].as_array().unwrap().iter().map(place).collect()
    }

    pub(crate) fn notes(&self) -> Vec<&str> {
        self.json["notes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|note| note.as_str().unwrap())
            .collect()
    }

    /// Whether one of the notes has this text.
    pub(crate) fn notes_that(&self, text: &str) -> bool {
        self.notes().iter().any(|note| note.contains(text))
    }

    /// Records, written, duplicates, limited, dead letters.
    pub(crate) fn counts(&self) -> [u64; 5] {
        ["records", "written", "duplicates", "limited", "dead_letters"].map(|name| self.count(name))
    }

    /// Checks what is missing, there twice, and stray, that nothing else offends, and the exit code that belongs to it.
    pub(crate) fn offends(&self, missing: &[(i32, i64)], twice: &[(i32, i64)], stray: &[(i32, i64)]) {
        self.offends_by(&[("missing", missing), ("twice", twice), ("stray", stray)]);
    }

    /// Checks what does not add up, by kind: of others there is nothing. And the exit code that belongs to it.
    pub(crate) fn offends_by(&self, expected: &[Offence<'_>]) {
        let of = |kind: &str| {
            expected
                .iter()
                .find(|(of, _)| *of == kind)
                .map_or(&[][..], |(_, at)| *at)
        };
        for kind in OFFENCES {
            assert_eq!(self.places(kind), of(kind), "{kind}: {self:?}");
            assert_eq!(self.count(&format!("{kind}_count")), of(kind).len() as u64);
        }
        let adds_up = OFFENCES.iter().all(|kind| of(kind).is_empty());
        assert_eq!(self.code, Some(i32::from(!adds_up)), "{self:?}");
        let [records, outcomes @ ..] = self.counts();
        assert_eq!(records, outcomes.iter().sum::<u64>() + of("missing").len() as u64);
    }
}

/// Runs `sluice verify --json`.
pub(crate) fn verify(scene: &Scene, arguments: &[&str]) -> Told {
    let output = scene.sluice(&[&["verify", "--json"], arguments].concat());
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {} {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    Told {
        code: output.status.code(),
        json,
    }
}

/// A worker settles what there is and goes.
pub(crate) fn settle(scene: &Scene) {
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
}

/// The condition for the row of a record.
pub(crate) fn row_at((partition, offset): (i32, i64)) -> String {
    format!("kafka_partition = {partition} AND kafka_offset = {offset}")
}

/// Deletes rows for good. The merges that this needs come before two rows of an event may be there.
pub(crate) fn delete_rows(scene: &Scene, condition: &str) {
    let table = format!("{}.events", scene.database);
    scene.clickhouse.run(&format!("SYSTEM START MERGES {table}"));
    scene.clickhouse.run(&format!(
        "ALTER TABLE {table} DELETE WHERE {condition} SETTINGS mutations_sync = 2"
    ));
    scene.clickhouse.run(&format!("SYSTEM STOP MERGES {table}"));
}

/// Inserts copies of rows, written just now, with some columns replaced.
pub(crate) fn copy_rows(scene: &Scene, condition: &str, replaced: &str) {
    let before = scene.clickhouse.count(&scene.database);
    // The condition is of the rows as they are.
    scene.clickhouse.run(&format!(
        "INSERT INTO {db}.events SELECT * REPLACE (now64(3, 'UTC') AS ingested_at{replaced}) FROM \
         (SELECT * FROM {db}.events WHERE {condition})",
        db = scene.database
    ));
    assert!(scene.clickhouse.count(&scene.database) > before, "{condition}");
}

/// A record as the worker would send it to the overflow or dead-letter topic.
pub(crate) fn reject(scene: &Scene, of: &Record, reason: &str) -> Record {
    Record {
        partition: 0,
        timestamp: None,
        ..of.clone()
    }
    .header("sluice-reason", reason)
    .header("sluice-topic", &scene.topic)
    .header("sluice-incarnation", "0")
    .header("sluice-partition", &of.partition.to_string())
    .header("sluice-offset", &of.offset.to_string())
}
