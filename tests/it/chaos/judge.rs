//! Whether a round is exact: by `sluice verify`, in the table behind the view, by the ledger and in Redis.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

use super::world::World;
use crate::harness::Scene;
use crate::harness::events::{Ledger, check_remembered, ids_of};
use crate::harness::kafka::Record;
use crate::harness::told::OFFENCES;

/// The token whose limit some events are over.
pub(super) const LIMITED: &str = "gamma";
/// Offenders of a view.
const LACKED: &str = "rows that the view has not copied";
/// Offenders whose rows are shown.
const SHOWN: usize = 8;

/// What was found.
pub(super) struct Verdict {
    /// The counts of `sluice verify`.
    pub(super) ledger: String,
    pub(super) problems: Vec<String>,
}

/// Keeps the evidence: nothing is merged, and each row is copied by a view. A view's own table needs a window of its
/// own to tell an insert that comes again.
pub(super) fn prepare(scene: &Scene) {
    let no_merges = "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1, \
                     parts_to_delay_insert = 100000, parts_to_throw_insert = 100000";
    let db = &scene.database;
    for sql in [
        format!("ALTER TABLE {db}.events MODIFY SETTING {no_merges}"),
        format!(
            "CREATE TABLE {db}.copies (kafka_partition UInt32, kafka_offset UInt64) ENGINE = MergeTree \
             ORDER BY (kafka_partition, kafka_offset) \
             SETTINGS non_replicated_deduplication_window = 100000, {no_merges}"
        ),
        format!(
            "CREATE MATERIALIZED VIEW {db}.copying TO {db}.copies AS SELECT kafka_partition, kafka_offset \
             FROM {db}.events"
        ),
    ] {
        scene.clickhouse.run(&sql);
    }
}

/// Judges a settled round.
pub(super) fn judge(world: &World<'_>, sent: &[Record]) -> Verdict {
    let scene = &world.scene;
    let mut verdict = Verdict {
        ledger: String::new(),
        problems: Vec::new(),
    };
    verify(scene, sent, &mut verdict);
    view(scene, &mut verdict);
    let mut check = |what: &str, check: &dyn Fn()| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(check)) {
            verdict.problems.push(format!("{what}: {}", message(&*panic)));
        }
    };
    check("the records' own ledger", &|| {
        Ledger::check(sent, scene);
    });
    check("what Redis remembers", &|| check_remembered(scene, &scene.rows()));
    if let Some(limit) = world.plan.limit {
        check("the limit", &|| {
            let passed = scene.rows().iter().filter(|row| row.token == LIMITED).count();
            let expected = ids_of(sent, LIMITED).min(limit as usize);
            assert_eq!(passed, expected, "events of {LIMITED} that passed, limit {limit}");
        });
    }
    verdict
}

fn verify(scene: &Scene, sent: &[Record], verdict: &mut Verdict) {
    let output = scene.sluice(&["verify", "--json"]);
    let Ok(ledger) = serde_json::from_slice::<Value>(&output.stdout) else {
        verdict.problems.push(format!(
            "sluice verify ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
        return;
    };
    let count = |name: &str| ledger[name].as_u64().unwrap_or_default();
    verdict.ledger = format!(
        "{} records = {} written + {} duplicates + {} limited + {} dead letters; {} missing, {} twice, {} both, \
         {} repeated, {} stray",
        count("records"),
        count("written"),
        count("duplicates"),
        count("limited"),
        count("dead_letters"),
        count("missing_count"),
        count("twice_count"),
        count("both_count"),
        count("repeated_count"),
        count("stray_count"),
    );
    if count("records") != sent.len() as u64 {
        verdict.problems.push(format!("{} records were sent", sent.len()));
    }
    for kind in OFFENCES {
        let offenders = ledger[kind].as_array().map_or(&[][..], Vec::as_slice);
        if offenders.is_empty() {
            continue;
        }
        let shown: Vec<(i64, i64)> = offenders
            .iter()
            .take(SHOWN)
            .map(|at| (at["partition"].as_i64().unwrap(), at["offset"].as_i64().unwrap()))
            .collect();
        verdict.problems.push(format!(
            "sluice verify: {} {kind}, first (partition, offset) {shown:?}\n{}",
            offenders.len(),
            rows_of(scene, &shown)
        ));
    }
}

/// All rows of these records, and of what was inserted with them.
fn rows_of(scene: &Scene, offenders: &[(i64, i64)]) -> String {
    let places: Vec<String> = offenders.iter().map(|(p, o)| format!("({p}, {o})")).collect();
    let answer = scene.clickhouse.try_run(&format!(
        "SELECT kafka_partition, kafka_offset, token, timestamp, ingested_at, _part, \
         (SELECT min(kafka_offset) FROM {db}.events AS i WHERE i.kafka_partition = e.kafka_partition \
          AND i.ingested_at = e.ingested_at) AS inserted_from \
         FROM {db}.events AS e WHERE (kafka_partition, kafka_offset) IN ({}) \
         ORDER BY kafka_partition, kafka_offset FORMAT PrettyCompactMonoBlock",
        places.join(", "),
        db = scene.database
    ));
    answer.unwrap_or_else(|_| {
        let plain = scene.clickhouse.try_run(&format!(
            "SELECT kafka_partition, kafka_offset, token, timestamp, ingested_at, _part FROM {}.events \
             WHERE (kafka_partition, kafka_offset) IN ({}) ORDER BY 1, 2 FORMAT PrettyCompactMonoBlock",
            scene.database,
            places.join(", ")
        ));
        plain.unwrap_or_else(|error| error)
    })
}

/// The table behind the view has each row once. It may lack some of a block that came back too late, if a worker has
/// said so: that is the one limit of a view, and it is told in the ledger's line.
fn view(scene: &Scene, verdict: &mut Verdict) {
    let db = &scene.database;
    let place = "kafka_partition, kafka_offset";
    let doubtful = doubtful(scene);
    for (what, sql) in [
        (
            LACKED,
            format!(
                "SELECT {place}, _part, ingested_at FROM {db}.events WHERE ({place}) NOT IN (SELECT {place} FROM {db}.copies)"
            ),
        ),
        (
            "copies of no row",
            format!(
                "SELECT {place}, _part FROM {db}.copies WHERE ({place}) NOT IN (SELECT {place} FROM {db}.events)"
            ),
        ),
        (
            "rows copied more than once",
            format!("SELECT {place}, groupArray(_part) FROM {db}.copies GROUP BY {place} HAVING count() > 1"),
        ),
    ] {
        let found = scene
            .clickhouse
            .run(&format!("{sql} ORDER BY {place} FORMAT TSV"));
        let (told, lines): (Vec<&str>, Vec<&str>) = found
            .lines()
            .partition(|line| what == LACKED && is_of(&doubtful, line));
        if !told.is_empty() {
            let lacked = format!("; the view lacks {} of doubtful blocks", told.len());
            verdict.ledger.push_str(&lacked);
        }
        if !lines.is_empty() {
            verdict.problems.push(format!(
                "the view: {} {what}, first (partition, offset, part): {:?}",
                lines.len(),
                &lines[..lines.len().min(SHOWN)]
            ));
        }
    }
}

/// The blocks that a worker has warned of, each as partition and offsets.
fn doubtful(scene: &Scene) -> Vec<(i64, Range<i64>)> {
    let warning = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let number = |field: &str| line[field].as_i64();
        line["message"]
            .as_str()?
            .starts_with("the views behind the table may lack")
            .then_some((number("partition")?, number("start")?..number("end")?))
    };
    let logs = scene.logs();
    let texts = logs.iter().map(|log| std::fs::read_to_string(log).unwrap());
    texts
        .flat_map(|text| text.lines().filter_map(warning).collect::<Vec<_>>())
        .collect()
}

/// Whether a line that begins with partition and offset is of one of the blocks.
fn is_of(blocks: &[(i64, Range<i64>)], line: &str) -> bool {
    let mut fields = line.split('\t').map(str::parse::<i64>);
    let (Some(Ok(partition)), Some(Ok(offset))) = (fields.next(), fields.next()) else {
        return false;
    };
    blocks
        .iter()
        .any(|(of, offsets)| *of == partition && offsets.contains(&offset))
}

/// Copies the services' logs to where the workers' logs are.
pub(super) fn keep_logs(stack_folder: &Path, to: &Path) {
    for service in std::fs::read_dir(stack_folder).unwrap().flatten() {
        let log = service.path().join("log");
        if log.exists() {
            let name = format!("{}.log", service.file_name().to_string_lossy());
            std::fs::copy(log, to.join(name)).unwrap();
        }
    }
}

/// What a panic said.
pub(super) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without words".to_owned())
}
