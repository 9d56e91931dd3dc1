//! Redis as it is seen from outside: what is told of a server whose keys are known, and what a look costs.

use std::time::Duration;

use redis::Commands as _;
use sluice::redis::keys::Keys;
use sluice::redis::sample::Sampler;
use sluice::redis::{Redis, Settings};
use sluice::telemetry::{self, RedisServer as Role};
use tempfile::TempDir;

use crate::harness::Scene;
use crate::harness::events::Load;
use crate::harness::redis_by_file::RedisByFile;
use crate::harness::wait::{eventually, seen};

/// Looks whose cost is measured.
const ROUNDS: u32 = 40;

/// The value of a series in a text for Prometheus.
fn value(text: &str, series: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("no {series} in {text}"))
}

#[tokio::test]
async fn kinds_of_keys_are_estimated_from_a_bounded_sample() {
    let metrics = telemetry::install_metrics().unwrap();
    let folder = TempDir::new().unwrap();
    let settings = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let server = RedisByFile::with_file("cache.conf", folder.path(), &settings);
    let keys = Keys::new("p:");
    let mut connection = server.connect();
    let mut pipe = redis::pipe();
    for n in 0..30_000 {
        pipe.set(keys.session(&n.to_string()), "x".repeat(40));
        if n % 3 == 0 {
            pipe.hset(keys.user("t", &n.to_string()), "name", "y".repeat(300));
        }
    }
    pipe.exec(&mut connection).unwrap();
    let exact = |key: &str| -> f64 {
        let mut ask = redis::cmd("MEMORY");
        ask.arg("USAGE").arg(key).query(&mut server.connect()).unwrap()
    };
    let (session, user) = (exact(&keys.session("12345")), exact(&keys.user("t", "12345")));

    let mut sampler = Sampler::new(
        Redis::open(&Settings::standalone(&server.url()).unwrap(), 1).unwrap(),
        Role::Cache,
        "p:",
    );
    let cpu = || server.info("used_cpu_user") + server.info("used_cpu_sys");
    sampler.round().await.unwrap();
    let begin = cpu();
    for _ in 0..ROUNDS {
        sampler.round().await.unwrap();
    }
    let cost = (cpu() - begin) / f64::from(ROUNDS);
    eprintln!("a look costs {:.2} ms of Redis's CPU", cost * 1e3);
    assert!(cost < 5e-3, "{cost} s");
    // 41 rounds of 200 are a fifth of the keys: nobody walks through all of them.
    let calls = server.command_calls("memory|usage");
    assert!((8_000..=16_400).contains(&calls), "{calls} keys were weighed");

    let text = metrics.render();
    let of = |name: &str, kind: &str| value(&text, &format!(r#"{name}{{server="cache",kind="{kind}"}}"#));
    for (kind, keys, bytes) in [("sessions", 30_000.0, session), ("users", 10_000.0, user)] {
        let (told, weight) = (of("sluice_redis_keys", kind), of("sluice_redis_key_bytes", kind));
        eprintln!(
            "{kind}: {told:.0} keys of {keys}, {weight:.0} bytes of {:.0}",
            keys * bytes
        );
        assert!((told / keys - 1.0).abs() < 0.15, "{kind}: {told} keys");
        assert!(
            (weight / (keys * bytes) - 1.0).abs() < 0.2,
            "{kind}: {weight} bytes"
        );
    }
    assert!(of("sluice_redis_keys", "claims") < 1.0);
    let of = |name: &str| value(&text, &format!(r#"{name}{{server="cache"}}"#));
    for (name, wanted) in [
        ("sluice_redis_evicts", 1),
        ("sluice_redis_max_memory_bytes", 104_857_600),
        ("sluice_redis_aof_enabled", 0),
        ("sluice_redis_rdb_enabled", 0),
        ("sluice_redis_enough_replicas", 1),
    ] {
        assert_eq!(of(name) as i64, wanted, "{name}");
    }

    // Evicted, looked for in vain, and less than before: it is all told.
    let before = of("sluice_redis_evicted_keys_total");
    redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "4mb"])
        .exec(&mut connection)
        .unwrap();
    let nothing: Option<String> = connection.get("nothing").unwrap();
    assert_eq!(nothing, None);
    sampler.round().await.unwrap();
    let text = metrics.render();
    let of = |name: &str| value(&text, &format!(r#"{name}{{server="cache"}}"#));
    assert!(of("sluice_redis_evicted_keys_total") > before);
    assert!(of("sluice_redis_keyspace_misses_total") >= 1.0);
}

#[test]
fn a_worker_tells_of_its_redis_unless_it_shall_not() {
    let scene = Scene::new("redis_seen", 2);
    let records = Load::new(2).take(2_000);
    scene.produce(records);
    let worker = scene.start_with(&[("redis.sample_seconds", "1")]).ready();
    scene.settled();
    let claims = r#"sluice_redis_key_bytes{server="state",kind="claims"}"#;
    eventually("claims are seen", Duration::from_mins(1), || {
        let bytes = worker.metric(claims).unwrap_or_default();
        seen(bytes > 0.0, bytes)
    });
    // As after a restart without persistence.
    let forgotten = r#"sluice_redis_forgotten_total{server="state"}"#;
    assert_eq!(worker.metric(forgotten), Some(0.0));
    let _: () = scene.redis().del(scene.key("config:dedup_layout")).unwrap();
    eventually("the loss is told", Duration::from_mins(1), || {
        let told = worker.metric(forgotten);
        seen(told == Some(1.0), format_args!("{told:?}"))
    });
    assert_eq!(scene.logged("came back empty"), 1);
    let used = worker.metric(r#"sluice_redis_used_memory_bytes{server="state"}"#);
    assert!(used.is_some_and(|used| used > 100_000.0), "{used:?}");
    let cache = r#"sluice_redis_used_memory_bytes{server="cache"}"#;
    assert_eq!(worker.metric(cache), None, "there is one server");
    assert_eq!(worker.terminate().code(), Some(0));

    let worker = scene.start_with(&[("redis.sample_seconds", "0")]).ready();
    assert_eq!(worker.metric(claims), None);
    assert_eq!(worker.terminate().code(), Some(0));
}
