//! Records as real clients send them, in either shape, with the oddities that official SDKs were seen to have; and
//! those that `sluice generate` makes.

use sluice::generate::{Generator, Plan, Shape};

use super::Case;

/// 2024-05-01T12:00:00Z.
pub(super) const RECORD_TIME: i64 = 1_714_564_800_000;

const PLAIN: [&str; 17] = [
    r#"{"token":"phc_abc","event":"$pageview","distinct_id":"u-1","uuid":"0190b6a8-3f10-7c9a-8d1e-00000000abcd","timestamp":"2024-05-01T11:59:58.123Z","properties":{"$lib":"web","$current_url":"https://example.com/?a=b","n":9007199254740993,"e":1e-7}}"#,
    // Empty uuids, the type beside them, and people in both places.
    r#"{"api_key":"phc_abc","uuid":"","type":"capture","library":"posthog-go","library_version":"1.2.0","timestamp":"2024-05-01T13:59:58.123456789+02:00","distinct_id":"u-2","event":"signed up","properties":{"$lib":"posthog-go","$set":{"plan":"free","email":"a@b.c"}},"$set":{"plan":"team"},"$set_once":{"first":"2024-05-01"}}"#,
    r#"{"api_key":"k","event":"e","distinct_id":1234567890123456789,"properties":{},"timestamp":"2024-05-01 11:59:58"}"#,
    r#"{"token":"t","event":"e","distinct_id":{"id": 1, "kind" : "guest"},"timestamp":"2024-05-01T11:59:58+03","uuid":"0190B6A83F107C9A8D1E00000000ABCD"}"#,
    r#"{"$token":"t","event":"$identify","$distinct_id":"u","properties":{"$anon_distinct_id":"a","distinct_id":"p","token":"p"},"$set":{"a":1,"b":[1,2]},"$unset":["c"],"uuid":"{0190b6a8-3f10-7c9a-8d1e-00000000abcd}"}"#,
    r#"{"event":"e","properties":{"token":"in-props","distinct_id":"in-props","$set":{"x":1.0,"y":"é"},"$set_once":{"x":2},"$unset":{"z":null}},"offset":1500,"now":"2024-05-01T12:00:00Z"}"#,
    r#"{"token":"t","event":"$groupidentify","distinct_id":"u","properties":{"$group_type":"company","$group_key":"k","$group_set":{"name":"x"}},"$set":{"a":1}}"#,
    r#"{"token":"t","event":"e","distinct_id":"u","properties":{"$process_person_profile":false,"$set":{"a":1}}}"#,
    r#"{"token":" t ","event":" e\u00e9 ","distinct_id":" u ","uuid":"order-17","ip":"203.0.113.7","sent_at":"2024-05-01T12:00:00Z","$ip":null,"context":{"a":[{}]}}"#,
    r#"{"token":"t","event":"e","distinct_id":"u","properties":{"cut":"\ud83d","nul":"\u0000","pair":"\ud83d\ude00","slash":"\/","ctl":"\u001f","quote":"\"\\"}}"#,
    r#"{"token":null,"event":"e","distinct_id":"","uuid":null,"timestamp":"","properties":null}"#,
    r#"{"token":"t","event":"e","distinct_id":"u","timestamp":"2024-05-01","uuid":"urn:uuid:0190b6a8-3f10-7c9a-8d1e-00000000abcd","$unset":{"a":1,"b":2},"properties":{"$unset":["b","c"]}}"#,
    r#"{"token":"t","event":"e","event":"f","distinct_id":"u","properties":{"a":1,"a":2},"x":1,"x":2}"#,
    "{ \"token\" : \"t\" ,\r\n\t\"event\":\"e\", \"distinct_id\" : \"u\" , \"properties\" : { \"a\" : [ 1 , { } ] } }\n",
    r#"{"token":"t","event":"e","distinct_id":"u","data":{"a":1},"properties":{"data":"{}"}}"#,
    r#"{"token":"t","event":"e","distinct_id":"u","timestamp":"1969-12-31T23:59:59.9999Z"}"#,
    r#"{"token":"t","event":"$create_alias","distinct_id":"u","properties":{"alias":"v","$set":{"a":{"b":{"c":[[[]]]}}}}}"#,
];

/// The event within `data`, and what stands beside it.
const CAPTURED: [(&str, &str); 10] = [
    (
        r#"{"uuid":"0190b6a8-3f10-7c9a-8d1e-00000000abcd","offset":1234,"event":"$pageview","distinct_id":"u-1","properties":{"token":"t","$lib":"web","big":9007199254740993,"s":"a\"b\\c\nd"}}"#,
        r#""uuid":"0190b6a8-3f10-7c9a-8d1e-00000000abcd","distinct_id":"u-1","ip":"203.0.113.7","now":"2024-05-01T12:00:00.123456Z","sent_at":"2024-05-01T11:59:59.900Z","token":"t","event":"$pageview","timestamp":"2024-05-01T11:59:58.889Z","is_cookieless_mode":false,"historical_migration":false"#,
    ),
    (
        r#"{"event":"e","distinct_id":"u","timestamp":"2024-05-01T10:59:58.0006Z","properties":{"$set":{"a":1}},"$set":{"a":2,"b":3}}"#,
        r#""uuid":"","distinct_id":"u","ip":"","now":"2024-05-01T12:00:00.0001Z","sent_at":"2024-05-01T11:00:00.0009Z","token":"t","event":"e""#,
    ),
    (
        r#"{"event":"inner","distinct_id":7,"token":"inner","uuid":"inner","a":1,"b":2,"$unset":["x"]}"#,
        r#""a":"outer","token":"","event":null,"distinct_id":" ","uuid":null,"sent_at":"","now":"2024-05-01T12:00:00Z""#,
    ),
    (
        r#"{"event":"e","distinct_id":"u","offset":-250.9,"properties":{"a":"\ud83d","b":"\u0000"}}"#,
        r#""token":"t","now":"2024-05-01T12:00:00Z","sent_at":"""#,
    ),
    (
        r#"{"properties":{"x":[1,[2,{"deep":null}]]}}"#,
        r#""token":"t","event":"e","distinct_id":"u""#,
    ),
    (
        r#"{"event":"e","timestamp":"2024-05-01T11:59:58Z","sent_at":"2024-05-01T11:59:59Z"}"#,
        r#""token":"t","distinct_id":"u","now":"2024-05-01T12:00:01Z","$set":{"o":1},"$set_once":{}"#,
    ),
    (
        r#"{"event":"$groupidentify","data":"{\"event\":\"third\"}","properties":{"data":"x"}}"#,
        r#""token":"t","distinct_id":"u","ip":"::1","$ip":"::2","flag":null"#,
    ),
    (
        "{}",
        r#""token":"t","event":"e","distinct_id":"u","now":"2024-05-01T12:00:00Z""#,
    ),
    (
        r#" { "event" : "e" , "distinct_id" : "ü" , "properties" : { "é" : "名前" } } "#,
        r#""token":"t","now":"""#,
    ),
    (
        r#"{"api_key":"k","event":"e","$distinct_id":"u","timestamp":"","offset":10,"properties":{"$process_person_profile":false},"$set":{"a":1}}"#,
        r#""now":"2024-05-01T12:00:00+01:00","timestamp":null"#,
    ),
];

/// How many of the generator's records are seeds; one in five is bad.
const GENERATED: u64 = 60;

pub(super) fn all(seed: u64) -> Vec<Case> {
    let case = |payload: &str| Case {
        payload: Some(payload.into()),
        timestamp: RECORD_TIME,
        ..Case::default()
    };
    let mut all: Vec<Case> = PLAIN.into_iter().map(case).collect();
    for (data, beside) in CAPTURED {
        let data = serde_json::to_string(data).expect("text is JSON's");
        all.push(case(&format!(r#"{{"data":{data},{beside}}}"#)));
        all.push(case(&format!(r#"{{{beside},"data":{data}}}"#)));
    }
    let mut generator = Generator::new(Plan {
        seed,
        shape: Shape::Mixed,
        tokens: 8,
        users: 100,
        duplicates: 0.1,
        bad: 0.2,
        hot: None,
        size: 400,
        until_ms: RECORD_TIME,
        span_ms: 3 * 86_400_000,
        late: 0.0,
    });
    for index in 0..GENERATED {
        let made = generator.record(index);
        // A megabyte of padding is no good start: `structure` makes its own.
        let payload = made.payload.filter(|payload| payload.len() < 100_000);
        all.push(Case {
            payload: payload.map(<[u8]>::to_vec),
            key: Some(made.key.to_vec()),
            timestamp: RECORD_TIME,
            ..Case::default()
        });
    }
    all
}
