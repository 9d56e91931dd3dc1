//! The decoder's outcome against the reference's reading.

use std::collections::BTreeMap;

use crate::outcome::{Outcome, Seen};
use crate::reference::json::{self, Text};
use crate::reference::{Expected, Id, Property, Reading};

/// Where they differ, and how; the first words name the field.
pub(crate) fn difference(outcome: &Outcome, reading: &Reading) -> Option<String> {
    match (outcome, reading) {
        (Err(reason), Err(faults)) if faults.contains(reason) => None,
        (Ok(seen), Ok(expected)) => event(seen, expected),
        (Ok(seen), Err(faults)) => Some(format!("accepted, not {faults:?}: {seen:?}")),
        (Err(reason), Err(faults)) => Some(format!("refused as {reason}, not as one of {faults:?}")),
        (Err(reason), Ok(expected)) => Some(format!("refused as {reason}, not accepted: {expected:?}")),
    }
}

fn event(seen: &Seen, expected: &Expected) -> Option<String> {
    let properties = object(&seen.properties);
    let mut names = seen.unset.as_deref().map(names);
    if let Some(names) = &mut names {
        names.sort();
        names.dedup();
    }
    let set = |set: &Option<String>| set.as_deref().map(object);
    let untouched = expected.untouched.as_ref();
    let fields = [
        ("token", seen.token == expected.token),
        ("event", seen.event == expected.event),
        ("distinct_id", seen.distinct_id == expected.distinct_id),
        ("id", same_id(&seen.id, &expected.id)),
        ("timestamp", seen.timestamp == expected.timestamp),
        (
            "properties",
            untouched.is_none_or(|text| *text == seen.properties),
        ),
        ("set", set(&seen.set) == expected.set),
        ("set_once", set(&seen.set_once) == expected.set_once),
        ("unset", names == expected.unset),
        ("origin", seen.origin == expected.origin),
        (
            "names of properties",
            properties.keys().eq(expected.properties.keys()),
        ),
        (
            "values of properties",
            properties.iter().all(|(name, text)| {
                expected
                    .properties
                    .get(name)
                    .is_some_and(|value| agree(text, value))
            }),
        ),
    ];
    let wrong = fields.iter().find(|(_, same)| !same)?;
    Some(format!(
        "{}\n  decoder {seen:?}\n  reference {expected:?}",
        wrong.0
    ))
}

fn same_id(seen: &Id, expected: &Id) -> bool {
    match expected {
        Id::Broken => matches!(seen, Id::Text(_)),
        known => seen == known,
    }
}

fn agree(text: &str, expected: &Property) -> bool {
    match expected {
        Property::AsItCame(written) => text == written,
        Property::Merged(members) => object(text) == *members,
        Property::Names(all) => {
            let mut names = names(text);
            names.sort();
            names == *all
        }
    }
}

/// Members by name, the last of a name, as they were written. What is no object has none.
fn object(text: &str) -> BTreeMap<Text, String> {
    let members = json::value(text).and_then(json::members).unwrap_or_default();
    members
        .into_iter()
        .map(|(name, raw)| (name, raw.get().to_owned()))
        .collect()
}

fn names(text: &str) -> Vec<Text> {
    let items = json::value(text).and_then(json::items).unwrap_or_default();
    items.into_iter().filter_map(json::string).collect()
}
