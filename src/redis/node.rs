//! One server: a few multiplexed connections to one address, a time-out on every call.
//!
//! A connection finds its server again by itself after it was closed, and is replaced where it was not: see
//! [`leads_nowhere`]. Never retries a call.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{
    Client, ConnectionAddr, Pipeline, RedisError, RedisResult, ServerError, ServerErrorKind, Value,
};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::telemetry::metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a question about where things are; several servers are asked at the same time.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// A call that its caller gives up after this long speaks against the server: callers with less patience than the
/// time-out of a call would otherwise wait for one that is gone for ever.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(300);

/// How many connections, and how long each call may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) response_timeout: Duration,
    /// Calls under way to one server at any time; the others wait for their turn, and their time-outs with them.
    pub(super) calls: usize,
}

/// A server.
pub(super) struct Node {
    client: Client,
    response_timeout: Duration,
    /// One for each slot, and after them the one for questions.
    connections: Box<[Mutex<Connection>]>,
    next: AtomicUsize,
    turns: Semaphore,
    /// Whether a call was given up or ran out of time, and none has been answered since.
    suspect: AtomicBool,
}

/// A call under way.
struct Call<'a> {
    node: &'a Node,
    used: &'a Connection,
    begun: Instant,
    ended: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // One that is still being opened goes on with it for the next caller; how long that takes has a bound of its own.
        let open = self.used.answered.load(Ordering::Relaxed);
        if !self.ended && open && self.begun.elapsed() >= GIVEN_UP_AFTER {
            self.node.doubt();
            self.node.replace(self.used);
        }
    }
}

#[derive(Clone)]
struct Connection {
    slot: usize,
    /// Counts the connections of the slot.
    generation: u64,
    /// Whether it was ever used with success.
    answered: Arc<AtomicBool>,
    manager: ConnectionManager,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Prepares the connections; they open at their first use.
    pub(super) fn new(client: Client, limits: Limits) -> RedisResult<Self> {
        let Limits {
            connections,
            response_timeout,
            calls,
        } = limits;
        let slots = connections.max(1);
        let connections = (0..=slots)
            .map(|slot| {
                let patience = if slot < slots {
                    response_timeout
                } else {
                    QUESTION_TIMEOUT
                };
                Ok(Mutex::new(Connection {
                    slot,
                    generation: 0,
                    answered: Arc::default(),
                    manager: manager(&client, patience)?,
                }))
            })
            .collect::<RedisResult<_>>()?;
        Ok(Self {
            client,
            response_timeout,
            connections,
            next: AtomicUsize::new(0),
            turns: Semaphore::new(calls),
            suspect: AtomicBool::new(false),
        })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// Whether the server may be gone without a word.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// It may be gone, or another one may be there by now.
    pub(super) fn doubt(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// The server answers, or whether it is still the one was asked of others.
    pub(super) fn absolve(&self) {
        self.suspect.store(false, Ordering::Relaxed);
    }

    /// The host alone.
    pub(super) fn host(&self) -> String {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            other => other.to_string(),
        }
    }

    /// It was found once more, by others' word and its own. If it was suspect, connections may still lead to whom its address
    /// was before: they are opened anew.
    pub(super) fn found_again(&self) {
        if self.suspect.swap(false, Ordering::Relaxed) {
            for slot in 0..self.connections.len() - 1 {
                let used = self.slot(slot).clone();
                self.replace(&used);
            }
        }
    }

    /// Sends all commands in one write; one answer each, of which some may be errors of the server.
    pub(super) async fn send(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        // It is never closed.
        let _turn = self.turns.acquire().await.ok();
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let used = self.slot(n % (self.connections.len() - 1)).clone();
        let mut call = Call {
            node: self,
            used: &used,
            begun: Instant::now(),
            ended: false,
        };
        let answers = used
            .manager
            .clone()
            .send_packed_commands(pipe, 0, pipe.len())
            .await;
        call.ended = true;
        let nowhere = match &answers {
            Ok(answers) => answers.iter().any(
                |answer| matches!(answer, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::ReadOnly)),
            ),
            Err(error) => leads_nowhere(error),
        };
        if nowhere {
            self.replace(&used);
            if answers.as_ref().is_err_and(RedisError::is_timeout) {
                self.doubt();
            }
        } else if answers.is_ok() {
            used.answered.store(true, Ordering::Relaxed);
            self.absolve();
        }
        answers
    }

    /// Asks where things are, or who the server is: an answer each, of which some may be errors. Waits for no turn, and has
    /// a connection of its own, opened at its first use: what is asked is why calls do not come to their end, and behind
    /// these it would run out of time.
    pub(super) async fn ask(&self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        let slot = self.connections.len() - 1;
        if self.is_suspect() {
            // Or it might lead to whom the address was before.
            let old = self.slot(slot).clone();
            self.replace(&old);
        }
        let used = self.slot(slot).clone();
        let mut connection = used.manager.clone();
        let asked = connection.send_packed_commands(pipe, 0, pipe.len());
        let answers = timeout(QUESTION_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(self.gave_no_answer()));
        if answers.as_ref().is_err_and(leads_nowhere) {
            self.replace(&used);
        }
        answers
    }

    /// What a call ends with whose time is over.
    pub(super) fn gave_no_answer(&self) -> RedisError {
        let text = format!("{} gave no answer in time", self.address());
        std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
    }

    fn slot(&self, slot: usize) -> MutexGuard<'_, Connection> {
        self.connections[slot]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a connection of which only another one helps. Calls under way on it end as they may.
    fn replace(&self, used: &Connection) {
        let for_calls = used.slot < self.connections.len() - 1;
        let patience = if for_calls {
            self.response_timeout
        } else {
            QUESTION_TIMEOUT
        };
        let mut current = self.slot(used.slot);
        if current.generation == used.generation
            && let Ok(manager) = manager(&self.client, patience)
        {
            current.manager = manager;
            current.generation += 1;
            current.answered = Arc::default();
            metrics().redis_reconnects.increment(1);
        }
    }
}

fn manager(client: &Client, response_timeout: Duration) -> RedisResult<ConnectionManager> {
    client.get_connection_manager_lazy(
        ConnectionManagerConfig::new()
            .set_response_timeout(Some(response_timeout))
            .set_connection_timeout(Some(CONNECT_TIMEOUT.min(response_timeout)))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500)),
    )
}

/// Whether only another connection helps. After a failover behind the same address an open one still reaches the old
/// server, or a machine that is gone and never closes it; and one that could not be greeted (a password that is refused, a
/// server that still loads) is never tried again by its manager, unlike one that was closed.
fn leads_nowhere(error: &RedisError) -> bool {
    error.is_timeout() || !error.is_io_error()
}

/// Whether a server refused a command, undone, because of the state that it is in itself: a replica, one that still loads,
/// a primary without its replicas.
pub(super) fn cannot_work(error: &ServerError) -> bool {
    matches!(
        error.kind(),
        Some(
            ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
        )
    ) || error.code() == "NOREPLICAS"
}
