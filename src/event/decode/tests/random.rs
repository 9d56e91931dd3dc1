//! Random events: what is accepted agrees with an independent reading by `serde_json`, and keeps its bytes.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::*;

/// Any JSON, as text with blanks in many places.
fn json(depth: u32) -> impl Strategy<Value = String> + Clone {
    let word = select(vec!["null", "true", "false"]).prop_map(str::to_owned);
    let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?";
    prop_oneof![word, number, string()].prop_recursive(depth, 32, 4, |json| {
        prop_oneof![
            vec(json.clone(), 0..4).prop_map(|items| format!("[ {} ]", items.join(" , "))),
            vec((string(), json), 0..4).prop_map(object),
        ]
    })
}

/// Any string that `serde_json` reads too, so without lone surrogates.
fn string() -> impl Strategy<Value = String> + Clone {
    let piece = prop_oneof![
        "[a-zé😀 $]{0,9}",
        select(vec![
            r"\\",
            r#"\""#,
            r"\u0061",
            r"\ud83d\ude00",
            r"\/",
            r"\n",
            r"\u0000"
        ])
        .prop_map(str::to_owned),
    ];
    vec(piece, 0..3).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<_> = members
        .into_iter()
        .map(|(name, value)| format!("{name} :\n{value}"))
        .collect();
    format!("{{{}}}", members.join(",\t"))
}

/// A member of an event: mostly names with a meaning, and values that fit about as often as not.
fn member() -> impl Strategy<Value = (String, String)> {
    let known = |names: Vec<&'static str>| select(names).prop_map(|name| format!("\"{name}\""));
    let name = prop_oneof![
        4 => known(vec![
            "token", "api_key", "$token", "event", "distinct_id", "$distinct_id", "uuid", "ip", "sent_at", "$ip",
            "properties", "$set", "$set_once", "$unset", "$process_person_profile", "x", "y",
        ]),
        1 => string(),
    ];
    let inner = known(vec![
        "$set",
        "$set_once",
        "$unset",
        "$process_person_profile",
        "x",
        "y",
        "$ip",
        "token",
    ]);
    let value = prop_oneof![
        1 => json(3),
        2 => vec((inner, prop_oneof![json(1), vec((string(), json(1)), 0..4).prop_map(object)]), 0..6)
            .prop_map(object),
        1 => vec(string(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
    ];
    (name, value)
}

fn names(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => Some(
            items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        ),
        Value::Object(members) => Some(members.keys().cloned().collect()),
        _ => None,
    }
}

/// The rules about properties once more, by maps.
fn expected_properties(body: &Map<String, Value>) -> Map<String, Value> {
    let get = |name: &str| body.get(name).filter(|value| !value.is_null());
    let mut properties = get("properties")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for name in ["$set", "$set_once"] {
        let Some(top) = get(name) else { continue };
        match (top.as_object(), properties.get_mut(name)) {
            (Some(top), Some(Value::Object(own))) => own.extend(top.clone()),
            (None, Some(_)) => {}
            _ => drop(properties.insert(name.to_owned(), top.clone())),
        }
    }
    if let Some(top) = get("$unset") {
        match (names(top), properties.get("$unset").map(names)) {
            (Some(mut all), Some(Some(own))) => {
                all.extend(own);
                properties.insert("$unset".to_owned(), all.into());
            }
            (None, Some(_)) => {}
            _ => drop(properties.insert("$unset".to_owned(), top.clone())),
        }
    }
    let known = [
        "token",
        "api_key",
        "$token",
        "event",
        "distinct_id",
        "$distinct_id",
        "uuid",
        "ip",
        "sent_at",
        "properties",
        "$set",
        "$set_once",
        "$unset",
    ];
    for (name, value) in body.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
        properties.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (field, name) in [("ip", "$ip"), ("sent_at", "$sent_at")] {
        if let Some(value) = get(field).filter(|value| value.as_str() != Some("")) {
            properties.entry(name).or_insert_with(|| value.clone());
        }
    }
    properties
}

/// Names to unset in an order of their own, each once.
fn sorted(properties: &mut Map<String, Value>) -> Option<Vec<String>> {
    let unset = properties.remove("$unset")?;
    let Some(mut names) = names(&unset) else {
        return Some(vec![unset.to_string()]);
    };
    names.sort();
    names.dedup();
    Some(names)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_accepted_agrees_with_a_reading_by_serde(members in vec(member(), 0..9)) {
        let first = ["token", "event", "distinct_id"].map(|name| (format!("\"{name}\""), "\"v\"".to_owned()));
        let text = object(first.into_iter().chain(members).collect());
        let body: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let seen = match seen(&text) {
            Ok(seen) => seen,
            Err(reason) => {
                let about = |names: &[&str]| names.iter().any(|name| body.contains_key(*name));
                // Random members may take away what the first ones gave, and nothing else is wrong.
                prop_assert!(match reason {
                    Reason::PropertiesNotAnObject => !body["properties"].is_object(),
                    Reason::MissingToken => body["token"].as_str().is_none_or(|token| token.trim().is_empty()),
                    Reason::MissingEvent => body["event"].as_str().is_none_or(str::is_empty),
                    Reason::BadToken | Reason::BadEvent | Reason::BadDistinctId => text.contains(r"\u0000") || !text.is_ascii(),
                    Reason::TokenTooLong => about(&["token", "api_key", "$token"]),
                    Reason::MissingDistinctId => !body["distinct_id"].is_number(),
                    _ => false,
                }, "{} {}", reason, text);
                return Ok(());
            }
        };
        prop_assert_eq!(Some(&*seen.event), body["event"].as_str());
        let mut expected = expected_properties(&body);
        let mut properties: Map<String, Value> = serde_json::from_str(&seen.properties).unwrap();
        let person = expected.get("$process_person_profile") != Some(&Value::Bool(false)) && seen.event != "$groupidentify";
        for (name, ours) in [("$set", &seen.set), ("$set_once", &seen.set_once)] {
            let theirs = expected.get(name).filter(|set| person && set.as_object().is_some_and(|set| !set.is_empty()));
            let ours = ours.as_deref().map(|set| serde_json::from_str::<Value>(set).unwrap());
            prop_assert_eq!(ours.as_ref(), theirs, "{} {}", name, text);
        }
        let theirs = expected.get("$unset").and_then(names).filter(|names| person && !names.is_empty());
        let ours = seen.unset.map(|unset| serde_json::from_str::<Vec<String>>(&unset).unwrap());
        prop_assert_eq!(ours.map(|mut names| { names.sort(); names.dedup(); names }),
            theirs.map(|mut names| { names.sort(); names.dedup(); names }));
        prop_assert_eq!(sorted(&mut properties), sorted(&mut expected));
        prop_assert_eq!(properties, expected, "{}", text);
    }

    #[test]
    fn every_property_keeps_its_bytes(own in json(4), extra in json(4), top in json(3), inner in json(3)) {
        let properties = format!(r#"{{"own":{own},"$set":{{"b":{inner}}}}}"#);
        let members = format!(r#""extra":{extra},"$set":{{"a":{top}}},"properties":{properties}"#);
        for seen in [plain(&members).unwrap(), captured(&members, "").unwrap()] {
            let raw: HashMap<String, &RawValue> = serde_json::from_str(&seen.properties).unwrap();
            prop_assert_eq!(raw["own"].get(), &own);
            prop_assert_eq!(raw["extra"].get(), &extra);
            prop_assert_eq!(raw["$set"].get(), seen.set.as_deref().unwrap());
            let set: HashMap<String, &RawValue> = serde_json::from_str(raw["$set"].get()).unwrap();
            prop_assert_eq!((set["a"].get(), set["b"].get()), (&*top, &*inner));
        }
    }

    #[test]
    fn a_valid_event_comes_back_in_either_shape(
        names in ("[!-~]{1,64}", "\\PC{1,100}", "\\PC{0,50}[a-z]\\PC{0,50}"),
        uuid: u128,
        ms in 0..RECORD_TIME,
        own in json(4),
    ) {
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let (token, event, distinct_id) = names;
        let uuid = uuid::Uuid::from_u128(uuid).to_string();
        let time = jiff::Timestamp::from_millisecond(ms).unwrap();
        let head = format!(
            r#""token":{},"event":{},"distinct_id":{},"uuid":"{uuid}","timestamp":"{time}""#,
            quoted(&token), quoted(&event), quoted(&distinct_id),
        );
        let properties = format!(r#"{{"a":{own}}}"#);
        let plain = format!(r#"{{{head},"properties":{properties}}}"#);
        let data = quoted(&format!(r#"{{"properties":{properties}}}"#));
        let captured = format!(r#"{{{head},"data":{data},"now":"2024-05-01T12:00:00Z"}}"#);
        let expected = Seen {
            token, event, distinct_id, timestamp: ms, uuid, id: "uuid".to_owned(), properties,
            set: None, set_once: None, unset: None, origin: None,
        };
        prop_assert_eq!(seen(&plain).unwrap(), expected.clone());
        prop_assert_eq!(seen(&captured).unwrap(), expected);
    }
}
