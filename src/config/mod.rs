//! Configuration: raw values become one validated [`Config`].
//!
//! Owns every tunable: its name, meaning, unit, default and range. The raw values of file and
//! environment are turned into the types below, or into a list of everything that is wrong with them.
//! Invariant: a `Config` that came from [`Config::load`] needs no further check by those who use it, and
//! showing it in any way shows no secret.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;
use url::Url;

pub use secret::{HIDDEN, Secret, SecretUrl};

mod secret;

/// The whole configuration. Components take the section they need, not this.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Config {
    /// Where records come from and rejects go to.
    pub kafka: Kafka,
    /// Where claims, limits, timelines and caches live.
    pub redis: Redis,
    /// Where events are written.
    pub clickhouse: ClickHouse,
    /// How many events a token may send.
    pub rate_limit: RateLimit,
    /// What counts as the same event, and for how long.
    pub dedup: Dedup,
    /// When a block is closed.
    pub batch: Batch,
    /// What one worker may use, and how it ends.
    pub worker: Worker,
    /// Where HTTP is served.
    pub http: Http,
    /// Who may read.
    pub api: Api,
}

/// `[kafka]`
#[derive(Clone, Serialize)]
pub struct Kafka {
    /// Brokers to start from: `host:port`, separated by commas. Default `127.0.0.1:9092`. Name more than one,
    /// or the worker cannot start while that one is down.
    pub brokers: String,
    /// Consumer group; all workers of one table share it. Default `sluice`. Two groups that write one table
    /// write every event twice.
    pub group_id: String,
    /// Topic that is read. Default `events`.
    pub topic: String,
    /// Topic for the events over their token's limit. Default `events_overflow`. They are gone once it no
    /// longer retains them.
    pub overflow_topic: String,
    /// Topic for the records that can be no event. Default `events_dead_letter`. Give it a retention long
    /// enough to be looked at.
    pub dead_letter_topic: String,
    /// Raised by one when the topic was deleted and made again, so that its offsets are not taken for the old
    /// ones. Default 0. Raised without need, records that were read before count as new.
    pub incarnation: u32,
    /// librdkafka's own settings, overriding the worker's: TLS, SASL, `group.protocol`, `session.timeout.ms`.
    /// Default none. Those that would break a promise (offsets committed behind the worker's back, say) are
    /// refused. From the environment the whole table is replaced.
    #[serde(serialize_with = "options_with_secrets_hidden")]
    pub options: BTreeMap<String, String>,
}

/// `[redis]`
#[derive(Debug, Clone, Serialize)]
pub struct Redis {
    /// Server for the state: claims, limits, sessions, timelines. Default `redis://127.0.0.1:6379`. What it
    /// forgets may be written twice or pass a limit, so give it persistence and no eviction.
    pub url: SecretUrl,
    /// Server for the caches (query results, profiles). Default: that of `redis.url`. On one server with
    /// eviction, the cache's growth pushes claims out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_url: Option<SecretUrl>,
    /// Put in front of every key. Default empty. Two deployments on one server need two prefixes; changing it
    /// forgets every claim.
    pub key_prefix: String,
    /// Connections to each server, 1 to 100. Default 10. Few are enough, as they are multiplexed.
    pub max_connections: u32,
}

/// `[clickhouse]`
#[derive(Debug, Clone, Serialize)]
pub struct ClickHouse {
    /// Server's HTTP interface. Default `http://127.0.0.1:8123`.
    pub url: SecretUrl,
    /// Database of the `events` table. Default `sluice`.
    pub database: String,
    /// User. Default `default`.
    pub user: String,
    /// The user's password. Default empty.
    pub password: Secret,
    /// Inserts a second one worker may make, 1 to 1,000. Default 10. Many small inserts make many small parts,
    /// and in the end the server refuses them; too few make events wait.
    pub max_inserts_per_second: u32,
    /// Seconds after which the server refuses an insert as stale, 2 to 600. Default 60. The table enforces it,
    /// and one that disagrees refuses to start. A long deadline needs a larger deduplication window, and makes
    /// a recovery wait longer; a short one refuses workers whose clock is off by as much.
    pub insert_deadline_seconds: u32,
}

/// `[rate_limit]`
#[derive(Debug, Clone, Serialize)]
pub struct RateLimit {
    /// Whether tokens are limited at all. Default true.
    pub enabled: bool,
    /// Events a token may send in any window, at least 1. Default 1,000. Overridden per token in Redis.
    pub limit: u64,
    /// Length of the sliding window in seconds, 1 to 2,592,000 (30 days). Default 3,600.
    pub window_seconds: u64,
    /// What happens while Redis is down. Default `pause`.
    pub on_redis_down: OnRedisDown,
    /// What becomes of an event over the limit. Default `overflow`.
    pub when_over: WhenOver,
}

/// What the worker does while Redis is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRedisDown {
    /// Waits: back-pressure, and every promise holds.
    Pause,
    /// Goes on with a limiter of its own: nothing is rejected, duplicates may pass.
    Local,
}

/// What becomes of an event over its token's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenOver {
    /// It goes to the overflow topic.
    Overflow,
    /// Its partition waits for a permit, and with it the other tokens of the partition.
    Wait,
}

/// `[dedup]`
#[derive(Debug, Clone, Serialize)]
pub struct Dedup {
    /// How long an event is remembered, in seconds, 1 to 31,622,400 (366 days). Default 86,400. Redis holds
    /// every event of that time; what comes again later is written again.
    pub window_seconds: u64,
    /// How claims are laid out in Redis. Default `keys`.
    pub layout: Layout,
    /// What makes two events the same. Default `id`.
    pub by: DedupBy,
}

/// How claims are laid out in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One key an event.
    Keys,
}

/// What makes two events the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DedupBy {
    /// The event's uuid, within its token.
    Id,
    /// Token, user, event and time: for clients that make a new id at each retry.
    Content,
    /// Nothing: every record is an event of its own.
    None,
}

/// `[batch]`
#[derive(Debug, Clone, Serialize)]
pub struct Batch {
    /// Records after which a block is closed, 1 to 1,000,000. Default 65,536. Small blocks make many inserts;
    /// one above `max_insert_block_size` of the server would be split, and could land by halves.
    pub max_rows: u32,
    /// Bytes (keys and payloads) after which a block is closed, 1,024 to 67,108,864. Default 33,554,432
    /// (32 MiB). A worker holds up to two blocks a partition, within `worker.max_in_flight_bytes`.
    pub max_bytes: u64,
    /// Milliseconds after which a block is closed, 1 to 60,000. Default 1,000. About what a quiet topic's event
    /// waits; `clickhouse.max_inserts_per_second` may stretch it.
    pub max_age_ms: u64,
}

/// `[worker]`
#[derive(Debug, Clone, Serialize)]
pub struct Worker {
    /// Bytes of records one worker holds before it pauses partitions, 1 MiB to 64 GiB, at least twice
    /// `batch.max_bytes`. Default 268,435,456 (256 MiB). Its memory is two to three times this.
    pub max_in_flight_bytes: u64,
    /// Events a second one worker takes in, 0 for no cap. Default 0.
    pub max_events_per_second: u32,
    /// Seconds a worker may take to settle its blocks when told to end, 1 to 25. Default 20. What is not settled
    /// by then is recovered by the next owner of the partition.
    pub drain_seconds: u64,
}

/// `[http]`
#[derive(Debug, Clone, Serialize)]
pub struct Http {
    /// Address of the read API. Default `127.0.0.1:8080`; a container wants `0.0.0.0:8080`.
    pub listen: SocketAddr,
    /// Address of `/metrics`, `/healthz` and `/readyz`. Default `127.0.0.1:9100`. It asks for no key: keep it
    /// inside.
    pub admin_listen: SocketAddr,
}

/// `[api]`
#[derive(Debug, Clone, Serialize)]
pub struct Api {
    /// Requests a second each client may make, 1 to 1,000,000. Default 100.
    pub requests_per_second: u32,
    /// Who may open a session, and whose events it reads. Default none: then nobody can read. From the
    /// environment the whole list is replaced.
    pub keys: Vec<ApiKey>,
}

/// One key of the read API.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// SHA-256 of the key, 64 hex digits in the file: the key itself is nowhere in the configuration.
    #[serde(serialize_with = "hash_shortened")]
    pub key_sha256: [u8; 32],
    /// Project token whose events the key reads.
    pub token: String,
}

impl Redis {
    /// The server of the caches: that of the state, unless it has one of its own.
    pub fn cache_url(&self) -> &SecretUrl {
        self.cache_url.as_ref().unwrap_or(&self.url)
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            group_id: "sluice".to_owned(),
            topic: "events".to_owned(),
            overflow_topic: "events_overflow".to_owned(),
            dead_letter_topic: "events_dead_letter".to_owned(),
            incarnation: 0,
            options: BTreeMap::new(),
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: known_url("redis://127.0.0.1:6379"),
            cache_url: None,
            key_prefix: String::new(),
            max_connections: 10,
        }
    }
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            url: known_url("http://127.0.0.1:8123"),
            database: "sluice".to_owned(),
            user: "default".to_owned(),
            password: Secret::default(),
            max_inserts_per_second: 10,
            insert_deadline_seconds: 60,
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            enabled: true,
            limit: 1_000,
            window_seconds: 3_600,
            on_redis_down: OnRedisDown::Pause,
            when_over: WhenOver::Overflow,
        }
    }
}

impl Default for Dedup {
    fn default() -> Self {
        Self {
            window_seconds: 86_400,
            layout: Layout::Keys,
            by: DedupBy::Id,
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows: 65_536,
            max_bytes: 32 << 20,
            max_age_ms: 1_000,
        }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            max_in_flight_bytes: 256 << 20,
            max_events_per_second: 0,
            drain_seconds: 20,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9100)),
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            requests_per_second: 100,
            keys: Vec::new(),
        }
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("brokers", &self.brokers)
            .field("group_id", &self.group_id)
            .field("topic", &self.topic)
            .field("overflow_topic", &self.overflow_topic)
            .field("dead_letter_topic", &self.dead_letter_topic)
            .field("incarnation", &self.incarnation)
            .field("options", &hide_secret_options(&self.options))
            .finish()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("key_sha256", &shorten_hash(&self.key_sha256))
            .field("token", &self.token)
            .finish()
    }
}

/// Whether a librdkafka setting holds a secret: a password, a private key or an OAuth secret.
pub fn is_secret_option(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [
        "password",
        "passphrase",
        "secret",
        "key.pem",
        "private.key",
        "oauthbearer.config",
    ]
    .iter()
    .any(|part| name.contains(part))
}

fn hide_secret_options(options: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    options
        .iter()
        .map(|(name, value)| {
            (
                name.as_str(),
                if is_secret_option(name) {
                    HIDDEN
                } else {
                    value.as_str()
                },
            )
        })
        .collect()
}

fn options_with_secrets_hidden<S: serde::Serializer>(
    options: &BTreeMap<String, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    hide_secret_options(options).serialize(serializer)
}

/// Enough of a key's hash to tell keys apart, too little to test guesses of a key against.
fn shorten_hash(hash: &[u8; 32]) -> String {
    let [a, b, c, d, ..] = hash;
    format!("{a:02x}{b:02x}{c:02x}{d:02x}{HIDDEN}")
}

fn hash_shortened<S: serde::Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shorten_hash(hash))
}

/// A default's URL.
fn known_url(text: &'static str) -> SecretUrl {
    #[expect(
        clippy::expect_used,
        reason = "the texts are constants of this file, parsed by every test"
    )]
    SecretUrl::new(Url::parse(text).expect("a default is a URL"))
}
