//! The table `events` and its migrations. Each statement is safe to run again and by several at once.
//!
//! Owns names, types and settings of what Sluice keeps in `ClickHouse`; operators may alter settings.

use ::clickhouse::Client;
use ::clickhouse::error::Result;

use super::settings::{Additional, reads};
use super::{identifier, literal};

/// The constraint that refuses an insert whose announcement is too old (or too new).
pub const IN_TIME: &str = "in_time";
/// Events from before this year share one table partition, so that odd clocks make few parts.
const OLDEST_PARTITION_YEAR: i32 = 2015;
/// Tokens of inserts that the server remembers, for each table: see `check`.
pub const DEDUPLICATION_WINDOW: u64 = 100_000;

fn in_time(deadline_seconds: u32) -> String {
    // `now64` is fixed when the statement begins; an insert that stalls half sent would still pass.
    format!(
        "ingested_at > nowInBlock64(3) - INTERVAL {deadline_seconds} SECOND \
         AND ingested_at < nowInBlock64(3) + INTERVAL {deadline_seconds} SECOND"
    )
}

fn events_table(database: &str, deadline_seconds: u32) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {db}.events (
            uuid UUID,
            token LowCardinality(String),
            event LowCardinality(String),
            distinct_id String,
            timestamp DateTime64(3, 'UTC'),
            properties String,
            kafka_topic LowCardinality(String),
            kafka_incarnation UInt32,
            kafka_partition UInt32,
            kafka_offset UInt64 CODEC(Delta, LZ4),
            ingested_at DateTime64(3, 'UTC') CODEC(Delta, LZ4),
            CONSTRAINT {IN_TIME} CHECK {check},
            INDEX kafka_offsets kafka_offset TYPE minmax GRANULARITY 1,
            PROJECTION positions (
                SELECT kafka_topic, kafka_incarnation, kafka_partition, max(kafka_offset)
                GROUP BY kafka_topic, kafka_incarnation, kafka_partition
            )
        )
        ENGINE = ReplacingMergeTree
        PARTITION BY toYYYYMM(greatest(timestamp, toDateTime64('{OLDEST_PARTITION_YEAR}-01-01 00:00:00', 3, 'UTC')))
        ORDER BY (token, toDate(timestamp), event, cityHash64(distinct_id), uuid, timestamp)
        SETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW},
                 deduplicate_merge_projection_mode = 'rebuild'",
        db = identifier(database),
        check = in_time(deadline_seconds),
    )
}

/// The partition of the table `events` in which an event of that time (ms since 1970) stands: `PARTITION BY` above.
pub fn table_partition(timestamp: i64) -> i32 {
    let oldest = OLDEST_PARTITION_YEAR * 100 + 1;
    // Every time that the column holds is one that this holds.
    let month = jiff::Timestamp::from_millisecond(timestamp).map_or(0, |time| {
        let date = jiff::tz::Offset::UTC.to_datetime(time).date();
        i32::from(date.year()) * 100 + i32::from(date.month())
    });
    month.max(oldest)
}

/// Creates the database and the tables where they are missing.
pub async fn migrate(client: &Client, database: &str, deadline_seconds: u32) -> Result<()> {
    // The client names its database in each request; the first statement must not.
    let bare = client.clone().with_database("default");
    bare.query_raw(&format!("CREATE DATABASE IF NOT EXISTS {}", identifier(database)))
        .execute()
        .await?;
    bare.query_raw(&events_table(database, deadline_seconds))
        .execute()
        .await?;
    // Rows that are refused for good are found by trial inserts here: same columns and constraints, no rows kept.
    bare.query_raw(&trial_table("CREATE TABLE IF NOT EXISTS", database))
        .execute()
        .await
}

/// Makes the table for trial inserts anew, with the columns and constraints that `events` has now: an operator may
/// have added some since.
pub async fn renew_trial_table(client: &Client, database: &str) -> Result<()> {
    client
        .query_raw(&trial_table("CREATE OR REPLACE TABLE", database))
        .execute()
        .await
}

fn trial_table(create: &str, database: &str) -> String {
    format!(
        "{create} {db}.events_trial AS {db}.events ENGINE = Null",
        db = identifier(database)
    )
}

/// What stands between a table and the protocol, if anything.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    /// There is no table.
    #[error("the table {0}.events does not exist: run `sluice migrate`")]
    Missing(String),
    /// The table enforces another deadline than the configured one, or none.
    #[error(
        "the table {database}.events does not enforce clickhouse.insert_deadline_seconds = {configured}: its \
         constraint `in_time` is {found}"
    )]
    Deadline {
        /// `clickhouse.database`.
        database: String,
        /// `clickhouse.insert_deadline_seconds`.
        configured: u32,
        /// The constraint as the table has it.
        found: String,
    },
}

/// What the protocol asks of the table `events` as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsTable {
    /// Its replicas note a token and its part in one step. (A single server notes the token first.)
    pub replicated: bool,
    /// What inserts into it carry.
    pub inserts: Additional,
}

/// Compares the table with what the protocol needs of it.
pub async fn compare(
    client: &Client,
    database: &str,
    deadline_seconds: u32,
) -> Result<std::result::Result<EventsTable, Mismatch>> {
    let client = client.clone().with_database("default");
    let table: Option<(String, String)> = reads(&client)
        .query_raw(&format!(
            "SELECT create_table_query, engine FROM system.tables WHERE database = {} AND name = 'events'",
            literal(database)
        ))
        .fetch_optional()
        .await?;
    let Some((create, engine)) = table else {
        return Ok(Err(Mismatch::Missing(database.to_owned())));
    };
    Ok(match deadline_mismatch(&create, deadline_seconds) {
        None => Ok(EventsTable {
            replicated: engine.starts_with("Replicated") || engine.starts_with("Shared"),
            inserts: Additional::ask(&client, &engine).await?,
        }),
        Some(found) => Err(Mismatch::Deadline {
            database: database.to_owned(),
            configured: deadline_seconds,
            found,
        }),
    })
}

/// The constraint as found, where it is not the configured one. `ClickHouse` prints `INTERVAL n SECOND`
/// as `toIntervalSecond(n)`.
fn deadline_mismatch(create: &str, deadline_seconds: u32) -> Option<String> {
    let Some(at) = create.find(&format!("CONSTRAINT {IN_TIME} CHECK ")) else {
        return Some("missing".to_owned());
    };
    let rest = &create[at..];
    let end = rest
        .find(", INDEX")
        .or_else(|| rest.find(", PROJECTION"))
        .unwrap_or(rest.len());
    let found = &rest[..end];
    let seconds = format!("toIntervalSecond({deadline_seconds})");
    let agrees = found.contains("nowInBlock64") && found.matches(&seconds).count() == 2;
    (!agrees).then(|| found.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_partition_is_a_month_and_what_is_old_shares_one() {
        let of = |time: &str| table_partition(time.parse::<jiff::Timestamp>().unwrap().as_millisecond());
        assert_eq!(of("2024-01-31T23:59:59.999Z"), 202_401);
        assert_eq!(of("2024-02-01T00:00:00Z"), 202_402);
        assert_eq!(of("2015-01-31T00:00:00Z"), 201_501);
        assert_eq!(of("1999-12-31T00:00:00Z"), 201_501);
    }

    #[test]
    fn a_table_that_enforces_another_deadline_is_seen() {
        let create = |n: u32| {
            format!(
                "CREATE TABLE d.events (`uuid` UUID, CONSTRAINT in_time CHECK (ingested_at > (nowInBlock64(3) - \
                 toIntervalSecond({n}))) AND (ingested_at < (nowInBlock64(3) + toIntervalSecond({n}))), INDEX a b)"
            )
        };
        assert_eq!(deadline_mismatch(&create(60), 60), None);
        assert!(deadline_mismatch(&create(600), 60).is_some());
        assert_eq!(
            deadline_mismatch("CREATE TABLE d.events (`uuid` UUID)", 60).as_deref(),
            Some("missing")
        );
        assert!(deadline_mismatch(&create(60).replace("nowInBlock64", "now64"), 60).is_some());
    }
}
