//! `POST /v1/query`: what a body may ask, made into one normal form, answered from the cache or the table.
//!
//! Two bodies that ask the same have the same normal form, and with it the same cache entry and the same answer, byte
//! for byte. The token is a part of the entry's name and comes from the caller alone.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::auth::Caller;
use super::cache::{jittered_ttl, respond};
use super::edge::Body;
use super::interval::Interval;
use super::problem::Problem;
use super::trend;
use super::{Api, ahead};
use crate::telemetry::CacheLookup;

/// The answer's form; raised when it changes, so that no new program serves an old form from the cache.
const FORM: &str = "1";
/// Most values in an answer: intervals times series.
const MAX_POINTS: i64 = 10_000;
/// Series that are told apart, unless the query says otherwise.
const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;
/// Longest event name that is ever written.
const MAX_NAME_CHARS: usize = 1_000;
/// Years that the table's times can have.
const YEARS: std::ops::RangeInclusive<i16> = 1900..=2299;

/// A range whose end is less than this ago is still being filled: clients send late, and blocks take a while.
const SETTLING_MS: i64 = 10 * 60 * 1000;
/// So long an answer of such a range is kept, in seconds. An hour would show a standing picture of what people watch as
/// it moves; no time at all would send every look of every viewer to the table.
const MOVING_TTL_SECONDS: u64 = 15;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    query: String,
    #[serde(default)]
    event: Option<Names>,
    from: String,
    to: String,
    interval: String,
    #[serde(default)]
    breakdown: Option<String>,
    #[serde(default)]
    limit: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "event: must be a name or a list of names")]
enum Names {
    One(String),
    Many(Vec<String>),
}

/// A trend in its normal form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trend {
    /// Sorted, each once; none means every event.
    pub(super) events: Option<Vec<String>>,
    /// Start, included, ms since 1970.
    pub(super) from: i64,
    /// End, excluded, ms since 1970.
    pub(super) to: i64,
    pub(super) interval: Interval,
    /// Name of a property.
    pub(super) breakdown: Option<String>,
    /// Series that are told apart; the rest is one more.
    pub(super) limit: usize,
}

/// `POST /v1/query`
pub(super) async fn answer(
    caller: Caller,
    State(api): State<Api>,
    Body(body): Body,
) -> Result<Response, Problem> {
    let trend = parse(&body)?;
    let key = key(&api, &caller.token, &trend);
    let work = {
        let (api, key) = (api.clone(), key.clone());
        async move {
            let found = api.0.cache.get(&key).await;
            ahead::asked(&api, &caller.token, &trend, found.as_ref().map(|(_, left)| *left));
            if let Some((body, _)) = found {
                return Ok((CacheLookup::Hit, body));
            }
            let body = make(&api, &caller.token, &trend).await?;
            Ok((CacheLookup::Miss, body))
        }
    };
    let (lookup, body) = api.0.flights.join(&key, work).await?;
    Ok(respond("query", lookup, body))
}

/// Makes an answer from the table, and keeps it.
pub(super) async fn make(api: &Api, token: &str, trend: &Trend) -> Result<Bytes, Problem> {
    let body = Bytes::from(trend::run(&api.0.events, token, trend).await?);
    let ttl = ttl(trend.to, Timestamp::now().as_millisecond());
    api.0.cache.put(&key(api, token, trend), &body, ttl).await;
    Ok(body)
}

/// Under which an answer is kept.
pub(super) fn key(api: &Api, token: &str, trend: &Trend) -> String {
    api.0.names.query_result(&hash(token, trend))
}

/// Whether an answer is kept for seconds only.
pub(super) fn is_moving(trend: &Trend) -> bool {
    ttl(trend.to, Timestamp::now().as_millisecond()) == MOVING_TTL_SECONDS
}

/// How long an answer whose range ends at `to` is kept, in seconds.
fn ttl(to: i64, now: i64) -> u64 {
    if to > now - SETTLING_MS {
        MOVING_TTL_SECONDS
    } else {
        jittered_ttl()
    }
}

/// Names an answer: the same for all who may see it and ask the same, and for nobody else.
fn hash(token: &str, trend: &Trend) -> String {
    let mut hash = Sha256::new();
    // Tokens hold no NUL.
    for part in [FORM, "trend", token] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(serde_json::to_vec(trend).unwrap_or_default());
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// The normal form of a body, or what is wrong with it.
fn parse(body: &[u8]) -> Result<Trend, Problem> {
    let asked: Asked = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is no query: {error}")))?;
    if asked.query != "trend" {
        return Err(wrong("query", &asked.query, "\"trend\""));
    }
    let (from, to) = range(&asked.from, &asked.to)?;
    let interval = Interval::named(&asked.interval).ok_or_else(|| {
        wrong(
            "interval",
            &asked.interval,
            "\"minute\", \"hour\", \"day\", \"week\" or \"month\"",
        )
    })?;
    let events = asked.event.map(names).transpose()?;
    let breakdown = asked.breakdown;
    if let Some(name) = &breakdown
        && (name.is_empty() || name.chars().count() > MAX_NAME_CHARS)
    {
        return Err(Problem::bad_request(format!(
            "breakdown: must be the name of a property, 1 to {MAX_NAME_CHARS} characters"
        )));
    }
    let default = events
        .as_ref()
        .map_or(DEFAULT_LIMIT, |names| names.len().max(DEFAULT_LIMIT));
    let limit = match asked.limit {
        None => default,
        Some(limit) => usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=MAX_LIMIT).contains(limit))
            .ok_or_else(|| wrong("limit", &limit.to_string(), &format!("from 1 to {MAX_LIMIT}")))?,
    };
    let trend = Trend {
        events,
        from,
        to,
        interval,
        breakdown,
        limit,
    };
    bounded(trend)
}

/// The trend, unless its answer would be too large.
pub(super) fn bounded(trend: Trend) -> Result<Trend, Problem> {
    let (intervals, series) = (trend.buckets().count() as i64, trend.limit as i64 + 1);
    if intervals.saturating_mul(series) > MAX_POINTS {
        return Err(Problem::bad_request(format!(
            "{intervals} intervals of up to {series} series are more than {MAX_POINTS} values: choose a longer \
             interval, a shorter range or a lower limit"
        )));
    }
    Ok(trend)
}

fn wrong(field: &str, value: &str, accepted: &str) -> Problem {
    let value: String = value.chars().take(100).collect();
    Problem::bad_request(format!("{field} = {value:?}: must be {accepted}"))
}

fn range(from: &str, to: &str) -> Result<(i64, i64), Problem> {
    let time = |field, text: &str| {
        let time: Option<Timestamp> = text.parse().ok();
        time.filter(|time| YEARS.contains(&time.to_zoned_datetime(jiff::tz::TimeZone::UTC).year()))
            .map(Timestamp::as_millisecond)
            .ok_or_else(|| {
                wrong(
                    field,
                    text,
                    "a time by RFC 3339 with its offset, such as \"2026-01-31T00:00:00Z\", from 1900 to 2299",
                )
            })
    };
    let (start, end) = (time("from", from)?, time("to", to)?);
    if start >= end {
        return Err(Problem::bad_request(format!(
            "from = {from:?} and to = {to:?}: the first must be before the second, which is not included"
        )));
    }
    Ok((start, end))
}

fn names(names: Names) -> Result<Vec<String>, Problem> {
    let mut names = match names {
        Names::One(name) => vec![name],
        Names::Many(names) => names,
    };
    names.sort();
    names.dedup();
    let fits = |name: &String| !name.is_empty() && name.chars().count() <= MAX_NAME_CHARS;
    if (1..=MAX_LIMIT).contains(&names.len()) && names.iter().all(fits) {
        Ok(names)
    } else {
        Err(Problem::bad_request(format!(
            "event: must be a name or a list of 1 to {MAX_LIMIT} names, each of 1 to {MAX_NAME_CHARS} characters; \
             leave it out for all events"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(change: &str) -> String {
        let mut body = serde_json::json!({
            "query": "trend", "from": "2026-01-01T00:00:00Z", "to": "2026-01-08T00:00:00Z", "interval": "day",
        });
        let change: serde_json::Value = serde_json::from_str(change).unwrap();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        body.to_string()
    }

    fn parsed(change: &str) -> Trend {
        parse(body(change).as_bytes()).unwrap()
    }

    #[test]
    fn queries_that_ask_the_same_have_one_name_for_each_token() {
        let plain = parsed(r#"{"event":["b","a"]}"#);
        let same = parsed(
            r#"{"event":["a","b","a"],"from":"2026-01-01T02:00:00+02:00","limit":10,"breakdown":null}"#,
        );
        assert_eq!(hash("t", &plain), hash("t", &same));
        assert_ne!(hash("t", &plain), hash("u", &plain));
        for other in [
            r#"{"event":"a"}"#,
            "{}",
            r#"{"interval":"hour","event":["a","b"]}"#,
            r#"{"event":["a","b"],"limit":9}"#,
        ] {
            assert_ne!(hash("t", &plain), hash("t", &parsed(other)), "{other}");
        }
    }

    #[test]
    fn a_refusal_says_what_is_accepted() {
        let refused = |change: &str, part: &str| {
            let problem = format!("{:?}", parse(body(change).as_bytes()).unwrap_err());
            assert!(problem.contains(part), "{change}: {problem}");
        };
        refused(r#"{"query":"funnel"}"#, "trend");
        refused(r#"{"interval":"year"}"#, "week");
        refused(r#"{"token":"other"}"#, "unknown field `token`");
        refused(r#"{"from":"2026-01-08T00:00:00Z"}"#, "before");
        refused(r#"{"from":"yesterday"}"#, "RFC 3339");
        refused(r#"{"from":"2026-01-01T00:00:00"}"#, "RFC 3339");
        refused(r#"{"from":"0001-01-01T00:00:00Z"}"#, "1900");
        refused(r#"{"interval":"minute"}"#, "10000 values");
        refused(
            r#"{"from":"1900-01-01T00:00:00Z","to":"2299-01-01T00:00:00Z","interval":"minute"}"#,
            "10000",
        );
        refused(r#"{"limit":0}"#, "1 to 100");
        refused(r#"{"limit":101}"#, "1 to 100");
        refused(r#"{"event":[]}"#, "leave it out");
        refused(r#"{"event":5}"#, "a name or a list of names");
        refused(r#"{"breakdown":""}"#, "name of a property");
        assert!(parse(b"{").is_err() && parse(b"").is_err() && parse(b"[]").is_err());
    }

    #[test]
    fn all_named_events_are_told_apart_unless_the_query_says_otherwise() {
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let many = serde_json::json!({ "event": names }).to_string();
        assert_eq!(parsed(&many).limit, 20);
        assert_eq!(parsed("{}").limit, 10);
    }

    #[test]
    fn a_range_that_is_still_filled_is_kept_for_seconds() {
        let now = 1_000_000_000_000;
        assert_eq!(ttl(now + 1, now), MOVING_TTL_SECONDS);
        assert_eq!(ttl(now - 1_000, now), MOVING_TTL_SECONDS);
        assert!(ttl(now - SETTLING_MS, now) >= 3_240);
    }
}
