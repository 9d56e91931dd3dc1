//! Events in: from a Kafka record to an [`Event`], or to the [`Reason`] why it is none.
//!
//! Owns the two JSON shapes and every rule about what clients send. [`decode`] is a pure function of the
//! record: it never reads the clock or the configuration, because two attempts at a block must agree.
//! It never does I/O, and allocates nothing per event once its buffers have grown.
//!
//! Read in this order: `decode` (the rules, top to bottom), `body` (the fields of one JSON object and
//! which of the two shapes it is), `properties` (what the row's properties and the person's become),
//! `time`, `ids`; below them `json` (the scanner), `value`
//! (what it finds) and `text` (escapes).

mod body;
mod decode;
mod ids;
mod json;
mod properties;
mod reason;
mod record;
mod text;
mod time;
mod value;

use std::collections::HashMap;

pub use decode::{decode, is_token};
pub use reason::Reason;
pub use record::{HeaderIter, Headers, Record};

/// The longest payload that is read, in bytes. A broker's default `message.max.bytes` (1 MiB and 12 bytes,
/// its own overhead included) lets nothing longer through uncompressed, so a limit below it would refuse
/// what Kafka took; a compressed batch can hold more, and a block has to hold several.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// How deep a payload may be nested; the object itself is the first level. The text in `data` counts
/// for itself.
pub const MAX_DEPTH: u32 = 128;

/// A slice of the text of a [`Decoded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins, in bytes.
    pub start: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// What an event is recognised by when it comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// A UUID, whatever the form it was written in.
    Uuid(u128),
    /// Another text, as it is.
    Text(Span),
    /// None given: the coordinate stands in, that of [`Event::origin`] where there is one.
    Coordinate,
}

/// An event as it will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index of the record in its block.
    pub index: u32,
    /// Offset of the record in its partition.
    pub offset: i64,
    /// The project, an index into [`Decoded::tokens`].
    pub token: u32,
    /// The row's `uuid`: the client's, or one made from token and id, or from the coordinate.
    pub uuid: u128,
    /// What it is deduplicated by.
    pub id: Id,
    /// Name of the event.
    pub event: Span,
    /// The user.
    pub distinct_id: Span,
    /// When it happened, ms since 1970 UTC, within what `DateTime64(3, 'UTC')` holds.
    pub timestamp: i64,
    /// Nothing in the record says when: `timestamp` is the time that Kafka has for it.
    pub timed_by_kafka: bool,
    /// The row's properties, the text of a JSON object.
    pub properties: Span,
    /// Person properties to set, the text of a JSON object with at least one member. Where a name stands
    /// in it twice, the last one counts.
    pub set: Option<Span>,
    /// Person properties to set where the person has none of that name; text as in `set`.
    pub set_once: Option<Span>,
    /// Names of person properties to remove, the text of a JSON array of at least one string.
    pub unset: Option<Span>,
    /// Where the record was rejected first, if it is a replay.
    pub origin: Option<Box<Origin>>,
}

/// The coordinate at which a record was rejected first, from its `sluice-*` headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Topic.
    pub topic: String,
    /// Incarnation of the topic.
    pub incarnation: u32,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// A record that is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Index of the record in its block.
    pub index: u32,
    /// Offset of the record in its partition.
    pub offset: i64,
    /// Why.
    pub reason: Reason,
}

/// Where a record stands; part of the id, and of the row's uuid, of an event without one.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Incarnation of the topic.
    pub incarnation: u32,
    /// Partition.
    pub partition: i32,
}

/// The events and rejects of a block, and the text that they are slices of.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The events, in the order of their records.
    pub events: Vec<Event>,
    /// The records that are none.
    pub rejected: Vec<Rejected>,
    /// Distinct tokens in order of appearance.
    pub tokens: Vec<String>,
    text: String,
    interned: HashMap<String, u32>,
    latest: u32,
    scratch: decode::Scratch,
}

impl Decoded {
    /// Empties it for the next block and keeps its buffers.
    pub fn clear(&mut self) {
        self.events.clear();
        self.rejected.clear();
        self.tokens.clear();
        self.text.clear();
        self.interned.clear();
        self.latest = 0;
    }

    /// The bytes of a span of this block.
    ///
    /// # Panics
    /// If the span is of another block.
    pub fn bytes(&self, span: Span) -> &[u8] {
        self.str(span).as_bytes()
    }

    /// The text of a span of this block.
    ///
    /// # Panics
    /// If the span is of another block.
    pub fn str(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.start as usize + span.len as usize]
    }

    /// The index of a token in `tokens`. A run of one token, the common case in a partition, costs one
    /// comparison.
    fn intern(&mut self, token: &str) -> u32 {
        if self
            .tokens
            .get(self.latest as usize)
            .is_some_and(|latest| latest == token)
        {
            return self.latest;
        }
        self.latest = if let Some(&known) = self.interned.get(token) {
            known
        } else {
            let index = self.tokens.len() as u32;
            self.tokens.push(token.to_owned());
            self.interned.insert(token.to_owned(), index);
            index
        };
        self.latest
    }
}

/// Appends `part` to the text of a block.
fn append(text: &mut String, part: &str) -> Span {
    let start = text.len();
    text.push_str(part);
    since(text, start)
}

/// The span from `start` to the end of the text. [`decode`] keeps the text within what fits.
fn since(text: &str, start: usize) -> Span {
    Span {
        start: start as u32,
        len: (text.len() - start) as u32,
    }
}
