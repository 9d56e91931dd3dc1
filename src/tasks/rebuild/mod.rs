//! `rebuild-users`: timelines and properties made anew from the events table, beside the live stream.
//!
//! # Why the result is what the stream would have built
//!
//! **What may be read.** The workers remember a block only once its rows are acknowledged, partition by partition and
//! block after block. First they note in the token's hash `applied` up to which offset A of each partition its events
//! are; once the block is remembered (or cannot be, for Redis is gone) they commit its end C. So whoever reads A and C
//! first and the table afterwards finds there *every* row of the token below the bound B, the higher of the two, and takes
//! these rows alone: rows at or beyond B may be half of a block, of which an earlier record is still to land. What Redis
//! has lost, or never was told, is below C, and no worker comes back to it; A alone would leave it out.
//!
//! **Properties.** The hash carries, for each partition, the watermark W below which the user's changes are in it. One
//! script replaces the properties and raises each W to just after the last change that was read, if no W in the hash is
//! above the B that was read.
//! - Nothing is lost: every change that the hash has is below some W <= B, so it was among the rows read. A change at or
//!   beyond B is applied by its worker to the new hash, for W <= B.
//! - Nothing is doubled: a worker's call that is under way, or sent again, with changes below B finds W above them.
//! - If a W is above B, a worker was faster, or `applied` was lost. The script tells these W, and B and the user's rows
//!   are read again. A W that was found before the table is read is a bound like A: what is below it was remembered, so
//!   its rows were acknowledged. Hence only who is changed during each of the readings is not settled; then the user is
//!   left as the workers have it, counted and named, and the others are gone on with.
//!
//! `applied` itself is left alone: counters and recent actions compare each record with it, and what they lack cannot be
//! made again from here.
//!
//! **Order.** Changes are applied in the order in which they came, see [`crate::person::in_order`].
//!
//! **A partition without a bound** (`applied` does not know it, and the group has committed nothing there that a worker
//! says, or it is another topic's, or the register of topics is gone) counts with all its rows, and gets no W. Its worker
//! may then apply its latest block once more: harmless, for applying a whole block twice ends as once does (each name's
//! last `$set` or `$unset` decides, and a `$set_once` finds what it put there). What remains is a block that has half
//! landed in the very moment of such a loss: a `$set_once` of its later half may come before one of its earlier half.
//!
//! **Timelines** need no watermark: adding an event twice is adding it once. Members that the table has not are told by
//! the script, which cannot know whether they are newer than what was read; those that a second reading of the table still
//! has not are taken out: they were remembered before it began, so their rows are gone.
//!
//! **After a rewind by hand** `applied` says more than the table has, until the lag is back where it was: a rebuild before
//! that leaves out what is still to be read again, and the workers leave it out after it.
//!
//! Users of whom nothing was written for as long as their keys live are left out, as the stream would have let them expire,
//! unless they are asked for by name.

mod table;
mod write;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::held::{Held, TaskError, failed};
use super::task::Users;
use crate::config::{self, Config};
use crate::faults;
use crate::kafka::settled::Settled;
use crate::person::{Properties, Sort, apply, timeline_member};
use crate::redis::Redis;
use crate::redis::keys::USER_TTL_SECONDS;
use crate::telemetry::metrics;
use table::{Change, Event, Person, Rows, Table, Which};
use write::{Bounds, Rebuilt, Writer};

/// About how many rows of a token are read at once: what the server sorts, and how old the reading of a user grows.
const ROWS_AT_ONCE: u64 = 50_000;
/// At the most so many parts of a token: each is a scan of the token's users.
const MOST_PARTS: u64 = 1024;
/// Readings of a user that the workers change meanwhile.
const READINGS: u32 = 20;
/// Users that one query of a later reading names: few, so that it is quicker than the workers, and no more than are
/// written in a second.
const HASHES_AT_ONCE: u32 = 64;
const BETWEEN_READINGS: Duration = Duration::from_millis(100);
/// A reading ends after this, and the rest is another part: far below what the server lets a query take, whatever
/// `tasks.users_per_second` is, and so short that few users are changed before their turn comes.
const LONGEST_PART: Duration = Duration::from_secs(10);
/// Users that were left are named, so many of them.
const MOST_NAMED: usize = 10;
/// Characters of a name that stand in an error.
const MOST_SHOWN: usize = 200;

/// How far a rebuild has come: it survives the process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// The token under way; those before it are done.
    token: String,
    /// Its users up to this hash are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    up_to: Option<u64>,
    /// Users done.
    users: u64,
    /// About how many there are.
    total: u64,
    /// Users that could not be settled.
    #[serde(default)]
    left: u64,
    /// Some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    left_users: Vec<Users>,
}

/// Users that are read once more, by hash and name.
type Again = BTreeMap<(u64, String), Left>;

/// What a reading left of a user.
#[derive(Debug, Default)]
struct Left {
    /// Members of the timeline that the table had not.
    members: Vec<String>,
    /// The workers' hidden fields with their offsets, if one was above its bound.
    applied: BTreeMap<String, u64>,
}

/// What a reading, or a part, came to.
#[derive(Debug, Default)]
struct Part {
    /// Users that were rebuilt.
    done: u64,
    /// It ended early: users up to this hash are done.
    up_to: Option<u64>,
    /// Who could not be settled.
    left: Vec<String>,
    /// How the changes were put in order.
    sort: Sort,
}

#[derive(Debug)]
pub(super) struct Rebuild {
    kafka: config::Kafka,
    hashes_at_once: usize,
    table: Table,
    writer: Writer,
}

/// One run of a task, with its way to the group's offsets: a client that nobody asks for long may lose its brokers.
struct Run<'a> {
    rebuild: &'a Rebuild,
    settled: Settled,
    held: &'a Held,
}

impl Rebuild {
    pub(super) fn new(config: &Config, redis: Redis) -> ::redis::RedisResult<Self> {
        Ok(Self {
            kafka: config.kafka.clone(),
            hashes_at_once: config.tasks.users_per_second.clamp(1, HASHES_AT_ONCE) as usize,
            table: Table::new(&config.clickhouse),
            writer: Writer::new(config, redis)?,
        })
    }

    /// Does what the task asks for.
    pub(super) async fn run(&self, users: &Users, held: &Held) -> Result<(), TaskError> {
        let kafka = &self.kafka;
        let settled = Settled::open(kafka).await.map_err(|error| {
            TaskError::Failed(format!("Kafka at {} does not answer: {error}", kafka.brokers))
        })?;
        let run = Run {
            rebuild: self,
            settled,
            held,
        };
        match (&users.token, &users.user) {
            (Some(token), Some(user)) => run.one(token, user).await,
            (token, _) => run.tokens(token.as_deref()).await,
        }
    }
}

impl Run<'_> {
    /// One user. Nothing else waits for it, so it is tried again if it cannot be settled.
    async fn one(&self, token: &str, user: &str) -> Result<(), TaskError> {
        let part = self.part(token, &Which::One(user.to_owned())).await?;
        if part.done == 0 && part.left.is_empty() {
            return Err(nobody(&format!(
                "no user {} of token {} in the table",
                shown(user),
                shown(token)
            )));
        }
        if !part.left.is_empty() {
            return Err(TaskError::Failed(
                "the workers changed the user faster than it could be read".to_owned(),
            ));
        }
        self.held.tell(1, Some(1)).await;
        Ok(())
    }

    async fn tokens(&self, only: Option<&str>) -> Result<(), TaskError> {
        let table = &self.rebuild.table;
        let mut progress = match self.held.progress::<Progress>().await {
            Some(progress) => progress,
            None => Progress {
                token: only.unwrap_or_default().to_owned(),
                total: table.count(only).await.map_err(failed)?,
                ..Progress::default()
            },
        };
        if let (Some(token), 0) = (only, progress.total) {
            return Err(nobody(&format!("no user of token {} in the table", shown(token))));
        }
        self.held.leaves(progress.left, &progress.left_users);
        self.held.goes_on_from(progress.users, progress.total).await;
        if only.is_some() || progress.up_to.is_some() {
            let token = progress.token.clone();
            let rows = table.rows_of(&token).await.map_err(failed)?;
            self.token(&token, rows, &mut progress).await?;
        }
        while only.is_none() {
            let tokens = table.tokens_after(&progress.token).await.map_err(failed)?;
            if tokens.is_empty() {
                break;
            }
            for (token, rows) in tokens {
                (progress.token, progress.up_to) = (token.clone(), None);
                self.token(&token, rows, &mut progress).await?;
            }
        }
        self.held.tell(progress.users, Some(progress.users)).await;
        Ok(())
    }

    /// All users of a token that are not done yet, part by part.
    async fn token(&self, token: &str, rows: u64, progress: &mut Progress) -> Result<(), TaskError> {
        let parts = (rows / ROWS_AT_ONCE + 1).min(MOST_PARTS);
        let mut from = match progress.up_to {
            Some(u64::MAX) => return Ok(()),
            Some(up_to) => up_to + 1,
            None => 0,
        };
        loop {
            let to = from.saturating_add(u64::MAX / parts);
            let part = self.part(token, &Which::Range(from, to)).await?;
            let up_to = part.up_to.unwrap_or(to);
            progress.take_in(token, part);
            progress.up_to = Some(up_to);
            self.held.leaves(progress.left, &progress.left_users);
            self.held.keep(progress).await?;
            let total = progress.total.max(progress.users);
            self.held.tell(progress.users, Some(total)).await;
            if up_to == u64::MAX {
                return Ok(());
            }
            from = up_to + 1;
        }
    }

    /// Some of a token's users, each as often as it takes.
    async fn part(&self, token: &str, which: &Which) -> Result<Part, TaskError> {
        let mut again = Again::new();
        let read = if faults::happens("memory-is-short") {
            Err(failed("MEMORY_LIMIT_EXCEEDED"))
        } else {
            self.reading(token, which, None, Sort::InMemory, &mut again).await
        };
        let mut part = match read {
            Err(error) if is_out_of_memory(&error) => {
                tracing::warn!(
                    token,
                    "users with very many changes: those of recovered blocks may change places"
                );
                again.clear();
                self.reading(token, which, None, Sort::OnDisk, &mut again).await?
            }
            other => other?,
        };
        for _ in 1..READINGS {
            if again.is_empty() {
                return Ok(part);
            }
            tokio::time::sleep(BETWEEN_READINGS).await;
            let before = std::mem::take(&mut again);
            let hashes: Vec<u64> = before.keys().map(|(hash, _)| *hash).collect();
            for some in hashes.chunks(self.rebuild.hashes_at_once) {
                let some = Which::Hashes(some.to_vec());
                self.reading(token, &some, Some(&before), part.sort, &mut again)
                    .await?;
            }
        }
        part.left = again.into_keys().map(|(_, user)| user).collect();
        let left = part.left.len() as u64;
        part.done = part.done.saturating_sub(left);
        if left > 0 {
            metrics().tasks_users_left.increment(left);
            tracing::warn!(
                token,
                users = left,
                "users are left as they are: the workers changed them faster than they could be read"
            );
        }
        Ok(part)
    }

    /// Reads and writes once. `only`: those of an earlier reading. Who must be read again is put into `again`.
    async fn reading(
        &self,
        token: &str,
        which: &Which,
        only: Option<&Again>,
        sort: Sort,
        again: &mut Again,
    ) -> Result<Part, TaskError> {
        let Rebuild { table, writer, .. } = self.rebuild;
        let oldest = match (which, only) {
            (Which::One(_), _) => i64::MIN,
            _ => jiff::Timestamp::now().as_millisecond() - USER_TTL_SECONDS as i64 * 1000,
        };
        let mut part = Part {
            sort,
            ..Part::default()
        };
        let mut users = table.users(token, which).map_err(failed)?;
        // The users first: whoever the others have besides came meanwhile, and is the stream's.
        let Some(mut user) = users.next().await.map_err(failed)? else {
            return Ok(part);
        };
        let mut events = table.timelines(token, which).map_err(failed)?;
        events.begin().await.map_err(failed)?;
        // Before the changes, see above; and after what takes its time, for whoever changes meanwhile is read again.
        let settled = self.settled.below().await.map_err(|error| {
            TaskError::Failed(format!(
                "Kafka does not tell what the group has committed: {error}"
            ))
        })?;
        let bounds = writer.bounds(token, &settled).await.map_err(failed)?;
        let mut changes = table.changes(token, which, sort).map_err(failed)?;
        changes.begin().await.map_err(failed)?;
        let begun = Instant::now();
        let mut batch = writer.batch(token);
        loop {
            let key = (user.hash, user.user.clone());
            let before = only.map(|only| only.get(&key));
            if before.is_none_or(|left| left.is_some()) && (only.is_some() || user.written >= oldest) {
                let left = before.flatten();
                let rebuilt = rebuilt(user, (&mut events, &mut changes), &bounds, left)
                    .await
                    .map_err(failed)?;
                batch.add(&rebuilt, left, &bounds).await;
                part.done += 1;
                if batch.is_full() {
                    writer.write(&mut batch, again).await.map_err(failed)?;
                }
            }
            match users.next().await.map_err(failed)? {
                // Users of one hash are of one part.
                Some(next) if only.is_none() && next.hash != key.0 && begun.elapsed() >= LONGEST_PART => {
                    part.up_to = Some(key.0);
                    break;
                }
                Some(next) => user = next,
                None => break,
            }
        }
        writer.write(&mut batch, again).await.map_err(failed)?;
        Ok(part)
    }
}

impl Progress {
    /// What a part came to.
    fn take_in(&mut self, token: &str, part: Part) {
        self.users += part.done;
        self.left += part.left.len() as u64;
        let room = MOST_NAMED.saturating_sub(self.left_users.len());
        let named = part.left.into_iter().take(room).map(|user| Users {
            token: Some(token.to_owned()),
            user: Some(user),
        });
        self.left_users.extend(named);
    }
}

/// Somebody is named whom the table does not know: a slip of the pen, most likely, which an operator must hear of.
fn nobody(why: &str) -> TaskError {
    TaskError::Hopeless(why.to_owned())
}

/// A name in a text, in quotation marks; not all of it if it is long.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(MOST_SHOWN).collect();
    format!("{short:?}")
}

/// Whether the server had not the memory for a query.
fn is_out_of_memory(error: &TaskError) -> bool {
    matches!(error, TaskError::Failed(text) if text.contains("MEMORY_LIMIT_EXCEEDED"))
}

/// One user, from the rows that follow.
async fn rebuilt(
    user: Person,
    (events, changes): (&mut Rows<Event>, &mut Rows<Change>),
    bounds: &Bounds,
    left: Option<&Left>,
) -> ::clickhouse::error::Result<Rebuilt> {
    let mut rebuilt = Rebuilt {
        hash: user.hash,
        first: user.first,
        last: user.last,
        timeline: Vec::new(),
        properties: Properties::new(),
        applied: BTreeMap::new(),
        changed: false,
        user: user.user,
    };
    while let Some(event) = events.next_of((rebuilt.hash, &rebuilt.user)).await? {
        // Always one: the server writes it.
        let uuid = Uuid::parse_str(&event.id).unwrap_or_default();
        rebuilt
            .timeline
            .push((event.time, timeline_member(uuid, &event.name)));
    }
    while let Some(change) = changes.next_of((rebuilt.hash, &rebuilt.user)).await? {
        let bound = bounds.of(&change, left);
        if bound.as_ref().is_some_and(|(_, before)| change.offset >= *before) {
            continue;
        }
        if apply(&mut rebuilt.properties, &change.name, &change.properties) {
            rebuilt.changed = true;
            if let Some((field, _)) = bound {
                rebuilt.applied.insert(field, change.offset + 1);
            }
        }
    }
    Ok(rebuilt)
}
