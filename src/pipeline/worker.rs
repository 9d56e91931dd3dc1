//! What all partitions of a worker share: connections, scripts, budgets.
//!
//! Owns how a worker starts: what must be true before the first record is read. Never touches a block.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::clickhouse::error::Error;
use ::clickhouse::{Client, RowOwned, RowRead};
use ::redis::RedisResult;
use bytes::BytesMut;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::alone::Slowing;
use super::block::InFlight;
use super::claim::{Claims, mark_layout};
use super::limits::Limits;
use super::profiles::Profiles;
use super::retry::until_done;
use super::source::{Register, Source};
use super::spare::Spare;
use crate::clickhouse::schema::{self, EventsTable, Mismatch};
use crate::clickhouse::settings::{self, LONGEST_READ};
use crate::config::{Config, Layout};
use crate::event::Decoded;
use crate::faults;
use crate::health::{Health, Waiter};
use crate::kafka::producer::Rejects;
use crate::redis::keys::Keys;
use crate::redis::{Redis, Script, Settings};
use crate::telemetry::Service;

/// How long a read's answer is waited for, after the server should have ended it.
const READ_GRACE: Duration = Duration::from_secs(30);

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The Redis URL is refused by the client.
    #[error("redis.url or redis.cache_url cannot be used")]
    Redis(#[source] ::redis::RedisError),
    /// The table does not fit the protocol.
    #[error(transparent)]
    Table(#[from] Mismatch),
    /// The claims in Redis are kept otherwise.
    #[error(
        "dedup.layout = \"{configured}\", but the claims in Redis are kept in the layout {found:?}, says {key}. Set \
         dedup.layout = {found:?} to go on with them; giving them up takes a stop of all workers: see docs/redis.md, \"Another \
         layout, another window\""
    )]
    Layout {
        /// The configured layout.
        configured: Layout,
        /// The layout of the mark.
        found: String,
        /// The mark's key.
        key: String,
    },
    /// The claims in Redis are kept for another time, and workers that disagree would end each other's early.
    #[error(
        "dedup.window_seconds = {configured}, but the claims in Redis are kept for {found} s, says {key}. Set \
         dedup.window_seconds = {found} to go on with it; to change it, stop all workers, set that key to {configured}, and \
         start all with it: see docs/redis.md, \"Another layout, another window\""
    )]
    Window {
        /// `dedup.window_seconds`.
        configured: u64,
        /// The window of the mark.
        found: String,
        /// The mark's key.
        key: String,
    },
    /// The register is full: more topics and incarnations than a coordinate can tell apart.
    #[error("the register of sources in Redis ({0}) has no number left for this topic")]
    Sources(String),
}

/// The scripts of the stages.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) permit: Script,
    pub(super) remember_token: Script,
    pub(super) remember_user: Script,
}

/// A worker's shared parts.
pub struct Worker {
    /// The configuration.
    pub config: Config,
    /// What is ready, and why not.
    pub health: Arc<Health>,
    /// Memory held by blocks.
    pub in_flight: Arc<InFlight>,
    /// Sends dead letters and overflow.
    pub rejects: Rejects,
    pub(super) redis: Redis,
    pub(super) profiles: Arc<Profiles>,
    pub(super) clickhouse: Client,
    pub(super) table: EventsTable,
    pub(super) keys: Keys,
    pub(super) limits: Limits,
    pub(super) slowing: Slowing,
    pub(super) claims: Claims,
    pub(super) scripts: Scripts,
    pub(super) register: Register,
    pub(super) source: Source,
    pub(super) insert_budget: DefaultDirectRateLimiter,
    pub(super) decoded: Spare<Decoded>,
    pub(super) bodies: Spare<BytesMut>,
    pace: Option<DefaultDirectRateLimiter>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Connects, and checks what the protocol stands on. A service that is down is waited for; a table or a layout that
    /// does not fit is an error.
    pub async fn start(config: Config, health: Arc<Health>, rejects: Rejects) -> Result<Self, StartError> {
        let connections = config.redis.max_connections.min(4) as usize;
        let open = |settings: RedisResult<Settings>, connections| {
            settings
                .and_then(|settings| Redis::for_blocks(&settings, connections))
                .map_err(StartError::Redis)
        };
        let redis = open(Settings::state(&config.redis), connections)?;
        let cache = open(Settings::cache(&config.redis), 1)?;
        let clickhouse = crate::clickhouse::client(&config.clickhouse);
        let keys = Keys::new(&config.redis.key_prefix);

        let waiter = health.waiter(None);
        let ask = async || {
            let deadline = config.clickhouse.insert_deadline_seconds;
            schema::compare(&clickhouse, &config.clickhouse.database, deadline).await
        };
        let table = until_done(waiter, Service::ClickHouse, "look at the table", ask).await?;
        let secret = mark_layout(waiter, &redis, &keys, &config.dedup).await?;
        note_version(waiter, &redis, &keys).await;
        let register = Register::new();
        let topic = (config.kafka.topic.as_str(), config.kafka.incarnation);
        let enter = async || register.enter(&redis, &keys, topic).await;
        let source = until_done(waiter, Service::Redis, "register the topic", enter)
            .await
            .filter(|source| source.pack(0, 0).is_some())
            .ok_or_else(|| StartError::Sources(keys.sources()))?;

        Ok(Self {
            limits: Limits::new(&config.rate_limit),
            slowing: Slowing::default(),
            claims: Claims::new(keys.clone(), config.dedup.window_seconds, secret.as_ref()),
            scripts: Scripts {
                permit: Script::new(include_str!("permit.lua")),
                remember_token: Script::new(include_str!("remember_token.lua")),
                remember_user: Script::new(include_str!("remember_user.lua")),
            },
            insert_budget: RateLimiter::direct(Quota::per_second(at_least_one(
                config.clickhouse.max_inserts_per_second,
            ))),
            pace: NonZeroU32::new(config.worker.max_events_per_second)
                .map(|n| RateLimiter::direct(Quota::per_second(n))),
            in_flight: Arc::default(),
            decoded: Spare::default(),
            bodies: Spare::default(),
            config,
            health,
            rejects,
            redis,
            profiles: Profiles::new(cache),
            clickhouse,
            table,
            keys,
            register,
            source,
        })
    }

    /// Waits until `events` more fit under `worker.max_events_per_second`.
    pub(super) async fn pace(&self, events: usize) {
        let Some(limiter) = &self.pace else { return };
        let mut rest = events as u32;
        while let Some(n) = NonZeroU32::new(rest) {
            // More than a second's worth is asked for in parts.
            let part = n.min(at_least_one(self.config.worker.max_events_per_second));
            if limiter.until_n_ready(part).await.is_err() {
                return;
            }
            rest -= part.get();
        }
    }

    /// How old an announcement may be, in ms.
    pub(super) fn deadline_ms(&self) -> i64 {
        i64::from(self.config.clickhouse.insert_deadline_seconds) * 1000
    }

    /// What `ClickHouse` answers to `sql`, with all acknowledged writes in it; asked until there is an answer. Not for the
    /// polling thread: it may take minutes.
    pub(super) async fn ask<T: RowOwned + RowRead>(
        &self,
        waiter: Waiter<'_>,
        what: &'static str,
        sql: &str,
    ) -> Vec<T> {
        let ask = async || {
            let query = settings::reads(&self.clickhouse).query_raw(sql);
            tokio::time::timeout(LONGEST_READ + READ_GRACE, query.fetch_all())
                .await
                .unwrap_or(Err(Error::TimedOut))
        };
        until_done(waiter, Service::ClickHouse, what, ask).await
    }
}

async fn note_version(waiter: Waiter<'_>, redis: &Redis, keys: &Keys) {
    let mut version = ::redis::cmd("SET");
    version.arg(keys.app_version()).arg(env!("CARGO_PKG_VERSION"));
    until_done(waiter, Service::Redis, "note the version", async || {
        redis.command::<()>(&version).await
    })
    .await;
}

fn at_least_one(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}

/// The worker's clock, ms since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
        .saturating_add(faults::clock_error_ms())
}
