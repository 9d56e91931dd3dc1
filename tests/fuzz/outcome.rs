//! What the decoder makes of records, read back, and what must be true of it whatever they were.

use std::sync::Arc;

use sluice::event::{self, Decoded, Event, Origin, Place, Reason, Record, decode};
use sluice::pipeline::block::{Block, Cut, InFlight, Open};
use sluice::pipeline::outstanding::Outstanding;

use crate::cases::Case;
use crate::reference::Id;
use crate::reference::json;

pub(crate) const PLACE: Place<'static> = Place {
    topic: "events",
    incarnation: 0,
    partition: 3,
};
const ELSEWHERE: Place<'static> = Place {
    topic: "events_overflow",
    incarnation: 1,
    partition: 0,
};
pub(crate) const OFFSET: i64 = 1_000_000;

/// An event, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) token: String,
    pub(crate) event: String,
    pub(crate) distinct_id: String,
    pub(crate) id: Id,
    pub(crate) uuid: u128,
    pub(crate) timestamp: i64,
    pub(crate) properties: String,
    pub(crate) set: Option<String>,
    pub(crate) set_once: Option<String>,
    pub(crate) unset: Option<String>,
    pub(crate) origin: Option<Origin>,
}

pub(crate) type Outcome = Result<Seen, Reason>;

/// What becomes of the records of one block, each alone and together; or what is wrong about it, and with which.
pub(crate) fn of_block(cases: &[Case], out: &mut Decoded) -> Result<Vec<Outcome>, (usize, String)> {
    let encoded: Vec<Vec<u8>> = cases.iter().map(headers).collect();
    let records: Vec<Record<'_>> = (OFFSET..)
        .zip(cases.iter().zip(&encoded))
        .map(|(offset, (case, headers))| record(offset, case, headers))
        .collect();
    let block = block(&records);
    if block.digest() != self::block(&records).digest() {
        return Err((0, "two digests of one block".to_owned()));
    }
    out.clear();
    for (index, read) in (0..).zip(block.records()) {
        let sent = &records[index as usize];
        let same = read.offset == sent.offset
            && read.timestamp == sent.timestamp
            && read.key == sent.key
            && read.payload == sent.payload
            && read.headers.0 == sent.headers.0;
        if !same {
            return Err((index as usize, format!("the block gives back {read:?}")));
        }
        decode(&PLACE, index, &read, out);
    }
    let together = outcomes(out, cases.len())?;
    let mut single = Decoded::default();
    for (n, outcome) in together.iter().enumerate() {
        let at = |message: String| (n, message);
        for (place, offset) in [(&PLACE, records[n].offset), (&ELSEWHERE, OFFSET - 1)] {
            single.clear();
            let record = Record { offset, ..records[n] };
            decode(place, 0, &record, &mut single);
            let mut alone = outcomes(&single, 1)
                .map_err(|(_, message)| at(message))?
                .remove(0);
            if let (Ok(alone), Ok(together)) = (&mut alone, outcome)
                && offset != records[n].offset
                && together.id == Id::Coordinate
                && together.origin.is_none()
            {
                if alone.uuid == together.uuid {
                    return Err(at("two coordinates gave one uuid".to_owned()));
                }
                alone.uuid = together.uuid;
            }
            if alone != *outcome {
                return Err(at(format!(
                    "in a block {outcome:?}\n  alone at {place:?} {offset} {alone:?}"
                )));
            }
        }
        if let Ok(seen) = outcome {
            within_bounds(seen).map_err(at)?;
        }
    }
    Ok(together)
}

fn headers(case: &Case) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in &case.headers {
        event::Headers::encode(&mut out, name, value.as_deref());
    }
    out
}

fn record<'a>(offset: i64, case: &'a Case, headers: &'a [u8]) -> Record<'a> {
    Record {
        offset,
        timestamp: case.timestamp,
        key: case.key.as_deref(),
        payload: case.payload.as_deref(),
        headers: event::Headers(headers),
    }
}

fn block(records: &[Record<'_>]) -> Block {
    let mut open = Open::new(OFFSET, None, &Arc::new(InFlight::default()));
    for record in records {
        open.push(record);
    }
    let slot = Arc::<Outstanding>::default().take(open.bytes());
    open.close(Cut::Free, 0, slot)
}

/// One outcome for each record, in their order.
fn outcomes(out: &Decoded, records: usize) -> Result<Vec<Outcome>, (usize, String)> {
    let mut all: Vec<Option<Outcome>> = vec![None; records];
    let seen = out
        .events
        .iter()
        .map(|event| (event.index, event.offset, Ok(read_back(out, event))));
    let rejected = out
        .rejected
        .iter()
        .map(|bad| (bad.index, bad.offset, Err(bad.reason)));
    for (index, offset, outcome) in seen.chain(rejected) {
        let index = index as usize;
        if records > 1 && offset != OFFSET + index as i64 {
            return Err((index, format!("record {index} is said to be at {offset}")));
        }
        if all[index].replace(outcome).is_some() {
            return Err((index, "two outcomes".to_owned()));
        }
    }
    let none = |(n, outcome): (usize, Option<Outcome>)| outcome.ok_or((n, "no outcome".to_owned()));
    all.into_iter().enumerate().map(none).collect()
}

fn read_back(out: &Decoded, event: &Event) -> Seen {
    // Panics where a span cuts through a character or lies outside the text: the caller counts that.
    let text = |span| out.str(span).to_owned();
    Seen {
        token: out.tokens[event.token as usize].clone(),
        event: text(event.event),
        distinct_id: text(event.distinct_id),
        id: match event.id {
            event::Id::Uuid(uuid) => Id::Uuid(uuid),
            event::Id::Text(id) => Id::Text(text(id)),
            event::Id::Coordinate => Id::Coordinate,
        },
        uuid: event.uuid,
        timestamp: event.timestamp,
        properties: text(event.properties),
        set: event.set.map(text),
        set_once: event.set_once.map(text),
        unset: event.unset.map(text),
        origin: event.origin.as_deref().cloned(),
    }
}

/// What the columns, and Redis, can rely on.
fn within_bounds(seen: &Seen) -> Result<(), String> {
    let ok = |held: bool, what: &str| held.then_some(()).ok_or_else(|| format!("{what}: {seen:?}"));
    ok(
        (1..=64).contains(&seen.token.len()) && seen.token.is_ascii(),
        "token",
    )?;
    ok(
        seen.token.trim() == seen.token && !seen.token.contains('\0'),
        "token",
    )?;
    ok((1..=1000).contains(&seen.event.chars().count()), "event")?;
    ok(
        !seen.event.contains('\0') && !seen.distinct_id.contains('\0'),
        "a NUL",
    )?;
    ok(
        (1..=200).contains(&seen.distinct_id.chars().count()),
        "distinct_id",
    )?;
    ok(
        (-2_208_988_800_000..=10_413_791_999_999).contains(&seen.timestamp),
        "timestamp",
    )?;
    ok(members(&seen.properties).is_some(), "properties")?;
    for set in [&seen.set, &seen.set_once].into_iter().flatten() {
        ok(
            members(set).is_some_and(|members| members > 0),
            "person properties",
        )?;
    }
    if let Some(unset) = &seen.unset {
        let names = json::value(unset).and_then(json::items).unwrap_or_default();
        let strings = names.iter().all(|name| json::string(name).is_some());
        ok(!names.is_empty() && strings, "names to unset")?;
    }
    let version = seen.uuid >> 76 & 0xf;
    match &seen.id {
        Id::Uuid(uuid) => ok(seen.uuid == *uuid, "uuid"),
        Id::Text(text) => ok(!text.trim().is_empty() && version == 5, "id"),
        Id::Coordinate | Id::Broken => ok(version == 5, "uuid of a coordinate"),
    }
}

/// How many members an object has; `None` for what is none.
fn members(text: &str) -> Option<usize> {
    json::value(text)
        .and_then(json::members)
        .map(|members| members.len())
}
