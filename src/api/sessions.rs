//! Sessions: opened with an API key, kept alive by use, ended by their holder.
//!
//! A session is 256 random bits. Redis knows it by its SHA-256 alone, so that who reads Redis (a replica, a backup, the
//! monitor) can use no session; the id has all its entropy, so a plain hash is enough. Its value names the token and
//! the key that opened it: once that key is no longer configured, the session is no more.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::{FromRedisValue as _, Pipeline, Value};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Api;
use super::auth::{By, Caller, Credentials, KeyTag};
use super::clients::{Client, Clients};
use super::problem::Problem;
use super::store::Store;
use crate::redis::keys::{COUNTER_TTL_SECONDS, Keys, SESSION_TTL_SECONDS};

/// What a session starts with, for people and for scanners that look for leaked secrets.
const PREFIX: &str = "sls_";
/// Sessions whose token this process remembers; beyond that it forgets all and learns anew.
const MAX_KNOWN: usize = 10_000;

/// What Redis knows a session by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionId([u8; 32]);

impl SessionId {
    /// The id of a text that has a session's form.
    pub(super) fn of(session: &str) -> Option<Self> {
        let digits = session.strip_prefix(PREFIX)?;
        let fits = digits.len() == 64 && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| Self(Sha256::digest(session.as_bytes()).into()))
    }
}

/// A session's value in Redis.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    token: String,
    /// [`KeyTag`], in hex.
    key: String,
}

/// What a session was seen to hold. It never changes while the session lives.
#[derive(Clone, Debug)]
struct Known {
    token: Arc<str>,
    key: KeyTag,
}

#[derive(Debug)]
pub(super) struct Sessions {
    redis: Store,
    names: Keys,
    /// Sessions seen by this process. Only a hint: whether a session still lives, Redis is asked each time; with the
    /// hint that and the count of the call are one round trip, as the counter's key is known beforehand.
    known: Mutex<HashMap<SessionId, Known>>,
}

impl Sessions {
    pub(super) fn new(redis: Store, names: Keys) -> Self {
        Self {
            redis,
            names,
            known: Mutex::default(),
        }
    }

    /// Counts an authenticated request by key. Redis being down is no reason to refuse it.
    pub(super) async fn count_call(&self, token: &str) {
        // The failure is logged where it happens.
        drop(self.redis.pipeline(&self.counting(token)).await);
    }

    /// Makes a session that reads `token`.
    async fn open(&self, token: &Arc<str>, key: KeyTag) -> Result<String, Problem> {
        let session = format!("{PREFIX}{}", hex(&rand::random::<[u8; 32]>()));
        let id = SessionId(Sha256::digest(session.as_bytes()).into());
        let stored = Stored {
            token: token.to_string(),
            key: hex(&key.0),
        };
        let mut pipe = ::redis::pipe();
        pipe.cmd("SET")
            .arg(self.name(id))
            .arg(serde_json::to_string(&stored).unwrap_or_default())
            .arg("EX")
            .arg(SESSION_TTL_SECONDS);
        self.redis.pipeline(&pipe).await?;
        Ok(session)
    }

    /// Keeps the session alive and counts the call. Answers its token, or none if there is no such session.
    pub(super) async fn resume(
        &self,
        id: SessionId,
        credentials: &Credentials,
        clients: &Clients,
    ) -> Result<Option<Arc<str>>, Problem> {
        let hint = self.known().get(&id).cloned();
        let mut pipe = match &hint {
            Some(known) => {
                clients.admit(Client::Key(known.key))?;
                self.counting(&known.token)
            }
            None => ::redis::pipe(),
        };
        pipe.cmd("GETEX")
            .arg(self.name(id))
            .arg("EX")
            .arg(SESSION_TTL_SECONDS);
        let answers = self.redis.pipeline(&pipe).await?;
        let Some(found) = read(answers.into_iter().last(), credentials) else {
            self.known().remove(&id);
            return Ok(None);
        };
        if hint.is_none() {
            clients.admit(Client::Key(found.key))?;
            self.count_call(&found.token).await;
            let mut known = self.known();
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(id, found.clone());
        }
        Ok(Some(found.token))
    }

    async fn end(&self, id: SessionId) -> Result<(), Problem> {
        self.known().remove(&id);
        let mut pipe = ::redis::pipe();
        pipe.cmd("DEL").arg(self.name(id));
        self.redis.pipeline(&pipe).await.map(drop)
    }

    fn name(&self, id: SessionId) -> String {
        self.names.session(&hex(&id.0))
    }

    fn counting(&self, token: &str) -> Pipeline {
        let counter = self.names.api_calls_counter(token);
        let mut pipe = ::redis::pipe();
        pipe.cmd("INCR").arg(&counter);
        pipe.cmd("EXPIRE").arg(&counter).arg(COUNTER_TTL_SECONDS);
        pipe
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SessionId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(value: Option<Value>, credentials: &Credentials) -> Option<Known> {
    let text = Option::<Vec<u8>>::from_redis_value(value?).ok().flatten()?;
    let stored: Stored = serde_json::from_slice(&text).ok()?;
    let key = KeyTag(u32::from_str_radix(&stored.key, 16).ok()?.to_be_bytes());
    let token = credentials.still_grants(key, &stored.token)?;
    Some(Known { token, key })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[derive(Debug, Serialize)]
struct Opened {
    session: String,
    expires_at: Timestamp,
    expires_in_seconds: u64,
}

/// `POST /v1/sessions`
pub(super) async fn create(State(api): State<Api>, caller: Caller) -> Result<Response, Problem> {
    let By::Key(key) = caller.by else {
        return Err(Problem::unauthorized(
            "a session is opened with an API key, and this is a session",
        ));
    };
    let session = api.0.sessions.open(&caller.token, key).await?;
    let opened = Opened {
        session,
        expires_at: in_seconds(SESSION_TTL_SECONDS),
        expires_in_seconds: SESSION_TTL_SECONDS,
    };
    Ok((StatusCode::CREATED, Json(opened)).into_response())
}

/// `DELETE /v1/sessions`
pub(super) async fn delete(State(api): State<Api>, caller: Caller) -> Result<StatusCode, Problem> {
    let By::Session(id) = caller.by else {
        return Err(Problem::unauthorized(
            "only a session can be ended, and this is an API key",
        ));
    };
    api.0.sessions.end(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn in_seconds(seconds: u64) -> Timestamp {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    now.checked_add((seconds as i64).seconds()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_session_is_looked_up() {
        let good = format!("sls_{}", "0f".repeat(32));
        assert!(SessionId::of(&good).is_some());
        for bad in [
            "",
            "sls_",
            &good[..67],
            &good.to_uppercase(),
            &format!("{good}0"),
            &good[4..],
        ] {
            assert_eq!(SessionId::of(bad), None, "{bad}");
        }
    }

    #[test]
    fn redis_does_not_learn_the_session() {
        let session = format!("sls_{}", "0f".repeat(32));
        let id = SessionId::of(&session).unwrap();
        assert!(!hex(&id.0).contains(&session[4..12]));
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
    }
}
