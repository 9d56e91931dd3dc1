//! An error and what caused it, in one text.

use std::error::Error;

/// The error and what caused it, each cause once: client libraries repeat some of theirs.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = first_paragraph(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = first_paragraph(&error.to_string());
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// What a text says before its first empty line, after which `ClickHouse` goes on with general advice.
fn first_paragraph(text: &str) -> String {
    let text = text.trim();
    text.split("\n\n").next().unwrap_or(text).to_owned()
}
