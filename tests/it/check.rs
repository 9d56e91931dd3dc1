//! `sluice check` and refusals to start: what is named, how it ends, and that no secret is told.

use std::process::Output;
use std::time::{Duration, Instant};

use crate::harness::events::Load;
use crate::harness::redis_by_file::{RedisByFile, Secured};
use crate::harness::redises::{Mode, Redises};
use crate::harness::{Scene, bare_command, free_port, variable};

const SECRETS: [&str; 4] = ["redis-s3cret", "clickhouse-s3cret", "sasl-s3cret", "cache-s3cret"];

/// What a command printed, after a look for secrets.
fn told(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} is told:\n{text}");
    }
    text
}

#[test]
fn every_command_refuses_a_misspelt_key_and_a_value_out_of_range_and_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |toml: &str, names: &[&str]| {
        let file = folder.path().join("sluice.toml");
        std::fs::write(&file, toml).unwrap();
        for command in ["check", "migrate", "run", "generate"] {
            let output = bare_command()
                .args(["--config", file.to_str().unwrap(), command])
                .output()
                .unwrap();
            let text = told(&output);
            assert_eq!(output.status.code(), Some(2), "{command} with {toml:?}: {text}");
            for name in names {
                assert!(text.contains(name), "{command} names {name}: {text}");
            }
        }
    };
    refused(
        "[rate_limit]\nlimt = 77",
        &["rate_limit.limt", "77", "rate_limit.limit"],
    );
    refused("[rate_limit]\nlimit = 0", &["rate_limit.limit", "0"]);
    refused("[rate_limt]\nlimit = 5", &["rate_limt"]);
    refused(
        "[redis]\nurl = \"redis://:redis-s3cret@127.0.0.1:1\"\nmax_connections = 101",
        &["redis.max_connections", "101"],
    );
    refused("[redis]\npasword = \"redis-s3cret\"", &["redis.pasword"]);
    refused("[batch]\nmax_rows = \"many\"", &["batch.max_rows", "many"]);
    refused(
        "[kafka.options]\n\"sasl.pasword\" = \"sasl-s3cret\"",
        &["sasl.pasword"],
    );
}

#[test]
fn what_the_environment_or_a_missing_file_gives_is_named_too() {
    let by_variable = |name: &str, value: &str| {
        let output = bare_command().arg("check").env(name, value).output().unwrap();
        (output.status.code(), told(&output))
    };
    let (code, text) = by_variable("SLUICE_RATE_LIMIT__LIMT", "77");
    assert!(
        code == Some(2) && text.contains("SLUICE_RATE_LIMIT__LIMT"),
        "{code:?} {text}"
    );
    let (code, text) = by_variable("SLUICE_RATE_LIMIT__LIMIT", "0");
    assert!(
        code == Some(2) && text.contains("SLUICE_RATE_LIMIT__LIMIT") && text.contains("\"0\""),
        "{code:?} {text}"
    );
    for arguments in [
        ["--config", "/nowhere/sluice.toml", "check"],
        ["check", "--config", "/nowhere/sluice.toml"],
    ] {
        let output = bare_command().args(arguments).output().unwrap();
        let text = told(&output);
        assert!(
            output.status.code() == Some(2) && text.contains("/nowhere/sluice.toml"),
            "{text}"
        );
    }
}

#[test]
fn check_succeeds_where_all_is_well_and_names_a_service_that_is_not_there() {
    let scene = Scene::new("check", 1);
    let output = scene.sluice(&["check"]);
    let text = told(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains(&scene.topic),
        "the effective configuration is shown: {text}"
    );

    let nobody = free_port();
    let cases = [
        ("kafka", "SLUICE_KAFKA__BROKERS", format!("127.0.0.1:{nobody}")),
        (
            "redis",
            "SLUICE_REDIS__URL",
            format!("redis://:redis-s3cret@127.0.0.1:{nobody}"),
        ),
        (
            "clickhouse",
            "SLUICE_CLICKHOUSE__URL",
            format!("http://127.0.0.1:{nobody}"),
        ),
    ];
    for (service, variable, address) in cases {
        let mut command = scene.command();
        command
            .arg("check")
            .env("SLUICE_KAFKA__OPTIONS", r#"{"sasl.password":"sasl-s3cret"}"#)
            .env(
                "SLUICE_CLICKHOUSE__PASSWORD",
                if service == "clickhouse" {
                    "clickhouse-s3cret"
                } else {
                    ""
                },
            )
            .env(variable, address);
        let begin = Instant::now();
        let output = command.output().unwrap();
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "{service}: within a minute"
        );
        let text = told(&output);
        assert_eq!(output.status.code(), Some(1), "{service}: {text}");
        let named = text.lines().any(|line| line.contains(service));
        assert!(
            named && text.contains(&format!("127.0.0.1:{nobody}")),
            "{service} and its address are named: {text}"
        );
    }
}

#[test]
fn a_worker_refuses_a_table_that_enforces_another_deadline_and_one_that_is_not_there() {
    let mut scene = Scene::new("refusal", 1);
    let run = |scene: &Scene, name: &str| {
        let mut worker = scene.start();
        let status = crate::harness::wait::eventually("the worker ends", Duration::from_secs(30), || {
            worker.ended().ok_or_else(|| "it runs".to_owned())
        });
        assert_eq!(status.code(), Some(1));
        let log = worker.log_tail(20);
        assert!(log.contains(name), "{name} is named: {log}");
    };
    scene.set("clickhouse.insert_deadline_seconds", "61");
    run(&scene, "clickhouse.insert_deadline_seconds");
    scene.set("clickhouse.insert_deadline_seconds", "60");
    scene
        .clickhouse
        .run(&format!("DROP TABLE {}.events SYNC", scene.database));
    run(&scene, "sluice migrate");
}

#[test]
fn check_warns_of_a_redis_that_may_forget_and_fails_where_it_refuses_or_has_forgotten() {
    let scene = Scene::new("check_redis", 1);
    let folder = tempfile::tempdir().unwrap();
    let check = |server: &RedisByFile| {
        let output = scene
            .command()
            .arg("check")
            .env("SLUICE_REDIS__URL", server.url())
            .output()
            .unwrap();
        (output.status.code(), told(&output))
    };
    let alone = RedisByFile::with_file("state.conf", folder.path(), &["--min-replicas-to-write", "0"]);
    let (code, text) = check(&alone);
    assert_eq!(code, Some(0), "{text}");
    let of_redis: Vec<&str> = text.lines().filter(|line| line.starts_with(" redis")).collect();
    assert!(of_redis.iter().any(|line| line.contains("everysec")), "{text}");
    assert!(!of_redis.iter().any(|line| line.contains("warning")), "{text}");

    let waiting = RedisByFile::with_file("state.conf", folder.path(), &[]);
    let (code, text) = check(&waiting);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("min-replicas-to-write is 1"), "{text}");

    // The cache's file, used for the state.
    let cache = RedisByFile::with_file("cache.conf", folder.path(), &["--maxmemory", "8mb"]);
    let (code, text) = check(&cache);
    assert_eq!(code, Some(0), "{text}");
    for part in ["allkeys-lru", "caches are on this server", "forgets every claim"] {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(part), "{part}: {text}");
    }
    let mut pipe = redis::pipe();
    for n in 0..20_000 {
        pipe.set(n, "x".repeat(500)).ignore();
    }
    pipe.exec(&mut cache.connect()).unwrap();
    let (code, text) = check(&cache);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("keys were evicted"), "{text}");
}

/// `check` with settings in place of the scene's: how it ended, and its words.
fn checked(scene: &Scene, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = scene.command();
    for (key, value) in settings {
        command.env(variable(key), value);
    }
    let output = command.arg("check").output().unwrap();
    let text = told(&output);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (output.status.code(), words)
}

#[test]
fn check_tells_a_wrong_mode_from_a_server_that_is_not_there() {
    let scene = Scene::new("check_mode", 1);
    let folder = tempfile::tempdir().unwrap();
    let alone = RedisByFile::with_file("state.conf", folder.path(), &["--min-replicas-to-write", "0"]);
    let sentinel = RedisByFile::sentinel(Secured::No, folder.path(), alone.port);
    let node = RedisByFile::with_file(
        "state.conf",
        folder.path(),
        &[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &free_port().to_string(),
        ],
    );
    for (mode, server, advice) in [
        (
            "sentinel",
            &alone,
            "for this one server set redis.mode = \"standalone\"",
        ),
        (
            "cluster",
            &alone,
            "set redis.mode = \"standalone\", or name nodes of the Cluster",
        ),
        ("standalone", &sentinel, "set redis.mode = \"sentinel\""),
        ("sentinel", &sentinel, "set redis.sentinel_service"),
        ("standalone", &node, "set redis.mode = \"cluster\""),
    ] {
        let (code, words) = checked(&scene, &[("redis.mode", mode), ("redis.url", &server.url())]);
        assert_eq!(code, Some(1), "{mode}: {words}");
        assert!(words.contains(advice), "{mode}: {words}");
    }
}

#[test]
fn topics_that_generate_makes_are_as_check_wants_them() {
    let mut scene = Scene::new("check_topics", 1);
    let names = ["made", "made_overflow", "made_dead"].map(|name| format!("{}_{name}", scene.topic));
    for (key, name) in ["topic", "overflow_topic", "dead_letter_topic"]
        .iter()
        .zip(&names)
    {
        scene.set(&format!("kafka.{key}"), name);
    }
    let output = scene.sluice(&["generate", "--create-topics", "2", "--count", "0"]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(0), "{words}");
    for name in &names {
        assert!(words.contains(&format!("{name}, 2 partitions")), "{words}");
    }
    assert!(!words.contains("max.message.bytes"), "{words}");

    scene.kafka.delete_topics(&[names[2].as_str()]);
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(1), "{words}");
    // The stack's brokers take 8 MiB.
    let make = format!(
        "--create --topic {} --partitions 6 --config max.message.bytes=8389120",
        names[2]
    );
    assert!(words.contains(&make), "{words}");
    scene
        .kafka
        .delete_topics(&names.each_ref().map(String::as_str)[..2]);
}

/// Sets keys of a scene's Redis.
fn set(connection: &mut impl redis::ConnectionLike, pairs: &[(String, &str)]) {
    for (key, value) in pairs {
        redis::cmd("SET").arg(key).arg(value).exec(connection).unwrap();
    }
}

#[test]
fn check_names_the_limits_in_force_and_those_that_nothing_reads() {
    let mut scene = Scene::new("check_limits", 1);
    let folder = tempfile::tempdir().unwrap();
    let server = RedisByFile::with_file("state.conf", folder.path(), &["--min-replicas-to-write", "0"]);
    // Nothing of it is a pattern.
    scene.set("redis.key_prefix", "p[a]*:");
    scene.set("redis.url", &server.url());
    let key = |rest: &str| format!("p[a]*:config:rate_limit:{rest}");
    let mut connection = server.connect();
    set(
        &mut connection,
        &[
            (key("{shop}"), "5000/60"),
            (key("{shop%3Aeu}"), "0"),
            (key("{vip}"), "unlimited"),
            (key("{odd}"), "many\n\u{1b}[31m"),
            (key("{shop:us}"), "7"),
            (key("plain"), "8"),
            ("pa:config:rate_limit:others".to_owned(), "9"),
        ],
    );
    redis::cmd("LPUSH")
        .arg(key("{list}"))
        .arg("1")
        .exec(&mut connection)
        .unwrap();
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(0), "{words}");
    for part in [
        "3 tokens have a limit of their own: shop: 5000 in 60 s; shop:eu: blocked; vip: unlimited",
        "p[a]*:config:rate_limit:{odd} holds no limit, and is ignored: many\\n\\u{1b}[31m",
        "p[a]*:config:rate_limit:{list} holds no limit, and is ignored: no text at all",
        "p[a]*:config:rate_limit:{shop:us} is no token's limit",
        "SET p[a]*:config:rate_limit:{shop%3Aus} instead",
        "SET p[a]*:config:rate_limit:{plain} instead",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(
        !words.contains("others") && !words.contains("and stopped"),
        "{words}"
    );

    // Enough keys are met before all are seen.
    let mut pipe = redis::pipe();
    for n in 0..6_000 {
        pipe.set(key(&format!("{{t{n}}}")), "1").ignore();
    }
    pipe.exec(&mut connection).unwrap();
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("There may be more: it looked at "), "{words}");
    assert!(words.contains(" of 6008 keys and stopped"), "{words}");
}

#[test]
fn check_finds_the_limits_on_every_primary_of_a_cluster() {
    let scene = Scene::with_redis("check_cluster", 1, Redises::shared(Mode::Cluster));
    let tokens: Vec<String> = (0..30).map(|n| format!("token-{n}")).collect();
    let pairs: Vec<_> = tokens
        .iter()
        .map(|token| (scene.key(&format!("config:rate_limit:{{{token}}}")), "7"))
        .collect();
    set(&mut scene.redis(), &pairs);
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("30 tokens have a limit of their own"), "{words}");
}

#[test]
fn check_and_run_refuse_another_layout_or_window_and_check_leaves_no_mark() {
    let scene = Scene::new("check_marks", 1);
    let (layout, window) = (
        scene.key("config:dedup_layout"),
        scene.key("config:dedup_window_seconds"),
    );
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(0), "{words}");
    assert!(
        words.contains(&format!("none yet; the first worker leaves {layout}")),
        "{words}"
    );
    assert!(scene.keys().is_empty(), "{:?}", scene.keys());

    scene.produce(Load::new(1).take(10));
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("layout packed, 86400 s"), "{words}");

    for (key, value, remedy, mark) in [
        ("dedup.layout", "keys", "Set dedup.layout = \"packed\"", &layout),
        (
            "dedup.window_seconds",
            "60",
            "Set dedup.window_seconds = 86400",
            &window,
        ),
    ] {
        let (code, words) = checked(&scene, &[(key, value)]);
        assert_eq!(code, Some(1), "{key}: {words}");
        assert!(
            words.contains(remedy) && words.contains(mark.as_str()),
            "{key}: {words}"
        );
        let mut refused = scene.start_with(&[(key, value)]);
        let status = crate::harness::wait::eventually("the worker ends", Duration::from_secs(30), || {
            refused.ended().ok_or_else(|| "it runs".to_owned())
        });
        let log = refused.log_tail(20).replace('\\', "");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(
            log.contains(remedy) && log.contains("docs/redis.md"),
            "{key}: {log}"
        );
    }

    // As after FLUSHALL: the group has come somewhere, and Redis knows nothing.
    redis::cmd("DEL").arg(&layout).exec(&mut scene.redis()).unwrap();
    let (code, words) = checked(&scene, &[]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("Redis has forgotten claims and limits"), "{words}");
    let left: bool = redis::cmd("EXISTS")
        .arg(&layout)
        .query(&mut scene.redis())
        .unwrap();
    assert!(!left, "check leaves no mark");
}
