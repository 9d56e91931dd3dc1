//! Results of queries, made before somebody waits for them: by tasks, and so by whichever process has that role.
//!
//! Owns which queries are remembered, and when a result is old. Nothing here holds up a request, and nothing that fails
//! here makes one fail.

use std::time::Duration;

use super::Api;
use super::problem::Problem;
use super::query::{Trend, bounded, is_moving, key, make};
use super::store::within;
use crate::redis::keys::{CACHE_TTL_SECONDS, RECENT_QUERIES, RECENT_QUERIES_TTL_SECONDS};
use crate::tasks::held::TaskError;
use crate::tasks::queue::When;
use crate::tasks::task::{Query, Work};

/// A result that is kept for less than this is old: who asks for it gets it, and it is made anew for the next.
const OLD_BELOW_SECONDS: i64 = CACHE_TTL_SECONDS as i64 / 10;
/// Queries that were asked within this time are warmed.
const LATELY_MS: i64 = 3600 * 1000;
const PATIENCE: Duration = Duration::from_millis(500);
/// A longer query, in bytes of its normal form, is answered and cached like any other, and neither remembered nor made anew
/// ahead: who may ask could fill the state's Redis with such.
const LONGEST_REMEMBERED: usize = 4 << 10;

/// Notes that a token asked a query, and has the result made anew if it is old. `left`: for how many seconds it is kept,
/// if it was there. Results that are kept for seconds are let go.
pub(super) fn asked(api: &Api, token: &str, trend: &Trend, left: Option<i64>) {
    if is_moving(trend) {
        return;
    }
    let (api, token) = (api.clone(), token.to_owned());
    let Some(query) = remembered_as(trend) else {
        return;
    };
    tokio::spawn(async move {
        let key = api.0.names.recent_queries(&token);
        let now = jiff::Timestamp::now().as_millisecond();
        let mut pipe = ::redis::pipe();
        pipe.cmd("ZADD").arg(&key).arg(now).arg(&query);
        pipe.cmd("ZREMRANGEBYRANK")
            .arg(&key)
            .arg(0)
            .arg(-1 - RECENT_QUERIES as i64);
        pipe.cmd("EXPIRE").arg(&key).arg(RECENT_QUERIES_TTL_SECONDS);
        // What fails is logged there, and the query is answered all the same.
        api.0.redis.pipeline(&pipe).await.ok();
        if left.is_some_and(|left| left < OLD_BELOW_SECONDS) {
            let work = Work::RefreshQuery(Query { token, query });
            within(PATIENCE, api.0.tasks.enqueue(&work, When::Served)).await;
        }
    });
}

/// What is remembered of a query, if it is.
fn remembered_as(trend: &Trend) -> Option<String> {
    let query = serde_json::to_string(trend).ok()?;
    (query.len() <= LONGEST_REMEMBERED).then_some(query)
}

/// The queries that a token asked lately, in their normal form, the newest first.
pub(crate) async fn asked_lately(api: &Api, token: &str) -> Result<Vec<String>, TaskError> {
    let mut pipe = ::redis::pipe();
    pipe.cmd("ZRANGEBYSCORE")
        .arg(api.0.names.recent_queries(token))
        .arg(jiff::Timestamp::now().as_millisecond() - LATELY_MS)
        .arg("+inf");
    let answer = api
        .0
        .redis
        .pipeline(&pipe)
        .await
        .map_err(|problem| task_error(&problem))?;
    let queries = answer.into_iter().next().unwrap_or(::redis::Value::Nil);
    let mut queries: Vec<String> = ::redis::FromRedisValue::from_redis_value(queries).unwrap_or_default();
    queries.reverse();
    Ok(queries)
}

/// Whether a result is gone, or old.
pub(crate) async fn is_old(api: &Api, token: &str, query: &str) -> bool {
    let Ok(trend) = read(query) else {
        return false;
    };
    let found = api.0.cache.get(&key(api, token, &trend)).await;
    !is_moving(&trend) && found.is_none_or(|(_, left)| left < OLD_BELOW_SECONDS)
}

/// Makes a result anew.
pub(crate) async fn refresh(api: &Api, token: &str, query: &str) -> Result<(), TaskError> {
    let trend = read(query)?;
    make(api, token, &trend)
        .await
        .map(drop)
        .map_err(|problem| task_error(&problem))
}

fn read(query: &str) -> Result<Trend, TaskError> {
    let trend: Trend = serde_json::from_str(query)
        .map_err(|error| TaskError::Hopeless(format!("the query cannot be read: {error}")))?;
    if trend.from >= trend.to {
        return Err(TaskError::Hopeless("the query's range is empty".to_owned()));
    }
    bounded(trend).map_err(|problem| task_error(&problem))
}

fn task_error(problem: &Problem) -> TaskError {
    let told = problem.detail().to_owned();
    if problem.is_unavailable() {
        TaskError::Failed(told)
    } else {
        TaskError::Hopeless(told)
    }
}

#[cfg(test)]
mod tests {
    use super::super::interval::Interval;
    use super::*;

    #[test]
    fn a_long_query_is_not_remembered() {
        let trend = |names: usize| Trend {
            events: Some((0..names).map(|n| format!("{n:060}")).collect()),
            from: 0,
            to: 1,
            interval: Interval::named("day").unwrap(),
            breakdown: None,
            limit: 100,
        };
        let short = remembered_as(&trend(50)).unwrap();
        assert_eq!(read(&short).unwrap(), trend(50));
        assert_eq!(remembered_as(&trend(80)), None);
    }
}
