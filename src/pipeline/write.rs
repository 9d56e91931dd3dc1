//! Write: the rows of a block, in one insert, under a token made of the announcement.
//!
//! A retry sends the same bytes with the same time, so the table either skips what it has or refuses it for its age.

use std::collections::HashSet;
use std::time::Duration;

use ::clickhouse::Client;
use ::clickhouse::error::Result;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;

use super::retry::Trying;
use super::{Outcome, Partition, Prepared, Worker, worker};
use crate::clickhouse::error::{Class, classify};
use crate::clickhouse::identifier;
use crate::clickhouse::rows::{self, Row};
use crate::clickhouse::{schema, settings};
use crate::faults;
use crate::kafka::metadata::Announcement;
use crate::telemetry::{Service, metrics};

/// How an insert ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The rows are in the table, except those (by their place among the block's events) that it refuses for good.
    Acknowledged {
        /// Places of refused rows.
        refused: Vec<usize>,
        /// An attempt before ended nobody knows how, so the rows may be acknowledged for their token alone.
        doubtful: bool,
    },
    /// The announcement is too old for an insert: announce anew, ask, and write what is missing.
    Stale {
        /// Places of the rows that were found to be refused until then: the search may outlast any announcement.
        refused: Vec<usize>,
    },
}

impl Partition {
    /// Inserts the passing events, without those whose offsets are `present` already. `number` tells the tokens of one
    /// announcement apart: the first is 0.
    pub(super) async fn write(
        &self,
        prepared: &Prepared,
        announcement: Announcement,
        present: &HashSet<i64>,
        number: u32,
    ) -> Written {
        let events = &prepared.decoding.events.events;
        let mut rows: Vec<usize> = (0..events.len())
            .filter(|&i| prepared.outcomes[i] == Outcome::Pass && !present.contains(&events[i].offset))
            .collect();
        let mut refused = Vec::new();
        let token = self.deduplication_token(prepared, announcement, number);
        let mut doubtful = false;
        'bytes: loop {
            if rows.is_empty() {
                return Written::Acknowledged { refused, doubtful };
            }
            let bytes = self.encode(prepared, &rows, announcement.time_ms);
            let mut delays = delays();
            let mut trying = Trying::new(self.waiter(), Service::ClickHouse, "insert");
            loop {
                if worker::now_ms() - announcement.time_ms >= self.worker.deadline_ms() {
                    return Written::Stale { refused };
                }
                let error = match insert(&self.worker, "events", Some(&token), bytes.clone()).await {
                    Ok(()) => {
                        faults::moment("after-insert").await;
                        metrics().inserts.increment(1);
                        metrics().insert_rows.increment(rows.len() as u64);
                        if let Ok(body) = bytes.try_into_mut() {
                            self.worker.bodies.give(body);
                        }
                        return Written::Acknowledged { refused, doubtful };
                    }
                    Err(error) => error,
                };
                match classify(&error) {
                    Class::Stale => return Written::Stale { refused },
                    Class::Refused => {
                        let bad = self.find_refused(prepared, rows.clone()).await;
                        if !bad.is_empty() {
                            tracing::warn!(
                                partition = self.number,
                                rows = bad.len(),
                                error = %error,
                                "ClickHouse refuses rows for good; they go to the dead letters"
                            );
                            rows.retain(|row| !bad.contains(row));
                            refused.extend(bad);
                            continue 'bytes;
                        }
                        // No row by itself is refused: something behind the table is, and an operator must mend it.
                        metrics().insert_retries.increment(1);
                        trying.again(&error, delays.next()).await;
                    }
                    Class::Transient if faults::without("without-acknowledgement") => {
                        return Written::Acknowledged { refused, doubtful };
                    }
                    Class::Transient => {
                        doubtful = true;
                        metrics().insert_retries.increment(1);
                        trying.again(&error, delays.next()).await;
                    }
                }
            }
        }
    }

    fn deduplication_token(&self, prepared: &Prepared, announcement: Announcement, number: u32) -> String {
        let kafka = &self.worker.config.kafka;
        if faults::without("without-token") {
            return format!("{}/{}", kafka.group_id, uuid::Uuid::now_v7());
        }
        let number = match number {
            0 => String::new(),
            number => format!("/{number}"),
        };
        format!(
            "{}/{}/{}/{}/{}-{}/{:032x}{number}",
            kafka.group_id,
            kafka.topic,
            kafka.incarnation,
            self.number,
            prepared.block.start,
            announcement.end,
            announcement.digest
        )
    }

    fn encode(&self, prepared: &Prepared, rows: &[usize], ingested_at: i64) -> Bytes {
        let kafka = &self.worker.config.kafka;
        let decoded = &prepared.decoding.events;
        let origin = rows::Origin {
            topic: &kafka.topic,
            incarnation: kafka.incarnation,
            partition: self.number,
            ingested_at,
        };
        let rows = rows.iter().map(|&i| {
            let event = &decoded.events[i];
            Row {
                uuid: event.uuid,
                token: decoded.tokens[event.token as usize].as_bytes(),
                event: decoded.bytes(event.event),
                distinct_id: decoded.bytes(event.distinct_id),
                timestamp: event.timestamp,
                properties: decoded.bytes(event.properties),
                offset: event.offset,
            }
        });
        rows::encode(self.worker.bodies.take(), origin, &rows)
    }

    /// Finds the rows that are refused by themselves: trial inserts, halved, into a table that keeps nothing.
    /// (Halving under the real token would make the table skip halves.)
    async fn find_refused(&self, prepared: &Prepared, rows: Vec<usize>) -> Vec<usize> {
        let mut refused = Vec::new();
        let mut delays = delays();
        let mut trying = Trying::new(self.waiter(), Service::ClickHouse, "look for refused rows");
        let mut suspects = vec![rows];
        let worker = &self.worker;
        tracing::warn!(
            partition = self.number,
            start = prepared.block.start,
            end = prepared.block.end,
            "ClickHouse refuses a block for good; looking for the rows that are the reason"
        );
        if let Err(error) =
            schema::renew_trial_table(&worker.clickhouse, &worker.config.clickhouse.database).await
        {
            // The worker's user may not be allowed to; then the operator changes both tables.
            tracing::warn!(error = %error, "the table for trial inserts could not be made anew");
        }
        while let Some(rows) = suspects.pop() {
            let bytes = self.encode(prepared, &rows, worker::now_ms());
            match insert(&self.worker, "events_trial", None, bytes).await {
                Ok(()) => {}
                Err(error) if classify(&error) == Class::Refused => {
                    if let [row] = rows[..] {
                        refused.push(row);
                    } else {
                        let (first, second) = rows.split_at(rows.len() / 2);
                        suspects.push(second.to_vec());
                        suspects.push(first.to_vec());
                    }
                }
                Err(error) => {
                    metrics().insert_retries.increment(1);
                    trying.again(&error, delays.next()).await;
                    suspects.push(rows);
                }
            }
        }
        refused
    }
}

/// Pauses between attempts at an insert.
pub(super) fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}

async fn insert(worker: &Worker, table: &str, token: Option<&str>, bytes: Bytes) -> Result<()> {
    let client: &Client = &worker.clickhouse;
    let sql = format!(
        "INSERT INTO {}.{table} ({}) FORMAT Native",
        identifier(&worker.config.clickhouse.database),
        rows::column_list()
    );
    let mut insert = client.insert_formatted_with(sql);
    let patience = Duration::from_secs(u64::from(worker.config.clickhouse.insert_deadline_seconds));
    // The server's is below the deadline, and so below the client's.
    for (name, value) in settings::inserts(&worker.table.inserts, patience / 2, token) {
        insert = insert.with_setting(name, value);
    }
    let mut insert = insert.with_timeouts(Some(patience), Some(patience));
    let second_half = bytes.slice(bytes.len() / 2..);
    insert.send(bytes.slice(..bytes.len() / 2)).await?;
    faults::moment("mid-insert").await;
    insert.send(second_half).await?;
    insert.end().await
}
