//! A user's profile: from the hash that the worker keeps, or from the user's events.
//!
//! Pure: values in, values out. Property values stay the JSON text that came, so numbers keep their digits.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};

/// Fields of a user's hash that are no properties start with this.
const HIDDEN: char = '\0';
/// Hidden fields of a user's hash that the API writes. `WHOLE` says that the hash holds all that the user's events say,
/// and not just what came since an older hash expired.
pub(super) const WHOLE: &str = "\0whole";
pub(super) const FIRST_SEEN: &str = "\0first_seen";
pub(super) const LAST_SEEN: &str = "\0last_seen";
/// The worker's hidden fields: how far each partition was applied. They tell whether a hash has changed.
pub(super) const OFFSETS: &str = "\0offset:";

/// Properties by name, values as JSON text.
pub(super) type Properties = BTreeMap<String, Box<RawValue>>;

/// A user's hash as it is in Redis.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) properties: Properties,
    /// [`OFFSETS`] fields with their values, sorted.
    pub(super) offsets: Vec<(String, String)>,
    /// Whether [`WHOLE`] is there.
    pub(super) whole: bool,
    pub(super) seen: Seen,
}

/// The times of a user's first and last events, ms since 1970, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) first: Option<i64>,
    pub(super) last: Option<i64>,
}

impl Stored {
    /// Sorts the fields of a hash; `None` if there are none.
    pub(super) fn of(fields: Vec<(String, String)>) -> Option<Self> {
        if fields.is_empty() {
            return None;
        }
        let mut stored = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                WHOLE => stored.whole = true,
                FIRST_SEEN => stored.seen.first = value.parse().ok(),
                LAST_SEEN => stored.seen.last = value.parse().ok(),
                _ if name.starts_with(OFFSETS) => stored.offsets.push((name, value)),
                _ if name.starts_with(HIDDEN) => {}
                _ => drop(stored.properties.insert(name, json_or_text(&value))),
            }
        }
        stored.offsets.sort();
        Some(stored)
    }
}

/// The worker writes JSON only; what an operator wrote by hand is shown as the text it is.
fn json_or_text(value: &str) -> Box<RawValue> {
    serde_json::from_str::<&RawValue>(value)
        .map(ToOwned::to_owned)
        .or_else(|_| to_raw_value(value))
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Applies what one event says of its user: `$set`, then `$set_once`, then `$unset`, as the worker does.
pub(super) fn apply(profile: &mut Properties, event: &str, properties: &str) {
    // What these hold is a group's, and not the user's.
    if event == "$groupidentify" {
        return;
    }
    let Ok(all) = serde_json::from_str::<Members<'_>>(properties) else {
        return;
    };
    let find = |wanted: &str| {
        let mut found = all.0.iter().rev().filter(|(name, _)| name == wanted);
        found.next().map(|(_, value)| value.get())
    };
    if find("$process_person_profile") == Some("false") {
        return;
    }
    let members = |wanted| {
        let members = find(wanted).and_then(|text| serde_json::from_str::<Members<'_>>(text).ok());
        members.into_iter().flat_map(|members| members.0)
    };
    for (name, value) in members("$set") {
        if !name.starts_with(HIDDEN) {
            profile.insert(name, value.to_owned());
        }
    }
    for (name, value) in members("$set_once") {
        if !name.starts_with(HIDDEN) {
            profile.entry(name).or_insert_with(|| value.to_owned());
        }
    }
    for name in find("$unset").map(unset_names).unwrap_or_default() {
        profile.remove(&name);
    }
}

/// The strings of an array, or the keys of an object.
fn unset_names(text: &str) -> Vec<String> {
    if let Ok(values) = serde_json::from_str::<Vec<&RawValue>>(text) {
        let strings = values.into_iter().map(|value| serde_json::from_str(value.get()));
        return strings.filter_map(Result::ok).collect();
    }
    serde_json::from_str::<Members<'_>>(text)
        .map(|members| members.0.into_iter().map(|(name, _)| name).collect())
        .unwrap_or_default()
}

/// What `GET /v1/users/{distinct_id}` answers.
#[derive(Debug, Serialize)]
pub(super) struct Profile<'a> {
    pub(super) distinct_id: &'a str,
    pub(super) properties: &'a Properties,
    pub(super) first_seen: Option<Timestamp>,
    pub(super) last_seen: Option<Timestamp>,
    /// False if an older part of the properties could not be read just now.
    pub(super) complete: bool,
    /// When this was put together. Properties are never older than their last change; the times of the first and the
    /// last event can be as old as this.
    pub(super) as_of: Timestamp,
}

/// The members of a JSON object in their order, repeated ones included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object).map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile_of(events: &[(&str, &str)]) -> String {
        let mut profile = Properties::new();
        for (event, properties) in events {
            apply(&mut profile, event, properties);
        }
        serde_json::to_string(&profile).unwrap()
    }

    #[test]
    fn events_are_applied_in_turn_and_values_keep_their_text() {
        let profile = profile_of(&[
            (
                "a",
                r#"{"$set":{"n":9007199254740993,"gone":1},"$set_once":{"first":1e-7}}"#,
            ),
            (
                "b",
                r#"{"$set":{"x":{"y": [1]}},"$set_once":{"first":2,"n":0},"$unset":["gone",1]}"#,
            ),
            ("c", r#"{"$unset":{"never":true}}"#),
            ("d", r#"{"unrelated":1}"#),
        ]);
        assert_eq!(profile, r#"{"first":1e-7,"n":9007199254740993,"x":{"y": [1]}}"#);
    }

    #[test]
    fn an_event_that_is_not_about_the_person_changes_nothing() {
        let profile = profile_of(&[
            ("$groupidentify", r#"{"$set":{"a":1}}"#),
            ("b", r#"{"$set":{"b":1},"$process_person_profile":false}"#),
            ("c", r#"{"$set":{"c":"\ud83d"},"$process_person_profile":true}"#),
            ("d", r#"{"$set":[1],"$set_once":"x"}"#),
            ("e", r#"{"$set":{"\u0000offset:0:0":1}}"#),
            ("f", "not json"),
        ]);
        assert_eq!(profile, r#"{"c":"\ud83d"}"#);
    }

    #[test]
    fn hidden_fields_are_told_apart() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert!(Stored::of(Vec::new()).is_none());
        let stored = Stored::of(vec![
            field("plan", "\"pro\""),
            field("\0offset:0:3", "18"),
            field("\0whole", "1"),
            field("\0first_seen", "-5"),
            field("\0unknown", "7"),
            field("by hand", "pro"),
        ])
        .unwrap();
        assert_eq!(
            serde_json::to_string(&stored.properties).unwrap(),
            r#"{"by hand":"pro","plan":"pro"}"#
        );
        assert_eq!(stored.offsets, [field("\0offset:0:3", "18")]);
        assert!(stored.whole);
        assert_eq!(
            stored.seen,
            Seen {
                first: Some(-5),
                last: None
            }
        );
    }
}
