//! What is asked of the table. Without FINAL, whatever the user's settings say: it would merge the evidence away.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use ::clickhouse::error::{Error, Result};
use ::clickhouse::{Client, Row};
use backon::{ExponentialBuilder, Retryable as _};
use serde::Deserialize;
use uuid::Uuid;

use super::claims::Keys;
use super::key;
use super::ledger::Position;
use super::records::Span;
use super::repeated::Written;
use crate::clickhouse::{client, identifier, literal};
use crate::config::{Config, DedupBy};

/// What each query may take of the server, so that production beside it does not feel much of it.
const MODEST: [(&str, &str); 3] = [
    ("max_threads", "2"),
    // Gives way to queries of a higher priority (a lower number).
    ("priority", "10"),
    // A batch of keys takes a few megabytes of text.
    ("max_query_size", "33554432"),
];

/// The server may wait for those that go before us; one that says nothing for longer than this is gone.
const SILENCE: Duration = Duration::from_mins(5);

pub(super) struct Table<'a> {
    config: &'a Config,
    client: Client,
    name: String,
    max_per_second: Option<NonZeroU32>,
}

/// What a row is deduplicated by, and whose it is. Columns that do not matter are empty.
#[derive(Debug, Row, Deserialize)]
struct EventRow<'a> {
    project: &'a str,
    id: [u8; 16],
    user: &'a str,
    name: &'a str,
    time_ms: i64,
    written_ms: i64,
    is_ours: u8,
    kafka_partition: u32,
    kafka_offset: u64,
}

/// The highest offset of each incarnation and partition, as the table has them: nothing is too odd for a foreign row.
pub(super) type Highest = BTreeMap<(u32, u32), u64>;

/// An answer, or a part of it.
async fn answered<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(SILENCE, answer)
        .await
        .unwrap_or(Err(Error::TimedOut))
}

impl<'a> Table<'a> {
    pub(super) fn new(config: &'a Config, max_per_second: Option<NonZeroU32>) -> Self {
        let mut client = client(&config.clickhouse)
            .with_setting("final", "0")
            .with_setting("select_sequential_consistency", "1");
        for (name, value) in MODEST {
            client = client.with_setting(name, value);
        }
        Self {
            client,
            name: format!("{}.events", identifier(&config.clickhouse.database)),
            config,
            max_per_second,
        }
    }

    /// The highest offset that has a row. The table's projection answers from a few rows.
    pub(super) async fn highest(&self) -> Result<Highest> {
        let sql = format!(
            "SELECT kafka_incarnation, kafka_partition, max(kafka_offset) FROM {} WHERE kafka_topic = {} \
             GROUP BY kafka_topic, kafka_incarnation, kafka_partition",
            self.name,
            literal(&self.config.kafka.topic)
        );
        let rows: Vec<(u32, u32, u64)> = answered(self.client.query_raw(&sql).fetch_all()).await?;
        Ok(rows
            .into_iter()
            .map(|(incarnation, partition, offset)| ((incarnation, partition), offset))
            .collect())
    }

    /// Partition and offset of every row in the ranges, and when it was written (ms since 1970).
    pub(super) async fn offsets(&self, spans: &[Span], mut each: impl FnMut(i32, i64, i64)) -> Result<()> {
        let Some(within) = self.within(spans) else {
            return Ok(());
        };
        let sql = format!(
            "SELECT kafka_partition, kafka_offset, toUnixTimestamp64Milli(ingested_at) FROM {} WHERE {within}",
            self.name
        );
        let mut rows = self.paced().query_raw(&sql).fetch::<(u32, u64, i64)>()?;
        while let Some((partition, offset, time_ms)) = answered(rows.next()).await? {
            each(partition as i32, offset as i64, time_ms);
        }
        Ok(())
    }

    /// The rows in the ranges: one scan for all partitions. The plain comparisons are those that the table's index
    /// understands.
    fn within(&self, spans: &[Span]) -> Option<String> {
        let last = spans.iter().map(|span| span.partition).max()?;
        let mut starts = vec![0; last as usize + 1];
        let mut ends = starts.clone();
        for span in spans {
            starts[span.partition as usize] = span.start;
            ends[span.partition as usize] = span.end;
        }
        let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
        let end = ends.iter().max().copied().unwrap_or(0);
        Some(format!(
            "{} AND kafka_offset >= {first} AND kafka_offset < {end} \
             AND kafka_offset >= {starts:?}[kafka_partition + 1] AND kafka_offset < {ends:?}[kafka_partition + 1]",
            self.ours(),
        ))
    }

    /// Rows of the topic that is settled.
    fn ours(&self) -> String {
        format!(
            "kafka_topic = {} AND kafka_incarnation = {}",
            literal(&self.config.kafka.topic),
            self.config.kafka.incarnation
        )
    }

    /// A client whose scans read no faster than is wished.
    fn paced(&self) -> Client {
        let mut client = self.client.clone();
        if let Some(most) = self.max_per_second {
            // The server itself reads no faster; in small blocks, so that it does not pause for long between two.
            let most = most.get();
            client = client
                .with_setting("max_execution_speed", most.to_string())
                .with_setting("timeout_before_checking_execution_speed", "0")
                .with_setting("max_block_size", most.min(65_409).to_string());
        }
        client
    }

    /// The key of every row that was written at these times, of all topics, and whose it is. Until `each` answers false.
    pub(super) async fn events(
        &self,
        times: &RangeInclusive<i64>,
        mut each: impl FnMut(&[u8], Written) -> bool,
    ) -> Result<()> {
        // What is no UTF-8 is nobody's whom it could repeat.
        let (by, valid) = match self.config.dedup.by {
            DedupBy::Id => (
                "UUIDToNum(uuid) AS id, '' AS user, '' AS name, toInt64(0) AS time_ms",
                "",
            ),
            DedupBy::Content => (
                "toFixedString('', 16) AS id, distinct_id AS user, toString(event) AS name, \
                 toUnixTimestamp64Milli(timestamp) AS time_ms",
                "AND isValidUTF8(distinct_id) AND isValidUTF8(event)",
            ),
        };
        let sql = format!(
            "SELECT toString(token) AS project, {by}, toUnixTimestamp64Milli(ingested_at) AS written_ms, \
             toUInt8({}) AS is_ours, kafka_partition, kafka_offset FROM {} WHERE {} AND isValidUTF8(token) {valid}",
            self.ours(),
            self.name,
            within("ingested_at", times),
        );
        let mut rows = self.paced().query_raw(&sql).fetch::<EventRow<'_>>()?;
        let mut key = Vec::new();
        while let Some(row) = answered(rows.next()).await? {
            match self.config.dedup.by {
                DedupBy::Id => key::of_id(&mut key, row.project, Uuid::from_bytes(row.id)),
                DedupBy::Content => key::of_content(&mut key, row.project, row.user, row.name, row.time_ms),
            }
            let (partition, offset) = (
                i32::try_from(row.kafka_partition),
                i64::try_from(row.kafka_offset),
            );
            let at = match (row.is_ours, partition, offset) {
                (1, Ok(partition), Ok(offset)) => Some(Position { partition, offset }),
                _ => None,
            };
            let time_ms = row.written_ms;
            if !each(&key, Written { time_ms, at }) {
                break;
            }
        }
        Ok(())
    }

    /// Offset of every row of a partition from an offset on.
    pub(super) async fn beyond(&self, partition: u32, first: u64, mut each: impl FnMut(u64)) -> Result<()> {
        let sql = format!(
            "SELECT kafka_offset FROM {} WHERE {} AND kafka_partition = {partition} AND kafka_offset >= {first}",
            self.name,
            self.ours(),
        );
        let mut rows = self.client.query_raw(&sql).fetch::<u64>()?;
        while let Some(offset) = answered(rows.next()).await? {
            each(offset);
        }
        Ok(())
    }

    /// Those of the keys, by id, that have a row.
    async fn by_id(&self, keys: &[&[u8]], times: Option<RangeInclusive<i64>>) -> Result<HashSet<Vec<u8>>> {
        let asked: Vec<_> = keys.iter().filter_map(|key| key::id(key)).collect();
        let sql = format!(
            "SELECT DISTINCT toString(token), toString(uuid) FROM {} WHERE token IN ({}) AND uuid IN ({}){}",
            self.name,
            tokens(keys),
            list(asked.iter().map(|(_, id)| format!("'{id}'"))),
            times.map_or_else(String::new, |times| format!(
                " AND {}",
                within("timestamp", &times)
            )),
        );
        let wanted: HashSet<&[u8]> = keys.iter().copied().collect();
        let mut rows = self.client.query_raw(&sql).fetch::<(String, String)>()?;
        let (mut found, mut key) = (HashSet::new(), Vec::new());
        while let Some((token, id)) = answered(rows.next()).await? {
            if let Ok(id) = Uuid::try_parse(&id) {
                key::of_id(&mut key, &token, id);
                // Ids that were asked for under another token are among the answers.
                if wanted.contains(key.as_slice()) {
                    found.insert(key.clone());
                }
            }
        }
        Ok(found)
    }

    /// Those of the keys, by content, that have a row.
    async fn by_content(&self, keys: &[&[u8]], times: RangeInclusive<i64>) -> Result<HashSet<Vec<u8>>> {
        let asked = keys.iter().filter_map(|key| key::content(key));
        // The tokens and the range are for the table's key.
        let sql = format!(
            "SELECT DISTINCT toString(token), distinct_id, toString(event), toUnixTimestamp64Milli(timestamp) \
             FROM {} WHERE token IN ({}) AND {} AND \
             (toString(token), distinct_id, toString(event), toUnixTimestamp64Milli(timestamp)) IN ({})",
            self.name,
            tokens(keys),
            within("timestamp", &times),
            list(asked.map(|(token, distinct_id, event, ms)| format!(
                "({},{},{},{ms})",
                literal(token),
                literal(distinct_id),
                literal(event)
            ))),
        );
        let mut rows = self
            .client
            .query_raw(&sql)
            .fetch::<(String, String, String, i64)>()?;
        let mut found = HashSet::new();
        while let Some((token, distinct_id, event, ms)) = answered(rows.next()).await? {
            let mut key = Vec::new();
            key::of_content(&mut key, &token, &distinct_id, &event, ms);
            found.insert(key);
        }
        Ok(found)
    }
}

impl Keys for Table<'_> {
    async fn near(&self, keys: &[&[u8]], times: RangeInclusive<i64>) -> Result<HashSet<Vec<u8>>> {
        again(async || match self.config.dedup.by {
            DedupBy::Id => self.by_id(keys, Some(times.clone())).await,
            DedupBy::Content => self.by_content(keys, times.clone()).await,
        })
        .await
    }

    async fn anywhere(&self, keys: &[&[u8]]) -> Result<HashSet<Vec<u8>>> {
        match self.config.dedup.by {
            DedupBy::Id => again(async || self.by_id(keys, None).await).await,
            // The time is a part of the key.
            DedupBy::Content => Ok(HashSet::new()),
        }
    }
}

/// Asks some times over half a minute: there may be hours of reading to lose.
async fn again<T>(ask: impl AsyncFn() -> Result<T>) -> Result<T> {
    let delays = ExponentialBuilder::default().with_max_times(5);
    (|| ask())
        .retry(delays)
        .notify(|error, delay| {
            tracing::warn!(%error, delay_ms = delay.as_millis() as u64, "a look-up in the table failed");
        })
        .await
}

fn tokens(keys: &[&[u8]]) -> String {
    let tokens: BTreeSet<&str> = keys.iter().filter_map(|key| Some(key::token(key)?.0)).collect();
    list(tokens.into_iter().map(literal))
}

fn within(column: &str, times: &RangeInclusive<i64>) -> String {
    format!(
        "{column} >= fromUnixTimestamp64Milli({}, 'UTC') AND {column} <= fromUnixTimestamp64Milli({}, 'UTC')",
        times.start(),
        times.end()
    )
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}
