//! Person properties.

use super::*;

type Person<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

fn person(seen: &Seen) -> Person<'_> {
    (
        seen.set.as_deref(),
        seen.set_once.as_deref(),
        seen.unset.as_deref(),
    )
}

#[test]
fn person_properties_stand_in_the_properties() {
    let seen =
        plain(r#""properties":{"a":1, "$set": {"b": 2} ,"$set_once":{"c":3},"$unset":["d"]}"#).unwrap();
    assert_eq!(
        person(&seen),
        (Some(r#"{"b": 2}"#), Some(r#"{"c":3}"#), Some(r#"["d"]"#))
    );
    assert_eq!(
        seen.properties,
        r#"{"a":1, "$set": {"b": 2} ,"$set_once":{"c":3},"$unset":["d"]}"#
    );
}

#[test]
fn person_properties_stand_at_the_top_level_and_are_kept_in_the_rows() {
    let members = r#""$set":{"b":2},"$set_once":{"c":3},"$unset":["d"]"#;
    for seen in [plain(members), captured(members, ""), captured("", members)] {
        let seen = seen.unwrap();
        assert_eq!(
            person(&seen),
            (Some(r#"{"b":2}"#), Some(r#"{"c":3}"#), Some(r#"["d"]"#))
        );
        assert_eq!(seen.properties, format!("{{{members}}}"));
    }
}

#[test]
fn where_both_have_them_they_are_merged_and_the_top_level_wins() {
    let seen = plain(
        r#""$set":{"a":1,"\u0062":2},"$unset":["x","y"],
           "properties":{"p": 0,"$set":{"a":9, "b":9,"c": 3},"$unset":{"y":1,"z":1},"q":[1, 2]}"#,
    );
    let seen = seen.unwrap();
    let set = r#"{"c":3,"a":1,"\u0062":2}"#;
    assert_eq!(person(&seen), (Some(set), None, Some(r#"["x","y","z"]"#)));
    assert_eq!(
        seen.properties,
        format!(r#"{{"p":0,"q":[1, 2],"$set":{set},"$unset":["x","y","z"]}}"#)
    );
}

#[test]
fn a_merge_of_one_leaves_the_others_usable() {
    let properties = r#"{"$set":{"b":2},"$set_once":{"c":3},"$unset":["d"]}"#;
    let seen = plain(&format!(r#""$set":{{"a":1}},"properties":{properties}"#)).unwrap();
    assert_eq!(
        person(&seen),
        (Some(r#"{"b":2,"a":1}"#), Some(r#"{"c":3}"#), Some(r#"["d"]"#))
    );
    assert_eq!(
        seen.properties,
        r#"{"$set_once":{"c":3},"$unset":["d"],"$set":{"b":2,"a":1}}"#
    );
}

#[test]
fn unset_is_an_array_or_an_objects_keys() {
    let of = |unset: &str| {
        let own = plain(&format!(r#""properties":{{"$unset":{unset}}}"#)).unwrap();
        let top = plain(&format!(r#""$unset":{unset}"#)).unwrap();
        assert_eq!(own, top);
        assert_eq!(own.properties, format!(r#"{{"$unset":{unset}}}"#), "as it came");
        own.unset
    };
    assert_eq!(of(r#"["a", "b"]"#).as_deref(), Some(r#"["a", "b"]"#));
    assert_eq!(of(r#"{"a": {"x":1}, "b":null}"#).as_deref(), Some(r#"["a","b"]"#));
    assert_eq!(
        of(r#"["a",1,null,["b"],"c","a"]"#).as_deref(),
        Some(r#"["a","c"]"#),
        "strings alone"
    );
    assert_eq!(of("[1]"), None);
    assert_eq!(of(r#""a""#), None);
}

#[test]
fn what_is_no_object_sets_nothing_and_is_passed_on_as_it_came() {
    for bad in ["[]", "1", r#""x""#, "true"] {
        let own = plain(&format!(r#""properties":{{"$set":{bad}}}"#)).unwrap();
        let top = plain(&format!(r#""$set":{bad}"#)).unwrap();
        assert_eq!((person(&own), &own), ((None, None, None), &top), "{bad}");
        assert_eq!(own.properties, format!(r#"{{"$set":{bad}}}"#));
        let both = plain(&format!(r#""$set":{bad},"properties":{{"$set":{{"a":1}}}}"#)).unwrap();
        assert_eq!(
            (both.set.as_deref(), &*both.properties),
            (Some(r#"{"a":1}"#), r#"{"$set":{"a":1}}"#)
        );
        let both = plain(&format!(r#""$set":{{"a":1}},"properties":{{"$set":{bad}}}"#)).unwrap();
        assert_eq!(
            (both.set.as_deref(), &*both.properties),
            (Some(r#"{"a":1}"#), r#"{"$set":{"a":1}}"#)
        );
    }
}

#[test]
fn nothing_to_set_is_none() {
    let none = r#""$set":{ },"$set_once":{},"$unset":[]"#;
    assert_eq!(person(&plain(none).unwrap()), (None, None, None));
    assert_eq!(
        person(&plain(&format!(r#""properties":{{{none}}}"#)).unwrap()),
        (None, None, None)
    );
    let both = format!(r#"{none},"properties":{{{none}}}"#);
    assert_eq!(person(&plain(&both).unwrap()), (None, None, None));
    assert_eq!(plain(r#""$set":null"#).unwrap().properties, "{}");
}

#[test]
fn no_person_properties_where_the_client_wants_no_profile() {
    let members = |profile: &str| format!(r#""$set":{{"a":1}},"$unset":["b"],{profile}"#);
    for profile in [
        r#""properties":{"$process_person_profile":false,"$set_once":{"c":1}}"#,
        r#""properties":{"$process_person_profile":true,"$process_person_profile": false}"#,
        r#""$process_person_profile":false"#,
    ] {
        let seen = plain(&members(profile)).unwrap();
        assert_eq!(person(&seen), (None, None, None), "{profile}");
        assert!(
            seen.properties.contains(r#""$set":{"a":1}"#),
            "the row keeps them"
        );
        assert_eq!(
            person(&captured(&members(profile), "").unwrap()),
            (None, None, None),
            "{profile}"
        );
    }
    for profile in [
        r#""properties":{"$process_person_profile":true}"#,
        r#""properties":{"$process_person_profile":"false"}"#,
        r#""properties":{"$process_person_profile":null},"$process_person_profile":false"#,
    ] {
        assert!(plain(&members(profile)).unwrap().set.is_some(), "{profile}");
    }
}

#[test]
fn no_person_properties_for_groups() {
    let seen = plain(r#""$set":{"a":1},"event":"$groupidentify","properties":{"$unset":["b"]}"#).unwrap();
    assert_eq!(person(&seen), (None, None, None));
    assert_eq!(seen.properties, r#"{"$unset":["b"],"$set":{"a":1}}"#);
}
