//! Redis as it is seen from outside: what is told of a server whose keys are known, and what a look costs.

use std::sync::LazyLock;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use redis::Commands as _;
use sluice::health::Health;
use sluice::redis::keys::Keys;
use sluice::redis::sample::Sampler;
use sluice::redis::{Redis, Settings};
use sluice::telemetry::{self, RedisServer as Role};
use tempfile::TempDir;

use crate::harness::Scene;
use crate::harness::any_redis::AnyConnection;
use crate::harness::events::Load;
use crate::harness::redis_by_file::RedisByFile;
use crate::harness::redises::Redises;
use crate::harness::wait::{eventually, seen};

/// Looks whose cost is measured.
const ROUNDS: u32 = 40;

/// The metrics of this process.
fn metrics() -> &'static PrometheusHandle {
    static METRICS: LazyLock<PrometheusHandle> = LazyLock::new(|| telemetry::install_metrics().unwrap());
    &METRICS
}

/// The sum over all nodes of a series of a server, by the beginning of its name and a label's value.
fn sum(name: &str, server: &str, label: &str) -> f64 {
    let start = format!("{name}{{server=\"{server}\"");
    let text = metrics().render();
    let of_series = text
        .lines()
        .filter(|line| line.starts_with(&start) && line.contains(label));
    let values: Vec<f64> = of_series
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert!(!values.is_empty(), "no {start} in {text}");
    values.iter().sum()
}

/// A number of `INFO`, of all servers together; 0 if there is none.
fn info(urls: &[String], start: &str) -> f64 {
    let of_one = |url: &String| {
        let mut connection = redis::Client::open(url.as_str())
            .unwrap()
            .get_connection()
            .unwrap();
        let text: String = redis::cmd("INFO")
            .arg("everything")
            .query(&mut connection)
            .unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(start)?.split(',').next());
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    };
    urls.iter().map(of_one).sum()
}

/// Looks at servers that are one Redis to us, `server` by name.
async fn kinds_are_estimated(
    settings: &Settings,
    (role, server): (Role, &str),
    urls: &[String],
    mut connection: AnyConnection,
) {
    metrics();
    let nodes = urls.len() as f64;
    let keys = Keys::new("p:");
    for thousand in 0..30 {
        let mut pipe = redis::pipe();
        for n in thousand * 1_000..(thousand + 1) * 1_000 {
            pipe.set(keys.session(&n.to_string()), "x".repeat(40));
            if n % 3 == 0 {
                pipe.hset(keys.user("t", &n.to_string()), "name", "y".repeat(300));
            }
        }
        pipe.query::<Vec<redis::Value>>(&mut connection).unwrap();
    }
    let mut exact = |key: &str| -> f64 {
        let mut ask = redis::cmd("MEMORY");
        ask.arg("USAGE").arg(key).query(&mut connection).unwrap()
    };
    let (session, user) = (exact(&keys.session("12345")), exact(&keys.user("t", "12345")));

    let mut sampler = Sampler::new(Redis::open(settings, 1).unwrap(), role, "p:", Health::new(&[]));
    let cpu = || info(urls, "used_cpu_user:") + info(urls, "used_cpu_sys:");
    sampler.round().await.unwrap();
    let begin = cpu();
    for _ in 0..ROUNDS {
        sampler.round().await.unwrap();
    }
    let cost = (cpu() - begin) / f64::from(ROUNDS);
    eprintln!("{server}: a look costs {:.2} ms of Redis's CPU", cost * 1e3);
    assert!(cost < 5e-3, "{cost} s");
    // 41 rounds of 200 are a fifth of the keys: nobody walks through all of them.
    let calls = info(urls, "cmdstat_memory|usage:calls=");
    assert!((8_000.0..=16_400.0).contains(&calls), "{calls} keys were weighed");

    for (kind, keys, bytes) in [("sessions", 30_000.0, session), ("users", 10_000.0, user)] {
        let label = format!("kind=\"{kind}\"");
        let (told, weight) = (
            sum("sluice_redis_keys", server, &label),
            sum("sluice_redis_key_bytes", server, &label),
        );
        eprintln!(
            "{server}: {kind}: {told:.0} keys of {keys}, {weight:.0} bytes of {:.0}",
            keys * bytes
        );
        assert!((told / keys - 1.0).abs() < 0.15, "{kind}: {told} keys");
        assert!(
            (weight / (keys * bytes) - 1.0).abs() < 0.2,
            "{kind}: {weight} bytes"
        );
    }
    assert!(sum("sluice_redis_keys", server, "kind=\"claims\"") < 1.0);
    for (name, wanted) in [
        ("sluice_redis_evicts", nodes),
        ("sluice_redis_max_memory_bytes", 104_857_600.0 * nodes),
        ("sluice_redis_aof_enabled", 0.0),
        ("sluice_redis_rdb_enabled", 0.0),
        ("sluice_redis_enough_replicas", nodes),
    ] {
        assert_eq!(sum(name, server, "") as u64, wanted as u64, "{name}");
    }

    // Evicted, looked for in vain, and less than before: it is all told, of every node.
    let before = sum("sluice_redis_evicted_keys_total", server, "");
    for url in urls {
        let mut connection = redis::Client::open(url.as_str())
            .unwrap()
            .get_connection()
            .unwrap();
        let mut set = redis::cmd("CONFIG");
        set.arg(&["SET", "maxmemory", "4mb"])
            .exec(&mut connection)
            .unwrap();
    }
    let nothing: Option<String> = connection.get("nothing").unwrap();
    assert_eq!(nothing, None);
    sampler.round().await.unwrap();
    assert!(sum("sluice_redis_evicted_keys_total", server, "") > before);
    assert!(sum("sluice_redis_keyspace_misses_total", server, "") >= 1.0);
}

#[tokio::test]
async fn kinds_of_keys_are_estimated_from_a_bounded_sample() {
    let folder = TempDir::new().unwrap();
    let settings = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let server = RedisByFile::with_file("cache.conf", folder.path(), &settings);
    let url = server.url();
    let connection = AnyConnection::One(server.connect());
    let settings = Settings::standalone(&url).unwrap();
    kinds_are_estimated(&settings, (Role::Cache, "cache"), &[url], connection).await;
}

#[tokio::test]
async fn so_they_are_on_a_cluster_whose_primaries_share_the_sample() {
    let scene = Scene::with_redis("seencluster", 1, Redises::cluster(3, 0));
    let servers = &scene.redises.as_ref().unwrap().servers;
    for server in servers {
        let words = [
            "CONFIG",
            "SET",
            "maxmemory",
            "100mb",
            "maxmemory-policy",
            "allkeys-lru",
        ];
        server.ask::<()>(&words).unwrap();
    }
    let urls: Vec<String> = servers
        .iter()
        .map(|server| format!("redis://{}", server.address()))
        .collect();
    let settings = scene.redis_settings();
    kinds_are_estimated(&settings, (Role::State, "state"), &urls, scene.redis()).await;
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
    let forgot = r#"sluice_redis_forgot{server="state"}"#;
    assert_eq!(worker.metric(forgotten), Some(0.0));
    assert_eq!(worker.metric(forgot), Some(0.0));
    let _: () = scene.redis().del(scene.key("config:dedup_layout")).unwrap();
    eventually("the loss is told", Duration::from_mins(1), || {
        let told = worker.metric(forgotten);
        seen(told == Some(1.0), format_args!("{told:?}"))
    });
    assert_eq!(scene.logged("came back empty"), 1);
    assert_eq!(worker.metric(forgot), Some(1.0));
    let (status, body) = worker.readiness().unwrap();
    assert!(
        status == 200 && body["restart"].to_string().contains("start them again"),
        "{body}"
    );
    let used = worker.metric(r#"sluice_redis_used_memory_bytes{server="state"}"#);
    assert!(used.is_some_and(|used| used > 100_000.0), "{used:?}");
    let cache = r#"sluice_redis_used_memory_bytes{server="cache"}"#;
    assert_eq!(worker.metric(cache), None, "there is one server");
    assert_eq!(worker.terminate().code(), Some(0));

    let worker = scene.start_with(&[("redis.sample_seconds", "0")]).ready();
    assert_eq!(worker.metric(claims), None);
    assert_eq!(worker.terminate().code(), Some(0));
}
