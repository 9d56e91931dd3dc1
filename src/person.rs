//! What events say of their user, as the worker remembers it in Redis and as it is made again from the events table.
//!
//! Pure: values in, values out. Owns what a user's hash and timeline may hold, so that both ways come to the same. Property
//! values stay the JSON text that came, so numbers keep their digits.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::redis::keys::{TIMELINE_MEMBER_BYTES, USER_FIELDS, USER_NAME_BYTES, USER_VALUE_BYTES};

/// Fields of a user's hash that are no properties start with this; properties of such a name are not kept.
pub(crate) const HIDDEN: char = '\0';
/// Hidden fields of a user's hash that the worker does not write. `WHOLE` says that the hash holds all that the user's
/// events say, and not just what came since an older hash expired.
pub(crate) const WHOLE: &str = "\0whole";
/// The time of the user's first event, ms since 1970.
pub(crate) const FIRST_SEEN: &str = "\0first_seen";
/// The time of the user's last event, ms since 1970.
pub(crate) const LAST_SEEN: &str = "\0last_seen";
/// The worker's hidden fields: how far each partition was applied (exclusive).
pub(crate) const OFFSETS: &str = "\0offset:";

/// Properties by name, values as JSON text.
pub(crate) type Properties = BTreeMap<String, Box<RawValue>>;

/// Which rows of the events table may say something of their user, so that all others stay on the server: the names that
/// matter hold these letters, unless some of them are written as escapes.
pub(crate) const MAY_CHANGE: &str = "(position(properties, 'set') > 0 OR position(properties, '\\\\u') > 0)";

/// The order of one user's rows of the events table in which [`apply`] comes to what the stream came to: that in which they
/// came, and not that of their times. A partition's rows are in the order of their offsets. Those of several partitions
/// have no order in common, and the stream itself leaves it to chance: they are put in order by when their blocks were
/// announced. (The newest announcement so far, for a block that was recovered has rows of two, and clocks of two workers
/// differ.) `user`: the columns that tell users apart, where there are rows of several.
pub(crate) fn in_order(user: &[&str], sort: Sort) -> String {
    let partition = "kafka_topic, kafka_incarnation, kafka_partition";
    let each = user.iter().fold(String::new(), |all, column| all + column + ", ");
    let announced = match sort {
        Sort::InMemory => {
            format!("max(ingested_at) OVER (PARTITION BY {each}{partition} ORDER BY kafka_offset)")
        }
        Sort::OnDisk => "ingested_at".to_owned(),
    };
    format!("{each}{announced}, {partition}, kafka_offset")
}

/// How the server puts a user's rows in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    /// As they came. All rows of one user and partition are in the server's memory for it.
    #[default]
    InMemory,
    /// By the time of each row's announcement, for users with more rows than that: those of a block that was recovered
    /// may change places with each other.
    OnDisk,
}

/// Whether a user's hash keeps a property; what is long stays with its event alone.
pub(crate) fn fits(name: &str, value: &str) -> bool {
    name.len() <= USER_NAME_BYTES && value.len() <= USER_VALUE_BYTES
}

/// A timeline's member: the uuid, a colon, and as much of the event's name as keeps the set small in Redis.
pub(crate) fn timeline_member(uuid: Uuid, name: &str) -> String {
    let room = TIMELINE_MEMBER_BYTES - uuid::fmt::Hyphenated::LENGTH - 1;
    format!(
        "{}:{}",
        uuid.hyphenated(),
        &name[..name.floor_char_boundary(room)]
    )
}

/// Applies what one event says of its user, as its row's `properties` have it: `$set`, then `$set_once`, then `$unset`.
/// Says whether there was a change that a hash keeps.
pub(crate) fn apply(profile: &mut Properties, event: &str, properties: &str) -> bool {
    // What these hold is a group's, and not the user's.
    if event == "$groupidentify" {
        return false;
    }
    let Ok(all) = serde_json::from_str::<AnyMembers<'_>>(properties) else {
        return false;
    };
    let find = |wanted: &str| {
        let mut found = all.0.iter().rev().filter(|(name, _)| name == wanted.as_bytes());
        found.next().map(|(_, value)| value.get())
    };
    if find("$process_person_profile") == Some("false") {
        return false;
    }
    let members = |wanted| {
        let members = find(wanted).and_then(|text| serde_json::from_str::<Members<'_>>(text).ok());
        let members = members.into_iter().flat_map(|members| members.0);
        members.filter(|(name, value)| !name.starts_with(HIDDEN) && fits(name, value.get()))
    };
    let mut changed = false;
    for (name, value) in members("$set") {
        changed = true;
        let room = profile.len() < USER_FIELDS;
        if room || profile.contains_key(&name) {
            profile.insert(name, value.to_owned());
        }
    }
    for (name, value) in members("$set_once") {
        changed = true;
        if profile.len() < USER_FIELDS {
            profile.entry(name).or_insert_with(|| value.to_owned());
        }
    }
    let unset = find("$unset").map(unset_names).unwrap_or_default();
    for name in unset
        .iter()
        .filter(|name| !name.starts_with(HIDDEN) && fits(name, ""))
    {
        changed = true;
        profile.remove(name);
    }
    changed
}

/// The strings of an array, or the keys of an object; none at all if one of them is no text (a lone surrogate).
fn unset_names(text: &str) -> Vec<String> {
    if let Ok(values) = serde_json::from_str::<Vec<&RawValue>>(text) {
        let strings = values.into_iter().filter(|value| value.get().starts_with('"'));
        let names: Result<_, _> = strings.map(|value| serde_json::from_str(value.get())).collect();
        return names.unwrap_or_default();
    }
    serde_json::from_str::<Members<'_>>(text)
        .map(|members| members.0.into_iter().map(|(name, _)| name).collect())
        .unwrap_or_default()
}

/// The members of a JSON object in their order, repeated ones included, values as they came.
pub(crate) struct Members<'a>(pub(crate) Vec<(String, &'a RawValue)>);

/// The same, names as bytes: one that is no text spoils only itself.
struct AnyMembers<'a>(Vec<(Vec<u8>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_map(Object::<String>::default())
            .map(Self)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for AnyMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = deserializer.deserialize_map(Object::<Name>::default())?;
        Ok(Self(
            members.into_iter().map(|(name, value)| (name.0, value)).collect(),
        ))
    }
}

struct Object<N>(std::marker::PhantomData<N>);

impl<N> Default for Object<N> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, N: Deserialize<'de>> Visitor<'de> for Object<N> {
    type Value = Vec<(N, &'de RawValue)>;

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

/// A member's name as bytes.
struct Name(Vec<u8>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_str<E>(self, text: &str) -> Result<Vec<u8>, E> {
                Ok(text.as_bytes().to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes).map(Self)
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
    fn a_name_that_is_no_text_spoils_what_it_stands_in_alone() {
        let profile = profile_of(&[
            (
                "a",
                r#"{"\ud83d":1,"$set":{"a":1},"$set_once":{"\ud83d":1,"b":2}}"#,
            ),
            ("b", r#"{"$unset":["a","\ud83d"]}"#),
        ]);
        assert_eq!(profile, r#"{"a":1}"#);
    }

    #[test]
    fn what_is_too_long_or_one_too_many_is_not_kept() {
        let long = "x".repeat(USER_VALUE_BYTES);
        let mut profile = Properties::new();
        assert!(!apply(
            &mut profile,
            "a",
            &format!(r#"{{"$set":{{"a":"{long}"}}}}"#)
        ));
        let many: Vec<String> = (0..=USER_FIELDS).map(|n| format!("\"{n}\":1")).collect();
        assert!(apply(
            &mut profile,
            "a",
            &format!(r#"{{"$set":{{{}}}}}"#, many.join(","))
        ));
        assert_eq!(profile.len(), USER_FIELDS);
        assert!(apply(&mut profile, "a", r#"{"$set":{"0":2}}"#));
        assert_eq!(profile["0"].get(), "2");
    }
}
