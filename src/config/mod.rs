//! Configuration: raw values become one validated [`Config`].
//!
//! Owns every tunable: its name, meaning, unit, default and range. The raw values of file and
//! environment are turned into the types below, or into a list of everything that is wrong with them.
//! Invariant: a `Config` that came from [`Config::load`] needs no further check by those who use it, and
//! showing it in any way shows no secret.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

pub use self::redis::{Redis, RedisMode};
pub use error::ConfigError;
pub use secret::{HIDDEN, Secret, SecretUrl, SecretUrls};
pub(crate) use validate::LONGEST_PACKED;

mod api_keys;
mod defaults;
mod error;
mod kafka_options;
mod raw;
mod redis;
mod secret;
#[cfg(test)]
mod tests;
mod urls;
mod validate;

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
    /// Background tasks.
    pub tasks: Tasks,
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
    /// Whether only the tokens in the Redis set `config:tokens` may send events: any other has limit 0. Default false.
    pub allow_list: bool,
}

/// What the worker does while Redis is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRedisDown {
    /// Waits: back-pressure, and every promise holds.
    Pause,
    /// Goes on after ten seconds with a limiter of its own, which slows a token down and rejects nothing; duplicates
    /// are looked for in the table. Promises 2 and 3 are given up for the time of the outage.
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
    /// How claims are laid out in Redis. Default `packed`. The claims of one layout are not found in the other: a worker
    /// whose layout is not that of the claims in Redis does not start.
    pub layout: Layout,
    /// What makes two events the same. Default `id`.
    pub by: DedupBy,
    /// Whether an event that is older than the window, reckoned from its Kafka record, is looked up in the table: then a
    /// resend is a duplicate however late it comes, as long as the table has the first. Default true. One query a block
    /// that has such events; switch it off for imports of history that was never sent before.
    pub beyond_window: bool,
}

/// How claims are laid out in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Many events a key: 30 bytes an event in the first window, 37 from then on. The window is 45 days at the most.
    Packed,
    /// One key an event: about 200 bytes an event.
    Keys,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Packed => "packed",
            Self::Keys => "keys",
        })
    }
}

/// What makes two events the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DedupBy {
    /// The event's uuid, within its token.
    Id,
    /// Token, user, event and time: for clients that make a new id at each retry.
    Content,
}

/// `[batch]`
#[derive(Debug, Clone, Serialize)]
pub struct Batch {
    /// Records after which a block is closed, 1 to 1,000,000. Default 65,536. Small blocks make many inserts;
    /// one above `max_insert_block_size` of the server would be split, and could land by halves.
    pub max_rows: u32,
    /// Bytes (keys and payloads) after which a block is closed, 1,024 to 67,108,864. Default 33,554,432
    /// (32 MiB). A worker holds up to four blocks a partition, within `worker.max_in_flight_bytes`.
    pub max_bytes: u64,
    /// Milliseconds after which a block is closed, 1 to 60,000. Default 1,000. About what a quiet topic's event
    /// waits; `clickhouse.max_inserts_per_second` may stretch it.
    pub max_age_ms: u64,
}

/// `[worker]`
#[derive(Debug, Clone, Serialize)]
pub struct Worker {
    /// Bytes of records one worker holds before it pauses partitions, 1 MiB to 64 GiB, at least twice
    /// `batch.max_bytes`. Default 268,435,456 (256 MiB). Its memory is about five times this; less makes
    /// smaller blocks and more inserts.
    pub max_in_flight_bytes: u64,
    /// Events a second one worker takes in, 0 for no cap. Default 0.
    pub max_events_per_second: u32,
    /// Seconds a worker may take to settle its blocks when told to end, 1 to 25. Default 20. What is not settled
    /// by then is recovered by the next owner of the partition.
    pub drain_seconds: u64,
}

/// `[tasks]`
#[derive(Debug, Clone, Serialize)]
pub struct Tasks {
    /// Tasks that one process runs at once, 1 to 16. Default 2. Each has a connection to Redis of its own, besides
    /// `redis.max_connections`.
    pub at_once: u32,
    /// Seconds after which the task of a process that died is given to another, 2 to 3,600. Default 30. The lease of a
    /// living one is renewed three times in that time; a short one takes a task away from a process that was only slow,
    /// which is harmless but for the time.
    pub lease_seconds: u64,
    /// Attempts at a task before it is parked with its error, 1 to 100. Default 5. A process that dies is one, too.
    pub max_attempts: u32,
    /// Tasks that may wait, 1 to 1,000,000. Default 10,000. More are refused; all of them are in Redis's memory.
    pub max_waiting: u32,
    /// Users a second that one rebuild makes anew, 1 to 1,000,000. Default 2,000. Each is a read from `ClickHouse` and a
    /// script in Redis, beside the workers.
    pub users_per_second: u32,
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
    /// Requests a second each client may make of one process, 1 to 1,000,000. Default 100. A client is a key with all
    /// its sessions; without a valid one, an address.
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

impl Config {
    /// Reads `file`, if one is given, lays the variables `SLUICE_<SECTION>__<KEY>` of this process over it, and
    /// checks everything.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(file, std::env::vars_os())
    }

    /// [`Config::load`] with an environment of the caller's.
    pub fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        validate::validate(raw::Layers::gather(file, environment)?)
    }

    /// The configuration as the file that would give it, with every secret hidden.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// `text` with every secret of this configuration hidden: for the errors of client libraries, which may
    /// repeat what they were given.
    pub fn scrub(&self, text: &str) -> String {
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8_lossy()
                .into_owned()
        };
        let in_urls = [Some(&self.redis.url), self.redis.cache_url.as_ref()]
            .into_iter()
            .flatten();
        let mut secrets: Vec<String> = in_urls
            .filter_map(|urls| urls.first().expose_password())
            .flat_map(|password| [password.to_owned(), decoded(password)])
            .collect();
        secrets.push(self.redis.sentinel_password.expose().to_owned());
        secrets.push(self.clickhouse.password.expose().to_owned());
        let options = self
            .kafka
            .options
            .iter()
            .filter(|(name, _)| is_secret_option(name));
        secrets.extend(options.map(|(_, value)| value.clone()));
        // The longest first: one secret may be a part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
            .iter()
            .filter(|secret| !secret.is_empty())
            .fold(text.to_owned(), |text, secret| {
                text.replace(secret.as_str(), HIDDEN)
            })
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
