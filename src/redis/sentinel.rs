//! A primary that sentinels name: asked for at the start, and again whenever the one at hand is no longer it.
//!
//! Whom most sentinels name is asked whether it is a primary before anything is sent to it: sentinels that were cut off
//! name the old one for a while. One caller asks, the others wait for what it finds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::{ErrorKind, FromRedisValue as _, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use futures::future::join_all;
use tokio::time::timeout;

use super::node::{Limits, Node, cannot_work};
use super::settings::{Address, Settings};
use super::votes::most;
use crate::telemetry::metrics;

/// For one question to a sentinel, or to a server whether it is a primary; the sentinels are asked at the same time.
const PATIENCE: Duration = Duration::from_secs(3);

/// A primary, and how it is found.
#[derive(Debug)]
pub(super) struct Sentinel {
    settings: Settings,
    limits: Limits,
    current: Mutex<Option<Arc<Node>>>,
    /// Where the last primary was, held while it is asked for.
    last: tokio::sync::Mutex<Option<Address>>,
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
        let (address, node) = self.find().await?;
        if last.as_ref().is_some_and(|last| *last != address) {
            metrics().redis_failovers.increment(1);
            tracing::info!(
                address = node.address(),
                "Redis has another primary, say the sentinels"
            );
        }
        *last = Some(address);
        *self.lock() = Some(Arc::clone(&node));
        Ok(node)
    }

    /// How many sentinels name a primary, and how many there are.
    pub(super) async fn votes(&self) -> (usize, usize) {
        let named = self.ask_all().await;
        (named.iter().flatten().count(), named.len())
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

    async fn ask_all(&self) -> Vec<RedisResult<Address>> {
        join_all(
            self.settings
                .addresses()
                .iter()
                .map(|sentinel| self.ask(sentinel)),
        )
        .await
    }

    async fn find(&self) -> RedisResult<(Address, Arc<Node>)> {
        let addresses = self.settings.addresses();
        let asked = addresses.iter().map(async |sentinel| {
            let named = self.ask(sentinel).await;
            named.map_err(|error| (sentinel.clone(), error))
        });
        // Not another one, if this one does not answer: whom fewer name may be the old primary, which they lost sight of.
        let (named, reasons) = most(asked).await;
        let address = named.ok_or_else(|| nobody(&self.settings.service, &reasons))?;
        let node = Node::new(self.settings.server(&address)?, self.limits)?;
        match role(&node).await?.as_str() {
            "master" => Ok((address, Arc::new(node))),
            role => Err(RedisError::from((
                ErrorKind::Server(ServerErrorKind::MasterDown),
                "the sentinels name a server that is no primary",
                format!("{}: {role}", node.address()),
            ))),
        }
    }

    /// Whom a sentinel names.
    async fn ask(&self, sentinel: &Address) -> RedisResult<Address> {
        let limits = Limits {
            connections: 1,
            response_timeout: PATIENCE,
            calls: 1,
        };
        let node = Node::new(self.settings.sentinel(sentinel)?, limits)?;
        let mut pipe = ::redis::pipe();
        pipe.cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.settings.service);
        let named: Option<(String, u16)> = Option::from_redis_value(one(&node, &pipe).await?)?;
        named.ok_or_else(|| {
            RedisError::from((
                ErrorKind::MasterNameNotFoundBySentinel,
                "a sentinel does not know this service",
                self.settings.service.clone(),
            ))
        })
    }
}

/// `master` or `slave`.
async fn role(node: &Node) -> RedisResult<String> {
    let mut pipe = ::redis::pipe();
    pipe.cmd("ROLE");
    let mut parts = Vec::<Value>::from_redis_value(one(node, &pipe).await?)?.into_iter();
    Ok(String::from_redis_value(parts.next().unwrap_or(Value::Nil))?)
}

/// The answer to one command that must not take long.
async fn one(node: &Node, pipe: &Pipeline) -> RedisResult<Value> {
    let answers = timeout(PATIENCE, node.send(pipe)).await.unwrap_or_else(|_| {
        let text = format!("{} gave no answer in time", node.address());
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
    })?;
    let answer = answers.into_iter().next().unwrap_or(Value::Nil);
    answer.extract_error()
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
