//! The row's properties.

use super::*;

fn properties(members: &str) -> String {
    plain(members).unwrap().properties
}

#[test]
fn properties_are_passed_on_byte_for_byte() {
    let object = r#"{ "big":9007199254740993,"small":1e-7,"-":-0.0, "long":0.10000000000000000000001,
        "e":"\u00e9\/\ud83d\u0000","é" : [ ] ,"huge":1e999,"twice":1,"twice":2 }"#;
    assert_eq!(properties(&format!(r#""properties":{object}"#)), object);
    assert_eq!(
        captured(&format!(r#""properties":{object}"#), "")
            .unwrap()
            .properties,
        object
    );
    let both = properties(&format!(r#""x":1,"properties":{object}"#));
    assert_eq!(both, format!(r#"{},"x":1}}"#, &object[..object.len() - 1]));
}

#[test]
fn what_the_event_uses_of_the_properties_stays_in_them() {
    let used = r#"{"token":"t","distinct_id":"u","$set":{"a":1}}"#;
    let seen = seen(&format!(r#"{{"event":"e","properties":{used}}}"#)).unwrap();
    assert_eq!(seen.properties, used);
}

#[test]
fn unknown_top_level_fields_become_properties_unless_the_name_is_taken() {
    let unknown = r#""library": "x","n":null,"v":[1, 2]"#;
    assert_eq!(properties(unknown), r#"{"library":"x","n":null,"v":[1, 2]}"#);
    let both = r#""a":1,"b":2,"\u0063":3,"properties":{"b":null,"c":"own"}"#;
    assert_eq!(properties(both), r#"{"b":null,"c":"own","a":1}"#);
    let known = r#""api_key":"t","$token":"t","$distinct_id":"u","uuid":"x","timestamp":"2024-01-01",
        "offset":1,"now":"2024-01-01""#;
    assert_eq!(properties(known), "{}", "fields with a meaning are none");
}

#[test]
fn unknown_fields_of_a_captured_event_do_too_and_the_outer_ones_win() {
    let inner = r#""a":"inner","b":1,"c":2,"properties":{"c":"own"}"#;
    let seen = captured(inner, r#""a":"outer","c":3,"flag":true"#).unwrap();
    assert_eq!(seen.properties, r#"{"c":"own","b":1,"a":"outer","flag":true}"#);
}

#[test]
fn ip_and_sent_at_become_properties_of_their_own_names() {
    let members = r#""ip":"::1","sent_at":"2024-05-01T11:00:00Z""#;
    let expected = r#"{"$ip":"::1","$sent_at":"2024-05-01T11:00:00Z"}"#;
    assert_eq!(properties(members), expected);
    assert_eq!(captured("", members).unwrap().properties, expected);
    assert_eq!(properties(r#""ip":"","sent_at":null"#), "{}", "empty is missing");
    let empty = captured(members, r#""ip":"","sent_at":"""#).unwrap();
    assert_eq!(empty.properties, expected, "an empty outer one is none");
    let own = r#"{"$ip":null,"$sent_at":"x"}"#;
    assert_eq!(properties(&format!(r#"{members},"properties":{own}"#)), own);
    assert_eq!(properties(r#""ip":"::1","$ip":"::2""#), r#"{"$ip":"::2"}"#);
    assert_eq!(
        captured(r#""$ip":"::2""#, r#""ip":"::1""#).unwrap().properties,
        r#"{"$ip":"::2"}"#
    );
}
