//! JSON as a tree whose leaves and names stay as they were written, so that it can be changed and written again.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

#[derive(Clone, Debug)]
pub(super) enum Tree {
    /// Names with their quotes.
    Object(Vec<(String, Tree)>),
    Array(Vec<Tree>),
    /// Anything else, or text that is no JSON at all.
    Leaf(String),
}

impl Tree {
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub(super) fn leaf(text: impl Into<String>) -> Self {
        Tree::Leaf(text.into())
    }

    pub(super) fn write(&self, out: &mut String) {
        match self {
            Tree::Leaf(text) => out.push_str(text),
            Tree::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { "," });
                    item.write(out);
                }
                out.push(']');
            }
            Tree::Object(members) => {
                out.push('{');
                for (n, (name, value)) in members.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { "," });
                    out.push_str(name);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// How many objects and arrays it has, itself among them.
    pub(super) fn containers(&self) -> usize {
        match self {
            Tree::Leaf(_) => 0,
            Tree::Array(items) => 1 + items.iter().map(Tree::containers).sum::<usize>(),
            Tree::Object(members) => 1 + members.iter().map(|(_, value)| value.containers()).sum::<usize>(),
        }
    }

    /// The `nth` of them, outermost first.
    pub(super) fn container(&mut self, nth: &mut usize) -> Option<&mut Tree> {
        if matches!(self, Tree::Leaf(_)) {
            return None;
        }
        if *nth == 0 {
            return Some(self);
        }
        *nth -= 1;
        match self {
            Tree::Leaf(_) => None,
            Tree::Array(items) => items.iter_mut().find_map(|item| item.container(nth)),
            Tree::Object(members) => members.iter_mut().find_map(|(_, value)| value.container(nth)),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        let mut json = serde_json::Deserializer::from_str(raw);
        let parsed = match raw.as_bytes().first() {
            Some(b'{') => json.deserialize_map(Contents),
            Some(b'[') => json.deserialize_seq(Contents),
            _ => return Ok(Tree::leaf(raw)),
        };
        parsed.map_err(serde::de::Error::custom)
    }
}

struct Contents;

impl<'de> Visitor<'de> for Contents {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some((name, value)) = map.next_entry::<&RawValue, Tree>()? {
            all.push((name.get().to_owned(), value));
        }
        Ok(Tree::Object(all))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = seq.next_element()? {
            all.push(item);
        }
        Ok(Tree::Array(all))
    }
}
