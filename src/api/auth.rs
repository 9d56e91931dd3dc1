//! Who asks, and whose events that caller reads.
//!
//! Every route but none takes a [`Caller`], and its token is the only one that a handler ever sees.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;
use sha2::{Digest, Sha256};

use super::Api;
use super::clients::Client;
use super::problem::Problem;
use super::sessions::SessionId;
use crate::config::ApiKey;

/// Names an API key without giving it away: the first bytes of its hash, as `sluice check` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyTag(pub(super) [u8; 4]);

/// A configured key.
#[derive(Debug)]
pub(super) struct Credential {
    sha256: [u8; 32],
    pub(super) tag: KeyTag,
    pub(super) token: Arc<str>,
}

/// All configured keys.
#[derive(Debug)]
pub(super) struct Credentials(Vec<Credential>);

impl Credentials {
    pub(super) fn new(keys: &[ApiKey]) -> Self {
        Self(
            keys.iter()
                .map(|key| {
                    let [a, b, c, d, ..] = key.key_sha256;
                    Credential {
                        sha256: key.key_sha256,
                        tag: KeyTag([a, b, c, d]),
                        token: key.token.as_str().into(),
                    }
                })
                .collect(),
        )
    }

    /// The key that `bearer` is, if any. Every configured key is compared, and all of it, so that the time taken tells
    /// nothing about them.
    fn find(&self, bearer: &str) -> Option<&Credential> {
        let hash: [u8; 32] = Sha256::digest(bearer.as_bytes()).into();
        let mut found = None;
        for credential in &self.0 {
            if same(&credential.sha256, &hash) {
                found = Some(credential);
            }
        }
        found
    }

    /// The token of the key that a session was opened with, if the key is still configured for it.
    pub(super) fn still_grants(&self, tag: KeyTag, token: &str) -> Option<Arc<str>> {
        self.0
            .iter()
            .find(|credential| credential.tag == tag && &*credential.token == token)
            .map(|credential| Arc::clone(&credential.token))
    }
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let differing = a.iter().zip(b).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    black_box(differing) == 0
}

/// Somebody who may read one token's events.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) token: Arc<str>,
    pub(super) by: By,
}

/// What a caller showed.
#[derive(Debug)]
pub(super) enum By {
    Key(KeyTag),
    Session(SessionId),
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let shared = &api.0;
        let refused = |problem| {
            let address = parts.extensions.get::<ConnectInfo<SocketAddr>>();
            shared
                .clients
                .admit(Client::at(address.map(|info| info.0.ip())))?;
            Err(problem)
        };
        let Some(bearer) = bearer(parts) else {
            return refused(Problem::unauthorized(
                "send the header `Authorization: Bearer` with a session or an API key",
            ));
        };
        if let Some(key) = shared.credentials.find(bearer) {
            shared.clients.admit(Client::Key(key.tag))?;
            shared.sessions.count_call(&key.token).await;
            return Ok(Self {
                token: Arc::clone(&key.token),
                by: By::Key(key.tag),
            });
        }
        let Some(id) = SessionId::of(bearer) else {
            return refused(Problem::unauthorized(
                "this is neither a session nor a known API key",
            ));
        };
        match shared
            .sessions
            .resume(id, &shared.credentials, &shared.clients)
            .await?
        {
            Some(token) => Ok(Self {
                token,
                by: By::Session(id),
            }),
            None => refused(Problem::unauthorized(
                "the session has ended; open a new one by POST /v1/sessions",
            )),
        }
    }
}

/// The credential of the header `Authorization`; the scheme's case does not matter.
fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, credential) = parts
        .headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let credential = credential.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty()).then_some(credential)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(keys: &[(&str, &str)]) -> Credentials {
        let keys: Vec<ApiKey> = keys
            .iter()
            .map(|(key, token)| ApiKey {
                key_sha256: Sha256::digest(key.as_bytes()).into(),
                token: (*token).to_owned(),
            })
            .collect();
        Credentials::new(&keys)
    }

    #[test]
    fn a_key_is_known_by_its_hash_and_gives_its_own_token() {
        let known = credentials(&[("alpha", "t1"), ("beta", "t2")]);
        assert_eq!(&*known.find("alpha").unwrap().token, "t1");
        assert_eq!(&*known.find("beta").unwrap().token, "t2");
        assert!(known.find("gamma").is_none() && known.find("").is_none());
        assert!(credentials(&[]).find("alpha").is_none());
    }

    #[test]
    fn a_key_that_was_taken_away_or_given_another_token_ends_its_sessions() {
        let tag = credentials(&[("alpha", "t1")]).find("alpha").unwrap().tag;
        assert!(credentials(&[("alpha", "t1")]).still_grants(tag, "t1").is_some());
        assert!(credentials(&[("alpha", "t2")]).still_grants(tag, "t1").is_none());
        assert!(credentials(&[("beta", "t1")]).still_grants(tag, "t1").is_none());
    }

    #[test]
    fn only_a_bearer_is_read() {
        let header = |value: &str| {
            let request = axum::http::Request::builder().header("authorization", value);
            let (parts, ()) = request.body(()).unwrap().into_parts();
            bearer(&parts).map(str::to_owned)
        };
        assert_eq!(header("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(header("bearer  abc").as_deref(), Some("abc"));
        assert_eq!(header("Basic abc"), None);
        assert_eq!(header("Bearer "), None);
        assert_eq!(header("Bearer"), None);
    }
}
