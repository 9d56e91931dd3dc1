//! Asking `ClickHouse` over its HTTP interface, by another way than the worker's.

use std::time::Duration;

use serde::Deserialize;

/// A row of the table `events`, as it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) uuid: String,
    pub(crate) token: String,
    pub(crate) event: String,
    pub(crate) distinct_id: String,
    /// ms since 1970.
    pub(crate) timestamp: i64,
    pub(crate) properties: String,
    pub(crate) topic: String,
    pub(crate) incarnation: u32,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// ms since 1970.
    pub(crate) ingested_at: i64,
}

impl Row {
    /// Where its record stands.
    pub(crate) fn place(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }
}

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct ClickHouse {
    url: String,
    agent: ureq::Agent,
}

impl ClickHouse {
    pub(crate) fn at(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_mins(1)))
            .build();
        Self {
            url: url.to_owned(),
            agent: config.new_agent(),
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Runs a statement and returns its answer, or the server's error.
    pub(crate) fn try_run(&self, sql: &str) -> Result<String, String> {
        let mut response = self
            .agent
            .post(&self.url)
            .send(sql)
            .map_err(|error| error.to_string())?;
        let body = response.body_mut().with_config().limit(u64::MAX).read_to_vec();
        let body =
            String::from_utf8(body.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        if response.status().is_success() {
            Ok(body)
        } else {
            Err(body)
        }
    }

    /// Runs a statement that must succeed.
    pub(crate) fn run(&self, sql: &str) -> String {
        self.try_run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// All rows of a database's `events`, by partition and offset, without FINAL.
    pub(crate) fn rows(&self, database: &str) -> Vec<Row> {
        let sql = format!(
            "SELECT toString(uuid) AS uuid, token, event, distinct_id, toUnixTimestamp64Milli(timestamp) AS timestamp, \
             properties, kafka_topic AS topic, kafka_incarnation AS incarnation, kafka_partition AS partition, \
             kafka_offset AS offset, toUnixTimestamp64Milli(ingested_at) AS ingested_at \
             FROM {database}.events ORDER BY kafka_topic, kafka_incarnation, kafka_partition, kafka_offset \
             SETTINGS output_format_json_quote_64bit_integers = 0 FORMAT JSONEachRow"
        );
        let answer = self.run(&sql);
        answer
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// How many rows a database's `events` has, without FINAL.
    pub(crate) fn count(&self, database: &str) -> usize {
        let sql = format!("SELECT count() FROM {database}.events FORMAT TSV");
        self.run(&sql).trim().parse().unwrap()
    }
}
