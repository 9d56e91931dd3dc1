//! The way to Redis: one address, a few multiplexed connections, a time-out on every call.
//!
//! Owns connections and how a batch of commands is sent. Never owns a key (see [`keys`]) nor a
//! script (each lives beside the stage that runs it), and never retries: a caller knows whether
//! the work is still wanted.

pub mod keys;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};

/// How long a single call may take before it counts as failed. A block's claims are one call of
/// tens of thousands of commands, so this is far above a single command's latency.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands that one round trip of the data path carries at the most: enough for the server to be busy meanwhile, and
/// small enough for the buffers on the way to be used again instead of fresh pages for each block.
pub const COMMANDS_AT_ONCE: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A bounded set of multiplexed connections to one Redis. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    connections: Arc<[ConnectionManager]>,
    next: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

/// A Lua script with the digest that Redis knows it by.
#[derive(Debug)]
pub struct Script {
    source: &'static str,
    sha1: String,
}

impl Script {
    /// Names the script; nothing is sent yet.
    pub fn new(source: &'static str) -> Self {
        Self {
            source,
            sha1: ::redis::Script::new(source).get_hash().to_owned(),
        }
    }

    /// The start of one call; keys and arguments follow.
    pub fn call(&self, keys: usize) -> Cmd {
        let mut cmd = ::redis::cmd("EVALSHA");
        cmd.arg(&self.sha1).arg(keys);
        cmd
    }
}

impl Redis {
    /// Prepares up to `connections` connections to `url`; they open at their first use, so a Redis
    /// that is down does not stop the start.
    pub fn open(url: &str, connections: usize) -> RedisResult<Self> {
        let client = Client::open(url)?;
        let connections = (0..connections.max(1))
            .map(|_| {
                client.get_connection_manager_lazy(
                    ConnectionManagerConfig::new()
                        .set_response_timeout(Some(RESPONSE_TIMEOUT))
                        .set_connection_timeout(Some(CONNECT_TIMEOUT))
                        .set_number_of_retries(1)
                        .set_max_delay(Duration::from_millis(500)),
                )
            })
            .collect::<RedisResult<Vec<_>>>()?;
        Ok(Self {
            connections: connections.into(),
            next: Arc::default(),
        })
    }

    fn connection(&self) -> ConnectionManager {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections[n % self.connections.len()].clone()
    }

    /// Sends all the commands in one round trip; one answer each, in order.
    pub async fn pipeline(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.connection()
            .send_packed_commands(pipe, 0, pipe.len())
            .await?
            .into_iter()
            .collect_server_errors()
    }

    /// Sends one command.
    pub async fn command<T: ::redis::FromRedisValue>(&self, cmd: &Cmd) -> RedisResult<T> {
        cmd.query_async(&mut self.connection()).await
    }

    /// As [`Redis::pipeline`], with calls of `scripts` in it: a server that does not know them yet (it
    /// was restarted, or is new) is told, and everything is sent once more. What is sent this way must
    /// tolerate a repeat, as every stage's commands do.
    pub async fn scripted(&self, scripts: &[&Script], pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        match self.pipeline(pipe).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                for script in scripts {
                    let mut load = ::redis::cmd("SCRIPT");
                    load.arg("LOAD").arg(script.source);
                    self.command::<String>(&load).await?;
                }
                self.pipeline(pipe).await
            }
            other => other,
        }
    }

    /// Redis's own clock, in milliseconds since 1970.
    pub async fn time_ms(&self) -> RedisResult<i64> {
        let (seconds, micros): (i64, i64) = self.command(&::redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000)
    }
}

trait CollectServerErrors {
    fn collect_server_errors(self) -> RedisResult<Vec<Value>>;
}

impl<I: Iterator<Item = Value>> CollectServerErrors for I {
    /// The first error among the answers fails the whole: no stage can use half a block.
    fn collect_server_errors(self) -> RedisResult<Vec<Value>> {
        self.map(|value| match value {
            Value::ServerError(error) => Err(RedisError::from(error)),
            value => Ok(value),
        })
        .collect()
    }
}
