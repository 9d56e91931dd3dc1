//! A user as the events table knows it: for hashes that have expired, or that were begun after one expired.

use ::clickhouse::Row;
use ::clickhouse::error::Result;
use ::clickhouse::query::Query;
use serde::Deserialize;

use super::events::Events;
use super::problem::Problem;
use super::profile::Seen;
use crate::clickhouse::error::{MEMORY_LIMIT_EXCEEDED, code};
use crate::person::{MAY_CHANGE, Properties, Sort, apply, in_order};

/// What a user's events say, applied in the order in which they came, as the stream does.
#[derive(Debug)]
pub(super) struct History {
    pub(super) properties: Properties,
    pub(super) seen: Seen,
}

#[derive(Debug, Row, Deserialize)]
struct Times {
    events: u64,
    first: i64,
    last: i64,
}

#[derive(Debug, Row, Deserialize)]
struct Change<'a> {
    event: &'a str,
    properties: &'a str,
}

/// Hash first: it is in the sorting key, the text is not.
const USER: &str = "token = {token:String} AND cityHash64(distinct_id) = cityHash64({user:String}) \
                    AND distinct_id = {user:String}";

/// Reads a user's events; `None` if there are none.
pub(super) async fn read(events: &Events, token: &str, user: &str) -> Result<Option<History>, Problem> {
    events
        .run(async {
            let (times, properties) =
                futures::try_join!(times(events, token, user), properties(events, token, user))?;
            Ok((times.events > 0).then_some(History {
                properties,
                seen: Seen {
                    first: Some(times.first),
                    last: Some(times.last),
                },
            }))
        })
        .await
}

async fn times(events: &Events, token: &str, user: &str) -> Result<Times> {
    let sql = format!(
        "SELECT count() AS events, toUnixTimestamp64Milli(min(timestamp)) AS first, \
         toUnixTimestamp64Milli(max(timestamp)) AS last FROM {} WHERE {USER}",
        events.table()
    );
    of_user(events, &sql, token, user).fetch_one().await
}

/// What is read here is written into the hash: a replica that lags must not undo what the worker remembered.
fn of_user(events: &Events, sql: &str, token: &str, user: &str) -> Query {
    let query = events.query(sql).param("token", token).param("user", user);
    query.with_setting("select_sequential_consistency", "1")
}

/// The changes are folded as they come: they need no more memory here than their result.
async fn properties(events: &Events, token: &str, user: &str) -> Result<Properties> {
    match sorted(events, token, user, Sort::InMemory).await {
        Err(error) if code(&error) == Some(MEMORY_LIMIT_EXCEEDED) => {
            sorted(events, token, user, Sort::OnDisk).await
        }
        other => other,
    }
}

async fn sorted(events: &Events, token: &str, user: &str, sort: Sort) -> Result<Properties> {
    let sql = format!(
        "SELECT toString(event) AS event, properties FROM {} WHERE {USER} AND {MAY_CHANGE} ORDER BY {} \
         SETTINGS max_result_rows = 0",
        events.table(),
        in_order(&[], sort)
    );
    let mut rows = of_user(events, &sql, token, user).fetch::<Change<'_>>()?;
    let mut profile = Properties::new();
    while let Some(change) = rows.next().await? {
        apply(&mut profile, change.event, change.properties);
    }
    Ok(profile)
}
