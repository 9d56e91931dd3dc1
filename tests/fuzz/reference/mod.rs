//! A second reading of events: slow, plain, by `serde_json`, and written from the rules about what clients send, not
//! from the decoder. Where the two differ, one of them is wrong.
//!
//! A record may have several faults, and the rules do not say which one is to be named: so a reading tells all of
//! them, and any is a right answer.

mod fields;
pub(crate) mod json;
mod person;
mod time;

use std::collections::BTreeMap;

use sluice::event::{MAX_DEPTH, MAX_PAYLOAD, Origin, Reason};

use self::fields::Bodies;
use self::json::{Raw, Text};
use crate::cases::Case;

/// What an event is recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    Uuid(u128),
    Text(String),
    /// A text with a lone surrogate: the rules only say that it is an id.
    Broken,
    Coordinate,
}

/// The event that a record is.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) token: String,
    pub(crate) event: String,
    pub(crate) distinct_id: String,
    pub(crate) id: Id,
    pub(crate) timestamp: i64,
    /// Each property by its name, as it was written; the merged ones by what they hold.
    pub(crate) properties: BTreeMap<Text, Property>,
    /// The whole text of `properties`, where nothing had to be added or merged.
    pub(crate) untouched: Option<String>,
    pub(crate) set: Option<BTreeMap<Text, String>>,
    pub(crate) set_once: Option<BTreeMap<Text, String>>,
    pub(crate) unset: Option<Vec<Text>>,
    pub(crate) origin: Option<Origin>,
}

/// A property of the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    /// As it was written.
    AsItCame(String),
    /// An object made of two, each member as it was written.
    Merged(BTreeMap<Text, String>),
    /// Names from two places, in no order, each once.
    Names(Vec<Text>),
}

/// The event, or every reason why the record is none (at least one).
pub(crate) type Reading = Result<Box<Expected>, Vec<Reason>>;

/// Reads a record.
pub(crate) fn read(case: &Case) -> Reading {
    let payload = case.payload.as_deref().unwrap_or_default();
    if payload.is_empty() {
        return Err(vec![Reason::Empty]);
    }
    let mut faults = Vec::new();
    if payload.len() > MAX_PAYLOAD {
        faults.push(Reason::TooLarge);
    }
    let Ok(text) = std::str::from_utf8(payload) else {
        faults.push(Reason::NotUtf8);
        return Err(faults);
    };
    let Some(outer) = object(text, &mut faults) else {
        return Err(faults);
    };
    let inner_text;
    let inner = match fields::data_of_captured(&outer) {
        None => None,
        Some(data) => {
            let Some(embedded) = embedded(&data, &mut faults) else {
                return Err(faults);
            };
            inner_text = embedded;
            let Some(inner) = object(&inner_text, &mut faults) else {
                return Err(faults);
            };
            Some(inner)
        }
    };
    let bodies = Bodies { outer, inner };
    let event = bodies.expected(case, &mut faults);
    if faults.is_empty() {
        Ok(Box::new(event.expect("no fault, so there is an event")))
    } else {
        Err(faults)
    }
}

/// The members of the object that a text is.
fn object<'a>(text: &'a str, faults: &mut Vec<Reason>) -> Option<Vec<(Text, Raw<'a>)>> {
    if json::depth(text) > MAX_DEPTH as usize {
        faults.push(Reason::TooDeep);
    }
    let Some(raw) = json::value(text) else {
        faults.push(Reason::NotJson);
        return None;
    };
    let members = json::members(raw);
    if members.is_none() {
        faults.push(Reason::NotAnObject);
    }
    members
}

fn embedded(data: &[u8], faults: &mut Vec<Reason>) -> Option<String> {
    let text = json::embedded(data);
    if text.is_none() {
        faults.push(Reason::NotJson);
        if json::depth(&String::from_utf8_lossy(data)) > MAX_DEPTH as usize {
            faults.push(Reason::TooDeep);
        }
    }
    text
}
