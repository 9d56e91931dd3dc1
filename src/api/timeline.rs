//! `GET /v1/users/{distinct_id}/timeline` and `GET /v1/recent-actions`: what the worker keeps in Redis, newest first.
//!
//! Read as it is, uncached: one command each.

use ::redis::{Pipeline, Value};
use axum::Json;
use axum::extract::{RawQuery, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::problem::Problem;
use super::users::User;
use super::{Api, Shared};
use crate::redis::keys::{RECENT_ACTIONS, TIMELINE_EVENTS};

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    time: Timestamp,
    uuid: String,
    event: String,
}

/// The answer of a timeline.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    distinct_id: String,
    events: Vec<Entry>,
}

/// `GET /v1/users/{distinct_id}/timeline?limit=`
pub(super) async fn of_user(
    caller: Caller,
    State(api): State<Api>,
    User(user): User,
    RawQuery(query): RawQuery,
) -> Result<Json<Timeline>, Problem> {
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let mut pipe = ::redis::pipe();
    pipe.cmd("ZREVRANGE")
        .arg(api.0.names.timeline(&caller.token, &user))
        .arg(0)
        .arg(limit - 1)
        .arg("WITHSCORES");
    let members: Vec<(String, f64)> = first(&api.0, &pipe).await?;
    Ok(Json(Timeline {
        distinct_id: user,
        events: members
            .iter()
            .filter_map(|(member, score)| entry(member, *score))
            .collect(),
    }))
}

/// A member is the uuid, a colon and the event's name; the name is cut where that is longer than 64 bytes.
fn entry(member: &str, score: f64) -> Option<Entry> {
    let (uuid, event) = member.split_once(':')?;
    Some(Entry {
        time: Timestamp::from_millisecond(score as i64).ok()?,
        uuid: uuid.to_owned(),
        event: event.to_owned(),
    })
}

/// `limit` of a query string that may hold nothing else.
fn limit(query: &str) -> Result<usize, Problem> {
    let mut limit = TIMELINE_EVENTS;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if name != "limit" {
            return Err(Problem::bad_request(format!(
                "{name:?}: no such parameter; there is limit"
            )));
        }
        let parsed = value
            .parse()
            .ok()
            .filter(|limit| (1..=TIMELINE_EVENTS).contains(limit));
        limit = parsed.ok_or_else(|| {
            Problem::bad_request(format!(
                "limit = {value:?}: must be a whole number from 1 to {TIMELINE_EVENTS}"
            ))
        })?;
    }
    Ok(limit)
}

/// As the worker writes it.
#[derive(Debug, Deserialize)]
struct Remembered {
    uuid: String,
    event: String,
    distinct_id: String,
    timestamp: i64,
}

#[derive(Debug, Serialize)]
struct Action {
    time: Timestamp,
    uuid: String,
    event: String,
    distinct_id: String,
}

/// The answer of recent actions.
#[derive(Debug, Serialize)]
pub(super) struct Actions {
    actions: Vec<Action>,
}

/// `GET /v1/recent-actions`
pub(super) async fn recent_actions(caller: Caller, State(api): State<Api>) -> Result<Json<Actions>, Problem> {
    let mut pipe = ::redis::pipe();
    pipe.cmd("LRANGE")
        .arg(api.0.names.recent_actions(&caller.token))
        .arg(0)
        .arg(RECENT_ACTIONS - 1);
    let texts: Vec<String> = first(&api.0, &pipe).await?;
    let actions = texts.iter().filter_map(|text| {
        let remembered: Remembered = serde_json::from_str(text).ok()?;
        Some(Action {
            time: Timestamp::from_millisecond(remembered.timestamp).ok()?,
            uuid: remembered.uuid,
            event: remembered.event,
            distinct_id: remembered.distinct_id,
        })
    });
    Ok(Json(Actions {
        actions: actions.collect(),
    }))
}

/// The answer of the pipeline's one command; of another type than expected is as good as empty.
async fn first<T: ::redis::FromRedisValue + Default>(shared: &Shared, pipe: &Pipeline) -> Result<T, Problem> {
    let answer = shared.redis.pipeline(pipe).await?.into_iter().next();
    Ok(T::from_redis_value(answer.unwrap_or(Value::Nil)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_from_1_to_100() {
        let ok = |query| limit(query).unwrap();
        assert_eq!((ok(""), ok("limit=1"), ok("limit=100")), (100, 1, 100));
        for bad in [
            "limit=0",
            "limit=101",
            "limit=",
            "limit=-1",
            "limit=x",
            "offset=1",
            "limit=1&token=other",
        ] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_member_is_read_back() {
        let uuid = "0190a0b0-0000-7000-8000-000000000001";
        let read = entry(&format!("{uuid}:a:b"), -1.0).unwrap();
        assert_eq!((read.uuid.as_str(), read.event.as_str()), (uuid, "a:b"));
        assert_eq!(read.time.to_string(), "1969-12-31T23:59:59.999Z");
        assert_eq!(entry("garbage", 0.0), None);
    }
}
