//! Reading the answer of `INFO`.

/// The value of a field, empty if there is none.
pub fn text<'a>(info: &'a str, name: &str) -> &'a str {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .unwrap_or_default()
}

/// The value of a field that is a number.
pub fn number(info: &str, name: &str) -> Option<f64> {
    text(info, name).parse().ok()
}
