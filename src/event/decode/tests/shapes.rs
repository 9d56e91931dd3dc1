//! The payload as such, the two shapes, and what the records of a block share.

use proptest::prelude::*;

use super::*;
use crate::event::MAX_DEPTH;

#[test]
fn a_record_without_a_payload_is_empty() {
    assert_eq!(decode_bytes(None, 0, &[]), Err(Reason::Empty));
    assert_eq!(decode_bytes(Some(b""), 0, &[]), Err(Reason::Empty));
}

#[test]
fn a_payload_must_be_utf8_json_and_an_object() {
    assert_eq!(
        decode_bytes(Some(b"{\"a\":\"\xff\"}"), 0, &[]),
        Err(Reason::NotUtf8)
    );
    for json in [
        " ",
        "{",
        "{}}",
        "{,}",
        r#"{"a":1,}"#,
        r#"{"a" 1}"#,
        "{'a':1}",
        "\u{feff}{}",
        "[1",
        "nul",
        r#"{"a":01}"#,
    ] {
        assert_eq!(seen(json), Err(Reason::NotJson), "{json}");
    }
    for json in ["[]", "1", "null", r#""{}""#, " [{}] "] {
        assert_eq!(seen(json), Err(Reason::NotAnObject), "{json}");
    }
}

#[test]
fn anything_behind_the_object_is_an_error() {
    let event = r#"{"token":"t","event":"e","distinct_id":"u"}"#;
    assert!(seen(&format!(" \r\n\t{event}\n ")).is_ok());
    for tail in ["x", "{}", ",", "\0", event] {
        assert_eq!(seen(&format!("{event}{tail}")), Err(Reason::NotJson), "{tail}");
    }
}

#[test]
fn a_payload_that_a_broker_takes_by_default_is_not_too_large() {
    let event = |len: usize| {
        let frame = r#"{"token":"t","event":"e","distinct_id":"u","properties":{"a":""}}"#;
        frame.replace(
            r#""a":"""#,
            &format!(r#""a":"{}""#, "x".repeat(len - frame.len())),
        )
    };
    // A batch of one record has at least 61 bytes around it.
    assert!(seen(&event(1_048_588 - 61)).is_ok());
    assert!(seen(&event(MAX_PAYLOAD)).is_ok());
    assert_eq!(seen(&event(MAX_PAYLOAD + 1)), Err(Reason::TooLarge));
}

#[test]
fn nesting_deeper_than_128_is_refused_in_either_text() {
    // Two levels are the event's and the properties'.
    let nested = |levels: u32| {
        let pairs = (levels as usize - 2) / 2;
        let (open, close) = if levels % 2 == 1 { ("[", "]") } else { ("", "") };
        let (opens, closes) = (r#"[{"a":"#.repeat(pairs), "}]".repeat(pairs));
        format!(r#""properties":{{"a":{opens}{open}0{close}{closes}}}"#)
    };
    for levels in [MAX_DEPTH - 1, MAX_DEPTH] {
        assert!(plain(&nested(levels)).is_ok());
        assert!(captured(&nested(levels), "").is_ok());
    }
    assert_eq!(plain(&nested(MAX_DEPTH + 1)), Err(Reason::TooDeep));
    assert_eq!(captured(&nested(MAX_DEPTH + 1), ""), Err(Reason::TooDeep));
    assert_eq!(seen(&"[".repeat(1_000_000)), Err(Reason::TooDeep));
}

#[test]
fn brackets_in_strings_are_no_nesting_and_neither_are_neighbours() {
    let brackets = "[{".repeat(200);
    assert!(plain(&format!(r#""properties":{{"a":"\"{brackets}"}}"#)).is_ok());
    assert!(plain(&format!(r#""properties":{{"a":[{}[]]}}"#, "[],{},".repeat(200))).is_ok());
}

#[test]
fn properties_must_be_an_object_or_missing() {
    for none in ["", r#""properties":null"#, r#""properties":{}"#] {
        assert_eq!(plain(none).unwrap().properties, "{}");
        assert_eq!(captured(none, "").unwrap().properties, "{}");
    }
    for bad in ["[]", r#""""#, "1", "true"] {
        let bad = format!(r#""properties":{bad}"#);
        assert_eq!(plain(&bad), Err(Reason::PropertiesNotAnObject), "{bad}");
        assert_eq!(captured(&bad, ""), Err(Reason::PropertiesNotAnObject), "{bad}");
    }
}

#[test]
fn of_a_name_that_stands_twice_the_last_one_counts() {
    let twice = plain(r#""event":"f","properties":{"a":1,"$set":{"x":1}},"properties":{"b":2}"#).unwrap();
    assert_eq!(
        (&*twice.event, &*twice.properties, twice.set),
        ("f", r#"{"b":2}"#, None)
    );
    let twice = plain(r#""a":3,"properties":{"a":1},"properties":{"b":2}"#).unwrap();
    assert_eq!(
        twice.properties, r#"{"b":2,"a":3}"#,
        "the first one takes no names"
    );
    assert_eq!(plain(r#""event":null"#), Err(Reason::MissingEvent));
    let twice = plain(r#""properties":{"$set":{"x":1},"$set":{"x":2}}"#).unwrap();
    assert_eq!(twice.set.as_deref(), Some(r#"{"x":2}"#));
    assert_eq!(
        twice.properties, r#"{"$set":{"x":1},"$set":{"x":2}}"#,
        "passed on as they came"
    );
}

#[test]
fn names_are_compared_by_what_they_mean() {
    let json = r#"{"\u0074oken":"t","event":"e","distinct_id":"u","propertie\u0073":{"\u0024set":{"a":1}}}"#;
    assert_eq!(seen(json).unwrap().set.as_deref(), Some(r#"{"a":1}"#));
}

#[test]
fn the_captured_shape_has_its_event_in_data() {
    let seen = captured(
        r#""properties":{"a":"\"\\\n"},"$set":{"b":1}"#,
        r#""now":"2024-05-01T12:00:00Z""#,
    );
    let seen = seen.unwrap();
    assert_eq!(seen.properties, r#"{"a":"\"\\\n","$set":{"b":1}}"#);
    assert_eq!((&*seen.token, &*seen.event, &*seen.distinct_id), ("t", "e", "u"));
}

#[test]
fn outer_fields_win_and_inner_ones_fill_in() {
    let data = r#"{\"token\":\"it\",\"event\":\"ie\",\"distinct_id\":\"iu\",\"uuid\":\"ii\"}"#;
    let inner = seen(&format!(
        r#"{{"data":"{data}","token":"","event":null,"distinct_id":" "}}"#
    ))
    .unwrap();
    let got = (&*inner.token, &*inner.event, &*inner.distinct_id, &*inner.id);
    assert_eq!(got, ("it", "ie", "iu", "ii"));
    let outer = r#""api_key":"ot","event":"oe","$distinct_id":"ou","uuid":"oi""#;
    let outer = seen(&format!(r#"{{{outer},"data":"{data}"}}"#)).unwrap();
    let got = (&*outer.token, &*outer.event, &*outer.distinct_id, &*outer.id);
    assert_eq!(got, ("ot", "oe", "ou", "oi"));
}

#[test]
fn data_must_be_json_and_an_object_too() {
    let beside = r#""token":"t","event":"e","distinct_id":"u","now":"2024-05-01T12:00:00Z""#;
    for (data, reason) in [
        ("", Reason::NotJson),
        ("x", Reason::NotJson),
        ("{} x", Reason::NotJson),
        (r"{\u0000}", Reason::NotJson),
        (r#"{\"a\":\"\u0001\"}"#, Reason::NotJson),
        (r#"{\"a\":\"\\\ud83d\"}"#, Reason::NotJson),
        ("[1]", Reason::NotAnObject),
        ("null", Reason::NotAnObject),
    ] {
        assert_eq!(
            seen(&format!(r#"{{{beside},"data":"{data}"}}"#)),
            Err(reason),
            "{data}"
        );
    }
}

#[test]
fn a_lone_surrogate_of_either_text_passes_in_properties() {
    let once = r#"{"token":"t","event":"e","distinct_id":"u","data":"{\"properties\":{\"a\":\"\ud83d\"}}"}"#;
    assert_eq!(seen(once).unwrap().properties, r#"{"a":"\ud83d"}"#);
    let twice = captured(r#""properties":{"a":"\ud83d"}"#, "");
    assert_eq!(twice.unwrap().properties, r#"{"a":"\ud83d"}"#);
}

#[test]
fn a_plain_event_may_have_a_field_called_data() {
    assert_eq!(
        plain(r#""data":"{}","properties":{}"#).unwrap().properties,
        r#"{"data":"{}"}"#
    );
    assert_eq!(
        plain(r#""data":"text""#).unwrap().properties,
        r#"{"data":"text"}"#
    );
    assert_eq!(
        plain(r#""data":{"a":1}"#).unwrap().properties,
        r#"{"data":{"a":1}}"#
    );
}

#[test]
fn an_event_in_data_may_have_a_field_called_data_too() {
    for field in [r#""{\"event\":\"third\"}""#, r#""text""#, r#"{"a":1}"#, "null"] {
        let member = format!(r#""data":{field}"#);
        let seen = captured(&member, r#""now":"2024-05-01T12:00:00Z""#).unwrap();
        assert_eq!(seen.properties, format!("{{{member}}}"));
    }
}

#[test]
fn the_captured_shape_is_told_by_what_its_data_means() {
    let beside = r#""token":"t","event":"e","distinct_id":"u""#;
    for start in ["{", r"\u007b", r"\n\t {", r"\u0020\r\u007B"] {
        let seen = seen(&format!(r#"{{{beside},"data":"{start}\"a\":1}}"}}"#)).unwrap();
        assert_eq!(seen.properties, r#"{"a":1}"#, "{start}");
    }
    for start in [r"\\{", r"\\u007b", r"\f{", r"\u00a0{", r"\u005b"] {
        let member = format!(r#""data":"{start}""#);
        assert_eq!(plain(&member).unwrap().properties, format!("{{{member}}}"));
    }
}

#[test]
fn tokens_are_numbered_by_appearance_and_buffers_are_used_again() {
    let mut out = Decoded::default();
    for round in 0..2 {
        for (index, token) in (0..).zip(["a", "b", "b", "a", "c"]) {
            let json = format!(r#"{{"token":"{token}","event":"e","distinct_id":"u{round}"}}"#);
            let payload = Some(json.as_bytes());
            let record = Record {
                offset: 0,
                timestamp: 0,
                key: None,
                payload,
                headers: Headers(&[]),
            };
            decode(&PLACE, index, &record, &mut out);
        }
        assert_eq!(out.tokens, ["a", "b", "c"]);
        assert_eq!(
            out.events.iter().map(|event| event.token).collect::<Vec<_>>(),
            [0, 1, 1, 0, 2]
        );
        assert!(
            out.events
                .iter()
                .all(|event| out.bytes(event.distinct_id) == [b'u', b'0' + round])
        );
        let capacity = out.text.capacity();
        out.clear();
        assert!(out.events.is_empty() && out.tokens.is_empty() && out.text.capacity() == capacity);
    }
}

#[test]
fn a_payload_of_nothing_but_members_costs_no_square_of_their_number() {
    let members = |from: u32| {
        (from..from + 45_000)
            .map(|i| format!(r#""{i:x}":0"#))
            .collect::<Vec<_>>()
            .join(",")
    };
    let start = std::time::Instant::now();
    let seen = plain(&format!(r#"{},"properties":{{{}}}"#, members(0), members(22_500))).unwrap();
    assert_eq!(seen.properties.matches(':').count(), 67_500);
    let set = plain(&format!(
        r#""$set":{{{}}},"properties":{{"$set":{{{}}}}}"#,
        members(0),
        members(22_500)
    ));
    assert_eq!(set.unwrap().set.unwrap().matches(':').count(), 67_500);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

proptest! {
    #[test]
    fn any_bytes_have_exactly_one_outcome(payload: Vec<u8>, headers: Vec<u8>, offset: i64, timestamp: i64) {
        let payload = Some(&*payload);
        let record = Record { offset, timestamp, key: None, payload, headers: Headers(&headers) };
        let mut out = Decoded::default();
        decode(&PLACE, 0, &record, &mut out);
        prop_assert_eq!(out.events.len() + out.rejected.len(), 1);
    }

    #[test]
    fn an_event_with_a_byte_changed_has_exactly_one_outcome(at in 0_usize..300, byte: u8) {
        let data = r#"{"uuid":"x","properties":{"a":[1,"\u00e9\ud83d"],"$set":{"b":null}},"$unset":["c"]}"#;
        let data = serde_json::to_string(data).unwrap();
        let beside = r#""$set":{"d":1},"token":"t","event":"e","distinct_id":"u","ip":"::1","x":1e3"#;
        let mut payload = format!(r#"{{"now":"2024-05-01T12:00:00Z","data":{data},{beside}}}"#).into_bytes();
        let len = payload.len();
        payload[at % len] = byte;
        // The helper sees to it that there is one.
        let _seen = decode_bytes(Some(&payload), RECORD_TIME, &[("timestamp", Some("1"))]);
    }
}
