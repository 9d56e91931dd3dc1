//! The way to Redis: one address, a few multiplexed connections, a time-out on every call.
//!
//! Owns connections and how a batch of commands is sent. Never owns a key (see [`keys`]) nor a
//! script (each lives beside the stage that runs it), and never retries: a caller knows whether
//! the work is still wanted.

pub mod keys;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    client: Client,
    response_timeout: Duration,
    connections: Arc<[Mutex<Connection>]>,
    next: Arc<AtomicUsize>,
}

/// A connection that finds its server again by itself after it was closed, and is replaced where it was not: see
/// [`leads_nowhere`].
#[derive(Clone)]
struct Connection {
    slot: usize,
    /// Counts the connections of the slot.
    generation: u64,
    manager: ConnectionManager,
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
        Self::open_with(url, connections, RESPONSE_TIMEOUT)
    }

    /// One connection of its own for commands that let the server wait for up to `block` before it answers. Nothing else
    /// may be sent on it: it would wait, too.
    pub fn blocking(url: &str, block: Duration) -> RedisResult<Self> {
        Self::open_with(url, 1, block + RESPONSE_TIMEOUT)
    }

    fn open_with(url: &str, connections: usize, response_timeout: Duration) -> RedisResult<Self> {
        let client = Client::open(url)?;
        let connections = (0..connections.max(1))
            .map(|slot| {
                Ok(Mutex::new(Connection {
                    slot,
                    generation: 0,
                    manager: manager(&client, response_timeout)?,
                }))
            })
            .collect::<RedisResult<Vec<_>>>()?;
        Ok(Self {
            client,
            response_timeout,
            connections: connections.into(),
            next: Arc::default(),
        })
    }

    fn slot(&self, slot: usize) -> MutexGuard<'_, Connection> {
        self.connections[slot]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> Connection {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.slot(n % self.connections.len()).clone()
    }

    /// Replaces a connection whose call ended with `error`, where only another one helps. Calls under way on it end
    /// as they may.
    fn judge(&self, used: &Connection, error: &RedisError) {
        if !leads_nowhere(error) {
            return;
        }
        let mut current = self.slot(used.slot);
        if current.generation == used.generation
            && let Ok(manager) = manager(&self.client, self.response_timeout)
        {
            current.manager = manager;
            current.generation += 1;
        }
    }

    /// Sends all the commands in one round trip; one answer each, in order.
    pub async fn pipeline(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.send(pipe, false).await
    }

    /// As [`Redis::pipeline`], for keys that operators write: where one holds another type than its command wants, the
    /// answer is that error as a value, because asking again would not help and the others are not to blame.
    pub async fn look_up(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.send(pipe, true).await
    }

    async fn send(&self, pipe: &Pipeline, any_type: bool) -> RedisResult<Vec<Value>> {
        let mut connection = self.connection();
        connection
            .manager
            .send_packed_commands(pipe, 0, pipe.len())
            .await
            .and_then(|answers| answers.into_iter().collect_server_errors(any_type))
            .inspect_err(|error| self.judge(&connection, error))
    }

    /// Sends one command.
    pub async fn command<T: ::redis::FromRedisValue>(&self, cmd: &Cmd) -> RedisResult<T> {
        let mut connection = self.connection();
        cmd.query_async(&mut connection.manager)
            .await
            .inspect_err(|error| self.judge(&connection, error))
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

fn manager(client: &Client, response_timeout: Duration) -> RedisResult<ConnectionManager> {
    client.get_connection_manager_lazy(
        ConnectionManagerConfig::new()
            .set_response_timeout(Some(response_timeout))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500)),
    )
}

/// Whether an open connection may lead to a server that is no longer the one: after a failover behind the same
/// address it still reaches the old one, which refuses to write, or a machine that is gone and never closes it.
fn leads_nowhere(error: &RedisError) -> bool {
    error.is_timeout() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

trait CollectServerErrors {
    fn collect_server_errors(self, any_type: bool) -> RedisResult<Vec<Value>>;
}

impl<I: Iterator<Item = Value>> CollectServerErrors for I {
    /// The first error among the answers fails the whole: no stage can use half a block. With `any_type`, a key of
    /// another type is none.
    fn collect_server_errors(self, any_type: bool) -> RedisResult<Vec<Value>> {
        self.map(|value| match value {
            Value::ServerError(error) if !(any_type && error.code() == "WRONGTYPE") => {
                Err(RedisError::from(error))
            }
            value => Ok(value),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A failover behind one address: whoever connected before it keeps meeting `old`, everybody else the new server.
    /// The client's greetings are answered by both.
    async fn after_failover(old: Option<&'static str>) -> RedisResult<Vec<Value>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut answer = old;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answer.replace(":1\r\n");
                tokio::spawn(async move {
                    let mut bytes = vec![0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..n]);
                        let greetings = text.matches("CLIENT").count() + text.matches("HELLO").count();
                        let mut out = "+OK\r\n".repeat(greetings);
                        if text.contains("INCR") {
                            out.push_str(answer.unwrap_or_default());
                        }
                        stream.write_all(out.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let redis = Redis::open_with(&url, 1, Duration::from_millis(200)).unwrap();
        let mut pipe = ::redis::pipe();
        pipe.cmd("INCR").arg("n");
        assert!(redis.pipeline(&pipe).await.is_err());
        redis.pipeline(&pipe).await
    }

    #[tokio::test]
    async fn a_failover_behind_the_same_address_is_followed() {
        let old = Some("-READONLY You can't write against a read only replica.\r\n");
        assert_eq!(after_failover(old).await.unwrap(), [Value::Int(1)]);
    }

    #[tokio::test]
    async fn a_server_that_is_gone_without_a_word_is_left() {
        assert_eq!(after_failover(None).await.unwrap(), [Value::Int(1)]);
    }
}
