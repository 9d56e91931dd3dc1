//! The fields of an event: which of several places counts, and what each may hold.

use sluice::event::{Origin, Reason};

use super::json::{self, Raw, Text};
use super::{Expected, Id, time};
use crate::cases::Case;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// What `DateTime64(3, 'UTC')` holds: 1900-01-01 to the end of 2299.
const COLUMN_MS: std::ops::RangeInclusive<i64> = -2_208_988_800_000..=10_413_791_999_999;

/// The object of the payload, and the one in its `data`, if it is of the captured shape.
pub(super) struct Bodies<'a> {
    pub(super) outer: Vec<(Text, Raw<'a>)>,
    pub(super) inner: Option<Vec<(Text, Raw<'a>)>>,
}

/// A member by its name: of several the last one; null is none.
pub(super) fn member<'a>(members: &[(Text, Raw<'a>)], name: &str) -> Option<Raw<'a>> {
    let (_, raw) = members.iter().rev().find(|(found, _)| found == name.as_bytes())?;
    (raw.get() != "null").then_some(raw)
}

/// The text in `data`, if this is the captured shape: it is a string, stands where a plain event has `properties`,
/// and either `now` is there too or it holds an object.
pub(super) fn data_of_captured(outer: &[(Text, Raw<'_>)]) -> Option<Text> {
    let data = member(outer, "data").and_then(json::string)?;
    let object = data.iter().find(|byte| !b" \t\n\r".contains(byte)) == Some(&b'{');
    let beside = member(outer, "now").is_some() || object;
    (beside && member(outer, "properties").is_none()).then_some(data)
}

/// A string that is not blank.
fn said(raw: Raw<'_>) -> Option<Text> {
    json::string(raw).filter(|text| !is_blank(text))
}

fn is_blank(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.trim().is_empty())
}

impl<'a> Bodies<'a> {
    pub(super) fn layers(&self) -> impl Iterator<Item = &Vec<(Text, Raw<'a>)>> {
        std::iter::once(&self.outer).chain(&self.inner)
    }

    /// The object of the event itself, which `properties` stand in.
    pub(super) fn event_body(&self) -> &[(Text, Raw<'a>)] {
        self.inner.as_ref().unwrap_or(&self.outer)
    }

    /// The first of some places that `taken` makes something of: the outer object's before the inner one's, then
    /// that of the properties.
    fn first<T>(
        &self,
        names: &[&str],
        in_properties: bool,
        taken: impl Fn(Raw<'a>) -> Option<T>,
    ) -> Option<T> {
        let places = self
            .layers()
            .flat_map(|layer| names.iter().map(|name| member(layer, name)));
        let last = in_properties.then(|| {
            let properties = member(self.event_body(), "properties").and_then(json::members)?;
            member(&properties, names[0])
        });
        places.chain(last).flatten().find_map(taken)
    }

    pub(super) fn field(&self, name: &str) -> Option<Raw<'a>> {
        self.layers().find_map(|layer| member(layer, name))
    }

    /// The same, where empty is missing.
    pub(super) fn told(&self, name: &str) -> Option<Raw<'a>> {
        self.first(&[name], false, |raw| (raw.get() != r#""""#).then_some(raw))
    }

    pub(super) fn expected(&self, case: &Case, faults: &mut Vec<Reason>) -> Option<Expected> {
        let token = keep(self.token(case), faults);
        let event = keep(self.event(), faults);
        let distinct_id = keep(self.distinct_id(case), faults);
        let timestamp = self
            .time_ms(case)
            .filter(|ms| COLUMN_MS.contains(ms))
            .filter(|ms| case.timestamp < 0 || ms.saturating_sub(case.timestamp) <= DAY_MS);
        if timestamp.is_none() {
            faults.push(Reason::BadTimestamp);
        }
        let properties = member(self.event_body(), "properties");
        if properties.is_some_and(|raw| json::members(raw).is_none()) {
            faults.push(Reason::PropertiesNotAnObject);
        }
        let event = event?;
        let mut all = faults.is_empty().then(|| self.properties(&event))?;
        all.event = event;
        all.token = token?;
        all.distinct_id = distinct_id?;
        all.timestamp = timestamp?;
        all.id = self.id(case);
        all.origin = origin(case);
        Some(all)
    }

    fn token(&self, case: &Case) -> Result<String, Vec<Reason>> {
        let token = self
            .first(&["token", "api_key", "$token"], true, said)
            .or_else(|| header(case, "token").map(|token| token.as_bytes().to_vec()))
            .ok_or([Reason::MissingToken])?;
        let text = String::from_utf8_lossy(&token).trim().to_owned();
        let mut faults = Vec::new();
        if !text.is_ascii() || text.contains('\0') {
            faults.push(Reason::BadToken);
        }
        // One of letters outside ASCII, or with a lone surrogate, is bad; how long it is may be said as well.
        if text.len() > 64 {
            faults.push(Reason::TokenTooLong);
        }
        if faults.is_empty() { Ok(text) } else { Err(faults) }
    }

    fn event(&self) -> Result<String, Vec<Reason>> {
        let name = self
            .first(&["event"], false, |raw| {
                json::string(raw).filter(|text| !text.is_empty())
            })
            .ok_or([Reason::MissingEvent])?;
        let lossy = String::from_utf8_lossy(&name);
        let mut faults = Vec::new();
        if String::from_utf8(name.clone()).is_err() || name.contains(&0) {
            faults.push(Reason::BadEvent);
        }
        if lossy.chars().count() > 1000 {
            faults.push(Reason::EventTooLong);
        }
        if faults.is_empty() {
            Ok(lossy.into_owned())
        } else {
            Err(faults)
        }
    }

    fn distinct_id(&self, case: &Case) -> Result<String, Vec<Reason>> {
        let id = self
            .first(&["distinct_id", "$distinct_id"], true, |raw| {
                match json::string(raw) {
                    Some(text) => (!is_blank(&text)).then_some(text),
                    None => Some(json::compact(raw).into_bytes()),
                }
            })
            .or_else(|| header(case, "distinct_id").map(|id| id.as_bytes().to_vec()))
            .ok_or([Reason::MissingDistinctId])?;
        match String::from_utf8(id) {
            Ok(text) if !text.contains('\0') => Ok(text.chars().take(200).collect()),
            _ => Err(vec![Reason::BadDistinctId]),
        }
    }

    fn id(&self, case: &Case) -> Id {
        let text = self
            .first(&["uuid"], false, said)
            .or_else(|| header(case, "uuid").map(|id| id.as_bytes().to_vec()));
        match text.map(String::from_utf8) {
            None => Id::Coordinate,
            Some(Ok(text)) => uuid(text.trim()).map_or(Id::Text(text), Id::Uuid),
            Some(Err(_)) => Id::Broken,
        }
    }

    /// Milliseconds since 1970, before they are held against the record's own.
    fn time_ms(&self, case: &Case) -> Option<i64> {
        let nanos = |raw: Raw<'_>| {
            let text = String::from_utf8(json::string(raw)?).ok()?;
            time::nanos(text.trim())
        };
        let given = |layer: &[(Text, Raw<'a>)]| {
            member(layer, "timestamp").filter(|raw| json::string(raw).is_none_or(|text| !is_blank(&text)))
        };
        let now = self.told("now").and_then(nanos);
        let ms = |nanos: i128| i64::try_from(nanos.div_euclid(1_000_000)).ok();
        if let Some(timestamp) = given(&self.outer) {
            return ms(nanos(timestamp)?);
        }
        if let Some(timestamp) = self.inner.as_deref().and_then(given) {
            let client = nanos(timestamp)?;
            let sent_at = self.told("sent_at").and_then(nanos);
            return ms(match (now, sent_at) {
                (Some(now), Some(sent_at)) => now + (client - sent_at),
                _ => client,
            });
        }
        let offset: i128 = self
            .field("offset")
            .and_then(|raw| raw.get().parse::<f64>().ok())
            .map_or(0, |ms| ms.trunc() as i128);
        if let Some(now) = now {
            return ms(now.checked_sub(offset.checked_mul(1_000_000)?)?);
        }
        if let Some(header) = header(case, "timestamp") {
            return header.trim().parse().ok();
        }
        let record = (case.timestamp >= 0).then_some(case.timestamp)?;
        i64::try_from(i128::from(record).checked_sub(offset)?).ok()
    }
}

fn keep<T>(found: Result<T, Vec<Reason>>, faults: &mut Vec<Reason>) -> Option<T> {
    found.map_err(|more| faults.extend(more)).ok()
}

/// What the header of a name says, unless it is blank.
fn header<'c>(case: &'c Case, name: &str) -> Option<&'c str> {
    last_value(case, name).filter(|text| !text.trim().is_empty())
}

/// The last of a name; one that is null or not UTF-8 is absent.
fn last_value<'c>(case: &'c Case, name: &str) -> Option<&'c str> {
    let mut named = case
        .headers
        .iter()
        .rev()
        .filter(|(found, _)| found == name.as_bytes());
    named.find_map(|(_, value)| std::str::from_utf8(value.as_deref()?).ok())
}

/// The coordinate that a record was rejected at: all four headers, numbers in digits alone.
fn origin(case: &Case) -> Option<Origin> {
    let number = |name: &str| {
        let text = last_value(case, name)?;
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
    };
    Some(Origin {
        topic: Some(last_value(case, "sluice-topic")?.to_owned()).filter(|topic| !topic.is_empty())?,
        incarnation: number("sluice-incarnation")?.parse().ok()?,
        partition: number("sluice-partition")?.parse().ok()?,
        offset: number("sluice-offset")?.parse().ok()?,
    })
}

/// A UUID in any of its forms.
fn uuid(text: &str) -> Option<u128> {
    let text = text.to_ascii_lowercase();
    let text = match text.strip_prefix("urn:uuid:") {
        Some(rest) => rest,
        None => match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}')?,
            None => &text,
        },
    };
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let hex = parts.concat();
    let whole = lengths == [32] || lengths == [8, 4, 4, 4, 12];
    (whole && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u128::from_str_radix(&hex, 16).ok())?
}
