//! Every rule about what clients send, each by records that it decides.

use super::*;

mod fields;
mod person;
mod props;
mod random;
mod shapes;
mod times;

/// What `decode` makes of one record, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    token: String,
    event: String,
    distinct_id: String,
    timestamp: i64,
    uuid: String,
    /// `uuid`, `none`, or the text.
    id: String,
    properties: String,
    set: Option<String>,
    set_once: Option<String>,
    unset: Option<String>,
    origin: Option<Origin>,
}

const PLACE: Place<'static> = Place {
    topic: "events",
    incarnation: 0,
    partition: 3,
};
const OFFSET: i64 = 17;
/// 2024-05-01T12:00:00Z.
const RECORD_TIME: i64 = 1_714_564_800_000;

/// Header names and values; `None` is a null.
type Pairs<'a> = &'a [(&'a str, Option<&'a str>)];

fn decode_bytes(payload: Option<&[u8]>, time: i64, headers: Pairs<'_>) -> Result<Seen, Reason> {
    outcome(
        &PLACE,
        Record {
            offset: OFFSET,
            timestamp: time,
            key: None,
            payload,
            headers: Headers(&[]),
        },
        headers,
    )
}

fn decode_at(place: &Place<'_>, payload: &[u8], offset: i64, headers: Pairs<'_>) -> Result<Seen, Reason> {
    let payload = Some(payload);
    outcome(
        place,
        Record {
            offset,
            timestamp: RECORD_TIME,
            key: None,
            payload,
            headers: Headers(&[]),
        },
        headers,
    )
}

fn outcome(place: &Place<'_>, record: Record<'_>, headers: Pairs<'_>) -> Result<Seen, Reason> {
    let mut encoded = Vec::new();
    for (name, value) in headers {
        Headers::encode(&mut encoded, name.as_bytes(), value.map(str::as_bytes));
    }
    let record = Record {
        headers: Headers(&encoded),
        ..record
    };
    let mut out = Decoded::default();
    decode(place, 5, &record, &mut out);
    match (&*out.events, &*out.rejected) {
        ([event], []) => {
            assert_eq!((event.index, event.offset), (5, record.offset));
            let str = |span| out.str(span).to_owned();
            Ok(Seen {
                token: out.tokens[event.token as usize].clone(),
                event: str(event.event),
                distinct_id: str(event.distinct_id),
                timestamp: event.timestamp,
                uuid: uuid::Uuid::from_u128(event.uuid).to_string(),
                id: match event.id {
                    Id::Uuid(uuid) => {
                        assert_eq!(uuid, event.uuid);
                        "uuid".to_owned()
                    }
                    Id::Text(id) => str(id),
                    Id::Coordinate => "none".to_owned(),
                },
                properties: str(event.properties),
                set: event.set.map(str),
                set_once: event.set_once.map(str),
                unset: event.unset.map(str),
                origin: event.origin.as_deref().cloned(),
            })
        }
        ([], [rejected]) => {
            assert_eq!((rejected.index, rejected.offset), (5, record.offset));
            assert!(
                out.text.is_empty() && out.tokens.is_empty(),
                "a reject leaves nothing behind"
            );
            Err(rejected.reason)
        }
        outcome => panic!("not exactly one outcome: {outcome:?}"),
    }
}

fn seen(json: &str) -> Result<Seen, Reason> {
    seen_with(json, &[])
}

fn seen_with(json: &str, headers: Pairs<'_>) -> Result<Seen, Reason> {
    decode_bytes(Some(json.as_bytes()), RECORD_TIME, headers)
}

/// A plain event with these members besides the three that it must have.
fn plain(members: &str) -> Result<Seen, Reason> {
    seen(&format!(
        r#"{{"token":"t","event":"e","distinct_id":"u"{}{members}}}"#,
        comma(members)
    ))
}

/// A captured one: the members of `data`, and those beside it.
fn captured(data: &str, members: &str) -> Result<Seen, Reason> {
    let data = serde_json::to_string(&format!("{{{data}}}")).unwrap();
    seen(&format!(
        r#"{{"data":{data},"token":"t","event":"e","distinct_id":"u"{}{members}}}"#,
        comma(members)
    ))
}

fn comma(members: &str) -> &str {
    if members.is_empty() { "" } else { "," }
}
