//! Mutated configuration: each is taken or refused with a reason, and nothing is told that is secret.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::Command;

use sluice::config::Config;

use crate::cases::{Case, Cases};

const SECRET: &str = "hunter2";
const CASES: u64 = 4_000;
/// Refused ones that the program itself is asked about, too.
const ASKED: u32 = 25;

const FILE: &str = r#"
[kafka]
brokers = "127.0.0.1:9092,kafka-2:9092"
group_id = "sluice"
topic = "events"
overflow_topic = "events_overflow"
dead_letter_topic = "events_dead_letter"
incarnation = 3
options = { "sasl.password" = "hunter2", "session.timeout.ms" = "10000" }

[redis]
mode = "sentinel"
url = "redis://:hunter2@127.0.0.1:26379/0,127.0.0.1:26380, redis://:hunter2@[::1]:26379"
cache_mode = "cluster"
cache_url = "rediss://user:hunter2@[::1]:6380,[::2]:6380"
sentinel_service = "mymaster"
cache_sentinel_service = "other"
sentinel_user = "u"
sentinel_password = "hunter2"
tls_ca_file = ""
tls_cert_file = ""
tls_key_file = ""
key_prefix = "p:"
max_connections = 10
sample_seconds = 15

[clickhouse]
url = "http://user:hunter2@127.0.0.1:8123"
database = "sluice"
max_inserts_per_second = 10
insert_deadline_seconds = 60

[rate_limit]
enabled = true
limit = 1000
window_seconds = 3600
when_over = "overflow"
on_redis_down = "pause"

[dedup]
window_seconds = 86400
by = "id"
layout = "keys"

[batch]
max_rows = 65536
max_bytes = 33554432
max_age_ms = 1000

[worker]
max_in_flight_bytes = 268435456
max_events_per_second = 0
drain_seconds = 20

[http]
listen = "127.0.0.1:8080"
admin_listen = "[::]:9100"

[api]
keys = [{ key_sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", token = "t" }]
requests_per_second = 100
"#;

const VALUES: [&str; 24] = [
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "1e3",
    "nan",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "true",
    "\"\"",
    "''",
    "\"\\u0000\"",
    "\"\\ud83d\"",
    "\"a b\\tc\"",
    "'redis://'",
    "'http://[::1'",
    "'256.256.256.256:99999'",
    "[]",
    "{}",
    "{ '' = '' }",
    "[[1], {}]",
    "1979-05-27T07:32:00Z",
];

/// The file with one line's value, or the whole line, replaced: each turn another line or another value.
fn with_a_value_replaced(turn: usize) -> String {
    let lines: Vec<&str> = FILE.lines().collect();
    let (at, value) = (turn % lines.len(), VALUES[turn / lines.len()]);
    let changed = |(n, line): (usize, &&str)| match line.split_once(" = ") {
        Some((key, _)) if n == at => format!("{key} = {value}\n"),
        None if n == at => format!("{value}\n"),
        _ => format!("{line}\n"),
    };
    lines.iter().enumerate().map(changed).collect()
}

fn load(folder: &tempfile::TempDir, file: &[u8], environment: &[(&str, &str)]) -> Result<Config, String> {
    let path = folder.path().join("sluice.toml");
    std::fs::File::create(&path)
        .and_then(|mut created| created.write_all(file))
        .expect("a file in a folder of its own");
    let environment = environment
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::load_with(Some(&path), environment).map_err(|error| error.to_string())
}

fn is_quiet(text: &str, file: &[u8]) {
    assert!(
        !text.contains(SECRET),
        "{text}\nof\n{}",
        String::from_utf8_lossy(file)
    );
}

#[test]
fn mutated_configuration_is_taken_or_refused_with_exit_code_2() {
    let seed = Case {
        payload: Some(FILE.into()),
        ..Case::default()
    };
    let cases = Cases::of(1, vec![seed]);
    let folder = tempfile::tempdir().expect("a folder");
    assert!(
        load(&folder, FILE.as_bytes(), &[]).is_ok(),
        "what is mutated is right"
    );
    let (mut taken, mut refused) = (0, 0);
    for index in 0..CASES {
        let file = cases.case(index).payload.unwrap_or_default();
        match load(&folder, &file, &[]) {
            Ok(config) => {
                taken += 1;
                let shown = format!("{config:?} {}", config.to_toml().expect("it can be shown"));
                is_quiet(&shown, &file);
            }
            Err(reason) => {
                refused += 1;
                assert!(!reason.trim().is_empty());
                if refused <= ASKED {
                    ask(&folder);
                }
            }
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} {refused}");
}

/// The program refuses the folder's file, too.
fn ask(folder: &tempfile::TempDir) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLUICE_") {
            command.env_remove(name);
        }
    }
    command.arg("--config").arg(folder.path().join("sluice.toml"));
    let output = command.arg("migrate").output().expect("the program runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(!told.is_empty() && !told.contains("panicked"), "{told}");
}

#[test]
fn a_value_that_does_not_fit_is_told_without_any_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    for turn in 0..FILE.lines().count() * VALUES.len() {
        let file = with_a_value_replaced(turn);
        if let Err(reason) = load(&folder, file.as_bytes(), &[]) {
            is_quiet(&reason, file.as_bytes());
        }
    }
}

#[test]
fn any_value_in_the_environment_is_taken_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = FILE.lines().scan("", |section, line| {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            *section = name;
        }
        let key = line
            .split_once(" = ")
            .map(|(key, _)| format!("SLUICE_{section}__{key}"));
        Some(key)
    });
    let deep = "[".repeat(10_000);
    for key in keys.flatten() {
        for value in VALUES.into_iter().chain([deep.as_str()]) {
            let value = value.trim_matches(['"', '\'']);
            if let Err(reason) = load(&folder, FILE.as_bytes(), &[(&key.to_uppercase(), value)]) {
                assert!(!reason.is_empty());
                is_quiet(&reason, value.as_bytes());
            }
        }
    }
}

#[test]
fn a_deeply_nested_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for open in ["[", "{a=", "[{a="] {
        let file = format!("[kafka]\noptions = {}", open.repeat(100_000));
        assert!(load(&folder, file.as_bytes(), &[]).is_err());
    }
}
