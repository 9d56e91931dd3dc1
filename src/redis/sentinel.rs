//! A primary that sentinels name: asked for at the start, and again whenever the one at hand is no longer it.
//!
//! Whom most sentinels name is asked whether it is a primary before anything is sent to it: sentinels that were cut off
//! name the old one for a while. One caller asks, the others wait for what it finds.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::{ErrorKind, FromRedisValue as _, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use futures::future::join_all;
use tokio::time::timeout;

use super::node::{Limits, Node, cannot_work};
use super::settings::{Address, Settings};
use super::votes::{most, told_by};
use crate::telemetry::metrics;

/// For a question to a sentinel, or to a server whether it is a primary; the sentinels are asked at the same time.
const PATIENCE: Duration = Duration::from_secs(3);

const NO_SENTINEL: &str = "a server that was asked as a sentinel is none";

/// Whether servers were asked as sentinels, and one of them is none. (Its detail is the address.)
pub fn is_no_sentinel(error: &RedisError) -> bool {
    error.kind() == ErrorKind::InvalidClientConfig && error.to_string().starts_with(NO_SENTINEL)
}

/// A primary, and how it is found.
#[derive(Debug)]
pub(super) struct Sentinel {
    settings: Settings,
    limits: Limits,
    current: Mutex<Option<Arc<Node>>>,
    /// The last primary and where it was, held while it is asked for. Where it is found again, its connections and its
    /// turns stay.
    last: tokio::sync::Mutex<Option<(Address, Arc<Node>)>>,
}

impl Sentinel {
    pub(super) fn new(settings: Settings, limits: Limits) -> Self {
        Self {
            settings,
            limits,
            current: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// Sends all commands to the primary in one write. Where it is none (any more), or cannot work yet, nothing was
    /// done, and the one that is found next gets them.
    pub(super) async fn send(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        let node = self.primary().await?;
        let answers = node.send(pipe).await;
        if !is_lost(&answers) {
            return answers;
        }
        self.forget(&node);
        // After an error nobody knows what was done of it; whether it may be repeated the caller does.
        answers?;
        let next = self.primary().await?;
        let answers = next.send(pipe).await;
        if is_lost(&answers) {
            self.forget(&next);
        }
        answers
    }

    /// The primary at hand, or the one that the sentinels name.
    pub(super) async fn primary(&self) -> RedisResult<Arc<Node>> {
        if let Some(node) = self.current() {
            return Ok(node);
        }
        let mut last = self.last.lock().await;
        if let Some(node) = self.current() {
            return Ok(node);
        }
        let (address, node) = self.find(last.as_ref()).await?;
        if last.as_ref().is_some_and(|(last, _)| *last != address) {
            metrics().redis_failovers.increment(1);
            tracing::info!(
                address = node.address(),
                "Redis has another primary, say the sentinels"
            );
        }
        *last = Some((address, Arc::clone(&node)));
        *self.lock() = Some(Arc::clone(&node));
        Ok(node)
    }

    /// The one that the sentinels name now.
    pub(super) async fn anew(&self) -> RedisResult<Arc<Node>> {
        *self.lock() = None;
        self.primary().await
    }

    /// How many sentinels name a primary, and how many there are.
    pub(super) async fn votes(&self) -> (usize, usize) {
        let asked = self.ask_all().await;
        let naming: HashSet<&String> = asked.iter().flatten().map(|(voter, _)| voter).collect();
        let silent = asked.iter().filter(|answer| answer.is_err()).count();
        (naming.len(), naming.len() + silent)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Node>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Node>> {
        self.lock().clone().filter(|node| !node.is_suspect())
    }

    fn forget(&self, node: &Arc<Node>) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, node)) {
            *current = None;
        }
    }

    async fn ask_all(&self) -> Vec<RedisResult<(String, Address)>> {
        join_all(
            self.settings
                .addresses()
                .iter()
                .map(|sentinel| self.ask(sentinel)),
        )
        .await
    }

    async fn find(&self, last: Option<&(Address, Arc<Node>)>) -> RedisResult<(Address, Arc<Node>)> {
        let addresses = self.settings.addresses();
        let asked = addresses.iter().map(async |sentinel| {
            let named = self.ask(sentinel).await;
            named.map_err(|error| (sentinel.clone(), error))
        });
        // Not another one, if this one does not answer: whom fewer name may be the old primary, which they lost sight of.
        let (named, reasons) = most(asked).await;
        let address = named.ok_or_else(|| nobody(&self.settings.service, &reasons))?;
        let mut ask_role = Pipeline::with_capacity(1);
        ask_role.cmd("ROLE");
        let known = last.filter(|(last, _)| *last == address);
        let (node, asked) = if let Some((_, node)) = known {
            (Arc::clone(node), node.ask(&ask_role).await?)
        } else {
            // As calls will ask it, so that a connection of theirs is known to lead there.
            let node = Arc::new(Node::new(self.settings.server(&address)?, self.limits)?);
            let asked = timeout(PATIENCE, node.send(&ask_role)).await;
            let asked = asked.unwrap_or_else(|_| Err(node.gave_no_answer()))?;
            (node, asked)
        };
        match role(asked)?.as_str() {
            "master" => {
                node.found_again();
                Ok((address, node))
            }
            role => {
                // Perhaps by a connection to whom the address was before.
                node.doubt();
                Err(RedisError::from((
                    ErrorKind::Server(ServerErrorKind::MasterDown),
                    "the sentinels name a server that is no primary",
                    format!("{}: {role}", node.address()),
                )))
            }
        }
    }

    /// Who a sentinel is, and whom it names.
    async fn ask(&self, sentinel: &Address) -> RedisResult<(String, Address)> {
        let limits = Limits {
            connections: 1,
            response_timeout: PATIENCE,
            calls: 1,
        };
        let node = Node::new(self.settings.sentinel(sentinel)?, limits)?;
        let mut question = ::redis::cmd("SENTINEL");
        question
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.settings.service);
        let told = told_by(&node, &question, "SENTINEL").await;
        let (voter, named) = told.map_err(|error| no_sentinel(error, &node))?;
        let named: Option<Address> = Option::from_redis_value(named)?;
        let named = named.ok_or_else(|| {
            RedisError::from((
                ErrorKind::MasterNameNotFoundBySentinel,
                "a sentinel does not know this service",
                self.settings.service.clone(),
            ))
        })?;
        Ok((voter, named))
    }
}

/// A data server does not know what sentinels are asked. An error that says who it is, in place of the server's own.
fn no_sentinel(error: RedisError, node: &Node) -> RedisError {
    let detail = error.detail().unwrap_or_default();
    if detail.to_ascii_lowercase().contains("unknown command") {
        RedisError::from((ErrorKind::InvalidClientConfig, NO_SENTINEL, node.address()))
    } else {
        error
    }
}

/// `master` or `slave`.
fn role(answers: Vec<Value>) -> RedisResult<String> {
    let answer = answers.into_iter().next().unwrap_or(Value::Nil);
    let mut parts = Vec::<Value>::from_redis_value(answer.extract_error()?)?.into_iter();
    Ok(String::from_redis_value(parts.next().unwrap_or(Value::Nil))?)
}

/// Why nobody is named: that it is unknown outweighs that a sentinel is down.
fn nobody(service: &str, reasons: &[(Address, RedisError)]) -> RedisError {
    let unknown = |error: &RedisError| error.kind() == ErrorKind::MasterNameNotFoundBySentinel;
    if let Some((_, error)) = reasons
        .iter()
        .find(|(_, error)| unknown(error) || !error.is_io_error())
    {
        return error.clone();
    }
    let told: Vec<String> = reasons
        .iter()
        .map(|((host, port), error)| format!("{host}:{port}: {error}"))
        .collect();
    let text = format!("no sentinel tells where {service} is ({})", told.join("; "));
    std::io::Error::new(std::io::ErrorKind::NotConnected, text).into()
}

/// Whether the server is no longer the primary, or not yet one that works; or may be one that was cut off.
fn is_lost(answers: &RedisResult<Vec<Value>>) -> bool {
    match answers {
        Ok(answers) => answers
            .iter()
            .any(|answer| matches!(answer, Value::ServerError(error) if cannot_work(error))),
        Err(error) => error.is_io_error() || error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading),
    }
}
