//! Recovery: a block that may have been written before. Announce with a new time first, then ask, then write what is
//! missing under the announced token, then ask again.
//!
//! The order carries the proof: an insert of an older attempt that lands after the first question finds its token
//! taken or takes it; either way the second question says whose rows are there.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use uuid::Uuid;

use super::block::{Block, Cut};
use super::decode::Decoding;
use super::worker::now_ms;
use super::write::delays;
use super::{Dropped, Outcome, Partition, Prepared, Worker, timed};
use crate::clickhouse::{identifier, literal};
use crate::event::Event;
use crate::faults;
use crate::telemetry::{Service, Stage, WaitsFor, metrics};

/// The longest pause before a block is announced once more: with a clock that is off it never helps.
const AFTER_STALE: Duration = Duration::from_secs(5);

/// Said where an announcement grew too old.
const IN_VAIN: &str = "insert: refused for its time, or in vain until it was too old";

/// What a recovery sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    /// What the table lacks.
    Missing,
    /// The same, for the block is too old, or not known to be of one insert. The views behind the table may lack more.
    MissingDespiteViews,
    /// Every row that passed.
    All,
}

/// The highest offset that the table has of each of the partitions.
pub(super) async fn highest(worker: &Worker, partitions: &[i32]) -> HashMap<i32, i64> {
    let numbers = partitions
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    // Grouped as the table's projection is, so that a few rows answer.
    let sql = format!(
        "SELECT kafka_partition, max(kafka_offset) FROM {db}.events \
         WHERE kafka_topic = {topic} AND kafka_incarnation = {incarnation} AND kafka_partition IN ({numbers}) \
         GROUP BY kafka_topic, kafka_incarnation, kafka_partition",
        db = identifier(&worker.config.clickhouse.database),
        topic = literal(&worker.config.kafka.topic),
        incarnation = worker.config.kafka.incarnation,
    );
    let highest: Vec<(u32, u64)> = worker
        .ask(worker.health.waiter(None), "ask for the highest offsets", &sql)
        .await;
    highest
        .into_iter()
        .map(|(partition, offset)| (partition as i32, offset as i64))
        .collect()
}

impl Partition {
    /// Brings a block to the state of having been written once, whatever earlier attempts did.
    pub(super) async fn recover(&self, prepared: &mut Prepared) -> Result<(), Dropped> {
        self.wait_out_a_lost_announcement(prepared).await;
        let mut delays = delays();
        let mut wait = None;
        loop {
            let announcement = self.announcement(prepared).await;
            timed(Stage::Announce, self.announce(&prepared.block, announcement)).await?;
            let sends = self.sends(prepared).await;
            let present = if sends == Sends::All || faults::without("without-first-query") {
                HashSet::new()
            } else {
                self.present(prepared).await
            };
            let found = present.len();
            let written = timed(Stage::Write, self.write(prepared, announcement, &present, 0)).await;
            let present = if self.refuse(prepared, written).await {
                self.complete(prepared, announcement).await
            } else {
                None
            };
            let Some(present) = present else {
                metrics().insert_retries.increment(1);
                metrics().retries.of(Service::ClickHouse).increment(1);
                // From the first one on: each attempt has a wait of its own, which ends with its announcement.
                wait.get_or_insert_with(|| self.waiter().waits_for(WaitsFor::ClickHouse, IN_VAIN.to_owned()));
                tracing::warn!(
                    partition = self.number,
                    start = prepared.block.start,
                    "an insert was refused for its time; announcing anew. If this goes on, compare the clocks"
                );
                tokio::time::sleep(delays.next().unwrap_or(AFTER_STALE)).await;
                continue;
            };
            let mut decided_otherwise = 0;
            for (event, outcome) in prepared.decoding.events.events.iter().zip(&mut prepared.outcomes) {
                if present.contains(&event.offset) {
                    // Written by an attempt that judged it otherwise, or by this one.
                    *outcome = Outcome::Pass;
                } else if *outcome == Outcome::Pass {
                    *outcome = Outcome::Over;
                    decided_otherwise += 1;
                }
            }
            metrics().decided_otherwise.increment(decided_otherwise);
            if sends == Sends::MissingDespiteViews && found > 0 {
                metrics().views_doubtful.increment(1);
                tracing::warn!(
                    partition = self.number,
                    start = prepared.block.start,
                    end = prepared.block.end,
                    rows = found,
                    "the views behind the table may lack rows of this block, if ClickHouse was killed while they were \
                     written; compare them with the table"
                );
            }
            tracing::info!(
                partition = self.number,
                start = prepared.block.start,
                end = prepared.block.end,
                rows = present.len(),
                decided_otherwise,
                "a block was recovered"
            );
            return Ok(());
        }
    }

    /// What is sent again. The table skips by their token the rows that it has, but a view behind it may lack them: a
    /// server that is killed has written the one and not the other, for they are no transaction. So all of them, if the
    /// token cannot have left the server's window, and every row of the block came under it.
    async fn sends(&self, prepared: &Prepared) -> Sends {
        let sql = format!(
            "SELECT notEmpty(dependencies_table) FROM system.tables WHERE database = {} AND name = 'events'",
            literal(&self.worker.config.clickhouse.database)
        );
        let views: Vec<u8> = self
            .worker
            .ask(self.waiter(), "ask for views behind the table", &sql)
            .await;
        let young = |first_ms| now_ms().saturating_sub(first_ms) < self.worker.deadline_ms();
        match views.first() {
            Some(1) if prepared.first_ms.is_some_and(young) => Sends::All,
            Some(1) => Sends::MissingDespiteViews,
            _ => Sends::Missing,
        }
    }

    /// The payloads no longer give the announced digest: retention or compaction took records. The old announcement's
    /// token cannot be made again, so its inserts must have become impossible before there is another.
    async fn wait_out_a_lost_announcement(&self, prepared: &Prepared) {
        let Cut::Announced(announced) = prepared.block.cut else {
            return;
        };
        if announced.digest == prepared.decoding.digest {
            return;
        }
        metrics().announcements_lost.increment(1);
        // The second deadline is for the clocks: if they differed by more, the table would refuse everything.
        let over = announced.time_ms.saturating_add(2 * self.worker.deadline_ms());
        let wait = Duration::from_millis(u64::try_from(over.saturating_sub(now_ms())).unwrap_or(0));
        tracing::error!(
            partition = self.number,
            start = prepared.block.start,
            end = announced.end,
            records = prepared.block.len(),
            wait_seconds = wait.as_secs(),
            "the records of an announced block have changed (retention or compaction?); what is left is written once \
             no insert of the old announcement can land"
        );
        tokio::time::sleep(wait).await;
    }

    /// The offsets expired, or somebody has set them, and no announcement tells which inserts of the time before may still be on
    /// their way: each under a token that only it knows. So they must have become impossible. Their time is at most a
    /// deadline ahead of the server's clock, or the table would have refused them; a deadline after it they are too old.
    pub(super) async fn wait_out_earlier_inserts(&self) {
        if faults::without("without-wait") {
            return;
        }
        let wait = Duration::from_millis(self.worker.deadline_ms() as u64 * 2);
        tracing::warn!(
            partition = self.number,
            wait_seconds = wait.as_secs(),
            "the group's offset has expired, or was not set by a worker: waiting until no insert of before can land"
        );
        tokio::time::sleep(wait).await;
    }

    /// Whether the rows that the table has for these offsets are of these records. Kafka forgets the offsets of a topic
    /// that was deleted, so a topic made anew looks like one whose offsets have expired, and its records would be taken
    /// for written. One row that agrees is enough: a later version may judge some records otherwise.
    pub(super) async fn compare_with_rows(&self, block: &Block, decoding: &Decoding) -> Result<(), Dropped> {
        let sql = self.rows_of(
            block,
            "kafka_offset, toString(uuid), toUnixTimestamp64Milli(timestamp)",
        );
        let rows: Vec<(u64, String, i64)> = self
            .worker
            .ask(self.waiter(), "compare a block with its rows", &sql)
            .await;
        let rows: HashMap<i64, (String, i64)> = rows
            .into_iter()
            .map(|(offset, uuid, timestamp)| (offset as i64, (uuid, timestamp)))
            .collect();
        let agrees = |event: &Event| {
            let (uuid, timestamp) = rows.get(&event.offset)?;
            Some(*timestamp == event.timestamp && *uuid == Uuid::from_u128(event.uuid).to_string())
        };
        // Rows whose records are gone (retention, compaction) say nothing of those that are left.
        let mut compared = decoding.events.events.iter().filter_map(agrees).peekable();
        if compared.peek().is_none() || compared.any(|agrees| agrees) {
            return Ok(());
        }
        Err(Dropped::OtherRecords {
            start: block.start,
            end: block.end,
            incarnation: self.worker.config.kafka.incarnation,
        })
    }

    fn rows_of(&self, block: &Block, columns: &str) -> String {
        format!(
            "SELECT {columns} FROM {db}.events WHERE kafka_topic = {topic} AND kafka_incarnation = {incarnation} \
             AND kafka_partition = {partition} AND kafka_offset >= {start} AND kafka_offset < {end}",
            db = identifier(&self.worker.config.clickhouse.database),
            topic = literal(&self.worker.config.kafka.topic),
            incarnation = self.worker.config.kafka.incarnation,
            partition = self.number,
            start = block.start,
            end = block.end,
        )
    }

    /// The offsets of the block that have rows.
    pub(super) async fn present(&self, prepared: &Prepared) -> HashSet<i64> {
        let sql = self.rows_of(&prepared.block, "kafka_offset");
        let offsets: Vec<u64> = self
            .worker
            .ask(self.waiter(), "ask which offsets have rows", &sql)
            .await;
        offsets.into_iter().map(|offset| offset as i64).collect()
    }
}
