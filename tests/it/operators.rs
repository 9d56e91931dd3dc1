//! What operators write: limits in Redis and configuration. A slip of theirs is told, and stops nobody else.

use std::collections::BTreeMap;

use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::events::{Ledger, Load, check_remembered};
use crate::harness::kafka::Record;
use crate::harness::proxy::Proxy;
use crate::harness::told::settle;

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

/// Each would change what an answer or an acknowledgement means, or refuse it for good.
const PROFILE: [&str; 34] = [
    "final=1",
    "limit=1",
    "offset=1",
    "additional_table_filters=%7B%27events%27%3A%271%3D0%27%7D",
    "additional_result_filter=1%3D0",
    "use_query_cache=1",
    "query_cache_ttl=600",
    "query_cache_min_query_duration=0",
    "max_rows_to_read=1",
    "max_bytes_to_read=1",
    "max_rows_to_read_leaf=1",
    "read_overflow_mode=break",
    "read_overflow_mode_leaf=break",
    "max_result_rows=1",
    "result_overflow_mode=break",
    "max_rows_to_group_by=1",
    "group_by_overflow_mode=any",
    "max_rows_in_set=1",
    "set_overflow_mode=break",
    "timeout_overflow_mode=break",
    "max_partitions_to_read=1",
    "force_primary_key=1",
    "force_index_by_date=1",
    "force_data_skipping_indices=kafka_offsets",
    "aggregate_functions_null_for_empty=1",
    "send_progress_in_http_headers=1",
    "http_headers_progress_interval_ms=1",
    "async_insert=1",
    "insert_deduplicate=0",
    "deduplicate_insert=disable",
    "max_partitions_per_insert_block=1",
    "max_insert_block_size_bytes=1",
    "use_strict_insert_block_limits=1",
    "input_format_native_decode_types_in_binary_format=1",
];

#[test]
fn a_profile_of_the_server_changes_no_answer_and_no_acknowledgement() {
    let mut scene = Scene::new("profile", 1);
    scene.set_deadline(5);
    scene.set(
        "kafka.options",
        r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#,
    );
    let proxy = Proxy::to(scene.clickhouse.url());
    proxy.set_profile(&PROFILE.join("&"));
    scene.set("clickhouse.url", proxy.url());
    let mut load = Load::new(1).over_months(3);
    // Written, and not known to be: the next one asks what is there. Then not written.
    let mut sent = scene.produce(load.take(400));
    scene.start_failing("after-insert=1*return", &[]).dies();
    settle(&scene);
    sent.extend(scene.produce(load.take(400)));
    scene.start_failing("after-announce=1*return", &[]).dies();
    settle(&scene);
    // From the beginning: every block is compared with its rows, and nothing is missing.
    scene.kafka.commit(&scene.group, &scene.topic, &[(0, 0)]);
    settle(&scene);
    let ledger = Ledger::check(&sent, &scene);
    assert_eq!(ledger.limited, 0, "{ledger:?}");
    check_remembered(&scene, &scene.rows());
}
