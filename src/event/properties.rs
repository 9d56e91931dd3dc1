//! What the row's properties become, and the person's.
//!
//! Writes the properties as they came, with what belongs to them from the top level, and finds or merges
//! the person properties. It changes no value: all text is copied byte for byte. Whether the event may
//! have person properties at all is its caller's to decide.

use std::collections::HashSet;

use super::body::{Bodies, Entries, Field, Property};
use super::json::{Fault, Scanner};
use super::text::{Names, meaning, same};
use super::value::{Entry, Kind, Raw};
use super::{Reason, Span, append, since};

/// Slices of the block's text.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) properties: Span,
    pub(super) set: Option<Span>,
    pub(super) set_once: Option<Span>,
    pub(super) unset: Option<Span>,
    /// False if the client asks for no person profile.
    pub(super) profile: bool,
}

/// What the top level and the properties have under the name of a person property, and who wins.
#[derive(Clone, Copy, Debug)]
enum Person<'a> {
    /// The properties' own, untouched, or nothing at all.
    Own,
    /// The top level's, which the properties have not.
    Added(Raw<'a>),
    /// The top level's, in place of something unusable in the properties.
    Replaced(Raw<'a>),
    /// Both.
    Merged { top: Raw<'a>, own: Raw<'a> },
}

const PERSON: [(Field, Property, &str); 3] = [
    (Field::Set, Property::Set, r#""$set""#),
    (Field::SetOnce, Property::SetOnce, r#""$set_once""#),
    (Field::Unset, Property::Unset, r#""$unset""#),
];
const UNSET: usize = 2;

const SERVICE: [(Field, Property, &str); 2] = [
    (Field::Ip, Property::Ip, r#""$ip""#),
    (Field::SentAt, Property::SentAt, r#""$sent_at""#),
];

/// Appends the row's properties and the person's to `text`.
pub(super) fn build(
    bodies: &Bodies<'_>,
    outer: &Entries,
    inner: &Entries,
    text: &mut String,
) -> Result<Parts, Reason> {
    let main = bodies.main();
    let own = if bodies.inner.is_some() {
        &inner.properties
    } else {
        &outer.properties
    };
    let persons = [0, 1, 2].map(|which| person(bodies, which));

    let mut object = Object::open(text);
    let rewritten = persons
        .iter()
        .any(|p| matches!(p, Person::Replaced(_) | Person::Merged { .. }));
    if rewritten {
        let gone = |name: Raw<'_>| {
            let taken = |(person, known): (&Person<'_>, &(_, _, &str))| {
                matches!(person, Person::Replaced(_) | Person::Merged { .. }) && same(name, quoted(known.2))
            };
            persons.iter().zip(&PERSON).any(taken)
        };
        for entry in own.iter().filter(|entry| !gone(entry.name.of(main.text))) {
            object.member(entry.name.of(main.text).text, entry.value.of(main.text).text);
        }
    } else if main.field(Field::Properties).kind == Kind::Object {
        object.members(main.field(Field::Properties));
    }
    let mut spans = [None; 3];
    for ((person, known), span) in persons.iter().zip(&PERSON).zip(&mut spans) {
        *span = match *person {
            Person::Own => None,
            Person::Added(top) | Person::Replaced(top) => Some(object.member(known.2, top.text)),
            Person::Merged { top, own } => Some(object.merged(known.2, top, own)?),
        };
    }
    add_extras(bodies, outer, inner, &mut object);
    let properties = object.close();

    let mut found = [None; 3];
    for (which, span) in spans.into_iter().enumerate() {
        found[which] = match persons[which] {
            Person::Merged { .. } => span.filter(|span| !is_empty(text, *span)),
            Person::Added(top) | Person::Replaced(top) => usable(which, top, span, text)?,
            Person::Own => {
                let own = main.property(PERSON[which].1);
                // Where the properties were copied whole, theirs stand where they stood.
                let at = (!rewritten && own.kind != Kind::Missing).then(|| Span {
                    start: properties.start + main.property_at(PERSON[which].1) as u32,
                    len: own.text.len() as u32,
                });
                usable(which, own, at, text)?
            }
        };
    }
    let [set, set_once, unset] = found;
    Ok(Parts {
        properties,
        set,
        set_once,
        unset,
        profile: wants_profile(bodies, outer, inner),
    })
}

fn person<'a>(bodies: &Bodies<'a>, which: usize) -> Person<'a> {
    let (field, property, _) = PERSON[which];
    let (top, own) = (bodies.field(field), bodies.main().property(property));
    let fits = |raw: Raw<'_>| raw.kind == Kind::Object || which == UNSET && raw.kind == Kind::Array;
    match (top.is_missing(), fits(top)) {
        (true, _) => Person::Own,
        (_, true) if fits(own) => Person::Merged { top, own },
        (_, true) if own.kind != Kind::Missing => Person::Replaced(top),
        // Unusable for the person, but passed on as it came if the name is free.
        (_, false) if own.kind != Kind::Missing => Person::Own,
        _ => Person::Added(top),
    }
}

/// The person property as the event has it: none if it is unusable or empty. `at` is where it stands in
/// the text already.
fn usable(which: usize, raw: Raw<'_>, at: Option<Span>, text: &mut String) -> Result<Option<Span>, Reason> {
    let span = match raw.kind {
        Kind::Array if which == UNSET => {
            let mut strings = true;
            let mut items = Scanner::new(raw.text);
            items
                .array(|item| item.value().map(|item| strings &= item.kind == Kind::String))
                .map_err(broken)?;
            match at {
                Some(at) if strings => at,
                _ => append_names(text, &[raw])?,
            }
        }
        Kind::Object if which == UNSET => append_names(text, &[raw])?,
        Kind::Object => at.unwrap_or_else(|| append(text, raw.text)),
        _ => return Ok(None),
    };
    Ok(Some(span).filter(|span| !is_empty(text, *span)))
}

/// Unknown members of the top level, and the service's fields, unless the properties have the name. The
/// outer body wins over the inner one.
fn add_extras(bodies: &Bodies<'_>, outer: &Entries, inner: &Entries, object: &mut Object<'_>) {
    let main = bodies.main();
    let captured = bodies.inner.is_some();
    let own = if captured {
        &inner.properties
    } else {
        &outer.properties
    };
    let inner_extras: &[Entry] = if captured { &inner.extras } else { &[] };
    let lookups = outer.extras.len() + inner_extras.len() + SERVICE.len();
    let in_properties = Names::of(main.text, own, lookups);
    let in_outer = Names::of(bodies.outer.text, &outer.extras, lookups);
    let in_inner = Names::of(main.text, inner_extras, SERVICE.len());
    for entry in inner_extras {
        let name = entry.name.of(main.text);
        if !in_properties.contains(name) && !in_outer.contains(name) {
            object.member(name.text, entry.value.of(main.text).text);
        }
    }
    for entry in &outer.extras {
        let name = entry.name.of(bodies.outer.text);
        if !in_properties.contains(name) {
            object.member(name.text, entry.value.of(bodies.outer.text).text);
        }
    }
    for (field, property, name) in SERVICE {
        let value = bodies.told(field);
        let there = main.property(property).kind != Kind::Missing
            || in_outer.contains(quoted(name))
            || in_inner.contains(quoted(name));
        if !value.is_missing() && !there {
            object.member(name, value.text);
        }
    }
}

/// What `$process_person_profile` comes to in the row's properties.
fn wants_profile(bodies: &Bodies<'_>, outer: &Entries, inner: &Entries) -> bool {
    let name = quoted(r#""$process_person_profile""#);
    let find = |text, extras: &[Entry]| {
        extras
            .iter()
            .rev()
            .find(|entry| same(entry.name.of(text), name))
            .map(|entry| entry.value.kind)
    };
    let own = bodies.main().property(Property::Profile).kind;
    let kind = Some(own)
        .filter(|kind| *kind != Kind::Missing)
        .or_else(|| find(bodies.outer.text, &outer.extras))
        .or_else(|| {
            bodies
                .inner
                .as_ref()
                .and_then(|body| find(body.text, &inner.extras))
        });
    kind != Some(Kind::False)
}

/// A JSON object being written.
#[derive(Debug)]
struct Object<'t> {
    text: &'t mut String,
    start: usize,
}

impl<'t> Object<'t> {
    fn open(text: &'t mut String) -> Self {
        let start = text.len();
        text.push('{');
        Object { text, start }
    }

    /// All members of an object with every blank between them: so each keeps its distance from the
    /// beginning.
    fn members(&mut self, object: Raw<'_>) {
        let inside = object.inside();
        if !inside.trim_ascii().is_empty() {
            self.text.push_str(inside);
        }
    }

    /// A member; the span is its value's.
    fn member(&mut self, name: &str, value: &str) -> Span {
        self.name(name);
        append(self.text, value)
    }

    fn name(&mut self, name: &str) {
        if self.text.len() > self.start + 1 {
            self.text.push(',');
        }
        self.text.push_str(name);
        self.text.push(':');
    }

    /// A person property that is at the top level and in the properties; the top level wins.
    fn merged(&mut self, name: &str, top: Raw<'_>, own: Raw<'_>) -> Result<Span, Reason> {
        self.name(name);
        if name == PERSON[UNSET].2 {
            return append_names(self.text, &[top, own]);
        }
        let (tops, owns) = (entries(top)?, entries(own)?);
        let names = Names::of(top.text, &tops, owns.len());
        let mut object = Object::open(self.text);
        for entry in owns
            .iter()
            .filter(|entry| !names.contains(entry.name.of(own.text)))
        {
            object.member(entry.name.of(own.text).text, entry.value.of(own.text).text);
        }
        for entry in &tops {
            object.member(entry.name.of(top.text).text, entry.value.of(top.text).text);
        }
        Ok(object.close())
    }

    fn close(self) -> Span {
        self.text.push('}');
        since(self.text, self.start)
    }
}

/// Appends an array of the names in arrays (their strings) and objects (their members' names).
fn append_names(text: &mut String, sources: &[Raw<'_>]) -> Result<Span, Reason> {
    let start = text.len();
    let mut seen = HashSet::new();
    text.push('[');
    for source in sources {
        let mut names = Vec::new();
        let mut scanner = Scanner::new(source.text);
        match source.kind {
            Kind::Object => scanner.object(|scanner, name| {
                names.push(name);
                scanner.value().map(drop)
            }),
            _ => scanner.array(|scanner| scanner.value().map(|item| names.push(item))),
        }
        .map_err(broken)?;
        for name in names
            .iter()
            .map(|name| name.of(source.text))
            .filter(|name| name.kind == Kind::String)
        {
            if seen.insert(meaning(name)) {
                if text.len() > start + 1 {
                    text.push(',');
                }
                text.push_str(name.text);
            }
        }
    }
    text.push(']');
    Ok(since(text, start))
}

/// The members of an object.
fn entries(object: Raw<'_>) -> Result<Vec<Entry>, Reason> {
    let mut entries = Vec::new();
    Scanner::new(object.text)
        .object(|scanner, name| scanner.value().map(|value| entries.push(Entry { name, value })))
        .map_err(broken)?;
    Ok(entries)
}

/// Never happens: what is scanned here has been scanned before.
fn broken(_: Fault) -> Reason {
    Reason::NotJson
}

fn is_empty(text: &str, container: Span) -> bool {
    let start = container.start as usize;
    text[start + 1..start + container.len as usize - 1]
        .trim_ascii()
        .is_empty()
}

fn quoted(text: &str) -> Raw<'_> {
    Raw {
        kind: Kind::String,
        escaped: false,
        text,
    }
}
