//! What decoding costs an event: the two shapes as SDKs and capture send them, about 500 bytes each, by
//! themselves and mixed as in one topic; and the same plain payloads through `serde_json` alone, as the
//! mark that the scanner has to beat.

use std::borrow::Cow;
use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use sluice::event::{Decoded, Headers, Place, Record, decode};

const EVENTS: u32 = 1000;
const PLACE: Place<'static> = Place {
    topic: "events",
    incarnation: 0,
    partition: 0,
};

fn main() {
    let plain: Vec<_> = (0..EVENTS).map(plain_event).collect();
    let captured: Vec<_> = (0..EVENTS).map(captured_event).collect();
    let mixed: Vec<_> = (0..EVENTS)
        .map(|i| {
            if i % 2 == 0 {
                plain_event(i)
            } else {
                captured_event(i)
            }
        })
        .collect();

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS.into()));
    for (name, payloads) in [("plain", &plain), ("captured", &captured), ("mixed", &mixed)] {
        let mut out = Decoded::default();
        decode_all(payloads, &mut out);
        assert_eq!(out.events.len(), payloads.len(), "{name}: {:?}", out.rejected);
        group.bench_function(name, |bencher| bencher.iter(|| decode_all(payloads, &mut out)));
    }
    group.bench_function("plain, serde_json alone", |bencher| {
        bencher.iter(|| serde_all(&plain));
    });
    group.finish();
    criterion.final_summary();
}

fn decode_all(payloads: &[(String, Vec<u8>)], out: &mut Decoded) {
    out.clear();
    for (index, (payload, headers)) in (0..).zip(payloads) {
        let record = Record {
            offset: i64::from(index),
            timestamp: 1_714_564_800_000,
            key: None,
            payload: Some(black_box(payload.as_bytes())),
            headers: Headers(headers),
        };
        decode(&PLACE, index, &record, out);
    }
}

/// Finds the members of the object and of its properties, with their text, and does nothing else of what
/// decoding does.
fn serde_all(payloads: &[(String, Vec<u8>)]) -> serde_json::Result<()> {
    for (payload, _) in payloads {
        if let Some(properties) = serde_json::from_str::<Members<'_>>(black_box(payload))?.properties {
            black_box(serde_json::from_str::<Members<'_>>(properties.get())?);
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// An object, gone through member by member without a map.
struct Members<'a> {
    properties: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Through;

        impl<'de> Visitor<'de> for Through {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members { properties: None };
                while let Some((name, value)) = map.next_entry::<Name<'de>, &RawValue>()? {
                    if black_box(name.0) == "properties" {
                        members.properties = Some(value);
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Through)
    }
}

fn properties(i: u32) -> String {
    format!(
        r#"{{"$lib":"posthog-python","$lib_version":"3.7.0","$os":"Linux","$browser":"Chrome","$current_url":"https://shop.example/products/{}?page={}","$session_id":"0190b6a8-3f10-7c9a-9d1e-{:012x}","price":{}.99,"quantity":{},"tags":["a","b","c"],"$set":{{"plan":"pro","seats":{}}}}}"#,
        i * 7 % 1000,
        i % 20,
        i,
        i % 500,
        i % 9,
        i % 40,
    )
}

fn plain_event(i: u32) -> (String, Vec<u8>) {
    let payload = format!(
        r#"{{"token":"phc_{:032}","event":"product viewed","distinct_id":"user-{}","uuid":"0190b6a8-3f10-7c9a-8d1e-{:012x}","timestamp":"2024-05-01T11:{:02}:{:02}.{:03}Z","properties":{}}}"#,
        i / 100,
        i * 31 % 5000,
        i,
        i % 60,
        i % 59,
        i % 1000,
        properties(i),
    );
    (payload, Vec::new())
}

fn captured_event(i: u32) -> (String, Vec<u8>) {
    let (token, distinct_id) = (format!("phc_{:032}", i / 100), format!("user-{}", i * 31 % 5000));
    let uuid = format!("0190b6a8-3f10-7c9a-8d1e-{i:012x}");
    // A third less of properties: the wrapping counts too.
    let data = format!(
        r#"{{"event":"product viewed","properties":{{"$lib":"web","distinct_id":"{distinct_id}","$current_url":"https://shop.example/products/{}","price":{}.99}},"offset":3}}"#,
        i * 7 % 1000,
        i % 500,
    );
    let payload = format!(
        r#"{{"uuid":"{uuid}","distinct_id":"{distinct_id}","ip":"203.0.113.{}","data":{},"now":"2024-05-01T12:00:00.123456Z","sent_at":"2024-05-01T12:00:00.1Z","token":"{token}","event":"product viewed","timestamp":"2024-05-01T11:59:59.{:03}Z"}}"#,
        i % 250,
        serde_json::Value::from(data),
        i % 1000,
    );
    let mut headers = Vec::new();
    for (name, value) in [
        ("token", &*token),
        ("distinct_id", &*distinct_id),
        ("timestamp", "1714564799000"),
        ("uuid", &*uuid),
    ] {
        Headers::encode(&mut headers, name.as_bytes(), Some(value.as_bytes()));
    }
    (payload, headers)
}
