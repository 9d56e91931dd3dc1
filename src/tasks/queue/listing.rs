//! What there is of tasks, for people and for metrics. Moves nothing.

use ::redis::{FromRedisValue as _, RedisResult};

use super::Queue;

/// A task that is run.
#[derive(Clone, Debug)]
pub struct Running {
    /// By whom.
    pub worker: String,
    /// Until its lease ends, in ms; negative if it has ended.
    pub lease_left_ms: i64,
    /// The task as it stands.
    pub task: String,
}

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The next first.
    pub waiting: Vec<String>,
    /// With when they are due, ms since 1970.
    pub later: Vec<(String, i64)>,
    /// What is run.
    pub running: Vec<Running>,
    /// The newest first.
    pub parked: Vec<String>,
    /// Tasks workers that are alive.
    pub workers: usize,
    /// Redis's time, ms since 1970.
    pub now: i64,
}

impl Queue {
    /// Whether Redis answers.
    pub async fn reached(&self) -> RedisResult<()> {
        self.redis.time_ms().await.map(|_| ())
    }

    /// How many wait, later ones included, and how many are parked.
    pub(in crate::tasks) async fn counts(&self) -> RedisResult<(u64, u64)> {
        let mut pipe = ::redis::pipe();
        pipe.cmd("LLEN").arg(self.keys.task_queue());
        pipe.cmd("ZCARD").arg(self.keys.tasks_later());
        pipe.cmd("LLEN").arg(self.keys.tasks_parked());
        let counts = self.redis.pipeline(&pipe).await?;
        let counts: Vec<u64> = counts
            .into_iter()
            .map(u64::from_redis_value)
            .collect::<Result<_, _>>()?;
        Ok((counts[0] + counts[1], counts[2]))
    }

    /// Everything there is. Tasks move meanwhile, so one may be told twice, or not at all.
    pub async fn list(&self) -> RedisResult<Listing> {
        let keys = &self.keys;
        let now = self.redis.time_ms().await?;
        let leases = self.leases().await?;
        let mut waiting = self.range(&keys.task_queue()).await?;
        waiting.reverse();
        let mut listing = Listing {
            waiting,
            later: self.scored(&keys.tasks_later()).await?,
            parked: self.range(&keys.tasks_parked()).await?,
            workers: leases.iter().filter(|(_, deadline)| *deadline > now).count(),
            running: Vec::new(),
            now,
        };
        for (worker, deadline) in leases {
            for task in self.processing(&worker).await? {
                listing.running.push(Running {
                    worker: worker.clone(),
                    lease_left_ms: deadline - now,
                    task: lossy(task),
                });
            }
        }
        Ok(listing)
    }

    async fn range(&self, key: &str) -> RedisResult<Vec<String>> {
        Ok(self.bytes(key).await?.into_iter().map(lossy).collect())
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
