//! Records that are no events, one way or several for each reason.

use std::io::Write as _;

use crate::event::{MAX_DEPTH, MAX_PAYLOAD, Reason};

/// Writes the payload of the `nth` bad record. Answers whether there is to be none at all: a tombstone.
pub(super) fn write(reason: Reason, nth: u64, token: &str, out: &mut Vec<u8>) -> bool {
    // Each turn of a reason takes its next way.
    let turn = (nth / super::REASONS.len() as u64) as usize;
    let way = |ways: &[&str]| ways[turn % ways.len()].to_owned();
    let token = format!(r#""token":"{token}""#);
    let event = format!(r#""event":"broken {nth}""#);
    let user = r#""distinct_id":"user-0""#;
    let object = |fields: &[&str]| format!("{{{}}}", fields.join(","));
    let whole = object(&[&token, &event, user]);
    let text = match reason {
        Reason::Empty => return turn.is_multiple_of(2),
        Reason::TooLarge => {
            // Of one letter, so that it passes a broker's limit once compressed.
            let padding = format!(r#""padding":"{}""#, "x".repeat(MAX_PAYLOAD));
            object(&[&token, &event, user, &padding])
        }
        Reason::NotUtf8 => {
            // A replacement in bytes: a `String` cannot hold it.
            out.extend_from_slice(&whole.as_bytes()[..whole.len() - 2]);
            out.extend_from_slice(b"\xff\"}");
            return false;
        }
        Reason::NotJson => match turn % 3 {
            0 => whole[..whole.len() - 1].to_owned(),
            1 => format!("{whole} {whole}"),
            _ => format!("broken {nth}"),
        },
        Reason::NotAnObject => match turn % 3 {
            0 => format!("[{whole}]"),
            1 => nth.to_string(),
            _ => "null".to_owned(),
        },
        Reason::TooDeep => {
            let depth = MAX_DEPTH as usize;
            let deep = format!(
                r#""properties":{{"a":{}{}}}"#,
                "[".repeat(depth),
                "]".repeat(depth)
            );
            object(&[&token, &event, user, &deep])
        }
        Reason::MissingToken => {
            let fields = way(&[r#""token":null"#, r#""token":"  ""#, r#""project":"token-0""#]);
            object(&[&fields, &event, user])
        }
        Reason::TokenTooLong => object(&[&format!(r#""token":"{}""#, "t".repeat(65)), &event, user]),
        Reason::BadToken => object(&[
            &way(&[r#""token":"tökén""#, r#""token":"a\u0000b""#]),
            &event,
            user,
        ]),
        Reason::MissingEvent => {
            let fields = way(&[r#""event":"""#, r#""event":7"#, r#""name":"broken""#]);
            object(&[&token, &fields, user])
        }
        Reason::EventTooLong => {
            let long = format!(r#""event":"{}""#, way(&["e", "é"]).repeat(1001));
            object(&[&token, &long, user])
        }
        Reason::BadEvent => {
            let fields = way(&[r#""event":"a\u0000b""#, r#""event":"a\ud800b""#]);
            object(&[&token, &fields, user])
        }
        Reason::MissingDistinctId => {
            let fields = way(&[
                r#""distinct_id":null"#,
                r#""distinct_id":" ""#,
                r#""user":"user-0""#,
            ]);
            object(&[&token, &event, &fields])
        }
        Reason::BadDistinctId => {
            let fields = way(&[r#""distinct_id":"a\u0000b""#, r#""distinct_id":"\udc00""#]);
            object(&[&token, &event, &fields])
        }
        Reason::BadTimestamp => {
            let fields = way(&[
                r#""timestamp":"yesterday""#,
                r#""timestamp":"2023-02-30T00:00:00Z""#,
                r#""timestamp":1700000000"#,
                r#""timestamp":"2299-01-01T00:00:00Z""#,
            ]);
            object(&[&token, &event, user, &fields])
        }
        // A refusal is the table's, never the record's alone; should one be asked for, this is a bad record too.
        Reason::PropertiesNotAnObject | Reason::Refused => {
            let fields = way(&[
                r#""properties":[1]"#,
                r#""properties":"none""#,
                r#""properties":false"#,
            ]);
            object(&[&token, &event, user, &fields])
        }
    };
    out.write_all(text.as_bytes()).unwrap_or_default();
    false
}
