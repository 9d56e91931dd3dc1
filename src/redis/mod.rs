//! The way to Redis: standalone, behind sentinels or a Cluster; a time-out on every call.
//!
//! Owns how servers are found ([`Settings`]), connections, and how a batch of commands is sent. Never owns a key (see
//! [`keys`]) nor a script (each lives beside the stage that runs it), and outlasts no outage: a caller knows whether the
//! work is still wanted. What a server refuses without doing anything (it is no longer the primary, the slot is another
//! node's, a script is unknown) is sent on, a bounded number of times.

mod cluster;
pub mod info;
pub mod keys;
pub mod kinds;
pub mod look;
pub mod needs;
mod node;
pub mod sample;
mod sentinel;
mod settings;
mod slots;
#[cfg(test)]
mod tests;
pub mod told;
mod votes;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use futures::future::try_join_all;
use tokio::sync::Semaphore;

use self::cluster::Cluster;
use self::node::{Limits, Node};
use self::sentinel::Sentinel;
pub use self::sentinel::is_no_sentinel;
pub use self::settings::Settings;
pub(crate) use self::slots::slot_of_key;
use crate::config::RedisMode;

/// How long a single call may take before it counts as failed. A block's claims are one call of
/// tens of thousands of commands, so this is far above a single command's latency.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands that one round trip of the data path carries at the most: enough for the server to be busy meanwhile, and
/// small enough for the buffers on the way to be used again instead of fresh pages for each block.
pub const COMMANDS_AT_ONCE: usize = 4096;

/// A Redis, through a bounded number of multiplexed connections to each of its servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Redis(Arc<Transport>);

#[derive(Debug)]
enum Transport {
    Standalone(Arc<Node>),
    Sentinel(Sentinel),
    Cluster(Cluster),
}

/// A Lua script with the digest that Redis knows it by.
///
/// In a Cluster a script can be cut off before any command whose key is on its way to another node, and is then run once
/// more: what it has written until there must not mislead that run. All keys that it touches have one hash tag.
#[derive(Debug)]
pub struct Script {
    source: &'static str,
    sha1: String,
    of_one_key: bool,
}

/// One server, asked by itself.
#[derive(Clone, Debug)]
pub struct Server(Arc<Node>);

/// A connection as its server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    server: String,
    id: i64,
}

impl Script {
    /// Names the script; nothing is sent yet.
    pub fn new(source: &'static str) -> Self {
        Self {
            source,
            sha1: ::redis::Script::new(source).get_hash().to_owned(),
            of_one_key: false,
        }
    }

    /// The same for a script that touches the one key that it names, and no other: like a plain command it goes where its
    /// key is while a slot of a Cluster moves, and does not wait for the others.
    pub fn of_one_key(source: &'static str) -> Self {
        Self {
            of_one_key: true,
            ..Self::new(source)
        }
    }

    /// The start of one call; keys and arguments follow.
    pub fn call(&self, keys: usize) -> Cmd {
        let mut cmd = ::redis::cmd("EVALSHA");
        cmd.arg(&self.sha1).arg(keys);
        cmd
    }

    fn is_called_by(&self, command: &Cmd) -> bool {
        let sha1 = command.args_iter().nth(1);
        matches!(sha1, Some(::redis::Arg::Simple(sha1)) if sha1 == self.sha1.as_bytes())
    }

    fn load(&self) -> Cmd {
        let mut cmd = ::redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(self.source);
        cmd
    }
}

/// Which servers there are.
#[derive(Debug)]
pub struct Topology {
    /// `host:port` of each primary.
    pub primaries: Vec<String>,
    /// With Sentinel, how many name a primary, of how many.
    pub sentinels: Option<(usize, usize)>,
    /// With Cluster, how many of its slots are served.
    pub slots: Option<usize>,
}

impl Topology {
    /// The slots that a Cluster has.
    pub const SLOTS: usize = slots::SLOTS;
}

impl Server {
    /// `host:port`.
    pub fn address(&self) -> String {
        self.0.address()
    }

    /// Sends all the commands in one round trip; one answer each, in order, or the first error among them.
    pub async fn pipeline(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.send(pipe).await?.server_errors(false)
    }

    /// The same, where some answers may be errors.
    pub async fn send(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.0.send(pipe).await
    }
}

impl Redis {
    /// Prepares up to `connections` connections to each server; they open at their first use, so a Redis
    /// that is down does not stop the start.
    pub fn open(settings: &Settings, connections: usize) -> RedisResult<Self> {
        Self::open_with(settings, connections, RESPONSE_TIMEOUT, Semaphore::MAX_PERMITS)
    }

    /// The same for calls that each carry a block's commands: one is under way and one at the door for each connection. More
    /// would run out of time only because the server is busy with the others, be sent again, and keep it busy for nothing.
    pub fn for_blocks(settings: &Settings, connections: usize) -> RedisResult<Self> {
        Self::open_with(settings, connections, RESPONSE_TIMEOUT, 2 * connections.max(1))
    }

    /// One connection of its own for commands that let the server wait for up to `block` before it answers. Nothing else
    /// may be sent on it: it would wait, too.
    pub fn blocking(settings: &Settings, block: Duration) -> RedisResult<Self> {
        Self::open_with(settings, 1, block + RESPONSE_TIMEOUT, 1)
    }

    fn open_with(
        settings: &Settings,
        connections: usize,
        response_timeout: Duration,
        calls: usize,
    ) -> RedisResult<Self> {
        let limits = Limits {
            connections,
            response_timeout,
            calls,
        };
        Ok(Self(Arc::new(match settings.mode() {
            RedisMode::Standalone => Transport::Standalone(Arc::new(Node::new(settings.first()?, limits)?)),
            RedisMode::Sentinel => Transport::Sentinel(Sentinel::new(settings.clone(), limits)),
            RedisMode::Cluster => Transport::Cluster(Cluster::new(settings.clone(), limits)),
        })))
    }

    /// Sends all the commands in one round trip; one answer each, in order. In a Cluster the commands of one slot are done
    /// in their order, and those of several at the same time; a command's own keys must be of one slot.
    pub async fn pipeline(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.send(pipe, &[]).await?.server_errors(false)
    }

    /// As [`Redis::pipeline`], for keys that operators write: where one holds another type than its command wants, the
    /// answer is that error as a value, because asking again would not help and the others are not to blame.
    pub async fn look_up(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        self.send(pipe, &[]).await?.server_errors(true)
    }

    /// Sends one command.
    pub async fn command<T: FromRedisValue>(&self, cmd: &Cmd) -> RedisResult<T> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.add_command(cmd.clone());
        let answers = self.send(&pipe, &[]).await?;
        let answer = answers.into_iter().next().unwrap_or(Value::Nil);
        Ok(T::from_redis_value(answer.extract_error()?)?)
    }

    /// As [`Redis::pipeline`], with calls of `scripts` in it: a server that does not know them yet (it
    /// was restarted, or is new) is told, and everything is sent once more. What is sent this way must
    /// tolerate a repeat, as every stage's commands do.
    pub async fn scripted(&self, scripts: &[&Script], pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        let first = self.send(pipe, scripts).await?.server_errors(false);
        let unknown = |error: &RedisError| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript);
        if !first.as_ref().is_err_and(unknown) {
            return first;
        }
        let mut load = Pipeline::with_capacity(scripts.len());
        for script in scripts {
            load.add_command(script.load());
        }
        self.send(&load, &[]).await?.server_errors(false)?;
        self.send(pipe, scripts).await?.server_errors(false)
    }

    /// Redis's own clock, in milliseconds since 1970. In a Cluster that of one node, if all answer and serve every slot.
    pub async fn time_ms(&self) -> RedisResult<i64> {
        if let Transport::Cluster(cluster) = &*self.0 {
            let (nodes, served) = cluster.primaries().await?;
            if served < Topology::SLOTS {
                return Err(RedisError::from((
                    ErrorKind::Server(ServerErrorKind::ClusterDown),
                    "the Cluster does not serve all slots",
                    format!("{served} of {}", Topology::SLOTS),
                )));
            }
            let times = try_join_all(nodes.iter().map(|node| time_ms(node))).await?;
            return Ok(times.first().copied().unwrap_or_default());
        }
        let mut pipe = Pipeline::with_capacity(1);
        pipe.cmd("TIME");
        milliseconds(self.pipeline(&pipe).await?)
    }

    /// Which servers there are, asked now.
    pub async fn topology(&self) -> RedisResult<Topology> {
        let nodes = self.primaries().await?;
        let primaries = nodes.iter().map(|node| node.address()).collect();
        Ok(match &*self.0 {
            Transport::Standalone(_) => Topology {
                primaries,
                sentinels: None,
                slots: None,
            },
            Transport::Sentinel(sentinel) => Topology {
                primaries,
                sentinels: Some(sentinel.votes().await),
                slots: None,
            },
            Transport::Cluster(cluster) => Topology {
                primaries,
                sentinels: None,
                slots: Some(cluster.primaries().await?.1),
            },
        })
    }

    /// Every primary, asked for now.
    pub async fn servers(&self) -> RedisResult<Vec<Server>> {
        Ok(self.primaries().await?.into_iter().map(Server).collect())
    }

    /// Whether there are several primaries, each with slots of its own.
    pub fn is_cluster(&self) -> bool {
        matches!(&*self.0, Transport::Cluster(_))
    }

    /// What the server of `key` knows this connection by; for one of [`Redis::blocking`], that on which a command with that
    /// key will wait.
    pub async fn client(&self, key: &str) -> RedisResult<Client> {
        let node = match &*self.0 {
            Transport::Standalone(node) => Arc::clone(node),
            Transport::Sentinel(sentinel) => sentinel.primary().await?,
            Transport::Cluster(cluster) => cluster.node_of(key).await?,
        };
        let id = one(&node, ::redis::cmd("CLIENT").arg("ID")).await?;
        Ok(Client {
            server: node.address(),
            id: FromRedisValue::from_redis_value(id)?,
        })
    }

    /// Ends what a connection waits for, which knows nothing of a caller that has stopped waiting. False if it waits for
    /// nothing, or its server is none (any more).
    pub async fn unblock(&self, client: &Client) -> RedisResult<bool> {
        let node = match &*self.0 {
            Transport::Standalone(node) => Some(Arc::clone(node)),
            Transport::Sentinel(sentinel) => Some(sentinel.primary().await?),
            Transport::Cluster(cluster) => cluster.node_at(&client.server),
        };
        let Some(node) = node.filter(|node| node.address() == client.server) else {
            return Ok(false);
        };
        let ended = one(&node, ::redis::cmd("CLIENT").arg("UNBLOCK").arg(client.id)).await?;
        Ok(i64::from_redis_value(ended)? == 1)
    }

    async fn primaries(&self) -> RedisResult<Vec<Arc<Node>>> {
        Ok(match &*self.0 {
            Transport::Standalone(node) => vec![Arc::clone(node)],
            Transport::Sentinel(sentinel) => vec![sentinel.anew().await?],
            Transport::Cluster(cluster) => cluster.primaries().await?.0,
        })
    }

    async fn send(&self, pipe: &Pipeline, scripts: &[&Script]) -> RedisResult<Vec<Value>> {
        match &*self.0 {
            Transport::Standalone(node) => node.send(pipe).await,
            Transport::Sentinel(sentinel) => sentinel.send(pipe).await,
            Transport::Cluster(cluster) => cluster.send(pipe, scripts).await,
        }
    }
}

async fn time_ms(node: &Node) -> RedisResult<i64> {
    milliseconds(vec![one(node, &::redis::cmd("TIME")).await?])
}

/// One command to one server.
async fn one(node: &Node, command: &Cmd) -> RedisResult<Value> {
    let mut pipe = Pipeline::with_capacity(1);
    pipe.add_command(command.clone());
    let answer = node.send(&pipe).await?.into_iter().next();
    answer.unwrap_or(Value::Nil).extract_error()
}

fn milliseconds(answers: Vec<Value>) -> RedisResult<i64> {
    let answer = answers.into_iter().next().unwrap_or(Value::Nil);
    let (seconds, micros): (i64, i64) = FromRedisValue::from_redis_value(answer)?;
    Ok(seconds * 1000 + micros / 1000)
}

trait ServerErrors {
    fn server_errors(self, any_type: bool) -> RedisResult<Vec<Value>>;
}

impl ServerErrors for Vec<Value> {
    /// The first error among the answers fails the whole: no stage can use half a block. With `any_type`, a key of
    /// another type is none.
    fn server_errors(self, any_type: bool) -> RedisResult<Vec<Value>> {
        self.into_iter()
            .map(|value| match value {
                Value::ServerError(error) if !(any_type && error.code() == "WRONGTYPE") => {
                    Err(RedisError::from(error))
                }
                value => Ok(value),
            })
            .collect()
    }
}
