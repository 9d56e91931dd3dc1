//! Raw values: the file, and the environment above it.
//!
//! Owns where a value came from, so that a refusal can say it, and which keys were asked for, so that what is
//! left over is unknown. A value from the environment stays text until it is known what the key wants: a
//! password of digits is a password.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::path::Path;

use toml::Value;

use super::error::ConfigError;
use super::secret::HIDDEN;

const PREFIX: &str = "SLUICE_";
/// The local stack's and the tests' own variables, which configure no worker.
const FOREIGN_PREFIXES: [&str; 2] = ["SLUICE_LOCAL_", "SLUICE_TEST_"];
/// Sections with a secret in them: it may stand under a misspelt key.
const SECRET_SECTIONS: [&str; 4] = ["kafka", "redis", "clickhouse", "api"];
/// Longest part of a refused value that a message repeats.
const SHOWN_CHARS: usize = 100;

/// Where a value came from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(String),
    Variable(String),
}

impl Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{path}"),
            Self::Variable(name) => write!(f, "environment {name}"),
        }
    }
}

#[derive(Debug)]
enum Raw {
    Typed(Value),
    Text(String),
}

#[derive(Debug)]
struct Entry {
    raw: Raw,
    source: Source,
}

/// All values by `section.key`, each taken out by the check that knows its type.
///
/// A check that fails notes the problem and goes on with the default: the caller sees all problems at the end,
/// by [`Layers::finish`], and must not use the values if there are any.
#[derive(Debug)]
pub(super) struct Layers {
    entries: BTreeMap<String, Entry>,
    sections: BTreeMap<String, Source>,
    asked: BTreeSet<&'static str>,
    /// Variables with the prefix that name no section and key.
    unread: Vec<String>,
    problems: Vec<String>,
}

impl Layers {
    /// Reads the file, if there is one, and lays the environment over it.
    pub(super) fn gather(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self {
            entries: BTreeMap::new(),
            sections: BTreeMap::new(),
            asked: BTreeSet::new(),
            unread: Vec::new(),
            problems: Vec::new(),
        };
        if let Some(path) = file {
            layers
                .read_file(path)
                .map_err(|problem| ConfigError::new(vec![problem]))?;
        }
        for (name, value) in environment {
            layers.read_variable(&name, value);
        }
        Ok(layers)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("--config {shown}: cannot be read: {error}"))?;
        // Not the error's own text: it repeats the line, which may hold a password.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let (line, column) = error.span().map_or((1, 1), |span| position(&text, span.start));
            format!(
                "--config {shown}: not valid TOML at line {line}, column {column}: {}",
                error.message()
            )
        })?;
        let source = Source::File(shown.to_string());
        for (section, value) in table {
            match value {
                Value::Table(keys) => {
                    for (key, value) in keys {
                        let entry = Entry {
                            raw: Raw::Typed(value),
                            source: source.clone(),
                        };
                        self.entries.insert(format!("{section}.{key}"), entry);
                    }
                    self.sections.insert(section, source.clone());
                }
                _ => self.problems.push(format!(
                    "{section} ({source}): a value outside of any section; keys stand below a [section]"
                )),
            }
        }
        Ok(())
    }

    fn read_variable(&mut self, name: &OsString, value: OsString) {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            return;
        };
        let Some((section, key)) = rest.split_once("__") else {
            self.unread.push(name.to_string());
            return;
        };
        if FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return;
        }
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let source = Source::Variable(name.to_string());
        match value.into_string() {
            Ok(text) => {
                let key = format!("{section}.{key}");
                self.entries.insert(
                    key,
                    Entry {
                        raw: Raw::Text(text),
                        source: source.clone(),
                    },
                );
                self.sections.insert(section, source);
            }
            Err(_) => self
                .problems
                .push(format!("{section}.{key} ({source}): must be UTF-8")),
        }
    }

    /// Notes a problem that no single value has, or that needs more than a type to see.
    pub(super) fn problem(&mut self, message: String) {
        self.problems.push(message);
    }

    /// The problems of all checks, and of the values that no check asked for.
    pub(super) fn finish(mut self) -> Result<(), ConfigError> {
        let known_sections: BTreeSet<&str> = self.asked.iter().map(|key| section_of(key)).collect();
        for (section, source) in &self.sections {
            if !known_sections.contains(section.as_str()) {
                let hint = suggest(section, known_sections.iter().copied());
                self.problems
                    .push(format!("[{section}] ({source}): no such section; {hint}"));
            }
        }
        for (key, entry) in &self.entries {
            let section = section_of(key);
            if known_sections.contains(section) {
                let same_section = self
                    .asked
                    .iter()
                    .copied()
                    .filter(|known| section_of(known) == section);
                let hint = suggest(key, same_section);
                let shown = if SECRET_SECTIONS.contains(&section) {
                    HIDDEN.to_owned()
                } else {
                    entry.raw.show()
                };
                self.problems
                    .push(format!("{key} = {shown} ({}): no such key; {hint}", entry.source));
            }
        }
        // Other programs' variables may begin so, too (Kubernetes makes some of a service's name); one that is a
        // key but for an underscore is meant for us.
        for name in &self.unread {
            let meant = self.asked.iter().find_map(|known| {
                let (section, key) = known.split_once('.')?;
                let spelt = |between| format!("{PREFIX}{section}{between}{key}").to_ascii_uppercase();
                (*name == spelt("_")).then(|| spelt("__"))
            });
            if let Some(meant) = meant {
                self.problems.push(format!(
                    "environment {name}: would have no effect; did you mean {meant} (two underscores)?"
                ));
            }
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::new(self.problems))
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Entry> {
        self.asked.insert(key);
        self.entries.remove(key)
    }

    fn refuse(&mut self, key: &str, shown: &str, source: &Source, accepted: impl Display) {
        self.problems
            .push(format!("{key} = {shown} ({source}): must be {accepted}"));
    }

    /// A text that passes `check`, which says what is accepted otherwise.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        default: String,
        check: fn(&str) -> Result<(), &'static str>,
    ) -> String {
        let Some((text, source)) = self.any_text(key, show) else {
            return default;
        };
        match check(&text) {
            Ok(()) => text,
            Err(accepted) => {
                self.refuse(key, &quote(&text), &source, accepted);
                default
            }
        }
    }

    /// A text that is not shown, whatever is wrong with it.
    pub(super) fn hidden_text(&mut self, key: &'static str) -> Option<(String, Source)> {
        self.any_text(key, |_| HIDDEN.to_owned())
    }

    fn any_text(&mut self, key: &'static str, show: fn(&Value) -> String) -> Option<(String, Source)> {
        let entry = self.take(key)?;
        match entry.raw {
            Raw::Text(text) | Raw::Typed(Value::String(text)) => Some((text, entry.source)),
            Raw::Typed(other) => {
                self.refuse(key, &show(&other), &entry.source, "a string, in quotes");
                None
            }
        }
    }

    /// A whole number within a range.
    pub(super) fn number<T>(&mut self, key: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: Copy + Display + PartialOrd + TryFrom<i128>,
    {
        let Some(entry) = self.take(key) else {
            return default;
        };
        let number = match &entry.raw {
            Raw::Typed(Value::Integer(number)) => Some(i128::from(*number)),
            Raw::Typed(_) => None,
            Raw::Text(text) => text.trim().parse().ok(),
        };
        let number = number.and_then(|number| T::try_from(number).ok());
        number.filter(|number| range.contains(number)).unwrap_or_else(|| {
            let accepted = format!("a whole number from {} to {}", range.start(), range.end());
            self.refuse(key, &entry.raw.show(), &entry.source, accepted);
            default
        })
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let Some(entry) = self.take(key) else {
            return default;
        };
        let switch = match &entry.raw {
            Raw::Typed(Value::Boolean(switch)) => Some(*switch),
            Raw::Typed(_) => None,
            Raw::Text(text) => text.trim().parse().ok(),
        };
        switch.unwrap_or_else(|| {
            self.refuse(key, &entry.raw.show(), &entry.source, "true or false");
            default
        })
    }

    /// One of some words. A word of `planned` is one that a later version will know: the refusal says so.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some((text, source)) = self.any_text(key, show) else {
            return default;
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return *choice;
        }
        let words: Vec<String> = choices.iter().map(|(word, _)| quote(word)).collect();
        self.refuse(key, &quote(&text), &source, words.join(" or "));
        default
    }

    /// A value made of others; from the environment as JSON or inline TOML. Its refusals show nothing of it, as
    /// parts of it are secret.
    pub(super) fn compound(&mut self, key: &'static str, accepted: &str) -> Option<(Value, Source)> {
        let Entry { raw, source } = self.take(key)?;
        match raw {
            Raw::Typed(value) => Some((value, source)),
            Raw::Text(text) => {
                let value = parse_inline(&text);
                if value.is_none() {
                    self.refuse(
                        key,
                        HIDDEN,
                        &source,
                        format_args!("{accepted}, as JSON or inline TOML"),
                    );
                }
                Some((value?, source))
            }
        }
    }
}

impl Raw {
    fn show(&self) -> String {
        match self {
            Self::Typed(value) => show(value),
            Self::Text(text) => quote(text),
        }
    }
}

/// A value as it would stand in the file, cut where it is long.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => shorten(&other.to_string()),
    }
}

/// A text in quotes, cut where it is long.
pub(super) fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// "did you mean …", or the list of what there is.
pub(super) fn suggest<'a>(unknown: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    /// Below this likeness a suggestion is more of a riddle than a help.
    const ALIKE: f64 = 0.6;
    // Only the last part of a dotted name is compared: the section is the same and would make all alike.
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let wanted = last(unknown);
    let nearest = known
        .clone()
        .map(|name| (strsim::normalized_damerau_levenshtein(&wanted, &last(name)), name))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((likeness, name)) if likeness >= ALIKE => format!("did you mean {name}?"),
        _ => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

fn section_of(key: &str) -> &str {
    key.split_once('.').map_or(key, |(section, _)| section)
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

fn parse_inline(text: &str) -> Option<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let mut table: toml::Table = format!("value = {text}").parse().ok()?;
    // More than the one key would have come from a line break in the text.
    if table.len() == 1 {
        table.remove("value")
    } else {
        None
    }
}
