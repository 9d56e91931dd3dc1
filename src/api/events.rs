//! The events table as the API reads it: bounded in time, rows, memory and number of queries at once.
//!
//! Every value of a caller goes to the server as a parameter of the query, never as a part of its text.

use std::future::Future;
use std::time::Duration;

use ::clickhouse::Client;
use ::clickhouse::error::Error;
use ::clickhouse::query::Query;
use tokio::sync::Semaphore;

use super::problem::{Kind, Problem};
use crate::clickhouse::{error, identifier};
use crate::config;
use crate::telemetry::Service;

/// Queries of this process that run at once; more wait here. Without it a flood of reads would make the server refuse
/// the workers' inserts: both count against its `max_concurrent_queries`.
const AT_ONCE: usize = 8;
/// The server gives a query up after this.
const SERVER_TIME: &str = "10";
/// Waiting for a turn, the query and its way. Above [`SERVER_TIME`], below the time of a request.
const PATIENCE: Duration = Duration::from_secs(15);

const SETTINGS: [(&str, &str); 7] = [
    // Reads alone, settings may be given: whatever the text of a query became, it could change nothing.
    ("readonly", "2"),
    ("max_execution_time", SERVER_TIME),
    ("max_rows_to_read", "2000000000"),
    ("max_memory_usage", "2000000000"),
    ("max_result_rows", "100000"),
    // A caller that has gone waits for nothing.
    ("cancel_http_readonly_queries_on_client_close", "1"),
    // Most of a range is in few granules; more threads would only take them from the inserts.
    ("max_threads", "4"),
];

#[derive(Debug)]
pub(super) struct Events {
    client: Client,
    table: String,
    turns: Semaphore,
}

impl Events {
    pub(super) fn new(config: &config::ClickHouse) -> Self {
        let client = SETTINGS
            .iter()
            .fold(crate::clickhouse::client(config), |client, (name, value)| {
                client.with_setting(*name, *value)
            });
        Self {
            client,
            table: format!("{}.events", identifier(&config.database)),
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// The table's name, quoted.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// A query whose values are its parameters.
    pub(super) fn query(&self, sql: &str) -> Query {
        self.client.query_raw(sql)
    }

    /// Runs `work`, which sends one query or more, when there is a turn for it.
    pub(super) async fn run<T>(
        &self,
        work: impl Future<Output = ::clickhouse::error::Result<T>>,
    ) -> Result<T, Problem> {
        let turn = async {
            let _turn = self.turns.acquire().await.ok();
            work.await
        };
        match tokio::time::timeout(PATIENCE, turn).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(problem(&error)),
            Err(_) => Err(problem(&Error::TimedOut)),
        }
    }
}

/// What an error of a read is to the caller; its text is for the log alone.
fn problem(error: &Error) -> Problem {
    // TOO_MANY_ROWS, TIMEOUT_EXCEEDED, TOO_SLOW, MEMORY_LIMIT_EXCEEDED, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES
    if let Some(158 | 159 | 160 | 241 | 307 | 396) = error::code(error) {
        tracing::debug!(error = %error, "a query asked for too much");
        return Problem::new(
            Kind::QueryTooLarge,
            "it reads too much: shorten the range, name the events, or leave the breakdown out",
        );
    }
    tracing::warn!(service = "clickhouse", error = %error, "a request went without a service");
    Problem::unavailable(Service::ClickHouse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_not_repeated() {
        for text in [
            "Code: 60. DB::Exception: Table secret.events does not exist",
            "Code: 241. DB::Exception: memory limit in secret",
            "secret",
        ] {
            let problem = problem(&Error::BadResponse(text.to_owned()));
            assert!(!format!("{problem:?}").contains("secret"));
            assert_eq!(problem.is_unavailable(), !text.contains("241"));
        }
    }
}
