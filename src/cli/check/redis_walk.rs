//! Keys that begin in a certain way, on all primaries.
//!
//! Owns how long they are looked for, and how gently: there may be a billion others, and a server that is at work. It may
//! stop before it has seen all, and says so.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::try_join_all;
use redis::{FromRedisValue as _, Pipeline, RedisResult, Value};
use tokio::time::{Instant, sleep};

use crate::redis::{Redis, Server};

/// How long is looked for keys, on all primaries at the same time.
const LOOK_FOR: Duration = Duration::from_secs(5);
/// Places of the server's table that one step looks at: 0.1 to 0.7 ms of its time (measured among 4 million keys on a machine
/// that was busy otherwise: 1.3 µs a place).
const PLACES_A_STEP: u64 = 500;
/// After each step so many times as long as it took is left to others.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_millis(50);
/// So many keys of a server are enough to be told about; more end the walk.
const MOST_KEYS: usize = 2_000;

/// What a walk has met.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// The keys. One may be met twice.
    pub(super) met: BTreeSet<Vec<u8>>,
    /// How many keys it has looked at, about.
    pub(super) looked_at: u64,
    /// All keys there are, where that may be asked.
    pub(super) of: Option<u64>,
    /// Whether it has seen all.
    pub(super) ended: bool,
}

/// Looks for keys that begin like this, on all primaries at the same time.
pub(super) async fn walk(redis: &Redis, beginning: &str) -> RedisResult<Walk> {
    let (pattern, until) = (pattern(beginning), Instant::now() + LOOK_FOR);
    let servers = redis.servers().await?;
    let walks = servers.iter().map(|server| walk_one(server, &pattern, until));
    let mut all = Walk {
        ended: true,
        of: Some(0),
        ..Walk::default()
    };
    for walk in try_join_all(walks).await? {
        all.looked_at += walk.looked_at;
        all.of = all.of.zip(walk.of).map(|(all, of)| all + of);
        all.ended &= walk.ended;
        all.met.extend(walk.met);
    }
    Ok(all)
}

/// A pattern of `SCAN` for keys that begin like this, whatever the text.
fn pattern(beginning: &str) -> String {
    let mut pattern = String::with_capacity(beginning.len() + 1);
    for c in beginning.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "*"
}

/// Goes through a server's keys until it has seen all, has met enough, or its time is over.
async fn walk_one(server: &Server, pattern: &str, until: Instant) -> RedisResult<Walk> {
    let mut walk = Walk::default();
    let mut size = Pipeline::new();
    size.cmd("DBSIZE");
    let size = server.send(&size).await?.into_iter().next();
    walk.of = size.and_then(|size| u64::from_redis_value(size.extract_error().ok()?).ok());
    let mut cursor = 0_u64;
    loop {
        let mut step = Pipeline::new();
        step.cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(PLACES_A_STEP);
        let begun = Instant::now();
        let answers = server.pipeline(&step).await?;
        let ((next, met),): ((u64, Vec<Vec<u8>>),) = redis::from_redis_value(Value::Array(answers))?;
        walk.met.extend(met);
        walk.looked_at += PLACES_A_STEP;
        cursor = next;
        if cursor == 0 {
            walk.ended = true;
            break;
        }
        if walk.met.len() >= MOST_KEYS || Instant::now() >= until {
            break;
        }
        sleep((begun.elapsed() * REST).min(LONGEST_REST)).await;
    }
    walk.looked_at = walk.looked_at.min(walk.of.unwrap_or(u64::MAX));
    Ok(walk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(pattern("a*[b]\\?:"), "a\\*\\[b\\]\\\\\\?:*");
    }
}
