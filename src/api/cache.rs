//! The cache Redis: answers kept for an hour, and never an old one over a newer change.
//!
//! Everything here may fail without a request failing: a cache that is gone is a cache that misses.
//!
//! A profile's entry is filled under a **lease**. Who misses puts a lease of its own under the key *before* it reads
//! what the profile is made of, and its answer replaces that very lease or nothing. The worker changes the properties
//! first and deletes the key afterwards. So an answer made of old properties finds its lease deleted and is not kept,
//! or is kept and deleted by the delete that is still to come; either way nothing old stays.

use std::time::Duration;

use ::redis::FromRedisValue as _;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::store::within;
use crate::redis::keys::CACHE_TTL_SECONDS;
use crate::redis::{Redis, Script};
use crate::telemetry::{self, CacheLookup};

/// A cache that is slower than this is not worth waiting for.
const PATIENCE: Duration = Duration::from_millis(500);
/// A lease that nobody filled (the process died, the answer failed) is gone after so many seconds.
const LEASE_SECONDS: u64 = 30;
/// Leases start with this, answers never: they are JSON.
const LEASE: &str = "\0lease:";

const FILL: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
";

#[derive(Debug)]
pub(super) struct Cache {
    redis: Redis,
    fill: Script,
}

/// The right to fill one entry.
#[derive(Debug)]
pub(super) struct Lease {
    key: String,
    mark: String,
}

/// What there is under a key.
#[derive(Debug)]
pub(super) enum Found {
    Answer(Bytes),
    /// Nothing. With a lease if there was none and the cache works.
    Nothing(Option<Lease>),
}

impl Cache {
    pub(super) fn new(redis: Redis) -> Self {
        Self {
            redis,
            fill: Script::new(FILL),
        }
    }

    /// The answer under `key`, and for how many seconds it is still kept.
    pub(super) async fn get(&self, key: &str) -> Option<(Bytes, i64)> {
        let mut pipe = ::redis::pipe();
        pipe.cmd("GET").arg(key);
        pipe.cmd("TTL").arg(key);
        let mut answers = within(PATIENCE, self.redis.pipeline(&pipe)).await?.into_iter();
        let body = Option::<Vec<u8>>::from_redis_value(answers.next()?).ok()??;
        let left = i64::from_redis_value(answers.next()?).ok()?;
        Some((body.into(), left))
    }

    /// Keeps an answer for `seconds`.
    pub(super) async fn put(&self, key: &str, answer: &Bytes, seconds: u64) {
        let mut set = ::redis::cmd("SET");
        set.arg(key).arg(answer.as_ref()).arg("EX").arg(seconds);
        within(PATIENCE, self.redis.command::<()>(&set)).await;
    }

    /// The answer under `key`, or a lease to fill it.
    pub(super) async fn get_or_lease(&self, key: String) -> Found {
        let mark = format!("{LEASE}{:032x}", rand::random::<u128>());
        let mut set = ::redis::cmd("SET");
        set.arg(&key)
            .arg(&mark)
            .arg("NX")
            .arg("GET")
            .arg("EX")
            .arg(LEASE_SECONDS);
        match within(PATIENCE, self.redis.command::<Option<Vec<u8>>>(&set)).await {
            Some(Some(answer)) if !answer.starts_with(LEASE.as_bytes()) => Found::Answer(answer.into()),
            Some(None) => Found::Nothing(Some(Lease { key, mark })),
            Some(Some(_)) | None => Found::Nothing(None),
        }
    }

    /// Puts the answer in the place of the lease, unless a change of what it was made of has taken that away.
    pub(super) async fn fill(&self, lease: Lease, answer: &Bytes, seconds: u64) {
        let mut call = self.fill.call(1);
        call.arg(&lease.key)
            .arg(&lease.mark)
            .arg(answer.as_ref())
            .arg(seconds);
        let mut pipe = ::redis::pipe();
        pipe.add_command(call);
        within(PATIENCE, self.redis.scripted(&[&self.fill], &pipe)).await;
    }
}

/// An hour, less up to a tenth of it: entries made together do not end together, and none lives longer.
pub(super) fn jittered_ttl() -> u64 {
    CACHE_TTL_SECONDS - rand::random_range(0..=CACHE_TTL_SECONDS / 10)
}

/// A JSON body that says where it came from, and is counted.
pub(super) fn respond(cache: &'static str, lookup: CacheLookup, body: Bytes) -> Response {
    telemetry::cache_lookup(cache, lookup);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (
            HeaderName::from_static("sluice-cache"),
            HeaderValue::from_static(lookup.name()),
        ),
    ];
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_made_together_end_apart_and_within_the_hour() {
        let ttls: Vec<u64> = (0..100).map(|_| jittered_ttl()).collect();
        assert!(ttls.iter().all(|ttl| (3_240..=3_600).contains(ttl)));
        assert!(ttls.iter().any(|ttl| ttl != &ttls[0]));
    }
}
