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
            untouched.is_none_or(|text| same_text(text, &seen.properties)),
        ),
        ("set", same_set(set(&seen.set), expected.set.as_ref())),
        (
            "set_once",
            same_set(set(&seen.set_once), expected.set_once.as_ref()),
        ),
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
        Property::AsItCame(written) => same_text(text, written),
        Property::Merged(members) => same_members(&object(text), members),
        Property::Names(all) => {
            let mut names = names(text);
            names.sort();
            names == *all
        }
    }
}

fn same_set(seen: Option<BTreeMap<Text, String>>, expected: Option<&BTreeMap<Text, String>>) -> bool {
    match (seen, expected) {
        (Some(seen), Some(expected)) => same_members(&seen, expected),
        (seen, expected) => seen.is_none() && expected.is_none(),
    }
}

fn same_members(one: &BTreeMap<Text, String>, other: &BTreeMap<Text, String>) -> bool {
    let mut values = one.values().zip(other.values());
    one.keys().eq(other.keys()) && values.all(|(one, other)| same_text(one, other))
}

/// The same bytes, but for the case of hexadecimal digits: those of a lone surrogate's escape in the text of `data` are
/// not to be had from `serde_json`.
fn same_text(one: &str, other: &str) -> bool {
    one == other || lower_digits(one) == lower_digits(other)
}

fn lower_digits(text: &str) -> String {
    let mut text = text.to_owned();
    let escapes: Vec<usize> = text.match_indices("\\u").map(|(at, _)| at + 2).collect();
    for at in escapes {
        if let Some(digits) = text.get_mut(at..at + 4) {
            digits.make_ascii_lowercase();
        }
    }
    text
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
