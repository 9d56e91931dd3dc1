//! What the row's properties and the person's become.

use std::collections::BTreeMap;

use super::fields::{Bodies, member};
use super::json::{self, Raw, Text};
use super::{Expected, Id, Property};

/// Top-level names with a meaning of their own: none of them becomes a property by its name.
const KNOWN: [&str; 15] = [
    "token",
    "api_key",
    "$token",
    "event",
    "distinct_id",
    "$distinct_id",
    "uuid",
    "timestamp",
    "offset",
    "now",
    "ip",
    "sent_at",
    "properties",
    "$set",
    "$set_once",
];

impl Bodies<'_> {
    /// An event of which only the properties are filled in.
    pub(super) fn properties(&self, event: &str) -> Expected {
        let given = member(self.event_body(), "properties");
        let own: Vec<(Text, Raw<'_>)> = given.and_then(json::members).unwrap_or_default();
        let mut properties: BTreeMap<Text, Property> = as_they_came(&own)
            .into_iter()
            .map(|(name, text)| (name, Property::AsItCame(text)))
            .collect();
        let before = properties.clone();
        for name in ["$set", "$set_once", "$unset"] {
            if let Some(top) = self.field(name) {
                let merged = merge(name, top, member(&own, name), exists(&own, name));
                if let Some(merged) = merged {
                    properties.insert(name.into(), merged);
                }
            }
        }
        // The outer object's win; a name that stands twice in one counts once, as its last.
        for layer in self.layers() {
            for (name, text) in as_they_came(layer) {
                let known = KNOWN.iter().any(|known| known.as_bytes() == name) || name == b"$unset";
                let shape =
                    name == b"data" && self.inner.is_some() && std::ptr::eq(layer, &raw const self.outer);
                if !known && !shape {
                    properties.entry(name).or_insert(Property::AsItCame(text));
                }
            }
        }
        for (field, name) in [("ip", "$ip"), ("sent_at", "$sent_at")] {
            if let Some(value) = self.told(field) {
                let value = Property::AsItCame(value.get().to_owned());
                properties.entry(name.into()).or_insert(value);
            }
        }
        let untouched = (properties == before).then(|| given.map_or("{}", |raw| raw.get()).to_owned());
        let profile = properties.get(&b"$process_person_profile"[..]);
        let wanted = profile != Some(&Property::AsItCame("false".to_owned())) && event != "$groupidentify";
        let object = |name: &str| {
            let members = match properties.get(name.as_bytes()).filter(|_| wanted)? {
                Property::AsItCame(text) => as_they_came(&json::members(json::value(text)?)?),
                Property::Merged(members) => members.clone(),
                Property::Names(_) => return None,
            };
            (!members.is_empty()).then_some(members)
        };
        let unset = properties
            .get(&b"$unset"[..])
            .filter(|_| wanted)
            .and_then(|unset| match unset {
                Property::AsItCame(text) => names(json::value(text)?),
                Property::Names(all) => Some(all.clone()),
                Property::Merged(_) => None,
            })
            .filter(|names| !names.is_empty());
        Expected {
            token: String::new(),
            event: String::new(),
            distinct_id: String::new(),
            id: Id::Coordinate,
            timestamp: 0,
            untouched,
            set: object("$set"),
            set_once: object("$set_once"),
            unset,
            origin: None,
            properties,
        }
    }
}

/// Members by name, the last one of a name, each as it was written.
fn as_they_came(members: &[(Text, Raw<'_>)]) -> BTreeMap<Text, String> {
    let written = |(name, raw): &(Text, Raw<'_>)| (name.clone(), raw.get().to_owned());
    members.iter().map(written).collect()
}

fn exists(members: &[(Text, Raw<'_>)], name: &str) -> bool {
    members.iter().any(|(found, _)| found == name.as_bytes())
}

/// What becomes of a person property that stands at top level; `None` where that of the properties stays.
fn merge(name: &str, top: Raw<'_>, own: Option<Raw<'_>>, there: bool) -> Option<Property> {
    let as_it_came = Property::AsItCame(top.get().to_owned());
    if name == "$unset" {
        return match (names(top), own.and_then(names)) {
            (Some(mut all), Some(own)) => {
                all.extend(own);
                Some(Property::Names(once(all)))
            }
            (None, _) if there => None,
            _ => Some(as_it_came),
        };
    }
    match (json::members(top), own.and_then(json::members)) {
        (Some(top), Some(own)) => {
            let mut all = as_they_came(&own);
            all.extend(as_they_came(&top));
            Some(Property::Merged(all))
        }
        (None, _) if there => None,
        _ => Some(as_it_came),
    }
}

/// The names that `$unset` tells: the strings of an array, or an object's keys.
fn names(unset: Raw<'_>) -> Option<Vec<Text>> {
    let all = match json::members(unset) {
        Some(members) => members.into_iter().map(|(name, _)| name).collect(),
        None => json::items(unset)?.into_iter().filter_map(json::string).collect(),
    };
    Some(once(all))
}

fn once(mut names: Vec<Text>) -> Vec<Text> {
    names.sort();
    names.dedup();
    names
}
