//! What a rebuild reads of the events table: tokens, users, their newest events and their changes.
//!
//! Every answer is a stream in the order of (hash of the user, user), so that three of them can be read side by side and
//! memory holds one user of each. The server sorts on disk what does not fit, but for [`Sort::InMemory`].

use std::time::Duration;

use ::clickhouse::error::{Error, Result};
use ::clickhouse::query::{Query, RowCursor};
use ::clickhouse::{Client, Row, RowOwned, RowRead};
use serde::Deserialize;

use crate::clickhouse::settings::{LONGEST_READ, reads};
use crate::clickhouse::{client, identifier};
use crate::config;
use crate::person::{MAY_CHANGE, Sort, in_order};
use crate::redis::keys::TIMELINE_EVENTS;

/// What each query may take of the server, so that production beside it does not feel much of it.
const MODEST: [(&str, &str); 5] = [
    ("max_threads", "2"),
    // Gives way to queries of a higher priority (a lower number).
    ("priority", "10"),
    ("max_memory_usage", "2000000000"),
    ("max_bytes_before_external_sort", "268435456"),
    ("max_bytes_before_external_group_by", "268435456"),
];
/// How long a row is waited for, after the server should have ended the query.
const GRACE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Table {
    client: Client,
    name: String,
}

/// Some of a token's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those whose hash is in this range, both ends included.
    Range(u64, u64),
    /// Those with one of these hashes.
    Hashes(Vec<u64>),
    /// This one.
    One(String),
}

/// A user with the times of the events, ms since 1970.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Person {
    pub(super) hash: u64,
    pub(super) user: String,
    pub(super) first: i64,
    pub(super) last: i64,
    /// When the newest row was written.
    pub(super) written: i64,
}

/// One of a user's newest events.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Event {
    hash: u64,
    user: String,
    pub(super) time: i64,
    pub(super) id: String,
    pub(super) name: String,
}

/// An event that may say something of its user.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Change {
    hash: u64,
    user: String,
    pub(super) name: String,
    pub(super) properties: String,
    pub(super) topic: String,
    pub(super) incarnation: u32,
    pub(super) partition: u32,
    pub(super) offset: u64,
}

pub(super) trait Keyed {
    fn key(&self) -> (u64, &str);
}

impl Keyed for Event {
    fn key(&self) -> (u64, &str) {
        (self.hash, &self.user)
    }
}

impl Keyed for Change {
    fn key(&self) -> (u64, &str) {
        (self.hash, &self.user)
    }
}

impl Table {
    pub(super) fn new(config: &config::ClickHouse) -> Self {
        let client = MODEST
            .iter()
            .fold(reads(&client(config)), |client, (name, value)| {
                client.with_setting(*name, *value)
            });
        Self {
            client,
            name: format!("{}.events", identifier(&config.database)),
        }
    }

    /// The tokens after that one, with how many rows each has; a hundred at the most.
    pub(super) async fn tokens_after(&self, token: &str) -> Result<Vec<(String, u64)>> {
        let sql = format!(
            "SELECT toString(token) AS name, count() AS events FROM {} WHERE token > {{token:String}} \
             GROUP BY token ORDER BY token LIMIT 100",
            self.name
        );
        timely(self.client.query_raw(&sql).param("token", token).fetch_all()).await
    }

    /// How many rows a token has.
    pub(super) async fn rows_of(&self, token: &str) -> Result<u64> {
        let sql = format!("SELECT count() FROM {} WHERE token = {{token:String}}", self.name);
        timely(self.client.query_raw(&sql).param("token", token).fetch_one()).await
    }

    /// About how many users a token has, or all of them.
    pub(super) async fn count(&self, token: Option<&str>) -> Result<u64> {
        let of = token.map_or("", |_| " WHERE token = {token:String}");
        let sql = format!(
            "SELECT uniq(token, cityHash64(distinct_id)) FROM {}{of}",
            self.name
        );
        let query = self.client.query_raw(&sql);
        let query = match token {
            Some(token) => query.param("token", token),
            None => query,
        };
        timely(query.fetch_one()).await
    }

    /// Users, in order.
    pub(super) fn users(&self, token: &str, which: &Which) -> Result<Rows<Person>> {
        let sql = format!(
            "SELECT cityHash64(distinct_id) AS hash, distinct_id AS user, \
             toUnixTimestamp64Milli(min(timestamp)) AS first, toUnixTimestamp64Milli(max(timestamp)) AS last, \
             toUnixTimestamp64Milli(max(ingested_at)) AS written FROM {} WHERE {} \
             GROUP BY distinct_id ORDER BY hash, user",
            self.name,
            which.sql()
        );
        Rows::of(which.bound(self.client.query_raw(&sql), token))
    }

    /// Each user's newest events, as many as a timeline keeps, and the very ones: of those with the same time, Redis keeps
    /// the greatest.
    pub(super) fn timelines(&self, token: &str, which: &Which) -> Result<Rows<Event>> {
        let sql = format!(
            "SELECT cityHash64(distinct_id) AS hash, distinct_id AS user, \
             toUnixTimestamp64Milli(timestamp) AS time, toString(uuid) AS id, toString(event) AS name FROM {} \
             WHERE {} ORDER BY hash, user, timestamp DESC, id DESC, name DESC LIMIT {TIMELINE_EVENTS} BY hash, user",
            self.name,
            which.sql()
        );
        Rows::of(which.bound(self.client.query_raw(&sql), token))
    }

    /// Each user's events that may change properties, in the order in which they were applied.
    pub(super) fn changes(&self, token: &str, which: &Which, sort: Sort) -> Result<Rows<Change>> {
        let sql = format!(
            "SELECT cityHash64(distinct_id) AS hash, distinct_id AS user, toString(event) AS name, properties, \
             toString(kafka_topic) AS topic, kafka_incarnation AS incarnation, kafka_partition AS partition, \
             kafka_offset AS offset FROM {} WHERE {} AND {MAY_CHANGE} ORDER BY {}",
            self.name,
            which.sql(),
            in_order(&["cityHash64(distinct_id)", "distinct_id"], sort)
        );
        Rows::of(which.bound(self.client.query_raw(&sql), token))
    }
}

impl Which {
    /// Hash first: it is in the sorting key, the text is not.
    fn sql(&self) -> &'static str {
        match self {
            Self::Range(..) => {
                "token = {token:String} AND cityHash64(distinct_id) >= {from:UInt64} \
                 AND cityHash64(distinct_id) <= {to:UInt64}"
            }
            Self::Hashes(_) => "token = {token:String} AND cityHash64(distinct_id) IN {hashes:Array(UInt64)}",
            Self::One(_) => {
                "token = {token:String} AND cityHash64(distinct_id) = cityHash64({user:String}) \
                 AND distinct_id = {user:String}"
            }
        }
    }

    fn bound(&self, query: Query, token: &str) -> Query {
        let query = query.param("token", token);
        match self {
            Self::Range(from, to) => query.param("from", from).param("to", to),
            Self::Hashes(hashes) => query.param("hashes", hashes),
            Self::One(user) => query.param("user", user),
        }
    }
}

/// Rows as they come.
pub(super) struct Rows<T> {
    cursor: RowCursor<T>,
    next: Option<T>,
}

impl<T: RowOwned + RowRead> Rows<T> {
    fn of(query: Query) -> Result<Self> {
        Ok(Self {
            cursor: query.fetch()?,
            next: None,
        })
    }

    /// The next row.
    pub(super) async fn next(&mut self) -> Result<Option<T>> {
        match self.next.take() {
            Some(row) => Ok(Some(row)),
            None => timely(self.cursor.next()).await,
        }
    }

    /// Waits until the answer begins.
    pub(super) async fn begin(&mut self) -> Result<()> {
        self.next = self.next().await?;
        Ok(())
    }

    /// The next row of that user; rows of users before are passed over.
    pub(super) async fn next_of(&mut self, key: (u64, &str)) -> Result<Option<T>>
    where
        T: Keyed,
    {
        while let Some(row) = self.next().await? {
            if row.key() == key {
                return Ok(Some(row));
            }
            if row.key() > key {
                self.next = Some(row);
                return Ok(None);
            }
        }
        Ok(None)
    }
}

/// An answer, if it comes in time.
async fn timely<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(LONGEST_READ + GRACE, answer)
        .await
        .unwrap_or(Err(Error::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_in_the_text_of_a_query() {
        for which in [
            Which::Range(7, 7),
            Which::Hashes(vec![7]),
            Which::One("7".to_owned()),
        ] {
            assert!(!which.sql().contains('7'), "{}", which.sql());
        }
    }
}
