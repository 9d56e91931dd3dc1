//! The fields of one JSON object, and which of the two shapes a payload has.
//!
//! Finds the fields in one pass over the text and keeps where they stand; it never says what they mean.

use super::Reason;
use super::json::{Fault, Scanner};
use super::text::meaning;
use super::value::{Entry, Kind, Raw, Value};

/// The fields of an event that have a meaning of their own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Token,
    ApiKey,
    DollarToken,
    Event,
    DistinctId,
    DollarDistinctId,
    Uuid,
    Timestamp,
    Offset,
    Now,
    SentAt,
    Ip,
    Data,
    Properties,
    Set,
    SetOnce,
    Unset,
}

impl Field {
    const COUNT: usize = Field::Unset as usize + 1;

    fn of(name: &str) -> Option<Field> {
        Some(match name {
            "token" => Field::Token,
            "api_key" => Field::ApiKey,
            "$token" => Field::DollarToken,
            "event" => Field::Event,
            "distinct_id" => Field::DistinctId,
            "$distinct_id" => Field::DollarDistinctId,
            "uuid" => Field::Uuid,
            "timestamp" => Field::Timestamp,
            "offset" => Field::Offset,
            "now" => Field::Now,
            "sent_at" => Field::SentAt,
            "ip" => Field::Ip,
            "data" => Field::Data,
            "properties" => Field::Properties,
            "$set" => Field::Set,
            "$set_once" => Field::SetOnce,
            "$unset" => Field::Unset,
            _ => return None,
        })
    }
}

/// The properties that have a meaning for the event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Property {
    Token,
    DistinctId,
    Set,
    SetOnce,
    Unset,
    Profile,
    Ip,
    SentAt,
}

impl Property {
    const COUNT: usize = Property::SentAt as usize + 1;

    fn of(name: &str) -> Option<Property> {
        Some(match name {
            "token" => Property::Token,
            "distinct_id" => Property::DistinctId,
            "$set" => Property::Set,
            "$set_once" => Property::SetOnce,
            "$unset" => Property::Unset,
            "$process_person_profile" => Property::Profile,
            "$ip" => Property::Ip,
            "$sent_at" => Property::SentAt,
            _ => return None,
        })
    }
}

/// The members of a body that are looked through by name; buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// The members whose name is no [`Field`].
    pub(super) extras: Vec<Entry>,
    /// The members of `properties`.
    pub(super) properties: Vec<Entry>,
}

/// One JSON object with the fields of an event. Of a name that stands in it twice the last one counts, as
/// with most readers of JSON, `JSON.parse` and `serde_json`'s `Value` among them.
#[derive(Debug)]
pub(super) struct Body<'a> {
    pub(super) text: &'a str,
    fields: [Value; Field::COUNT],
    properties: [Value; Property::COUNT],
    data_name: Value,
}

impl<'a> Body<'a> {
    /// Finds the fields of the object that `text` is.
    pub(super) fn read(text: &'a str, entries: &mut Entries) -> Result<Self, Reason> {
        let mut body = Body {
            text,
            fields: Default::default(),
            properties: Default::default(),
            data_name: Value::default(),
        };
        entries.extras.clear();
        entries.properties.clear();
        body.scan(entries).map_err(|fault| match fault {
            Fault::Syntax => Reason::NotJson,
            Fault::Depth => Reason::TooDeep,
        })?;
        let is_object = text.trim_ascii_start().starts_with('{');
        if is_object {
            Ok(body)
        } else {
            Err(Reason::NotAnObject)
        }
    }

    fn scan(&mut self, entries: &mut Entries) -> Result<(), Fault> {
        let mut scanner = Scanner::new(self.text);
        if scanner.peek() == Some(b'{') {
            scanner.object(|scanner, name| self.member(scanner, name, entries))?;
        } else {
            scanner.value()?;
        }
        scanner.end()
    }

    fn member(&mut self, scanner: &mut Scanner<'_>, name: Value, entries: &mut Entries) -> Result<(), Fault> {
        let field = Field::of(&meaning(name.of(self.text)));
        let value = if matches!(field, Some(Field::Properties)) {
            self.read_properties(scanner, &mut entries.properties)?
        } else {
            scanner.value()?
        };
        match field {
            Some(field) => {
                self.fields[field as usize] = value;
                if matches!(field, Field::Data) {
                    self.data_name = name;
                }
            }
            None => entries.extras.push(Entry { name, value }),
        }
        Ok(())
    }

    fn read_properties(&mut self, scanner: &mut Scanner<'_>, all: &mut Vec<Entry>) -> Result<Value, Fault> {
        all.clear();
        self.properties = Default::default();
        if scanner.peek() != Some(b'{') {
            return scanner.value();
        }
        scanner.object(|scanner, name| {
            let value = scanner.value()?;
            if let Some(property) = Property::of(&meaning(name.of(self.text))) {
                self.properties[property as usize] = value;
            }
            all.push(Entry { name, value });
            Ok(())
        })
    }

    pub(super) fn field(&self, field: Field) -> Raw<'a> {
        self.fields[field as usize].of(self.text)
    }

    pub(super) fn property(&self, property: Property) -> Raw<'a> {
        self.properties[property as usize].of(self.text)
    }

    /// Where a property stands in the text of `properties`.
    pub(super) fn property_at(&self, property: Property) -> usize {
        self.properties[property as usize].start() - self.fields[Field::Properties as usize].start()
    }

    /// Whether this is the captured shape: `data` is a string where a plain event has its `properties`,
    /// and either capture's `now` stands beside it or its text is an object's. An event that merely has a
    /// field of its own called `data` is a plain one.
    pub(super) fn is_captured(&self) -> bool {
        let data = self.field(Field::Data);
        data.kind == Kind::String
            && self.field(Field::Properties).is_missing()
            && (!self.field(Field::Now).is_missing() || opens_object(data))
    }

    /// The member `data`, where it is just a field of the client's.
    pub(super) fn data(&self) -> Option<Entry> {
        let value = self.fields[Field::Data as usize];
        (value.kind != Kind::Missing).then_some(Entry {
            name: self.data_name,
            value,
        })
    }
}

/// Whether the text that a string holds begins like a JSON object: by what it means, as any of its characters may be
/// escaped.
fn opens_object(string: Raw<'_>) -> bool {
    const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];
    let start = string.inside().trim_start_matches(BLANKS);
    start.starts_with('{')
        || start.starts_with('\\') && meaning(string).trim_start_matches(BLANKS).starts_with('{')
}

/// A payload: one body in the plain shape; in the captured one that of the payload, and that in its `data`.
#[derive(Debug)]
pub(super) struct Bodies<'a> {
    pub(super) outer: Body<'a>,
    pub(super) inner: Option<Body<'a>>,
}

impl<'a> Bodies<'a> {
    /// Outermost first, the order in which they are asked.
    pub(super) fn each(&self) -> impl Iterator<Item = &Body<'a>> {
        std::iter::once(&self.outer).chain(&self.inner)
    }

    /// The outermost field of that name that is there.
    pub(super) fn field(&self, field: Field) -> Raw<'a> {
        let outer = self.outer.field(field);
        match &self.inner {
            Some(inner) if outer.is_missing() => inner.field(field),
            _ => outer,
        }
    }

    /// The same, where an empty string is none either: capture writes one for what it was not told.
    pub(super) fn told(&self, field: Field) -> Raw<'a> {
        let mut all = self.each().map(|body| body.field(field));
        all.find(|raw| !raw.is_missing() && raw.text != r#""""#)
            .unwrap_or_default()
    }

    /// The one that the properties are in.
    pub(super) fn main(&self) -> &Body<'a> {
        self.inner.as_ref().unwrap_or(&self.outer)
    }
}
