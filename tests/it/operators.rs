//! What operators write: limits in Redis and configuration. A slip of theirs is told, and stops nobody else.

use std::collections::BTreeMap;

use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::kafka::Record;

#[test]
fn a_tokens_own_limit_that_is_none_is_told_and_stops_nobody() {
    let mut scene = Scene::new("slips", 2);
    scene.set("rate_limit.limit", "5");
    let mut redis = scene.redis();
    let limit = |token: &str| scene.key(&format!("config:rate_limit:{{{token}}}"));
    // Of another type, by HSET or RPUSH instead of SET.
    redis.hset::<_, _, _, ()>(limit("hash"), "limit", 7).unwrap();
    redis.rpush::<_, _, ()>(limit("list"), 7).unwrap();
    let long = "9".repeat(1 << 20);
    let slips: [(&str, &[u8]); 9] = [
        ("bytes", b"\xff\xfe7"),
        ("empty", b""),
        ("nul", b"7\0"),
        ("signed", b"-7"),
        ("fraction", b"7.5"),
        ("instant", b"7/0"),
        ("endless", b"7/18446744073709551616"),
        ("large", b"18446744073709551616"),
        ("long", long.as_bytes()),
    ];
    for (token, value) in slips {
        redis.set::<_, _, ()>(limit(token), value).unwrap();
    }
    redis.set::<_, _, ()>(limit("right"), " 7/60\n").unwrap();
    redis
        .set::<_, _, ()>(limit("largest"), "18446744073709551615/2592000")
        .unwrap();
    let slips = ["hash", "list"].into_iter().chain(slips.map(|(token, _)| token));
    let mut expected: BTreeMap<String, usize> = slips.map(|token| (token.to_owned(), 5)).collect();
    let slips = expected.len();
    expected.extend([("right".to_owned(), 7), ("largest".to_owned(), 10)]);
    let events = expected.keys().flat_map(|token| {
        (0..10).map(move |n| {
            let event = format!(r#"{{"token":"{token}","event":"e","distinct_id":"d{n}"}}"#);
            Record::of(n % 2, event)
        })
    });
    scene.produce(events.collect());
    let worker = scene.start().ready();
    scene.settled();
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for row in scene.rows() {
        *rows.entry(row.token).or_default() += 1;
    }
    assert_eq!(rows, expected);
    assert!(worker.metric("sluice_bad_overrides_total") >= Some(slips as f64));
    assert_eq!(worker.terminate().code(), Some(0));
}
