//! `GET /v1/users/{distinct_id}`: the profile, from the cache, the user's hash, or the user's events.
//!
//! The hash lives for 30 days after its last change. A change after that begins a hash with nothing old in it, which no
//! reader could tell from a whole one; and a `$set_once` in it would win over the value that was first. So a hash counts
//! as whole only with a mark, which the worker never sets: whoever reads a hash without it asks `ClickHouse`, where
//! every event is, and writes what its events say, and the mark, into the hash. The mark goes when the hash goes. The
//! worker keeps a marked hash up to date; properties are remembered only once their rows are acknowledged, so what
//! `ClickHouse` says is never behind the hash.

use ::redis::{FromRedisValue as _, Value};
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use jiff::Timestamp;

use super::auth::Caller;
use super::cache::{Found, Lease, jittered_ttl, respond};
use super::history::{self, History};
use super::problem::{Kind, Problem};
use super::profile::{Profile, Seen, Stored};
use super::{Api, Shared};
use crate::person::{FIRST_SEEN, LAST_SEEN, OFFSETS, Properties, WHOLE};
use crate::redis::Script;
use crate::redis::keys::USER_TTL_SECONDS;
use crate::telemetry::CacheLookup;

/// The worker cuts a `distinct_id` at so many characters.
const MAX_DISTINCT_ID_CHARS: usize = 200;

/// The script that restores a user's hash.
#[derive(Debug)]
pub(super) struct Profiles {
    restore: Script,
}

impl Profiles {
    pub(super) fn new() -> Self {
        Self {
            restore: Script::new(include_str!("restore_user.lua")),
        }
    }
}

/// A `distinct_id` of the path: decoded, and cut as the worker cuts those of events, so that a client finds its user by
/// the id it sent.
#[derive(Debug)]
pub(super) struct User(pub(super) String);

impl axum::extract::FromRequestParts<Api> for User {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, api: &Api) -> Result<Self, Problem> {
        match axum::extract::Path::<String>::from_request_parts(parts, api).await {
            Ok(axum::extract::Path(mut id)) => {
                if let Some((end, _)) = id.char_indices().nth(MAX_DISTINCT_ID_CHARS) {
                    id.truncate(end);
                }
                Ok(Self(id))
            }
            Err(_) => Err(Problem::bad_request(
                "the distinct_id in the path must be UTF-8, percent-encoded",
            )),
        }
    }
}

/// `GET /v1/users/{distinct_id}`
pub(super) async fn answer(
    caller: Caller,
    State(api): State<Api>,
    User(user): User,
) -> Result<Response, Problem> {
    let shared = &api.0;
    let key = shared.names.cached_user(&caller.token, &user);
    // The lease before the first read: see `cache`.
    let lease = match shared.cache.get_or_lease(key).await {
        Found::Answer(body) => return Ok(respond("user", CacheLookup::Hit, body)),
        Found::Nothing(lease) => lease,
    };
    let body = assemble(shared, &caller.token, &user, lease).await?;
    Ok(respond("user", CacheLookup::Miss, body))
}

async fn assemble(shared: &Shared, token: &str, user: &str, lease: Option<Lease>) -> Result<Bytes, Problem> {
    let read = read_hash(shared, token, user).await;
    if let Ok((Some(stored), last)) = &read
        && stored.whole
    {
        let seen = Seen {
            first: stored.seen.first,
            last: stored.seen.last.max(*last),
        };
        let body = render(user, &stored.properties, seen, true);
        keep(shared, lease, &body).await;
        return Ok(body);
    }
    let history = history::read(&shared.events, token, user).await;
    match (read, history) {
        (Ok((stored, last)), Ok(Some(mut history))) => {
            history.seen.last = history.seen.last.max(last);
            let body = render(user, &history.properties, history.seen, true);
            if restore(shared, token, user, (stored.as_ref(), &history)).await {
                keep(shared, lease, &body).await;
            }
            Ok(body)
        }
        // Without Redis the table alone tells it, and nothing is kept.
        (Err(_), Ok(Some(history))) => Ok(render(user, &history.properties, history.seen, true)),
        // Rows may have been dropped from the table on purpose; what is left of the user is in Redis.
        (Ok((Some(stored), last)), Ok(None)) => {
            let last = stored.seen.last.max(last);
            let seen = Seen { last, ..stored.seen };
            Ok(render(user, &stored.properties, seen, true))
        }
        (Ok((None, _)) | Err(_), Ok(None)) => Err(Problem::new(
            Kind::UnknownUser,
            "no event of this distinct_id has been written under the caller's token",
        )),
        (Ok((Some(stored), last)), Err(_)) => {
            let last = stored.seen.last.max(last);
            let seen = Seen { last, ..stored.seen };
            Ok(render(user, &stored.properties, seen, false))
        }
        (_, Err(problem)) if problem.is_unavailable() => Err(problem),
        (_, Err(_)) => Err(Problem::new(
            Kind::QueryTooLarge,
            "the user has more events than one request may read",
        )),
    }
}

/// The user's hash, and the time of the newest event of the timeline: both have the same hash tag.
async fn read_hash(
    shared: &Shared,
    token: &str,
    user: &str,
) -> Result<(Option<Stored>, Option<i64>), Problem> {
    let mut pipe = ::redis::pipe();
    pipe.cmd("HGETALL").arg(shared.names.user(token, user));
    pipe.cmd("ZREVRANGE")
        .arg(shared.names.timeline(token, user))
        .arg(0)
        .arg(0)
        .arg("WITHSCORES");
    let mut answers = shared.redis.pipeline(&pipe).await?.into_iter();
    let fields = Vec::<(String, String)>::from_redis_value(answers.next().unwrap_or(Value::Nil));
    let newest = Vec::<(String, f64)>::from_redis_value(answers.next().unwrap_or(Value::Nil));
    let last = newest.unwrap_or_default().first().map(|(_, time)| *time as i64);
    Ok((Stored::of(fields.unwrap_or_default()), last))
}

/// Writes the history into the hash, unless that has changed since it was read. Says whether it was written.
async fn restore(
    shared: &Shared,
    token: &str,
    user: &str,
    (stored, history): (Option<&Stored>, &History),
) -> bool {
    let offsets = stored.map(|stored| stored.offsets.as_slice()).unwrap_or_default();
    let script = &shared.profiles.restore;
    let mut call = script.call(1);
    call.arg(shared.names.user(token, user))
        .arg(USER_TTL_SECONDS)
        .arg(OFFSETS)
        .arg(offsets.len());
    for (name, value) in offsets {
        call.arg(name).arg(value);
    }
    call.arg(WHOLE).arg(1);
    for (name, time) in [(FIRST_SEEN, history.seen.first), (LAST_SEEN, history.seen.last)] {
        if let Some(time) = time {
            call.arg(name).arg(time);
        }
    }
    for (name, value) in &history.properties {
        call.arg(name).arg(value.get());
    }
    let mut pipe = ::redis::pipe();
    pipe.add_command(call);
    match shared.redis.scripted(script, &pipe).await {
        Ok(answers) => answers.first() == Some(&Value::Int(1)),
        Err(_) => false,
    }
}

async fn keep(shared: &Shared, lease: Option<Lease>, body: &Bytes) {
    if let Some(lease) = lease {
        shared.cache.fill(lease, body, jittered_ttl()).await;
    }
}

fn render(user: &str, properties: &Properties, seen: Seen, complete: bool) -> Bytes {
    let time = |ms: Option<i64>| ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let profile = Profile {
        distinct_id: user,
        properties,
        first_seen: time(seen.first),
        last_seen: time(seen.last),
        complete,
        as_of: Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or_default(),
    };
    // Texts and numbers only: nothing in it can fail to be JSON.
    serde_json::to_vec(&profile).unwrap_or_default().into()
}
