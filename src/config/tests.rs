//! The configuration as a whole: every kind of refusal, precedence, and what is shown.

use std::ffi::OsString;
use std::io::Write;

use super::*;

const SECRET: &str = "hunter2";

/// Loads a file of this text under an environment of these variables; a refusal as its text.
pub(super) fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let mut path = tempfile::Builder::new()
        .prefix("sluice")
        .suffix(".toml")
        .tempfile()
        .unwrap();
    path.write_all(file.as_bytes()).unwrap();
    let environment = environment
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::load_with(Some(path.path()), environment).map_err(|error| error.to_string())
}

fn refusal(file: &str, environment: &[(&str, &str)]) -> String {
    load(file, environment).map(|_| ()).unwrap_err()
}

#[test]
fn nothing_given_is_the_defaults() {
    let config = Config::load_with(None, []).unwrap();
    assert_eq!(config.to_toml().unwrap(), Config::default().to_toml().unwrap());
    assert_eq!(config.redis.cache_url(), &config.redis.url);
    assert_eq!(config.redis.mode, RedisMode::Standalone);
}

#[test]
fn several_addresses_of_redis_share_user_password_and_encryption() {
    let config = load(
        "[redis]\nmode = 'sentinel'\nurl = 'rediss://me:p%2Cw@a:1/2, b:2,rediss://me:p%2Cw@c:3'\nsentinel_password = 'x'",
        &[],
    )
    .unwrap();
    assert_eq!(
        config.redis.url.to_string(),
        "rediss://me:***@a:1/2,rediss://b:2,rediss://me:***@c:3"
    );
    assert_eq!(config.redis.cache_mode, None);
    let config = load(
        "[redis]\nmode = 'cluster'\nurl = 'redis://a,redis://b'\ncache_url = 'redis://c/3'",
        &[],
    )
    .unwrap();
    assert_eq!(config.redis.cache_mode, Some(RedisMode::Standalone));
    // A comma in a password was always allowed.
    load("[redis]\nurl = 'redis://:a,b@c:1'", &[]).unwrap();
}

#[test]
fn the_environment_overrides_the_file_and_the_file_the_defaults() {
    let file = "[kafka]\nbrokers = 'file:1'\ntopic = 'file'\n[batch]\nmax_rows = 5";
    let config = load(
        file,
        &[
            ("SLUICE_KAFKA__BROKERS", "env:1,env:2"),
            ("SLUICE_BATCH__MAX_ROWS", "7"),
        ],
    )
    .unwrap();
    assert_eq!(config.kafka.brokers, "env:1,env:2");
    assert_eq!(config.kafka.topic, "file");
    assert_eq!(config.batch.max_rows, 7);
    assert_eq!(config.kafka.group_id, "sluice");
}

#[test]
fn a_variable_with_one_underscore_is_refused_without_its_value_and_others_programs_are_left_alone() {
    let message = refusal("", &[("SLUICE_REDIS_URL", "redis://:secret@h:1")]);
    assert!(
        message.contains("SLUICE_REDIS_URL") && message.contains("SLUICE_REDIS__URL"),
        "{message}"
    );
    assert!(!message.contains("secret"), "{message}");
    load(
        "",
        &[
            ("SLUICE_REDIS_PORT", "tcp://10.0.0.1:6379"),
            ("SLUICE_REDIS_SERVICE_HOST", "10.0.0.1"),
            ("SLUICE_CONFIG", "a.toml"),
        ],
    )
    .unwrap();
}

#[test]
fn every_type_is_read_from_the_environment() {
    let hash = "ab".repeat(32);
    let keys = format!(r#"[{{"key_sha256": "{hash}", "token": "t"}}]"#);
    let config = load(
        "",
        &[
            ("SLUICE_RATE_LIMIT__ENABLED", "false"),
            ("SLUICE_RATE_LIMIT__WHEN_OVER", "wait"),
            ("SLUICE_RATE_LIMIT__LIMIT", "5000000000"),
            ("SLUICE_DEDUP__BY", "content"),
            ("SLUICE_HTTP__LISTEN", "0.0.0.0:80"),
            ("SLUICE_REDIS__URL", "redis://:p%40ss@cache/2"),
            ("SLUICE_REDIS__CACHE_URL", ""),
            ("SLUICE_API__KEYS", &keys),
        ],
    )
    .unwrap();
    assert!(!config.rate_limit.enabled);
    assert_eq!(config.rate_limit.when_over, WhenOver::Wait);
    assert_eq!(config.rate_limit.limit, 5_000_000_000);
    assert_eq!(config.dedup.by, DedupBy::Content);
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:80");
    assert_eq!(config.redis.url.expose().password(), Some("p%40ss"));
    assert_eq!(config.redis.cache_url, None);
    assert_eq!(
        config.api.keys,
        [ApiKey {
            key_sha256: [0xab; 32],
            token: "t".to_owned()
        }]
    );
    let inline = format!("[{{ key_sha256 = '{hash}', token = 't' }}]");
    assert_eq!(
        load("", &[("SLUICE_API__KEYS", &inline)]).unwrap().api.keys,
        config.api.keys
    );
}

#[test]
fn a_text_that_looks_like_a_number_stays_a_text() {
    let environment = [
        ("SLUICE_CLICKHOUSE__PASSWORD", "12345"),
        ("SLUICE_KAFKA__GROUP_ID", "7"),
        ("SLUICE_KAFKA__TOPIC", "true"),
        ("SLUICE_REDIS__KEY_PREFIX", "1e3"),
    ];
    let config = load("", &environment).unwrap();
    assert_eq!(config.clickhouse.password.expose(), "12345");
    assert_eq!(config.kafka.group_id, "7");
    assert_eq!(config.kafka.topic, "true");
    assert_eq!(config.redis.key_prefix, "1e3");
}

#[test]
fn variables_that_are_no_configuration_are_left_alone() {
    let environment = [
        ("SLUICE_LOCAL_STACK__NAME", "x"),
        ("SLUICE_TEST_KAFKA__PORT", "x"),
        ("SLUICE_CONFIG", "x"),
        ("SLUICE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("OTHER_KAFKA__TOPIC", "x"),
    ];
    load("", &environment).unwrap();
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(&str, Variables, &[&str]); 8] = [
        (
            "[batch]\nmax_row = 5",
            &[],
            &["batch.max_row = 5", "did you mean batch.max_rows?", ".toml"],
        ),
        ("[kafak]\n", &[], &["[kafak]", "did you mean kafka?"]),
        ("[kafak]\ntopic = 'x'", &[], &["[kafak]", "did you mean kafka?"]),
        ("[zzz]\n", &[], &["[zzz]", "there are api, batch"]),
        (
            "[kafka]\nbroker = 'x:1'",
            &[],
            &["kafka.broker ", "did you mean kafka.brokers?"],
        ),
        ("brokers = 'x:1'", &[], &["brokers", "[section]"]),
        (
            "",
            &[("SLUICE_BATCH__MAX_ROW", "5")],
            &["SLUICE_BATCH__MAX_ROW", "batch.max_rows?"],
        ),
        (
            "",
            &[("SLUICE_BATCHES__MAX_ROWS", "5")],
            &["SLUICE_BATCHES__MAX_ROWS", "did you mean batch?"],
        ),
    ];
    for (file, environment, parts) in cases {
        let message = refusal(file, environment);
        for part in parts {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
}

#[test]
fn values_out_of_range_or_of_the_wrong_type_are_refused_by_key_and_value() {
    let cases = [
        ("batch.max_rows", "0", "1 to 1000000"),
        ("batch.max_rows", "1000001", "1 to 1000000"),
        ("batch.max_rows", "-1", "1 to 1000000"),
        ("batch.max_rows", "1.5", "whole number"),
        ("batch.max_rows", "true", "whole number"),
        ("batch.max_bytes", "67108865", "1024 to 67108864"),
        ("batch.max_age_ms", "0", "1 to 60000"),
        ("clickhouse.database", "\"a-b\"", "letters"),
        ("clickhouse.insert_deadline_seconds", "1", "2 to 600"),
        ("clickhouse.max_inserts_per_second", "0", "1 to 1000"),
        ("clickhouse.url", "\"tcp://a:9000\"", "http://host:port"),
        ("clickhouse.url", "\"nowhere\"", "http://host:port"),
        ("dedup.by", "\"uuid\"", "\"id\" or \"content\""),
        ("dedup.layout", "\"hash\"", "\"packed\" or \"keys\""),
        ("dedup.window_seconds", "0", "1 to"),
        ("http.admin_listen", "\"9100\"", "IP address and port"),
        ("http.listen", "\"127.0.0.1\"", "IP address and port"),
        ("kafka.brokers", "\"\"", "host:port"),
        ("kafka.brokers", "\"a:b\"", "host:port"),
        ("kafka.brokers", "\"a:1,,b:2\"", "host:port"),
        ("kafka.group_id", "\"\"", "a name"),
        ("kafka.incarnation", "-1", "0 to 4294967295"),
        ("kafka.topic", "\"a b\"", "topic's name"),
        ("rate_limit.enabled", "\"maybe\"", "true or false"),
        ("rate_limit.limit", "0", "1 to"),
        ("rate_limit.on_redis_down", "\"wait\"", "\"pause\" or \"local\""),
        ("rate_limit.allow_list", "\"some\"", "true or false"),
        ("rate_limit.when_over", "\"drop\"", "\"overflow\" or \"wait\""),
        ("rate_limit.window_seconds", "0", "1 to"),
        ("redis.key_prefix", "\"{a}\"", "braces"),
        ("redis.max_connections", "101", "1 to 100"),
        (
            "redis.mode",
            "\"single\"",
            "\"standalone\" or \"sentinel\" or \"cluster\"",
        ),
        ("redis.cache_mode", "\"many\"", "\"standalone\" or"),
        ("redis.sentinel_service", "\"a b\"", "a name of letters"),
        ("redis.tls_ca_file", "\"/nowhere/ca.pem\"", "cannot be read"),
        ("redis.tls_cert_file", "\"/nowhere/c.pem\"", "cannot be read"),
        ("redis.tls_key_file", "\"/nowhere/c.key\"", "cannot be read"),
        ("redis.url", "\"redis://a:1,b:2\"", "want a mode"),
        ("redis.sample_seconds", "3601", "0 to 3600"),
        ("redis.url", "\"http://a:1\"", "redis://host:port"),
        ("redis.url", "\"redis://a:1/x\"", "number of a database"),
        ("tasks.at_once", "17", "1 to 16"),
        ("tasks.lease_seconds", "1", "2 to 3600"),
        ("tasks.max_attempts", "0", "1 to 100"),
        ("tasks.max_waiting", "0", "1 to 1000000"),
        ("tasks.users_per_second", "0", "1 to 1000000"),
        ("worker.drain_seconds", "26", "1 to 25"),
        ("worker.max_in_flight_bytes", "1", "1048576 to"),
        ("api.requests_per_second", "0", "1 to"),
    ];
    for (key, value, accepted) in cases {
        let (section, name) = key.split_once('.').unwrap();
        let message = refusal(&format!("[{section}]\n{name} = {value}"), &[]);
        assert!(
            message.contains(&format!("{key} = {value} (")),
            "{key} = {value}: {message}"
        );
        assert!(message.contains(accepted), "{accepted}: {message}");

        let variable = format!("SLUICE_{}__{}", section.to_uppercase(), name.to_uppercase());
        let message = refusal("", &[(&variable, value.trim_matches('"'))]);
        for part in [key, &variable, value.trim_matches('"'), accepted] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
    for (key, value) in [
        ("kafka.group_id", "7"),
        ("dedup.by", "1"),
        ("http.listen", "8080"),
    ] {
        let (section, name) = key.split_once('.').unwrap();
        let message = refusal(&format!("[{section}]\n{name} = {value}"), &[]);
        assert!(
            message.contains(&format!("{key} = {value} (")) && message.contains("in quotes"),
            "{message}"
        );
    }
}

#[test]
fn values_that_do_not_fit_each_other_are_refused_by_both() {
    let cases = [
        (
            "[kafka]\ntopic = 'same'\noverflow_topic = 'same'",
            ["kafka.topic = \"same\"", "kafka.overflow_topic"],
        ),
        (
            "[kafka]\ndead_letter_topic = 'events'",
            ["kafka.topic = \"events\"", "kafka.dead_letter_topic"],
        ),
        (
            "[rate_limit]\nallow_list = true\nenabled = false",
            ["rate_limit.allow_list = true", "rate_limit.enabled = false"],
        ),
        (
            "[worker]\nmax_in_flight_bytes = 2000000",
            ["max_in_flight_bytes = 2000000", "max_bytes = 33554432"],
        ),
        (
            "[http]\nlisten = '127.0.0.1:9100'",
            ["http.listen", "http.admin_listen"],
        ),
        (
            "[clickhouse]\nurl = 'http://u:p@h:1'\nuser = 'v'",
            ["http://h:1", "clickhouse.user = \"v\""],
        ),
        (
            "[redis]\nmode = 'cluster'\nurl = 'redis://a:1/2,b:2'",
            ["redis.url = \"redis://a:1/2,b:2\"", "only one"],
        ),
        (
            "[redis]\nmode = 'sentinel'\nurl = 'redis://a:1,rediss://b:2'",
            ["redis.url", "redis:// throughout"],
        ),
        (
            "[redis]\nmode = 'sentinel'\nurl = 'redis://:p@a:1,redis://:q@b:2'",
            ["redis.url = ***", "in the first URL"],
        ),
        (
            "[redis]\ncache_mode = 'cluster'",
            ["redis.cache_mode = \"cluster\"", "redis.cache_url"],
        ),
        (
            "[redis]\nsentinel_password = 'x'",
            ["redis.sentinel_password = \"***\"", "redis.mode = \"standalone\""],
        ),
        (
            "[redis]\nmode = 'sentinel'\nsentinel_user = 'u'",
            ["redis.sentinel_user = \"u\"", "redis.sentinel_password"],
        ),
        (
            "[redis]\ntls_ca_file = '/dev/null'",
            ["redis.tls_ca_file = \"/dev/null\"", "redis.url"],
        ),
        (
            "[redis]\nurl = 'rediss://a'\ntls_ca_file = '/dev/null'",
            ["redis.tls_ca_file = \"/dev/null\"", "certificates in PEM"],
        ),
        (
            "[redis]\nurl = 'rediss://a'\ntls_cert_file = '/dev/null'",
            ["redis.tls_cert_file = \"/dev/null\"", "redis.tls_key_file"],
        ),
        (
            "[redis]\nurl = 'rediss://a'\ntls_cert_file = '/dev/null'\ntls_key_file = '/dev/null'",
            ["redis.tls_cert_file = \"/dev/null\"", "PKCS#8"],
        ),
    ];
    for (file, parts) in cases {
        let message = refusal(file, &[]);
        for part in parts {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let message = refusal(
        "[batch]\nmax_rows = 0\nmax_row = 1\n[kafak]",
        &[("SLUICE_DEDUP__BY", "x")],
    );
    assert_eq!(message.lines().count(), 5, "{message}");
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let missing = Config::load_with(Some(Path::new("/nowhere/sluice.toml")), [])
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("/nowhere/sluice.toml") && missing.contains("cannot be read"),
        "{missing}"
    );
    let directory = Config::load_with(Some(Path::new("/")), [])
        .unwrap_err()
        .to_string();
    assert!(directory.contains("cannot be read"), "{directory}");
    let broken = refusal("[clickhouse]\npassword = 'hunter2", &[]);
    assert!(
        broken.contains("not valid TOML at line 2") && !broken.contains(SECRET),
        "{broken}"
    );
}

#[test]
fn user_and_password_may_stand_in_the_url_of_clickhouse() {
    let config = load("[clickhouse]\nurl = 'https://me:p%40ss@ch:8443/path'", &[]).unwrap();
    assert_eq!(config.clickhouse.url.expose().as_str(), "https://ch:8443/path");
    assert_eq!(config.clickhouse.user, "me");
    assert_eq!(config.clickhouse.password.expose(), "p@ss");
}

#[test]
fn an_accepted_configuration_shows_no_secret() {
    let file = "[redis]\nurl = 'redis://:hunter2@a'\ncache_url = 'redis://u:hunter2@b'\n\
                cache_mode = 'sentinel'\nsentinel_password = 'hunter2'\n\
                [clickhouse]\npassword = 'hunter2'\n\
                [kafka.options]\n\"sasl.password\" = 'hunter2'\n\"ssl.key.password\" = 'hunter2'\n\
                \"sasl.username\" = 'me'";
    let config = load(file, &[]).unwrap();
    let shown = format!("{config:?}{}", config.to_toml().unwrap());
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.contains("\"sasl.username\" = \"me\""), "{shown}");
    let error = format!("cannot connect to {}", config.redis.url.expose());
    assert_eq!(config.scrub(&error), "cannot connect to redis://:***@a");
}

#[test]
fn a_refused_configuration_shows_no_secret() {
    let cases = [
        "[redis]\nurl = 'http://:hunter2@a'",
        "[redis]\nurl = 'redis://hunter2@a'",
        "[redis]\nurl = 'redis://:hunter2@a:port'",
        "[redis]\nurl = 'redis://:x/hunter2@a'",
        "[redis]\nurl = 'redis://:x#hunter2@a'",
        "[redis]\nurl = 'redis://:x@hunter2@a/y'",
        "[redis]\nurl = 'redis://a?password=hunter2'",
        "[redis]\nurl = ['redis://:hunter2@a']",
        "[redis]\npasword = 'hunter2'",
        "[redis]\nmode = 'sentinel'\nurl = 'redis://a:1,redis://:hunter2@b:2'",
        "[redis]\nmode = 'sentinel'\nurl = 'redis://:x,hunter2@b:2'",
        "[redis]\nmode = 'cluster'\nurl = 'redis://:hunter2@b:2,c:port'",
        "[redis]\nsentinel_password = ['hunter2']",
        "[redis]\nsentinel_password = 'hunter2'",
        "[clickhouse]\nurl = 'http://u:hunter2@a?x=1'",
        "[clickhouse]\nurl = 'http://a?password=hunter2'",
        "[clickhouse]\nurl = 'http://u:hunter2@a'\nuser = 'v'",
        "[clickhouse]\npasword = 'hunter2'",
        "[clickhouse]\npassword = ['hunter2']",
        "[clickhuose]\npassword = 'hunter2'",
        "[kafka]\noptions = 'hunter2'",
        "[kafka.options]\n\"sasl.password\" = ['hunter2']",
        "[kafka.options]\n\"ssl.key.pem\" = 'hunter2'",
        "[api]\nkeys = ['hunter2']",
        "[api]\nkeys = [{ key_sha256 = 'hunter2', token = 't' }]",
        "[api]\nkeys = [{ key = 'hunter2', token = 't' }]",
    ];
    for file in cases {
        match load(file, &[]) {
            Ok(config) => assert!(!format!("{config:?}").contains(SECRET), "{file}"),
            Err(message) => assert!(!message.contains(SECRET), "{file}: {message}"),
        }
    }
}
