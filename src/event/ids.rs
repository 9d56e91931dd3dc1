//! Ids: the forms of a UUID, and the row's `uuid` where the client gives none.
//!
//! The made ones are name-based (version 5), so that every attempt at a record makes the same; they never
//! change, because rows have them.

use uuid::Uuid;

use super::{Origin, Place};

/// Namespace of uuids that are made from token and id.
const TEXT: Uuid = Uuid::from_u128(0x863d_cac9_19d4_44fa_a9a3_99d1_45bd_a9c9);
/// Namespace of uuids that are made from a coordinate.
const COORDINATE: Uuid = Uuid::from_u128(0x1e1a_1078_b290_4d85_ad54_9184_c0da_54d5);

/// Reads every form of a UUID: hyphens or 32 hex digits alone, of either case, bare, in braces or behind
/// `urn:uuid:`.
pub(super) fn parse(text: &str) -> Option<u128> {
    let bare = match text.get(..9) {
        Some(urn) if urn.eq_ignore_ascii_case("urn:uuid:") => &text[9..],
        _ => text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
            .unwrap_or(text),
    };
    // These two lengths leave only the two forms that may stand bare.
    if matches!(bare.len(), 32 | 36) {
        Uuid::try_parse(bare).ok().map(|uuid| uuid.as_u128())
    } else {
        None
    }
}

/// The row's uuid for an id that is no UUID. A token holds no NUL, so no two pairs meet.
pub(super) fn of_text(token: &str, id: &str) -> u128 {
    Uuid::new_v5(&TEXT, &[token.as_bytes(), id.as_bytes()].join(&0)).as_u128()
}

/// The row's uuid for an event without an id: the coordinate of the record, or of its first rejection.
pub(super) fn of_coordinate(place: &Place<'_>, offset: i64, origin: Option<&Origin>) -> u128 {
    let (topic, incarnation, partition, offset) = match origin {
        Some(origin) => (
            origin.topic.as_str(),
            origin.incarnation,
            origin.partition,
            origin.offset,
        ),
        None => (place.topic, place.incarnation, place.partition, offset),
    };
    // Fixed lengths behind the topic keep it unambiguous.
    let mut name = topic.as_bytes().to_vec();
    name.extend_from_slice(&incarnation.to_be_bytes());
    name.extend_from_slice(&partition.to_be_bytes());
    name.extend_from_slice(&offset.to_be_bytes());
    Uuid::new_v5(&COORDINATE, &name).as_u128()
}
