//! What is kept in Redis, weighed on a real server with `deploy/redis/state.conf`: the constants of `sluice plan` are
//! held to it.
//!
//! `make test ARGS='redis_memory --nocapture'` prints the figures. Bytes are the growth of `used_memory`, all overhead
//! included, and do not depend on the load of the machine.

use std::fmt::Write as _;

use redis::{Connection, Pipeline};
use sluice::pipeline::claim::{Claims, Wanted};
use sluice::plan::constants as known;
use sluice::redis::keys::{COUNTER_TTL_SECONDS, Keys, RECENT_ACTIONS, TIMELINE_EVENTS, USER_TTL_SECONDS};
use sluice::redis::{Redis, Settings};
use tempfile::TempDir;
use uuid::Uuid;

use crate::harness::redis_by_file::RedisByFile;

const TOKEN: &str = "phc_0123456789abcdef0123456789abcdef";
/// How far a figure may be from its constant.
const TOLERANCE: f64 = 0.1;
const DAY: u64 = 86_400;

fn server(folder: &TempDir) -> RedisByFile {
    let settings = ["--min-replicas-to-write", "0", "--appendonly", "no", "--save", ""];
    RedisByFile::with_file("state.conf", folder.path(), &settings)
}

/// Says what was measured, and wants it near to what `sluice plan` reckons with.
fn near(what: &str, measured: f64, known: f64) {
    eprintln!("{what}: {measured:.1} bytes; known as {known}");
    assert!(
        (measured / known - 1.0).abs() <= TOLERANCE,
        "{what}: {measured:.1} is not near {known}"
    );
}

/// Bytes that `count` repetitions of `fill` take, each.
fn weigh(server: &RedisByFile, count: usize, fill: impl Fn(usize, &mut Pipeline)) -> f64 {
    let mut connection: Connection = server.connect();
    redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
    let before = server.info("used_memory");
    for from in (0..count).step_by(500) {
        let mut pipe = redis::pipe();
        (from..count.min(from + 500)).for_each(|n| fill(n, &mut pipe));
        pipe.exec(&mut connection).unwrap();
    }
    // Its buffers are no part of it.
    drop(connection);
    (server.info("used_memory") - before) / count as f64
}

fn timeline(keys: &Keys, n: usize, events: usize, pipe: &mut Pipeline) {
    let key = keys.timeline(TOKEN, &format!("user-{n:08}"));
    pipe.cmd("ZADD").arg(&key);
    for event in 0..events {
        let id = Uuid::from_u128((n * 1_000 + event) as u128 * 0x9e37_79b9_7f4a_7c15);
        pipe.arg(1_706_745_000_000 + event)
            .arg(format!("{id}:page visited"));
    }
    pipe.cmd("EXPIRE").arg(&key).arg(USER_TTL_SECONDS);
}

/// A user's properties: a name of some ten characters, a short value, or in every seventh a URL.
fn user(keys: &Keys, n: usize, properties: usize, pipe: &mut Pipeline) {
    let key = keys.user(TOKEN, &format!("user-{n:08}"));
    pipe.cmd("HSET")
        .arg(&key)
        .arg("\0offset:0:3")
        .arg(123_456_789 + n);
    for property in 0..properties {
        let value = match property % 7 {
            0 => format!(
                r#""https://example.com/{}?utm_source=newsletter&n={n}""#,
                "path/".repeat(12)
            ),
            odd @ (1 | 3 | 5) => (n * odd).to_string(),
            other => format!(r#""{}""#, "value".repeat(other)),
        };
        pipe.arg(format!("property_{property:02}")).arg(value);
    }
    pipe.cmd("EXPIRE").arg(&key).arg(USER_TTL_SECONDS);
}

fn token(keys: &Keys, n: usize, pipe: &mut Pipeline) {
    let token = format!("{TOKEN}{n:04}");
    pipe.cmd("HSET").arg(keys.rate(&token));
    for bucket in 0..100 {
        pipe.arg(format!("36000:{}", 47_409_583 + bucket))
            .arg(n % 100 + bucket);
    }
    pipe.cmd("PEXPIRE").arg(keys.rate(&token)).arg(3_672_000);
    for counter in [keys.events_counter(&token), keys.api_calls_counter(&token)] {
        pipe.cmd("SET")
            .arg(counter)
            .arg(1_234_567 + n)
            .arg("EX")
            .arg(COUNTER_TTL_SECONDS);
    }
    pipe.cmd("LPUSH").arg(keys.recent_actions(&token));
    for action in 0..RECENT_ACTIONS {
        let id = Uuid::from_u128((n * 1_000 + action) as u128 * 0x9e37_79b9_7f4a_7c15);
        pipe.arg(format!(
            r#"{{"uuid":"{id}","event":"page visited","distinct_id":"user-{action:08}","timestamp":1706745000000}}"#
        ));
    }
    pipe.cmd("EXPIRE")
        .arg(keys.recent_actions(&token))
        .arg(COUNTER_TTL_SECONDS);
}

fn decisions(keys: &Keys, n: usize, partitions: usize, pipe: &mut Pipeline) {
    let token = format!("{TOKEN}{n:04}");
    for partition in 0..partitions {
        let field = format!("0:{partition}");
        let offset = 123_456_789 + n;
        pipe.cmd("HSET").arg(keys.decided(&token)).arg(&field);
        pipe.arg(format!("{offset};{}:{};", offset + 65_536, offset + 65_535));
        pipe.cmd("HSET").arg(keys.applied(&token)).arg(&field).arg(offset);
    }
    pipe.cmd("EXPIRE").arg(keys.decided(&token)).arg(DAY);
    pipe.cmd("EXPIRE")
        .arg(keys.applied(&token))
        .arg(COUNTER_TTL_SECONDS);
}

#[test]
fn collections_weigh_what_the_plan_reckons_with() {
    let folder = TempDir::new().unwrap();
    let server = server(&folder);
    let keys = Keys::new("");
    let of = |count, fill: &dyn Fn(usize, &mut Pipeline)| weigh(&server, count, fill);

    let (few, full) = (10, TIMELINE_EVENTS);
    let a_few = of(10_000, &|n, pipe| timeline(&keys, n, few, pipe));
    let all = of(10_000, &|n, pipe| timeline(&keys, n, full, pipe));
    let each = (all - a_few) / (full - few) as f64;
    eprintln!("a timeline of {few} events {a_few:.0} bytes, of {full} {all:.0}");
    near("an event of a timeline", each, known::TIMELINE_EVENT);
    near(
        "a full timeline",
        all,
        known::TIMELINE + known::TIMELINE_EVENT * full as f64,
    );

    let (few, many) = (7, 14);
    let a_few = of(10_000, &|n, pipe| user(&keys, n, few, pipe));
    let all = of(10_000, &|n, pipe| user(&keys, n, many, pipe));
    eprintln!("a user of {few} properties {a_few:.0} bytes, of {many} {all:.0}");
    near(
        "a property of a user",
        (all - a_few) / (many - few) as f64,
        known::USER_PROPERTY,
    );
    near(
        "a user of 14 properties",
        all,
        known::USER + known::USER_PROPERTY * many as f64,
    );

    let decided = |count, partitions| of(count, &|n, pipe| decisions(&keys, n, partitions, pipe));
    let (few, many) = (decided(2_000, 8), decided(2_000, 64));
    let each = (many - few) / 56.0;
    near("a token's partition", each, known::TOKEN_PARTITION);
    let beyond = known::PACKED_FIELDS as usize * 2;
    near(
        "a token's partition of many",
        decided(300, beyond) / beyond as f64,
        known::TOKEN_PARTITION_OF_MANY,
    );
    let besides = of(1_000, &|n, pipe| token(&keys, n, pipe)) + few - 8.0 * each;
    near("a token", besides, known::TOKEN);

    // As the read API keeps them.
    let kept = |key: String, bytes: usize, pipe: &mut Pipeline| {
        pipe.cmd("SET")
            .arg(key)
            .arg("x".repeat(bytes))
            .arg("EX")
            .arg(3_600);
    };
    let profile = of(10_000, &|n, pipe| {
        kept(keys.cached_user(TOKEN, &format!("user-{n:08}")), 200, pipe);
    });
    near(
        "a cached profile, without properties",
        profile,
        known::CACHED_PROFILE,
    );
    let query = of(2_000, &|n, pipe| {
        kept(keys.query_result(&format!("{n:064x}")), 7_600, pipe);
    });
    near("a cached query", query, known::CACHED_QUERY);
}

#[tokio::test]
async fn claims_weigh_what_the_plan_reckons_with() {
    const CLAIMS: u64 = 400_000;
    let folder = TempDir::new().unwrap();
    let secret = [9; 16];
    let mut told = String::new();
    for (layout, secret, bytes) in [
        ("keys", None, known::CLAIM_KEYS),
        ("packed", Some(&secret), known::CLAIM_PACKED_FIRST),
    ] {
        let server = server(&folder);
        let redis = Redis::open(&Settings::standalone(&server.url()).unwrap(), 1).unwrap();
        let claims = Claims::new(Keys::new(""), DAY, secret);
        let cpu = || server.info("used_cpu_user") + server.info("used_cpu_sys");
        let (memory, begin) = (server.info("used_memory"), cpu());
        for from in (0..CLAIMS).step_by(50_000) {
            let wanted: Vec<Wanted> = (from..from + 50_000)
                .map(|n| Wanted {
                    token: 0,
                    id: Uuid::new_v5(&Uuid::NAMESPACE_OID, &n.to_le_bytes()).as_u128(),
                    coordinate: (((n % 8) << 40) | (n / 8)) as i64,
                    takes_over: None,
                })
                .collect();
            claims.claim(&redis, &[TOKEN.to_owned()], &wanted).await.unwrap();
        }
        let micros = (cpu() - begin) / CLAIMS as f64 * 1e6;
        drop(redis);
        let measured = (server.info("used_memory") - memory) / CLAIMS as f64;
        writeln!(
            told,
            "a claim, {layout}: {measured:.1} bytes, {micros:.1} µs of Redis's CPU"
        )
        .unwrap();
        near(&format!("a claim, {layout}"), measured, bytes);
    }
    eprint!("{told}");
}
