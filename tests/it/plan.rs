//! `sluice plan` by its command line, and the bytes of a row that it reckons with, weighed in `ClickHouse`.

use sluice::plan::constants::DISK_A_PAYLOAD_BYTE;

use crate::harness::{Scene, bare_command};

fn plan(arguments: &[&str]) -> (Option<i32>, String) {
    let output = bare_command().arg("plan").args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

const LOAD: [&str; 4] = ["--events-per-day", "100000000", "--users", "2000000"];

#[test]
fn a_plan_is_told_as_a_table_and_as_json_and_says_that_it_estimates() {
    let (code, text) = plan(&LOAD);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "claims, packed (this)",
        "claims, keys",
        "timelines",
        "partitions",
        "disk",
        "Estimates",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = plan(
        &[
            &LOAD[..],
            &["--json", "--window-seconds", "43200", "--partitions", "12"],
        ]
        .concat(),
    );
    assert_eq!(code, Some(0), "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["demand"]["window_seconds"], 43_200);
    assert_eq!(json["demand"]["layout"], "packed");
    assert_eq!(json["kafka"]["partitions"], 12);
    let of = |name: &str| json["redis"][name].as_f64().unwrap();
    assert!(of("claims_keys_bytes") > 3.0 * of("claims_packed_bytes"));
    assert!(json["assumptions"][0].as_str().unwrap().starts_with("Estimates"));
}

#[test]
fn the_masters_of_redis_are_told_by_what_decides() {
    let masters = |arguments: &[&str]| {
        let (code, text) = plan(arguments);
        assert_eq!(code, Some(0), "{text}");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines()
            .map(words)
            .find(|line| line.starts_with("masters "))
            .unwrap()
    };
    let little = masters(&LOAD);
    assert!(
        little.starts_with("masters 1 ") && !little.contains("redis.mode"),
        "{little}"
    );
    let much = ["--events-per-day", "3000000000", "--users", "60000000"];
    let by_memory = masters(&much);
    assert!(
        by_memory.contains("memory decides; set redis.mode = \"cluster\""),
        "{by_memory}"
    );
    let by_cpu = masters(&[&much[..], &["--redis-memory-gib", "4096"]].concat());
    assert!(
        by_cpu.contains("CPU decides; set redis.mode = \"cluster\""),
        "{by_cpu}"
    );
}

#[test]
fn values_out_of_range_and_missing_ones_end_with_2() {
    for arguments in [
        vec!["--users", "1"],
        vec!["--events-per-day", "0", "--users", "1"],
        vec!["--events-per-day", "1", "--users", "-1"],
        [&LOAD[..], &["--peak-factor", "0.5"]].concat(),
        [&LOAD[..], &["--tokens", "0"]].concat(),
        [&LOAD[..], &["--retention-days", "0"]].concat(),
        [&LOAD[..], &["--properties", "501"]].concat(),
        [&LOAD[..], &["--redis-memory-gib", "0"]].concat(),
        [&LOAD[..], &["--window-seconds", "3888001"]].concat(),
    ] {
        let (code, text) = plan(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
    }
}

#[test]
fn rows_take_as_much_disk_as_the_plan_reckons_with() {
    let scene = Scene::new("disk", 1);
    let generated = scene.sluice(&[
        "generate",
        "--count",
        "40000",
        "--seed",
        "7",
        "--duplicates",
        "0",
        "--bad",
        "0",
        "--users",
        "4000",
    ]);
    assert!(
        generated.status.success(),
        "{}",
        String::from_utf8_lossy(&generated.stderr)
    );
    let payloads: usize = scene
        .kafka
        .read(&scene.topic)
        .iter()
        .map(|record| record.payload.as_ref().map_or(0, Vec::len))
        .sum();
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
    let table = format!("{}.events", scene.database);
    scene.clickhouse.run(&format!("SYSTEM START MERGES {table}"));
    scene.clickhouse.run(&format!("OPTIMIZE TABLE {table} FINAL"));
    let bytes = scene.clickhouse.run(&format!(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = '{}' FORMAT TSV",
        scene.database
    ));
    let bytes: f64 = bytes.trim().parse().unwrap();
    let (rows, share) = (scene.clickhouse.count(&scene.database), bytes / payloads as f64);
    eprintln!(
        "{rows} rows: {:.0} bytes each, {share:.3} of their payloads of {:.0}",
        bytes / rows as f64,
        payloads as f64 / rows as f64
    );
    assert!((share / DISK_A_PAYLOAD_BYTE - 1.0).abs() < 0.25, "{share}");
}
