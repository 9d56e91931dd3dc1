//! What a `ClickHouse` error asks of the caller. The one place where its error codes are judged.

use ::clickhouse::error::Error;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The table refused the insert for its age: announce anew, ask, and write what is missing.
    Stale,
    /// The data themselves are refused, and will be at every repeat: find the row.
    Refused,
    /// Anything else passes or is mended by an operator: try again, the same bytes.
    Transient,
}

/// A query needed more memory than it may take.
pub const MEMORY_LIMIT_EXCEEDED: u32 = 241;

/// The server's error code, where the error came from the server.
pub fn code(error: &Error) -> Option<u32> {
    let Error::BadResponse(text) = error else {
        return None;
    };
    let rest = text.trim_start().strip_prefix("Code: ")?;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())]
        .parse()
        .ok()
}

/// What went wrong, without a word of the client library's or the server's: fit for everybody's eyes.
pub fn told(error: &Error) -> String {
    match code(error) {
        // UNKNOWN_DATABASE
        Some(81) => "the database does not exist (error 81)".to_owned(),
        // REQUIRED_PASSWORD, WRONG_PASSWORD, AUTHENTICATION_FAILED
        Some(code @ (193 | 194 | 516)) => format!("it refuses user or password (error {code})"),
        Some(code) => format!("it answers with error {code}"),
        None if matches!(error, Error::TimedOut) => "no answer in time".to_owned(),
        None => "it cannot be reached".to_owned(),
    }
}

/// Judges an insert's error.
pub fn classify(error: &Error) -> Class {
    let text = match error {
        Error::BadResponse(text) => text.as_str(),
        _ => return Class::Transient,
    };
    match code(error) {
        Some(469) if violated(text) == Some(super::schema::IN_TIME) => Class::Stale,
        // CANNOT_PARSE_TEXT, CANNOT_READ_ALL_DATA, CANNOT_PARSE_*, ARGUMENT_OUT_OF_BOUND, TYPE_MISMATCH,
        // CANNOT_CONVERT_TYPE, INCORRECT_DATA, VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE,
        // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN, DECIMAL_OVERFLOW, VIOLATED_CONSTRAINT,
        // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO (in a view behind the table).
        Some(6 | 26 | 27 | 33 | 38 | 41 | 53 | 69 | 70 | 72 | 117 | 321 | 349 | 395 | 407 | 469) => {
            Class::Refused
        }
        _ => Class::Transient,
    }
}

/// The constraint that an error names. It stands first: values of the refused row follow, which a producer chooses.
fn violated(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("Constraint `")?;
    rest.split('`').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_asks_for_one_thing() {
        let bad = |text: &str| Error::BadResponse(text.to_owned());
        let cases = [
            (
                bad("Code: 469. DB::Exception: Constraint `in_time` for table d.events is violated"),
                Class::Stale,
            ),
            (
                bad("Code: 469. DB::Exception: Constraint `mine` for table d.events is violated"),
                Class::Refused,
            ),
            (
                bad(
                    "Code: 469. DB::Exception: Constraint `mine` for table d.events is violated at row 1. \
                     Column values: event = 'Constraint `in_time` for table'",
                ),
                Class::Refused,
            ),
            (bad("Code: 117. DB::Exception: bad data"), Class::Refused),
            (
                bad("Code: 33. DB::Exception: Cannot read all data"),
                Class::Refused,
            ),
            (
                bad("Code: 60. DB::Exception: Table does not exist"),
                Class::Transient,
            ),
            (bad("Code: 252. DB::Exception: Too many parts"), Class::Transient),
            (
                bad("Code: 159. DB::Exception: Timeout exceeded"),
                Class::Transient,
            ),
            (bad("Code: 241. DB::Exception: memory limit"), Class::Transient),
            (bad("something else"), Class::Transient),
            (Error::TimedOut, Class::Transient),
            (Error::Network("refused".into()), Class::Transient),
        ];
        for (error, class) in cases {
            assert_eq!(classify(&error), class, "{error}");
        }
    }
}
