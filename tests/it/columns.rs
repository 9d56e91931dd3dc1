//! One record of each kind, and what every column and key holds for it.

use std::collections::HashMap;

use redis::Commands as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::Scene;
use crate::harness::clickhouse::Row;
use crate::harness::kafka::Record;

/// Namespaces of made uuids. Rows have them, so they never change.
const FROM_TEXT: Uuid = Uuid::from_u128(0x863d_cac9_19d4_44fa_a9a3_99d1_45bd_a9c9);
const FROM_COORDINATE: Uuid = Uuid::from_u128(0x1e1a_1078_b290_4d85_ad54_9184_c0da_54d5);

const UUID: &str = "018f3c1e-7a2b-7c3d-8e4f-0123456789ab";

fn ms(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// An hour ago: a record's own time, which retention leaves alone.
pub(crate) fn record_time() -> i64 {
    jiff::Timestamp::now().as_millisecond() - 3_600_000
}

/// The uuid of an event that has no id.
pub(crate) fn of_coordinate(scene: &Scene, record: &Record) -> String {
    let mut name = scene.topic.as_bytes().to_vec();
    name.extend_from_slice(&0_u32.to_be_bytes());
    name.extend_from_slice(&record.partition.to_be_bytes());
    name.extend_from_slice(&record.offset.to_be_bytes());
    Uuid::new_v5(&FROM_COORDINATE, &name).to_string()
}

fn properties(row: &Row) -> Value {
    serde_json::from_str(&row.properties).unwrap()
}

/// Sends records and returns, by the name of their event, each with its row.
fn through(scene: &Scene, records: Vec<Record>) -> HashMap<String, (Record, Row)> {
    let time = record_time();
    let records = records.into_iter().map(|record| Record {
        timestamp: Some(time),
        ..record
    });
    let sent = scene.produce(records.collect());
    let worker = scene.start().ready();
    scene.settled();
    assert_eq!(worker.terminate().code(), Some(0));
    let rows = scene.rows();
    assert_eq!(scene.rejects(&scene.dead_letters), []);
    assert_eq!(rows.len(), sent.len());
    let row = |record: &Record| {
        rows.iter()
            .find(|row| row.place() == record.place())
            .unwrap()
            .clone()
    };
    sent.into_iter()
        .map(|record| (row(&record), record))
        .map(|(row, record)| (row.event.clone(), (record, row)))
        .collect()
}

#[test]
fn a_plain_event_becomes_a_row_with_every_column() {
    let scene = Scene::new("plain", 3);
    let exact =
        r#"{ "big" : 9007199254740993,"small":1e-7, "text":"\u00e9\n\u0000\ud83d", "nested":{"a":[1,{}]} }"#;
    let begin = jiff::Timestamp::now().as_millisecond();
    let found = through(
        &scene,
        vec![
            Record::of(
                2,
                format!(
                    r#"{{"token":" proj ","event":"all","distinct_id":" user 1 ","uuid":"{}","timestamp":"2024-03-01T10:20:30.123999+02:00","properties":{exact}}}"#,
                    UUID.to_uppercase()
                ),
            ),
            Record::of(
                1,
                r#"{"api_key":"proj","event":"least","$distinct_id":12345678901234567890123}"#,
            ),
            Record::of(
                0,
                r#"{"event":"inside","properties":{"token":"proj","distinct_id":{"a": [1, 2]}},"uuid":"","extra":{"x":1},"ip":"10.0.0.1"}"#,
            ),
            Record::of(
                0,
                r#"{"token":"proj","event":"text id","distinct_id":"d","uuid":"order 77"}"#,
            ),
            Record::of(
                0,
                r#"{"token":"proj","event":"braces","distinct_id":"d","uuid":"{0000018f3c1e7a2b7c3d8e4f01234567}"}"#,
            ),
            Record::of(
                0,
                r#"{"token":"proj","event":"urn","distinct_id":"d","uuid":"urn:uuid:118f3c1e-7a2b-7c3d-8e4f-0123456789ab"}"#,
            ),
            Record::of(
                0,
                format!(
                    r#"{{"token":"proj","event":"long","distinct_id":"{}"}}"#,
                    "é".repeat(300)
                ),
            ),
            Record::of(
                0,
                r#"{"token":"proj","event":"offset","distinct_id":"d","now":"2024-03-01T00:00:10Z","offset":1500}"#,
            ),
            Record::of(
                0,
                r#"{"token":"proj","event":"date","distinct_id":"d","timestamp":"1999-12-31"}"#,
            ),
        ],
    );
    let (record, row) = &found["all"];
    let ingested_at = row.ingested_at;
    assert!(ingested_at >= begin && ingested_at <= jiff::Timestamp::now().as_millisecond());
    let expected = Row {
        uuid: UUID.to_owned(),
        token: "proj".to_owned(),
        event: "all".to_owned(),
        distinct_id: " user 1 ".to_owned(),
        timestamp: ms("2024-03-01T08:20:30.123Z"),
        properties: exact.to_owned(),
        topic: scene.topic.clone(),
        incarnation: 0,
        partition: 2,
        offset: record.offset,
        ingested_at,
    };
    assert_eq!(*row, expected);

    let (record, row) = &found["least"];
    assert_eq!(row.uuid, of_coordinate(&scene, record));
    assert_eq!(
        (row.token.as_str(), row.distinct_id.as_str()),
        ("proj", "12345678901234567890123")
    );
    assert_eq!(
        (Some(row.timestamp), row.properties.as_str()),
        (record.timestamp, "{}")
    );

    let (record, row) = &found["inside"];
    assert_eq!(row.uuid, of_coordinate(&scene, record), "an empty uuid is none");
    assert_eq!(
        (row.token.as_str(), row.distinct_id.as_str()),
        ("proj", r#"{"a":[1,2]}"#)
    );
    assert_eq!(
        properties(row),
        json!({"token": "proj", "distinct_id": {"a": [1, 2]}, "extra": {"x": 1}, "$ip": "10.0.0.1"})
    );

    assert_eq!(
        found["text id"].1.uuid,
        Uuid::new_v5(&FROM_TEXT, b"proj\0order 77").to_string()
    );
    assert_eq!(found["braces"].1.uuid, "0000018f-3c1e-7a2b-7c3d-8e4f01234567");
    assert_eq!(found["urn"].1.uuid, "118f3c1e-7a2b-7c3d-8e4f-0123456789ab");
    assert_eq!(found["long"].1.distinct_id, "é".repeat(200));
    assert_eq!(found["offset"].1.timestamp, ms("2024-03-01T00:00:08.5Z"));
    assert_eq!(found["date"].1.timestamp, ms("1999-12-31T00:00:00Z"));
}

#[test]
fn a_captured_event_becomes_a_row_with_every_column() {
    let scene = Scene::new("captured", 1);
    let captured = |event: &str, outer: Value, data: &Value| {
        let mut body = json!({"uuid": Uuid::now_v7().to_string(), "distinct_id": "outer", "ip": "10.1.2.3", "data": data.to_string(), "now": "2024-03-01T00:01:00Z", "sent_at": "2024-03-01T00:00:50Z", "token": "proj", "event": event});
        for (name, value) in outer.as_object().unwrap() {
            body[name] = value.clone();
        }
        Record::of(0, body.to_string())
    };
    let data = json!({"event": "inner", "distinct_id": "inner", "timestamp": "2024-03-01T00:00:40Z", "properties": {"a": 1, "$ip": "from the client"}, "site": "x"});
    let found = through(
        &scene,
        vec![
            captured(
                "final",
                json!({"timestamp": "2024-03-01T00:00:01.5Z", "is_cookieless_mode": false}),
                &data,
            ),
            captured("corrected", json!({}), &data),
            captured("unsent", json!({"sent_at": "", "ip": ""}), &data),
            captured(
                "offset",
                json!({"sent_at": null}),
                &json!({"event": "inner", "offset": 2500, "properties": {}}),
            ),
        ],
    );
    let (_, row) = &found["final"];
    assert_eq!(
        (row.token.as_str(), row.distinct_id.as_str()),
        ("proj", "outer"),
        "the outer fields win"
    );
    assert_eq!(
        row.timestamp,
        ms("2024-03-01T00:00:01.5Z"),
        "the outer time is final"
    );
    assert_eq!(
        properties(row),
        json!({"a": 1, "$ip": "from the client", "site": "x", "$sent_at": "2024-03-01T00:00:50Z", "is_cookieless_mode": false})
    );
    assert_eq!(
        found["corrected"].1.timestamp,
        ms("2024-03-01T00:00:50Z"),
        "moved by what the client's clock is off"
    );
    assert_eq!(found["unsent"].1.timestamp, ms("2024-03-01T00:00:40Z"));
    assert_eq!(found["offset"].1.timestamp, ms("2024-03-01T00:00:57.5Z"));
    assert_eq!(properties(&found["offset"].1), json!({"$ip": "10.1.2.3"}));
}

#[test]
fn headers_stand_in_for_what_the_body_lacks_and_for_nothing_else() {
    let scene = Scene::new("headers", 1);
    let headers = |record: Record| {
        record
            .header("token", "from header")
            .header("distinct_id", "header user")
            .header("uuid", UUID)
            .header("timestamp", "1709251200123")
    };
    let mut null = Record::of(0, r#"{"token":"t","event":"null","distinct_id":"d"}"#);
    null.headers.push(("uuid".to_owned(), None));
    let found = through(
        &scene,
        vec![
            headers(Record::of(
                0,
                r#"{"event":"bare","token":null,"distinct_id":" "}"#,
            )),
            headers(Record::of(
                0,
                r#"{"event":"full","token":"body","distinct_id":"body user","uuid":"218f3c1e-7a2b-7c3d-8e4f-0123456789ab","timestamp":"2024-03-01T00:00:00Z"}"#,
            )),
            Record::of(0, r#"{"event":"last","distinct_id":"d"}"#)
                .header("token", "one")
                .header("token", "two"),
            null,
        ],
    );
    let row = |event: &str| &found[event].1;
    let bare = row("bare");
    assert_eq!(
        (bare.token.as_str(), bare.distinct_id.as_str(), bare.uuid.as_str()),
        ("from header", "header user", UUID)
    );
    assert_eq!(bare.timestamp, 1_709_251_200_123);
    let full = row("full");
    assert_eq!(
        (full.token.as_str(), full.distinct_id.as_str()),
        ("body", "body user")
    );
    assert_eq!(
        (full.uuid.as_str(), full.timestamp),
        ("218f3c1e-7a2b-7c3d-8e4f-0123456789ab", ms("2024-03-01T00:00:00Z"))
    );
    assert_eq!(row("last").token, "two");
    assert_eq!(row("null").uuid, of_coordinate(&scene, &found["null"].0));
}

#[test]
fn redis_remembers_users_and_claims_and_everything_in_it_ends_or_is_bounded() {
    let mut scene = Scene::new("redis", 2);
    // The layout that can be read.
    scene.set("dedup.layout", "keys");
    let event = |partition, name: &str, more: &str| {
        Record::of(
            partition,
            format!(
                r#"{{"token":"a:b","event":"{name}","distinct_id":"u{{1}}","timestamp":"2024-03-01T00:00:00Z"{more}}}"#
            ),
        )
    };
    let found = through(
        &scene,
        vec![
            event(
                1,
                "1",
                &format!(
                    r#","uuid":"{UUID}","$set":{{"name":"top","gone":1}},"properties":{{"$set":{{"name":"below","big":12345678901234567890}}}}"#
                ),
            ),
            event(
                1,
                "2",
                r#","$set_once":{"name":"late","first":true},"$unset":["gone"]"#,
            ),
            event(
                1,
                "3",
                r#","$set":{"profile":"none"},"properties":{"$process_person_profile":false}"#,
            ),
            event(1, "$groupidentify", r#","$set":{"group":1}"#),
        ],
    );
    let mut redis = scene.redis();
    let key = |key: &str| scene.key(key);
    let person: HashMap<String, String> = redis.hgetall(key("user:{a%3Ab:u%7B1%7D}")).unwrap();
    let told: HashMap<&str, &str> = person
        .iter()
        .filter(|(name, _)| !name.starts_with('\0'))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        told,
        HashMap::from([
            ("name", "\"top\""),
            ("big", "12345678901234567890"),
            ("first", "true")
        ])
    );

    let source: i64 = redis
        .hget(key("config:sources"), format!("{}:0", scene.topic))
        .unwrap();
    let claim: i64 = redis.get(key(&format!("event:dedup:{{a%3Ab:{UUID}}}"))).unwrap();
    let (record, _) = &found["1"];
    assert_eq!(
        claim,
        source << 56 | i64::from(record.partition) << 40 | record.offset,
        "source, partition, offset"
    );
    let lives: i64 = redis.ttl(key(&format!("event:dedup:{{a%3Ab:{UUID}}}"))).unwrap();
    assert!((86_000..=86_400).contains(&lives), "{lives}");

    let timeline: Vec<(String, f64)> = redis
        .zrange_withscores(key("timeline:user:{a%3Ab:u%7B1%7D}"), 0, -1)
        .unwrap();
    let mut expected: Vec<(String, f64)> = found
        .values()
        .map(|(_, row)| (format!("{}:{}", row.uuid, row.event), row.timestamp as f64))
        .collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(timeline, expected);
    let lives: i64 = redis.ttl(key("timeline:user:{a%3Ab:u%7B1%7D}")).unwrap();
    assert!((2_590_000..=2_592_000).contains(&lives), "30 days: {lives}");
    let actions: Vec<String> = redis.lrange(key("recent_actions:{a%3Ab}"), 0, -1).unwrap();
    let actions: Vec<Value> = actions
        .iter()
        .map(|action| serde_json::from_str(action).unwrap())
        .collect();
    assert_eq!(
        actions[3],
        json!({"uuid": UUID, "event": "1", "distinct_id": "u{1}", "timestamp": ms("2024-03-01T00:00:00Z")})
    );
    let counted: i64 = redis.get(key("counter:events:{a%3Ab}")).unwrap();
    assert_eq!((counted, actions.len()), (4, 4));

    for key in scene.keys() {
        let lives: i64 = redis.ttl(scene.key(&key)).unwrap();
        // What an operator or a deployment sets: a handful, whatever the load.
        let set_once =
            ["config:sources", "config:dedup_layout", "config:app_version"].contains(&key.as_str());
        assert!(
            lives > 0 || set_once,
            "{key} has neither a time to live nor a bound"
        );
    }
}

#[test]
fn timelines_and_recent_actions_keep_the_newest_hundred() {
    let scene = Scene::new("newest", 1);
    let records = (0..260).map(|n| {
        // Not in the order of their times.
        let time = jiff::Timestamp::from_millisecond(1_709_251_200_000 + (n * 77 % 260) * 1000).unwrap();
        Record::of(
            0,
            format!(
                r#"{{"token":"t","event":"{}","distinct_id":"d","timestamp":"{time}"}}"#,
                "x".repeat(60) + &n.to_string()
            ),
        )
    });
    scene.produce(records.collect());
    let worker = scene.start().ready();
    scene.settled();
    let mut redis = scene.redis();
    let timeline: Vec<(String, f64)> = redis
        .zrange_withscores(scene.key("timeline:user:{t:d}"), 0, -1)
        .unwrap();
    let times: Vec<i64> = timeline.iter().map(|(_, time)| *time as i64).collect();
    let newest: Vec<i64> = (160..260).map(|n| 1_709_251_200_000 + n * 1000).collect();
    assert_eq!(times, newest);
    assert!(
        timeline.iter().all(|(member, _)| member.len() == 64),
        "cut so that Redis keeps it small"
    );
    let encoding = || -> String {
        let mut ask = redis::cmd("OBJECT");
        ask.arg("ENCODING").arg(scene.key("timeline:user:{t:d}"));
        ask.query(&mut scene.redis()).unwrap()
    };
    assert_eq!(encoding(), "listpack");
    let actions: Vec<String> = redis.lrange(scene.key("recent_actions:{t}"), 0, -1).unwrap();
    let names: Vec<String> = actions
        .iter()
        .map(|a| {
            serde_json::from_str::<Value>(a).unwrap()["event"]
                .as_str()
                .unwrap()
                .trim_start_matches('x')
                .to_owned()
        })
        .collect();
    let latest: Vec<String> = (160..260).rev().map(|n: i32| n.to_string()).collect();
    assert_eq!(names, latest);

    // A block that comes on top of a full timeline does not make it too large for a listpack, even for a moment.
    let more = (260..360).map(|n: i64| {
        let time = jiff::Timestamp::from_millisecond(1_709_251_200_000 + n * 1000).unwrap();
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"more","distinct_id":"d","timestamp":"{time}"}}"#),
        )
    });
    scene.produce(more.collect());
    scene.settled();
    let first: Vec<(String, f64)> = redis
        .zrange_withscores(scene.key("timeline:user:{t:d}"), 0, 0)
        .unwrap();
    assert_eq!(first[0].1 as i64, 1_709_251_200_000 + 260 * 1000);
    assert_eq!(encoding(), "listpack");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_users_properties_are_bounded_and_what_is_cut_is_counted() {
    let scene = Scene::new("bounded", 1);
    let sets = |set: &str| {
        Record::of(
            0,
            format!(r#"{{"token":"t","event":"e","distinct_id":"d","$set":{{{set}}}}}"#),
        )
    };
    let many: Vec<String> = (0..700).map(|n| format!(r#""name {n}":{n}"#)).collect();
    let (long_name, long_value) = ("n".repeat(257), "v".repeat(4_095));
    scene.produce(vec![
        sets(r#""first":1"#),
        sets(&format!(r#""{long_name}":1,"long":"{long_value}""#)),
        sets(&many.join(",")),
        // What is there can still change, and make room.
        sets(r#""first":2"#),
    ]);
    let worker = scene.start().ready();
    scene.settled();
    let user: HashMap<String, String> = scene.redis().hgetall(scene.key("user:{t:d}")).unwrap();
    assert_eq!(user.len(), 500 + 1, "and the hidden one");
    assert_eq!(user["first"], "2");
    assert!(user.contains_key("name 0") && !user.contains_key("name 699"));
    assert!(!user.contains_key(&long_name) && !user.contains_key("long"));
    // The first leaves room for 499.
    let cut = worker.metric("sluice_user_properties_cut_total");
    assert_eq!(cut, Some(f64::from(700 - 499 + 2)));
    assert_eq!(scene.rows().len(), 4, "the events keep everything");
    assert_eq!(worker.terminate().code(), Some(0));
}
