//! Values of a JSON text: what they are and where they stand.
//!
//! Positions and slices alone; nothing here reads JSON.

/// What a value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Missing,
    Null,
    False,
    True,
    Number,
    String,
    Array,
    Object,
}

/// Where a value stands in its text; a string with its quotes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Value {
    pub(super) kind: Kind,
    /// A string with a backslash in it.
    pub(super) escaped: bool,
    start: u32,
    end: u32,
}

impl Value {
    /// The value that begins and ends there.
    pub(super) fn at(kind: Kind, start: usize, end: usize) -> Self {
        Value {
            kind,
            escaped: false,
            start: start as u32,
            end: end as u32,
        }
    }

    /// The same, of a string with a backslash in it.
    pub(super) fn with_escapes(self) -> Self {
        Value {
            escaped: true,
            ..self
        }
    }

    /// Where it begins in its text.
    pub(super) fn start(self) -> usize {
        self.start as usize
    }

    /// The value together with its text.
    pub(super) fn of(self, text: &str) -> Raw<'_> {
        let raw = if self.kind == Kind::Missing {
            ""
        } else {
            &text[self.start as usize..self.end as usize]
        };
        Raw {
            kind: self.kind,
            escaped: self.escaped,
            text: raw,
        }
    }
}

/// A value as it was written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raw<'a> {
    pub(super) kind: Kind,
    pub(super) escaped: bool,
    pub(super) text: &'a str,
}

impl<'a> Raw<'a> {
    /// Not there, or null.
    pub(super) fn is_missing(self) -> bool {
        matches!(self.kind, Kind::Missing | Kind::Null)
    }

    /// What stands between the quotes of a string (or between the brackets of a container).
    pub(super) fn inside(self) -> &'a str {
        &self.text[1..self.text.len() - 1]
    }
}

/// A member of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) name: Value,
    pub(super) value: Value,
}
