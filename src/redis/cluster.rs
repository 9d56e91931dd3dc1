//! A Cluster: each command goes to the node that serves its key's slot, all nodes at the same time, and the answers come
//! back in the order of the commands.
//!
//! Commands of one slot are sent in their order, in one write. What a node refuses because the slot is elsewhere, or on its
//! way, is sent once more, a bounded number of times; an outage is the caller's to outlast.
//!
//! **A slot on its way.** Its keys move one by one. A plain command follows `ASK` to where its key is. A script does not:
//! one may touch keys that it does not name (`packed.lua` does), and there it would take those that are still on their
//! way for absent. It stays with the node that gives the slot away, which refuses it as soon as a key is missing, in the
//! midst of it, too; then it waits until the slot has arrived. So nothing is ever judged by half of a slot's keys, as long as
//! every script can be cut off between two writes and run again. A script that says that it touches its one key alone
//! ([`Script::of_one_key`]) is as good as a plain command, and follows it.

mod map;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerError, ServerErrorKind, Value};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use self::map::Map;
use super::Script;
use super::node::{Limits, Node, cannot_work};
use super::settings::Settings;
use super::slots::{redirected, runs_script, slot_of, slot_of_key};
use crate::faults;
use crate::telemetry::metrics;

/// How long a call goes on sending again what nodes refuse. Beyond that the caller decides.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pauses before what must wait is sent again: there is no event to await.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(250);
/// Redirections are followed at once, this many times; then with a pause as well.
const AT_ONCE: u32 = 5;

/// All nodes, as far as they are known.
#[derive(Debug)]
pub(super) struct Cluster {
    map: map::Known,
}

/// What becomes of a command that was sent.
#[derive(Debug)]
enum Fate {
    Answered(Value),
    /// The slot is another node's.
    Elsewhere(Arc<Node>),
    /// The key may be at another node already; only there and for this once.
    Ask(Arc<Node>),
    /// The script is not known there.
    Unknown,
    /// The node cannot say yet.
    Wait,
}

/// A command on its way.
struct Open<'a> {
    index: usize,
    command: &'a Cmd,
    slot: Option<u16>,
    /// Where it was sent on to; the map says it otherwise.
    sent_on: Option<(Arc<Node>, bool)>,
}

/// What goes to one node in one write.
struct Load<'a> {
    node: Arc<Node>,
    commands: Vec<Open<'a>>,
}

impl Cluster {
    pub(super) fn new(settings: Settings, limits: Limits) -> Self {
        Self {
            map: map::Known::new(settings, limits),
        }
    }

    /// The nodes that serve slots, and how many slots are served.
    pub(super) async fn primaries(&self) -> RedisResult<(Vec<Arc<Node>>, usize)> {
        let map = self.map.anew().await?;
        Ok((map.nodes().to_vec(), map.served()))
    }

    /// The node that serves a key's slot.
    pub(super) async fn node_of(&self, key: &str) -> RedisResult<Arc<Node>> {
        let slot = slot_of_key(key.as_bytes());
        let map = self.map.get().await?;
        map.node_of(slot).map(Arc::clone).ok_or_else(|| unserved(slot))
    }

    /// The node at `host:port`, if it is known.
    pub(super) fn node_at(&self, address: &str) -> Option<Arc<Node>> {
        self.map.node_at(address)
    }

    /// Sends all commands; one answer each, of which some may be errors of the server. Nodes that do not know one of
    /// `scripts` are told.
    pub(super) async fn send(&self, pipe: &Pipeline, scripts: &[&Script]) -> RedisResult<Vec<Value>> {
        let mut answers = vec![Value::Nil; pipe.len()];
        let mut open: Vec<Open<'_>> = pipe
            .cmd_iter()
            .enumerate()
            .map(|(index, command)| Open {
                index,
                command,
                slot: slot_of(command),
                sent_on: None,
            })
            .collect();
        let mut map = self.map.get().await?;
        let begun = Instant::now();
        let mut pause = SHORTEST;
        for round in 0_u32.. {
            let loads = match share_out(open, &map) {
                Ok(loads) => loads,
                Err(error) => {
                    self.map.refresh(&map).await.ok();
                    return Err(error);
                }
            };
            open = Vec::new();
            let (mut refused, mut waits, mut unknown) = (None, false, Vec::new());
            for (load, sent) in join_all(loads.into_iter().map(send)).await {
                let sent = match sent {
                    Ok(sent) => sent,
                    Err(error) => {
                        // It may be down for good: whom its slots went to is worth a question before the next call.
                        self.map.refresh(&map).await.ok();
                        return Err(error);
                    }
                };
                let mut lacks_scripts = false;
                for (mut command, answer) in load.commands.into_iter().zip(sent) {
                    let Value::ServerError(error) = &answer else {
                        answers[command.index] = answer;
                        continue;
                    };
                    let error = error.clone();
                    match self.fate(&command, answer, &load.node, scripts)? {
                        Fate::Answered(answer) => {
                            answers[command.index] = answer;
                            continue;
                        }
                        Fate::Elsewhere(node) => command.sent_on = Some((node, false)),
                        Fate::Ask(node) => command.sent_on = Some((node, true)),
                        Fate::Unknown => lacks_scripts = true,
                        Fate::Wait => {
                            command.sent_on = None;
                            waits = true;
                        }
                    }
                    refused = Some((command.slot, error));
                    open.push(command);
                }
                if lacks_scripts {
                    unknown.push(load.node);
                }
            }
            let Some((slot, error)) = refused else {
                return Ok(answers);
            };
            metrics().redis_redirects.increment(open.len() as u64);
            if begun.elapsed() > PATIENCE {
                return Err(told(slot, &error, round));
            }
            for node in unknown {
                load_scripts(&node, scripts).await?;
            }
            open.sort_by_key(|command| command.index);
            if waits || round >= AT_ONCE {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
                // Where nobody tells, the map at hand may still be right, and the nodes say where it is not.
                self.map.refresh(&map).await.ok();
            }
            map = self.map.get().await.unwrap_or(map);
        }
        Ok(answers)
    }

    fn fate(
        &self,
        command: &Open<'_>,
        answer: Value,
        node: &Arc<Node>,
        scripts: &[&Script],
    ) -> RedisResult<Fate> {
        let Value::ServerError(error) = &answer else {
            return Ok(Fate::Answered(answer));
        };
        let sent_to = || redirected(error.details().unwrap_or_default(), &node.host());
        Ok(match error.kind() {
            Some(ServerErrorKind::Moved) => match sent_to() {
                Some((slot, address)) => Fate::Elsewhere(self.map.moved(slot, &address)?),
                None => Fate::Wait,
            },
            Some(ServerErrorKind::Ask) => match sent_to() {
                Some((_, address)) if !waits_for_slot(command.command, scripts) => {
                    Fate::Ask(self.map.node(&address)?)
                }
                _ => Fate::Wait,
            },
            Some(ServerErrorKind::NoScript) if !scripts.is_empty() => Fate::Unknown,
            Some(ServerErrorKind::TryAgain) => Fate::Wait,
            _ if cannot_work(error) || is_of_a_moving_slot(error) => Fate::Wait,
            _ => Fate::Answered(answer),
        })
    }
}

/// Whether a command waits until its slot has arrived as a whole.
fn waits_for_slot(command: &Cmd, scripts: &[&Script]) -> bool {
    let follows = |script: &&Script| script.of_one_key && script.is_called_by(command);
    runs_script(command) && !scripts.iter().any(follows) && !faults::without("without-whole-slots")
}

/// A script met a key that is not there, in a slot that is being given away: the key may be at the other node.
fn is_of_a_moving_slot(error: &ServerError) -> bool {
    error
        .details()
        .is_some_and(|text| text.contains("non local key") || text.contains("the cluster is down"))
}

/// Each command to its node, in their order.
fn share_out<'a>(open: Vec<Open<'a>>, map: &Map) -> RedisResult<Vec<Load<'a>>> {
    let mut loads: Vec<Load<'a>> = Vec::new();
    for command in open {
        let node = match (&command.sent_on, command.slot) {
            (Some((node, _)), _) => Arc::clone(node),
            (None, Some(slot)) => map.node_of(slot).map(Arc::clone).ok_or_else(|| unserved(slot))?,
            (None, None) => map.nodes().first().map(Arc::clone).ok_or_else(|| unserved(0))?,
        };
        match loads.iter_mut().find(|load| Arc::ptr_eq(&load.node, &node)) {
            Some(load) => load.commands.push(command),
            None => loads.push(Load {
                node,
                commands: vec![command],
            }),
        }
    }
    Ok(loads)
}

async fn send(load: Load<'_>) -> (Load<'_>, RedisResult<Vec<Value>>) {
    let asks = |command: &Open<'_>| matches!(command.sent_on, Some((_, true)));
    let mut pipe = Pipeline::with_capacity(load.commands.len());
    for command in &load.commands {
        if asks(command) {
            pipe.cmd("ASKING");
        }
        pipe.add_command(command.command.clone());
    }
    let sent = load.node.send(&pipe).await.map(|answers| {
        let mut answers = answers.into_iter();
        let mut of_commands = Vec::with_capacity(load.commands.len());
        for command in &load.commands {
            if asks(command) {
                answers.next();
            }
            of_commands.push(answers.next().unwrap_or(Value::Nil));
        }
        of_commands
    });
    (load, sent)
}

async fn load_scripts(node: &Node, scripts: &[&Script]) -> RedisResult<()> {
    let mut pipe = ::redis::pipe();
    for script in scripts {
        pipe.add_command(script.load());
    }
    for answer in node.send(&pipe).await? {
        answer.extract_error()?;
    }
    Ok(())
}

fn unserved(slot: u16) -> RedisError {
    RedisError::from((
        ErrorKind::Server(ServerErrorKind::ClusterDown),
        "no node of the Cluster serves a slot",
        slot.to_string(),
    ))
}

/// What a call ends with that was refused until its patience ended.
fn told(slot: Option<u16>, error: &ServerError, round: u32) -> RedisError {
    if is_of_a_moving_slot(error) || error.kind() == Some(ServerErrorKind::Ask) {
        let text = slot.map_or_else(String::new, |slot| {
            format!(
                "slot {slot} (if it is not being moved, redis-cli --cluster fix completes what was begun)"
            )
        });
        return RedisError::from((
            ErrorKind::Server(ServerErrorKind::TryAgain),
            "a script waits for a slot that is on its way to another node",
            text,
        ));
    }
    if error.kind() == Some(ServerErrorKind::Moved) && round < AT_ONCE {
        // It was not sent to and fro: its first answer came late, as that of a command that lets the server wait.
        return RedisError::from((
            ErrorKind::Server(ServerErrorKind::TryAgain),
            "a slot went to another node while a command waited",
            error.details().unwrap_or_default().to_owned(),
        ));
    }
    if error.kind() == Some(ServerErrorKind::Moved) {
        return RedisError::from((
            ErrorKind::Server(ServerErrorKind::ClusterDown),
            "nodes of the Cluster disagree who serves a slot (redis-cli --cluster fix mends it, if it lasts)",
            error.details().unwrap_or_default().to_owned(),
        ));
    }
    RedisError::from(error.clone())
}
