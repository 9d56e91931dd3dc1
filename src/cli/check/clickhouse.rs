//! `ClickHouse`: is the table there, does it enforce the deadline, and does it remember insert tokens for long
//! enough?

use std::future::Future;

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::{CALL_TIMEOUT, Finding, clock_difference, clock_finding};
use crate::cli::with_causes;
use crate::clickhouse::{client, schema, settings};
use crate::config::ClickHouse;

const TABLE: &str = "events";
const MIGRATE: &str = "run `sluice migrate`";
/// Table partitions (months) that an insert touches, at least: around midnight of a month's last day, two.
const LEAST_PARTITIONS: u64 = 2;
/// Fewer workers than this is no group to speak of: a window that is too small for them is warned of.
const FEW_WORKERS: u64 = 4;

#[derive(Debug, Row, Deserialize)]
struct Server {
    version: String,
    now_micros: i64,
}

#[derive(Debug, Row, Deserialize)]
struct TableRow {
    engine: String,
    create_table_query: String,
}

#[derive(Debug, Row, Deserialize)]
struct Text {
    value: String,
}

/// All findings; without an answer there is only one.
pub(super) async fn check(config: &ClickHouse) -> Vec<Finding> {
    let client = settings::reads(&client(config)).with_database("default");
    let mut findings = Vec::new();
    if let Err(error) = ask(&client, config, &mut findings).await {
        findings.push(Finding::unreachable(error));
    }
    findings
}

async fn ask(client: &Client, config: &ClickHouse, findings: &mut Vec<Finding>) -> Result<(), String> {
    let question = "SELECT version() AS version, toUnixTimestamp64Micro(now64(6)) AS now_micros";
    let ask = async || answer(client.query(question).fetch_one::<Server>()).await;
    let server = ask().await?;
    let difference = clock_difference(async || Ok::<_, String>(ask().await?.now_micros)).await?;
    findings.push(Finding::good(
        "connection",
        format!("ClickHouse {}", server.version),
    ));
    findings.push(clock_finding(difference, config.insert_deadline_seconds));

    let database = &config.database;
    let question = client
        .query("SELECT engine AS value FROM system.databases WHERE name = ?")
        .bind(database);
    if answer(question.fetch_optional::<Text>()).await?.is_none() {
        findings.push(Finding::problem(
            "database",
            format!("no database {database}"),
            MIGRATE,
        ));
        return Ok(());
    }
    let question = client
        .query("SELECT engine, create_table_query FROM system.tables WHERE database = ? AND name = ?")
        .bind(database)
        .bind(TABLE);
    let Some(table) = answer(question.fetch_optional::<TableRow>()).await? else {
        findings.push(Finding::problem(
            "table",
            format!("no table {database}.{TABLE}"),
            MIGRATE,
        ));
        return Ok(());
    };
    findings.push(Finding::good(
        "table",
        format!("{database}.{TABLE}, {}", table.engine),
    ));
    let compared = schema::compare(client, database, config.insert_deadline_seconds);
    findings.push(match answer(compared).await? {
        Ok(_) => Finding::good(
            "deadline",
            format!(
                "stale inserts are refused after {} s",
                config.insert_deadline_seconds
            ),
        ),
        Err(mismatch) => Finding::problem(
            "deadline",
            mismatch.to_string(),
            "set clickhouse.insert_deadline_seconds to the table's, or alter the table's constraint",
        ),
    });
    findings.push(window(client, config, &table).await?);
    Ok(())
}

async fn answer<T>(question: impl Future<Output = clickhouse::error::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_TIMEOUT, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            // A text of several lines would break up the table.
            Err(with_causes(&error)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "))
        }
        Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
    }
}

fn leading_number(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Whether the server remembers insert tokens for as long as an insert of theirs can be accepted.
async fn window(client: &Client, config: &ClickHouse, table: &TableRow) -> Result<Finding, String> {
    if !table.engine.ends_with("MergeTree") {
        let detail = format!("cannot be judged from an engine {}", table.engine);
        return Ok(Finding::warning(
            "deduplication",
            detail,
            "check the tables behind it",
        ));
    }
    let replicated = table.engine.starts_with("Replicated") || table.engine.starts_with("Shared");
    let name = if replicated {
        "replicated_deduplication_window"
    } else {
        "non_replicated_deduplication_window"
    };
    let entries = if let Some(entries) = setting(&table.create_table_query, name) {
        entries
    } else {
        let question = client
            .query("SELECT value FROM system.merge_tree_settings WHERE name = ?")
            .bind(name);
        answer(question.fetch_one::<Text>())
            .await?
            .value
            .parse()
            .unwrap_or(0)
    };
    let question = client
        .query(
            "SELECT toString(uniqExact(partition)) AS value FROM system.parts \
             WHERE database = ? AND table = ? AND active AND modification_time > now() - INTERVAL 1 HOUR",
        )
        .bind(&config.database)
        .bind(TABLE);
    let partitions = answer(question.fetch_one::<Text>())
        .await?
        .value
        .parse()
        .unwrap_or(0);
    Ok(judge_window(name, entries, config, partitions))
}

/// A token must outlive every insert that could carry it: twice the deadline, at the rate of all workers, an
/// entry for each table partition that an insert touches.
fn judge_window(name: &str, entries: u64, config: &ClickHouse, partitions: u64) -> Finding {
    let (deadline, rate) = (
        u64::from(config.insert_deadline_seconds),
        u64::from(config.max_inserts_per_second),
    );
    let partitions = partitions.max(LEAST_PARTITIONS);
    let each_worker = 2 * deadline * rate * partitions;
    let workers = entries / each_worker;
    let detail = format!(
        "{name} = {entries}: enough for {workers} workers of {each_worker} \
         (2 x {deadline} s x {rate} inserts a second x {partitions} table partitions)"
    );
    let remedy = format!(
        "ALTER TABLE {}.{TABLE} MODIFY SETTING {name} = at least {each_worker} for each worker",
        config.database
    );
    if workers == 0 {
        Finding::problem("deduplication", detail, remedy)
    } else if workers < FEW_WORKERS {
        Finding::warning("deduplication", detail, remedy)
    } else {
        Finding::good("deduplication", detail)
    }
}

/// The value of a whole word among a table's settings.
fn setting(create: &str, name: &str) -> Option<u64> {
    create.match_indices(name).find_map(|(at, _)| {
        let word_before = create[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let value = create[at + name.len()..].trim_start().strip_prefix('=')?;
        if word_before { None } else { leading_number(value) }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const CREATE: &str = "CREATE TABLE s.events (`uuid` UUID, CONSTRAINT in_time CHECK (ingested_at > \
        (nowInBlock64(3) - toIntervalSecond(60))) AND (ingested_at < (nowInBlock64(3) + toIntervalSecond(60))), \
        PROJECTION p (SELECT max(kafka_offset))) ENGINE = ReplacingMergeTree ORDER BY uuid \
        SETTINGS non_replicated_deduplication_window = 100000, index_granularity = 8192";

    #[test]
    fn a_setting_is_a_whole_word() {
        assert_eq!(
            setting(CREATE, "non_replicated_deduplication_window"),
            Some(100_000)
        );
        assert_eq!(setting(CREATE, "replicated_deduplication_window"), None);
        assert_eq!(setting("a_window_seconds = 5, a_window = 7", "a_window"), Some(7));
    }

    #[test]
    fn the_window_is_judged_by_deadline_rate_and_partitions() {
        let config = ClickHouse::default();
        let judge = |entries, partitions| judge_window("w", entries, &config, partitions).verdict;
        assert_eq!(judge(100_000, 0), Verdict::Good);
        assert_eq!(judge(100_000, 40), Verdict::Warning);
        assert_eq!(judge(100_000, 100), Verdict::Problem);
        assert_eq!(judge(0, 0), Verdict::Problem);
        assert!(
            judge_window("w", 4_800, &config, 0)
                .detail
                .contains("enough for 2 workers of 2400")
        );
    }
}
