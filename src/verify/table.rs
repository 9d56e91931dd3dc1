//! What is asked of the table. Without FINAL, whatever the user's settings say: it would merge the evidence away.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use ::clickhouse::Client;
use ::clickhouse::error::Result;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::claims::Ids;
use super::records::Span;
use crate::clickhouse::{client, identifier, literal};
use crate::config::{Config, DedupBy};

/// Longest query text, bytes: a batch of ids takes less than a megabyte.
const QUERY_BYTES: &str = "16777216";

pub(super) struct Table<'a> {
    config: &'a Config,
    client: Client,
    name: String,
}

impl<'a> Table<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        let client = client(&config.clickhouse)
            .with_setting("final", "0")
            .with_setting("select_sequential_consistency", "1")
            .with_setting("max_query_size", QUERY_BYTES);
        Self {
            client,
            name: format!("{}.events", identifier(&config.clickhouse.database)),
            config,
        }
    }

    /// Partition and offset of every row in the ranges, and of some beside them, as they stand in the table.
    pub(super) async fn offsets(&self, spans: &[Span], mut each: impl FnMut(i32, i64)) -> Result<()> {
        let Some(last) = spans.iter().map(|span| span.partition).max() else {
            return Ok(());
        };
        let mut starts = vec![0; last as usize + 1];
        let mut ends = starts.clone();
        for span in spans {
            starts[span.partition as usize] = span.start;
            ends[span.partition as usize] = span.end;
        }
        let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
        let end = ends.iter().max().copied().unwrap_or(0);
        // One scan for all partitions; the plain comparisons are those that the table's index understands.
        let sql = format!(
            "SELECT kafka_partition, kafka_offset FROM {} WHERE kafka_topic = {} AND kafka_incarnation = {} \
             AND kafka_offset >= {first} AND kafka_offset < {end} \
             AND kafka_offset >= {starts:?}[kafka_partition + 1] AND kafka_offset < {ends:?}[kafka_partition + 1]",
            self.name,
            literal(&self.config.kafka.topic),
            self.config.kafka.incarnation,
        );
        let mut rows = self.client.query_raw(&sql).fetch::<(u32, u64)>()?;
        while let Some((partition, offset)) = rows.next().await? {
            each(partition as i32, offset as i64);
        }
        Ok(())
    }

    async fn by_uuid(&self, asked: &BTreeMap<&str, Vec<(u128, i64)>>) -> Result<Vec<(String, u128)>> {
        let ids: HashSet<u128> = asked.values().flatten().map(|(id, _)| *id).collect();
        let sql = format!(
            "SELECT DISTINCT toString(token), toString(uuid) FROM {} WHERE token IN ({}) AND uuid IN ({})",
            self.name,
            list(asked.keys().map(|token| literal(token))),
            list(ids.into_iter().map(|id| format!("'{}'", Uuid::from_u128(id)))),
        );
        let found: Vec<(String, String)> = self.client.query_raw(&sql).fetch_all().await?;
        Ok(found
            .into_iter()
            .filter_map(|(token, uuid)| Some((token, Uuid::try_parse(&uuid).ok()?.as_u128())))
            .collect())
    }

    async fn by_content(&self, asked: &BTreeMap<&str, Vec<(u128, i64)>>) -> Result<Vec<(String, u128)>> {
        let times: HashSet<i64> = asked.values().flatten().map(|(_, time)| *time).collect();
        let time = |ms: i64| format!("fromUnixTimestamp64Milli({ms}, 'UTC')");
        let (first, last) = (times.iter().min(), times.iter().max());
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(Vec::new());
        };
        // The range is for the table's key, the list picks the rows.
        let sql = format!(
            "SELECT DISTINCT toString(token), distinct_id, toString(event), toUnixTimestamp64Milli(timestamp) AS ms \
             FROM {} WHERE token IN ({}) AND timestamp >= {} AND timestamp <= {} AND ms IN ({})",
            self.name,
            list(asked.keys().map(|token| literal(token))),
            time(*first),
            time(*last),
            list(times.iter().map(ToString::to_string)),
        );
        let mut rows = self
            .client
            .query_raw(&sql)
            .fetch::<(String, String, String, i64)>()?;
        let mut found = Vec::new();
        while let Some((token, distinct_id, event, ms)) = rows.next().await? {
            found.push((token, content(&distinct_id, &event, ms)));
        }
        Ok(found)
    }
}

impl Ids for Table<'_> {
    async fn with_rows(&self, asked: &BTreeMap<&str, Vec<(u128, i64)>>) -> Result<Vec<(String, u128)>> {
        match self.config.dedup.by {
            DedupBy::Id => self.by_uuid(asked).await,
            DedupBy::Content => self.by_content(asked).await,
        }
    }
}

/// One number for a user, an event's name and its time. Records and rows alike are told apart by it.
pub(super) fn content(distinct_id: &str, event: &str, time_ms: i64) -> u128 {
    let mut hash = Xxh3::new();
    for text in [distinct_id, event] {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(&time_ms.to_le_bytes());
    hash.digest128()
}

fn list(items: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for item in items {
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{item}").unwrap_or_default();
    }
    text
}
