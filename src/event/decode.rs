//! The rules, top to bottom: one record in, one event or one reason out.
//!
//! Owns what counts as a token, an event name, a `distinct_id` and an id, where each may stand, and the
//! order in which records are judged. It never decides by anything but the record.

use std::borrow::Cow;

use super::body::{Bodies, Body, Entries, Field, Property};
use super::properties;
use super::text::{clean, compact, meaning, unescape};
use super::time::event_time;
use super::value::{Kind, Raw};
use super::{Decoded, Event, Headers, Id, MAX_PAYLOAD, Origin, Place, Reason, Record, Rejected, Span};
use super::{append, ids, since};

const MAX_TOKEN_BYTES: usize = 64;
const MAX_EVENT_CHARS: usize = 1000;
const MAX_DISTINCT_ID_CHARS: usize = 200;

/// Buffers that are used again for each record.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    outer: Entries,
    inner: Entries,
    data: Vec<u8>,
}

/// Judges one record by itself alone and pushes it to exactly one of `out.events` and `out.rejected`.
pub fn decode(place: &Place<'_>, index: u32, record: &Record<'_>, out: &mut Decoded) {
    let mark = out.text.len();
    let mut scratch = std::mem::take(&mut out.scratch);
    match judge(place, index, record, &mut scratch, out) {
        Ok(event) => out.events.push(event),
        Err(reason) => {
            out.text.truncate(mark);
            out.rejected.push(Rejected {
                index,
                offset: record.offset,
                reason,
            });
        }
    }
    out.scratch = scratch;
}

fn judge(
    place: &Place<'_>,
    index: u32,
    record: &Record<'_>,
    scratch: &mut Scratch,
    out: &mut Decoded,
) -> Result<Event, Reason> {
    let payload = record
        .payload
        .filter(|payload| !payload.is_empty())
        .ok_or(Reason::Empty)?;
    // What a record adds to the text is less than this. A block's size keeps it far below what a span
    // reaches; were it not, this is the safe way out.
    let most = out.text.len() + 4 * payload.len() + record.headers.0.len();
    if payload.len() > MAX_PAYLOAD || most > u32::MAX as usize {
        return Err(Reason::TooLarge);
    }
    let payload = str::from_utf8(payload).map_err(|_| Reason::NotUtf8)?;
    let Scratch {
        outer: outer_entries,
        inner: inner_entries,
        data,
    } = scratch;
    let outer = Body::read(payload, outer_entries)?;
    let inner = if outer.is_captured() {
        unescape(outer.field(Field::Data).inside(), data);
        let data = str::from_utf8(data).map_err(|_| Reason::NotUtf8)?;
        let inner = Body::read(data, inner_entries)?;
        // The shapes are nested once: what `data` calls `data` is the client's.
        inner_entries.extras.extend(inner.data());
        Some(inner)
    } else {
        outer_entries.extras.extend(outer.data());
        None
    };
    let bodies = Bodies { outer, inner };
    let headers = Known::of(record.headers);

    if !matches!(
        bodies.main().field(Field::Properties).kind,
        Kind::Missing | Kind::Null | Kind::Object
    ) {
        return Err(Reason::PropertiesNotAnObject);
    }
    let token = token(&bodies, headers.token)?;
    let event = event_name(&bodies)?;
    let text = &mut out.text;
    let group_identify = event == "$groupidentify";
    let event = append(text, &event);
    let distinct_id = distinct_id(&bodies, headers.distinct_id, text)?;
    let time = event_time(&bodies, headers.timestamp, record.timestamp)?;
    let origin = headers.origin();
    let (id, uuid) = match id(&bodies, headers.uuid) {
        None => (
            Id::Coordinate,
            ids::of_coordinate(place, record.offset, origin.as_ref()),
        ),
        Some(id) => match ids::parse(id.trim()) {
            Some(uuid) => (Id::Uuid(uuid), uuid),
            None => (Id::Text(append(text, &id)), ids::of_text(&token, &id)),
        },
    };
    let mut parts = properties::build(&bodies, outer_entries, inner_entries, text)?;
    if group_identify || !parts.profile {
        (parts.set, parts.set_once, parts.unset) = (None, None, None);
    }
    Ok(Event {
        index,
        offset: record.offset,
        token: out.intern(&token),
        uuid,
        id,
        event,
        distinct_id,
        timestamp: time.ms,
        timed_by_kafka: time.is_kafkas,
        properties: parts.properties,
        set: parts.set,
        set_once: parts.set_once,
        unset: parts.unset,
        origin: origin.map(Box::new),
    })
}

/// The token, trimmed. One that is null, no string or blank is none, and the next place is asked.
fn token<'a>(bodies: &Bodies<'a>, header: Option<&'a str>) -> Result<Cow<'a, str>, Reason> {
    let fields = [Field::Token, Field::ApiKey, Field::DollarToken];
    let in_bodies = bodies
        .each()
        .flat_map(|body| fields.map(|field| body.field(field)));
    let in_properties = bodies.main().property(Property::Token);
    for raw in in_bodies
        .chain([in_properties])
        .filter(|raw| raw.kind == Kind::String)
    {
        let token = match clean(raw).ok_or(Reason::BadToken)? {
            Cow::Borrowed(token) => Cow::Borrowed(token.trim()),
            Cow::Owned(token) => Cow::Owned(token.trim().to_owned()),
        };
        if !token.is_empty() {
            return checked_token(token);
        }
    }
    let header = header.map(str::trim).filter(|header| !header.is_empty());
    checked_token(Cow::Borrowed(header.ok_or(Reason::MissingToken)?))
}

/// Whether an event can have this token.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.trim() == text && checked_token(Cow::Borrowed(text)).is_ok()
}

fn checked_token(token: Cow<'_, str>) -> Result<Cow<'_, str>, Reason> {
    if token.len() > MAX_TOKEN_BYTES {
        Err(Reason::TokenTooLong)
    } else if !token.is_ascii() || token.contains('\0') {
        Err(Reason::BadToken)
    } else {
        Ok(token)
    }
}

/// The event's name as it is: white space alone is a name.
fn event_name<'a>(bodies: &Bodies<'a>) -> Result<Cow<'a, str>, Reason> {
    let mut names = bodies.each().map(|body| body.field(Field::Event));
    let name = names
        .find(|raw| raw.kind == Kind::String && !raw.inside().is_empty())
        .ok_or(Reason::MissingEvent)?;
    let name = clean(name).ok_or(Reason::BadEvent)?;
    // Bytes bound characters, so most names need no counting.
    if name.len() > MAX_EVENT_CHARS && name.chars().count() > MAX_EVENT_CHARS {
        return Err(Reason::EventTooLong);
    }
    Ok(name)
}

/// Appends the `distinct_id`: a string as it is, a number by its digits, any other value as compact JSON.
fn distinct_id(bodies: &Bodies<'_>, header: Option<&str>, text: &mut String) -> Result<Span, Reason> {
    let start = text.len();
    let fields = [Field::DistinctId, Field::DollarDistinctId];
    let in_bodies = bodies
        .each()
        .flat_map(|body| fields.map(|field| body.field(field)));
    let in_properties = bodies.main().property(Property::DistinctId);
    let found = in_bodies.chain([in_properties]).find(|raw| !is_blank(*raw));
    match found {
        Some(raw) if raw.kind == Kind::String => {
            text.push_str(&clean(raw).ok_or(Reason::BadDistinctId)?);
        }
        Some(raw) => compact(raw.text, text),
        None => {
            let header = header
                .filter(|header| !header.trim().is_empty())
                .ok_or(Reason::MissingDistinctId)?;
            if header.contains('\0') {
                return Err(Reason::BadDistinctId);
            }
            text.push_str(header);
        }
    }
    if text.len() - start > MAX_DISTINCT_ID_CHARS
        && let Some((cut, _)) = text[start..].char_indices().nth(MAX_DISTINCT_ID_CHARS)
    {
        text.truncate(start + cut);
    }
    Ok(since(text, start))
}

/// The client's id. White space alone is none: as an id it would make all its events one.
fn id<'a>(bodies: &Bodies<'a>, header: Option<&'a str>) -> Option<Cow<'a, str>> {
    let mut ids = bodies.each().map(|body| body.field(Field::Uuid));
    let found = ids.find(|raw| raw.kind == Kind::String && !is_blank(*raw));
    let header = header.filter(|header| !header.trim().is_empty());
    found.map(meaning).or(header.map(Cow::Borrowed))
}

/// Missing, null, or a string of nothing but white space.
fn is_blank(raw: Raw<'_>) -> bool {
    raw.is_missing() || raw.kind == Kind::String && meaning(raw).trim().is_empty()
}

/// The headers that have a meaning. One that is null or not UTF-8 is absent; of several of a name the last
/// one counts.
#[derive(Debug, Default)]
struct Known<'a> {
    token: Option<&'a str>,
    distinct_id: Option<&'a str>,
    uuid: Option<&'a str>,
    timestamp: Option<&'a str>,
    topic: Option<&'a str>,
    incarnation: Option<&'a str>,
    partition: Option<&'a str>,
    offset: Option<&'a str>,
}

impl<'a> Known<'a> {
    fn of(headers: Headers<'a>) -> Self {
        let mut known = Known::default();
        for (name, value) in &headers {
            let place = match name {
                b"token" => &mut known.token,
                b"distinct_id" => &mut known.distinct_id,
                b"uuid" => &mut known.uuid,
                b"timestamp" => &mut known.timestamp,
                b"sluice-topic" => &mut known.topic,
                b"sluice-incarnation" => &mut known.incarnation,
                b"sluice-partition" => &mut known.partition,
                b"sluice-offset" => &mut known.offset,
                _ => continue,
            };
            if let Some(value) = value.and_then(|value| str::from_utf8(value).ok()) {
                *place = Some(value);
            }
        }
        known
    }

    /// All four headers of the coordinate, each well-formed, or none.
    fn origin(&self) -> Option<Origin> {
        Some(Origin {
            topic: self.topic.filter(|topic| !topic.is_empty())?.to_owned(),
            incarnation: decimal(self.incarnation?)?,
            partition: decimal(self.partition?)?,
            offset: decimal(self.offset?)?,
        })
    }
}

impl Origin {
    /// The coordinate that a record's headers name; none if they are partial or malformed.
    pub fn of(headers: Headers<'_>) -> Option<Origin> {
        Known::of(headers).origin()
    }
}

/// Digits alone: neither a sign nor blanks.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
