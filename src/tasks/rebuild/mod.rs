//! `rebuild-users`: timelines and properties made anew from the events table, beside the live stream.
//!
//! # Why the result is what the stream would have built
//!
//! **What may be read.** The workers remember a block only once its rows are acknowledged, partition by partition and
//! block after block; first they note in the token's hash `applied` up to which offset A of each partition its events
//! are. So whoever reads A first and the table afterwards finds there *every* row of the token below A, and takes these
//! rows alone: rows at or beyond A may be half of a block, of which an earlier record is still to land.
//!
//! **Properties.** The hash carries, for each partition, the watermark W below which the user's changes are in it. One
//! script replaces the properties and raises each W to just after the last change that was read, if no W in the hash is
//! above the A that was read.
//! - Nothing is lost: every change that the hash has is below some W <= A, so it was among the rows read. A change at or
//!   beyond A is applied by its worker to the new hash, for W <= A.
//! - Nothing is doubled: a worker's call that is under way, or sent again, with changes below A finds W above them.
//! - If a W is above A, a worker was faster: A and the user's rows are read again. (A is noted before the hash changes, or
//!   about then, so an A that is read soon after is no lower than that W.)
//!
//! **Order.** A partition's changes are applied by offset, as the worker did; in `table` is how those of several are put
//! in order, which the stream itself leaves to chance.
//!
//! **A partition that `applied` does not know**, because Redis lost it, counts with all its rows, and gets no W. Its worker
//! may then apply its latest block once more: harmless, for applying a whole block twice ends as once does (each name's
//! last `$set` or `$unset` decides, and a `$set_once` finds what it put there). What remains is a block that has half
//! landed in the very moment of such a loss: a `$set_once` of its later half may come before one of its earlier half.
//!
//! **Timelines** need no watermark: adding an event twice is adding it once. Members that the table has not are told by
//! the script, which cannot know whether they are newer than what was read; those that a second reading of the table still
//! has not are taken out: they were remembered before it began, so their rows are gone.
//!
//! Users of whom nothing was written for as long as their keys live are left out, as the stream would have let them expire,
//! unless they are asked for by name.

mod table;
mod write;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::runner::{Held, TaskError, failed};
use super::task::Users;
use crate::config::Config;
use crate::person::{Properties, apply, timeline_member};
use crate::redis::Redis;
use crate::redis::keys::USER_TTL_SECONDS;
use table::{Change, Event, Person, Rows, Table, Which};
use write::{Bounds, Rebuilt, Writer};

/// About how many rows of a token are read at once: what the server sorts, and how old the reading of a user grows.
const ROWS_AT_ONCE: u64 = 50_000;
/// At the most so many parts of a token: each is a scan of the token's users.
const MOST_PARTS: u64 = 1024;
/// Readings of a user that the workers change meanwhile.
const READINGS: u32 = 20;
/// Users that one query of a later reading names: few, so that it is quicker than the workers.
const HASHES_AT_ONCE: usize = 64;
const BETWEEN_READINGS: Duration = Duration::from_millis(100);

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
}

/// Users that are read once more, by hash and name; with what their timelines had that the table had not.
type Again = BTreeMap<(u64, String), Vec<String>>;

#[derive(Debug)]
pub(super) struct Rebuild {
    table: Table,
    writer: Writer,
}

impl Rebuild {
    pub(super) fn new(config: &Config, redis: Redis) -> ::redis::RedisResult<Self> {
        Ok(Self {
            table: Table::new(&config.clickhouse),
            writer: Writer::new(config, redis)?,
        })
    }

    /// Does what the task asks for.
    pub(super) async fn run(&self, users: &Users, held: &Held) -> Result<(), TaskError> {
        match (&users.token, &users.user) {
            (Some(token), Some(user)) => {
                self.part(token, &Which::One(user.clone())).await?;
                held.tell(1, Some(1)).await;
                Ok(())
            }
            (token, _) => self.tokens(token.as_deref(), held).await,
        }
    }

    async fn tokens(&self, only: Option<&str>, held: &Held) -> Result<(), TaskError> {
        let mut progress = match held.progress::<Progress>().await {
            Some(progress) => progress,
            None => Progress {
                token: only.unwrap_or_default().to_owned(),
                total: self.table.count(only).await.map_err(failed)?,
                ..Progress::default()
            },
        };
        if only.is_some() || progress.up_to.is_some() {
            let token = progress.token.clone();
            let rows = self.table.rows_of(&token).await.map_err(failed)?;
            self.token(&token, rows, &mut progress, held).await?;
        }
        while only.is_none() {
            let tokens = self.table.tokens_after(&progress.token).await.map_err(failed)?;
            if tokens.is_empty() {
                break;
            }
            for (token, rows) in tokens {
                (progress.token, progress.up_to) = (token.clone(), None);
                self.token(&token, rows, &mut progress, held).await?;
            }
        }
        held.tell(progress.users, Some(progress.users)).await;
        Ok(())
    }

    /// All users of a token that are not done yet, part by part.
    async fn token(
        &self,
        token: &str,
        rows: u64,
        progress: &mut Progress,
        held: &Held,
    ) -> Result<(), TaskError> {
        let parts = (rows / ROWS_AT_ONCE + 1).min(MOST_PARTS);
        let mut from = match progress.up_to {
            Some(u64::MAX) => return Ok(()),
            Some(up_to) => up_to + 1,
            None => 0,
        };
        loop {
            let to = from.saturating_add(u64::MAX / parts);
            progress.users += self.part(token, &Which::Range(from, to)).await?;
            progress.up_to = Some(to);
            held.keep(progress).await?;
            held.tell(progress.users, Some(progress.total.max(progress.users)))
                .await;
            if to == u64::MAX {
                return Ok(());
            }
            from = to + 1;
        }
    }

    /// Some of a token's users, each as often as it takes. Answers how many were rebuilt.
    async fn part(&self, token: &str, which: &Which) -> Result<u64, TaskError> {
        let mut again = Again::new();
        let done = self.reading(token, which, None, &mut again).await?;
        for _ in 1..READINGS {
            if again.is_empty() {
                return Ok(done);
            }
            tokio::time::sleep(BETWEEN_READINGS).await;
            let before = std::mem::take(&mut again);
            let hashes: Vec<u64> = before.keys().map(|(hash, _)| *hash).collect();
            for some in hashes.chunks(HASHES_AT_ONCE) {
                let some = Which::Hashes(some.to_vec());
                self.reading(token, &some, Some(&before), &mut again).await?;
            }
        }
        if again.is_empty() {
            return Ok(done);
        }
        Err(TaskError::Failed(format!(
            "the workers changed {} users faster than they could be read",
            again.len()
        )))
    }

    /// Reads and writes once. `only`: those of an earlier reading. Who must be read again is put into `again`.
    async fn reading(
        &self,
        token: &str,
        which: &Which,
        only: Option<&Again>,
        again: &mut Again,
    ) -> Result<u64, TaskError> {
        let oldest = match (which, only) {
            (Which::One(_), _) => i64::MIN,
            _ => jiff::Timestamp::now().as_millisecond() - USER_TTL_SECONDS as i64 * 1000,
        };
        let mut users = self.table.users(token, which).map_err(failed)?;
        // The users first: whoever the others have besides came meanwhile, and is the stream's.
        let Some(mut user) = users.next().await.map_err(failed)? else {
            return Ok(0);
        };
        let mut events = self.table.timelines(token, which).map_err(failed)?;
        events.begin().await.map_err(failed)?;
        // Before the changes, see above; and after what takes its time, for whoever changes meanwhile is read again.
        let bounds = self.writer.bounds(token).await.map_err(failed)?;
        let mut changes = self.table.changes(token, which).map_err(failed)?;
        let mut batch = self.writer.batch(token);
        let mut done = 0;
        loop {
            let key = (user.hash, user.user.clone());
            let before = only.map(|only| only.get(&key));
            if before != Some(None) && (only.is_some() || user.written >= oldest) {
                let rebuilt = rebuilt(user, &mut events, &mut changes, &bounds)
                    .await
                    .map_err(failed)?;
                let gone = before.flatten().map(Vec::as_slice).unwrap_or_default();
                batch.add(&rebuilt, (only.is_some(), gone), &bounds).await;
                done += 1;
                if batch.is_full() {
                    self.writer.write(&mut batch, again).await.map_err(failed)?;
                }
            }
            match users.next().await.map_err(failed)? {
                Some(next) => user = next,
                None => break,
            }
        }
        self.writer.write(&mut batch, again).await.map_err(failed)?;
        Ok(done)
    }
}

/// One user, from the rows that follow.
async fn rebuilt(
    user: Person,
    events: &mut Rows<Event>,
    changes: &mut Rows<Change>,
    bounds: &Bounds,
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
        let bound = bounds.of(&change.topic, change.incarnation, change.partition);
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
