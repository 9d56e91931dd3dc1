//! The role `tasks`: work that nobody waits for, from a queue in Redis.
//!
//! Owns the queue, who runs what, and what becomes of a task whose process dies. It touches no claim, limit or offset.
//!
//! ```text
//! queue -> a worker's processing list -> done
//!   ^          |      |        |
//!   |          |      |        failed too often, or hopeless -> parked (until an operator retries or drops it)
//!   +- given back     failed -> later
//!   +- its worker died: the lease ended
//! ```
//!
//! Read in this order: `task` (what stands in Redis), `queue` (the steps between its places, each atomic), `held` (a task
//! that is run), `runner` (one worker), `tend` (what any of them does for the dead), then what tasks do: `rebuild`,
//! `caches`.

mod caches;
pub(crate) mod held;
pub mod queue;
mod rebuild;
mod runner;
pub mod task;
mod tend;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::redis::{Redis, Settings};
use held::{Held, TaskError};
use queue::Queue;
use runner::Runner;
use task::Work;

/// Longest error of a task, in characters.
const MAX_ERROR: usize = 500;
/// Connections for everything that does not block.
const CONNECTIONS: u32 = 2;

/// Runs tasks until `shutdown`, then ends or gives back those under way.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = Settings::state(&config.redis).context("redis.url cannot be used")?;
    let connections = config.redis.max_connections.min(CONNECTIONS) as usize;
    let redis = Redis::open(&settings, connections).context("redis.url cannot be used")?;
    let queue = Queue::new(redis.clone(), &config);
    let doer = Arc::new(Doer::new(&config, redis)?);
    let lease = Duration::from_secs(config.tasks.lease_seconds);
    let process = process_name();
    let runners = (0..config.tasks.at_once)
        .map(|n| {
            Ok(Runner {
                queue: queue.clone(),
                blocking: Redis::blocking(&settings, queue::BLOCK)?,
                name: format!("{process}.{n}"),
                lease,
                max_attempts: config.tasks.max_attempts,
                drain: Duration::from_secs(config.worker.drain_seconds),
                doer: Arc::clone(&doer),
                shutdown: shutdown.clone(),
            })
        })
        .collect::<::redis::RedisResult<Vec<_>>>()
        .context("redis.url cannot be used")?;
    tracing::info!(process, at_once = config.tasks.at_once, "tasks are run");
    let running = futures::future::join_all(runners.iter().map(Runner::run));
    tokio::select! {
        _ = running => {}
        () = tend::tend(&queue, lease, config.tasks.max_attempts) => {}
    }
    Ok(())
}

/// Does what tasks ask for.
#[derive(Debug)]
struct Doer {
    config: Config,
    rebuild: rebuild::Rebuild,
    caches: caches::Caches,
}

impl Doer {
    fn new(config: &Config, redis: Redis) -> anyhow::Result<Self> {
        Ok(Self {
            config: config.clone(),
            rebuild: rebuild::Rebuild::new(config, redis).context("redis.cache_url cannot be used")?,
            caches: caches::Caches::new(config).context("redis.url or redis.cache_url cannot be used")?,
        })
    }

    /// Does it, from where `held` says that it stands.
    async fn work(&self, work: &Work, held: &Held) -> Result<(), TaskError> {
        let done = match work {
            Work::RebuildUsers(users) => self.rebuild.run(users, held).await,
            Work::RefreshQuery(query) => self.caches.refresh(query).await,
            Work::WarmCache(token) => self.caches.warm(token, held).await,
        };
        done.map_err(|error| match error {
            TaskError::Failed(told) => TaskError::Failed(self.tellable(&told)),
            other => other,
        })
    }

    /// What a client library said, without what it may repeat and without the advice that `ClickHouse` adds.
    fn tellable(&self, told: &str) -> String {
        let first = told.split("\n\n").next().unwrap_or_default();
        let told = self.config.scrub(first);
        told.chars().take(MAX_ERROR).collect()
    }
}

/// Names this process to operators, and differs from every other one.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let host: String = host.chars().filter(plain).take(64).collect();
    format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}
