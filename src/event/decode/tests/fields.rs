//! Token, event name, `distinct_id` and id.

use super::*;

const UUID: &str = "0190b6a8-3f10-7c9a-8d1e-00000000abcd";

fn token_of(members: &str) -> Result<String, Reason> {
    seen(&format!(r#"{{"event":"e","distinct_id":"u",{members}}}"#)).map(|seen| seen.token)
}

fn event_of(json: &str) -> Result<String, Reason> {
    seen(&format!(r#"{{"token":"t","distinct_id":"u","event":{json}}}"#)).map(|seen| seen.event)
}

fn user_of(members: &str) -> Result<String, Reason> {
    seen(&format!(r#"{{"token":"t","event":"e",{members}}}"#)).map(|seen| seen.distinct_id)
}

fn distinct_id_of(json: &str) -> Result<String, Reason> {
    user_of(&format!(r#""distinct_id":{json}"#))
}

fn id_of(json: &str) -> (String, String) {
    let seen = plain(&format!(r#""uuid":{json}"#)).unwrap();
    (seen.id, seen.uuid)
}

#[test]
fn the_token_has_four_names_and_the_one_in_the_properties_is_the_last() {
    let all = r#""properties":{"token":"d"},"$token":"c","api_key":"b","token":"a""#;
    assert_eq!(token_of(all).unwrap(), "a");
    assert_eq!(token_of(&all.replace(r#","token":"a""#, "")).unwrap(), "b");
    assert_eq!(
        token_of(r#""properties":{"token":"d"},"$token":"c""#).unwrap(),
        "c"
    );
    assert_eq!(token_of(r#""properties":{"token":"d"}"#).unwrap(), "d");
}

#[test]
fn an_empty_token_is_missing_and_the_next_place_is_asked() {
    for nothing in [r#""""#, "null", r#"" \t""#, r#""\u2003""#, "7", "[]"] {
        assert_eq!(
            token_of(&format!(r#""token":{nothing}"#)),
            Err(Reason::MissingToken),
            "{nothing}"
        );
        assert_eq!(
            token_of(&format!(r#""token":{nothing},"api_key":"b""#)).unwrap(),
            "b",
            "{nothing}"
        );
    }
}

#[test]
fn a_token_is_trimmed_and_has_at_most_64_bytes_of_ascii() {
    assert_eq!(token_of(r#""token":" a b\n""#).unwrap(), "a b");
    assert_eq!(token_of(r#""token":"\u0061""#).unwrap(), "a");
    let longest = "x".repeat(64);
    assert_eq!(token_of(&format!(r#""token":"  {longest}""#)).unwrap(), longest);
    assert_eq!(
        token_of(&format!(r#""token":"{longest}x""#)),
        Err(Reason::TokenTooLong)
    );
    for bad in ["é", r"a\u0000b", r"\ud83d", r"\ude00x"] {
        assert_eq!(
            token_of(&format!(r#""token":"{bad}""#)),
            Err(Reason::BadToken),
            "{bad}"
        );
    }
}

#[test]
fn an_event_name_is_kept_as_it_is_and_an_empty_one_is_missing() {
    assert_eq!(event_of(r#"" page \u00e9 \ud83d\ude00""#).unwrap(), " page é 😀");
    assert_eq!(event_of(r#"" ""#).unwrap(), " ");
    for nothing in [r#""""#, "null", "1", r#"{"a":"b"}"#] {
        assert_eq!(event_of(nothing), Err(Reason::MissingEvent), "{nothing}");
    }
    assert_eq!(
        seen(r#"{"token":"t","distinct_id":"u"}"#),
        Err(Reason::MissingEvent)
    );
}

#[test]
fn an_event_name_has_at_most_1000_characters_however_many_bytes() {
    let longest = "é".repeat(1000);
    assert_eq!(event_of(&format!(r#""{longest}""#)).unwrap(), longest);
    assert_eq!(event_of(&format!(r#""{longest}x""#)), Err(Reason::EventTooLong));
}

#[test]
fn a_nul_or_a_lone_surrogate_in_a_name_or_a_user_refuses_the_record() {
    for bad in [
        r#""a\u0000""#,
        r#""\ud83d""#,
        r#""\ude00\ud83d""#,
        r#""\ud83d\u0041""#,
    ] {
        assert_eq!(event_of(bad), Err(Reason::BadEvent), "{bad}");
        assert_eq!(distinct_id_of(bad), Err(Reason::BadDistinctId), "{bad}");
    }
}

#[test]
fn a_distinct_id_that_is_a_string_is_kept_as_it_is() {
    assert_eq!(
        distinct_id_of(r#""  a\"\\\/\b\f\n\r\t\u00e9 ""#).unwrap(),
        "  a\"\\/\u{8}\u{c}\n\r\té "
    );
}

#[test]
fn a_distinct_id_that_is_a_number_is_its_digits_as_written() {
    for number in [
        "23",
        "-0",
        "23.40",
        "1e-7",
        "9007199254740993",
        "123456789012345678901234567890",
    ] {
        assert_eq!(distinct_id_of(number).unwrap(), number);
    }
}

#[test]
fn a_distinct_id_of_another_type_is_compact_json() {
    assert_eq!(distinct_id_of("false").unwrap(), "false");
    assert_eq!(
        distinct_id_of("[ \"a \\\" b\" ,\n 1.0 ]").unwrap(),
        r#"["a \" b",1.0]"#
    );
    assert_eq!(
        distinct_id_of(r#"{ "b" : { } , "a\\" : " " }"#).unwrap(),
        r#"{"b":{},"a\\":" "}"#
    );
}

#[test]
fn a_distinct_id_is_cut_at_200_characters() {
    let longest = "é".repeat(200);
    assert_eq!(distinct_id_of(&format!(r#""{longest}""#)).unwrap(), longest);
    assert_eq!(distinct_id_of(&format!(r#""{longest}é""#)).unwrap(), longest);
    assert_eq!(distinct_id_of(&"7".repeat(201)).unwrap(), "7".repeat(200));
}

#[test]
fn the_distinct_id_has_three_places_and_an_empty_one_is_missing() {
    let all = r#""properties":{"distinct_id":"c"},"$distinct_id":"b","distinct_id":"a""#;
    assert_eq!(user_of(all).unwrap(), "a");
    assert_eq!(user_of(&all.replace(r#","distinct_id":"a""#, "")).unwrap(), "b");
    assert_eq!(user_of(r#""properties":{"distinct_id":"c"}"#).unwrap(), "c");
    for nothing in [r#""""#, "null", r#"" \n\u00a0""#] {
        assert_eq!(
            distinct_id_of(nothing),
            Err(Reason::MissingDistinctId),
            "{nothing}"
        );
        let next = format!(r#""distinct_id":{nothing},"properties":{{"distinct_id":0}}"#);
        assert_eq!(user_of(&next).unwrap(), "0", "{nothing}");
    }
}

#[test]
fn every_form_of_a_uuid_is_that_uuid() {
    let hex = UUID.replace('-', "");
    let forms = [
        UUID.to_owned(),
        UUID.to_uppercase(),
        hex.clone(),
        hex.to_uppercase(),
        format!("{{{UUID}}}"),
        format!("{{{hex}}}"),
        format!("urn:uuid:{UUID}"),
        format!("URN:UUID:{}", UUID.to_uppercase()),
        format!(" {UUID} "),
    ];
    for form in forms {
        assert_eq!(
            id_of(&format!(r#""{form}""#)),
            ("uuid".to_owned(), UUID.to_owned()),
            "{form}"
        );
    }
}

#[test]
fn another_text_is_an_id_and_the_rows_uuid_is_made_from_token_and_id() {
    for text in ["order-17", &UUID[1..], &format!("{{{UUID}"), "urn:uuid:", "é"] {
        let (id, uuid) = id_of(&format!(r#""{text}""#));
        assert_eq!(id, text);
        assert_eq!(id_of(&format!(r#""{text}""#)).1, uuid, "always the same");
        assert_ne!(id_of(r#""order-18""#).1, uuid, "another id");
        let other = format!(r#"{{"token":"t2","event":"e","distinct_id":"u","uuid":"{text}"}}"#);
        assert_ne!(seen(&other).unwrap().uuid, uuid, "another token");
    }
}

#[test]
fn the_uuids_that_rows_were_given_never_change() {
    assert_eq!(id_of(r#""order-17""#).1, "902f9b1d-088f-57bd-a857-6992ba9bd854");
    assert_eq!(plain("").unwrap().uuid, "c8005668-4820-55cc-b92a-d099364d3ac1");
}

#[test]
fn an_empty_uuid_is_none_and_the_coordinate_stands_in() {
    for nothing in [r#""""#, "null", r#""  ""#, "0", "{}"] {
        assert_eq!(
            id_of(nothing),
            ("none".to_owned(), plain("").unwrap().uuid),
            "{nothing}"
        );
    }
}

#[test]
fn the_row_of_an_event_without_an_id_differs_by_every_part_of_the_coordinate() {
    let at = |topic, incarnation, partition, offset| {
        let payload = Some(&br#"{"token":"t","event":"e","distinct_id":"u"}"#[..]);
        let record = Record {
            offset,
            timestamp: 0,
            key: None,
            payload,
            headers: Headers(&[]),
        };
        let mut out = Decoded::default();
        decode(
            &Place {
                topic,
                incarnation,
                partition,
            },
            0,
            &record,
            &mut out,
        );
        out.events[0].uuid
    };
    let all = [
        at("a", 0, 0, 0),
        at("b", 0, 0, 0),
        at("a", 1, 0, 0),
        at("a", 0, 1, 0),
        at("a", 0, 0, 1),
    ];
    assert_eq!(std::collections::HashSet::from(all).len(), all.len());
    assert_eq!(at("a", 0, 0, 0), all[0]);
}

#[test]
fn headers_are_used_where_the_body_lacks_them() {
    let headers: Pairs<'_> = &[
        ("token", Some(" h ")),
        ("distinct_id", Some("hu")),
        ("uuid", Some(UUID)),
        ("timestamp", Some("1714560000123")),
    ];
    let seen = seen_with(r#"{"event":"e","token":"","distinct_id":" "}"#, headers).unwrap();
    let got = (
        &*seen.token,
        &*seen.distinct_id,
        &*seen.uuid,
        &*seen.id,
        seen.timestamp,
    );
    assert_eq!(got, ("h", "hu", UUID, "uuid", 1_714_560_000_123));
    let body = r#"{"event":"e","token":"t","distinct_id":"u","uuid":"x","timestamp":"2024-05-01T12:00:00Z"}"#;
    let seen = seen_with(body, headers).unwrap();
    let got = (&*seen.token, &*seen.distinct_id, &*seen.id, seen.timestamp);
    assert_eq!(got, ("t", "u", "x", RECORD_TIME));
}

#[test]
fn a_header_that_is_null_or_empty_is_absent() {
    for value in [None, Some(""), Some(" ")] {
        let bare = r#"{"event":"e","distinct_id":"u"}"#;
        assert_eq!(seen_with(bare, &[("token", value)]), Err(Reason::MissingToken));
        let bare = r#"{"event":"e","token":"t"}"#;
        assert_eq!(
            seen_with(bare, &[("distinct_id", value)]),
            Err(Reason::MissingDistinctId)
        );
        let whole = r#"{"event":"e","token":"t","distinct_id":"u"}"#;
        let seen = seen_with(whole, &[("uuid", value), ("timestamp", value)]).unwrap();
        assert_eq!((&*seen.id, seen.timestamp), ("none", RECORD_TIME));
    }
}

#[test]
fn headers_keep_the_rules_of_the_fields() {
    let bare = r#"{"event":"e"}"#;
    let long = "x".repeat(201);
    let token = ("token", Some("t"));
    assert_eq!(
        seen_with(bare, &[("token", Some(&long))]),
        Err(Reason::TokenTooLong)
    );
    assert_eq!(seen_with(bare, &[("token", Some("a\0"))]), Err(Reason::BadToken));
    assert_eq!(
        seen_with(bare, &[token, ("distinct_id", Some("a\0"))]),
        Err(Reason::BadDistinctId)
    );
    let seen = seen_with(bare, &[token, ("distinct_id", Some(&long)), ("uuid", Some("x"))]).unwrap();
    assert_eq!((&*seen.distinct_id, &*seen.id), (&long[1..], "x"));
}

#[test]
fn a_header_that_is_not_utf8_is_absent() {
    let mut headers = Vec::new();
    Headers::encode(&mut headers, b"token", Some(b"\xff"));
    let payload = Some(&br#"{"event":"e","distinct_id":"u"}"#[..]);
    let record = Record {
        offset: 0,
        timestamp: 0,
        key: None,
        payload,
        headers: Headers(&headers),
    };
    let mut out = Decoded::default();
    decode(&PLACE, 0, &record, &mut out);
    assert_eq!(out.rejected[0].reason, Reason::MissingToken);
}

#[test]
fn a_replay_keeps_the_coordinate_of_its_first_rejection() {
    let event = r#"{"event":"e","token":"t","distinct_id":"u"}"#;
    let all = [
        ("sluice-topic", Some("events")),
        ("sluice-incarnation", Some("0")),
        ("sluice-partition", Some("3")),
        ("sluice-offset", Some("17")),
    ];
    let elsewhere = Place {
        topic: "events_overflow",
        incarnation: 2,
        partition: 0,
    };
    let replay = decode_at(&elsewhere, event.as_bytes(), 5, &all).unwrap();
    let origin = Origin {
        topic: "events".to_owned(),
        incarnation: 0,
        partition: 3,
        offset: OFFSET,
    };
    assert_eq!(replay.origin, Some(origin));
    assert_eq!(
        replay.uuid,
        seen(event).unwrap().uuid,
        "the row of the record that was rejected"
    );
    for part in 0..all.len() {
        let mut partial = all.to_vec();
        partial.remove(part);
        assert_eq!(
            seen_with(event, &partial).unwrap(),
            seen(event).unwrap(),
            "{part} is missing"
        );
        for bad in ["", "+1", "-1", " 1", "1 ", "x", "99999999999999999999"] {
            let mut malformed = all;
            malformed[part].1 = Some(bad);
            let origin = seen_with(event, &malformed).unwrap().origin;
            assert_eq!(origin.is_some(), part == 0 && !bad.is_empty(), "{part}: {bad}");
        }
    }
}
