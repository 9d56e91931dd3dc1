//! The queue in Redis: every command and script that touches it.
//!
//! A task is a text in exactly one of: the queue, the tasks that are due later, one worker's processing list, or the
//! parked ones. It goes from one to another in single steps (BLMOVE, or a script), so a crash at any moment leaves it in
//! one of them. What was read of a text decides nothing by itself: a script moves that very text, or nothing.
//!
//! All keys are in one slot of a Cluster. While it moves to another node, what a worker does about the task that it runs
//! goes on: its lease, its list and what waits are each touched by a script that names that key alone. Tasks change hands
//! again once the slot has arrived.

mod alone;
pub mod listing;

use std::time::Duration;

use ::redis::{Cmd, FromRedisValue, RedisResult, Value, cmd};

use super::task::{Parked, Status, Task, Work, is_refresh};
use crate::config;
use crate::redis::keys::{
    Keys, PARKED_TASKS, PARKED_TTL_SECONDS, TASK_STATUS_TTL_SECONDS, TASK_WAITING_TTL_SECONDS,
};
use crate::redis::{Client, Redis, Script};

/// How long the server may wait for a task before it answers that there is none.
pub(super) const BLOCK: Duration = Duration::from_secs(30);
/// So long after its lease's end a worker is remembered: while its last BLMOVE may still wait at the server, because its
/// machine has gone without closing the connection, a task can land in its list.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);
/// Which part of the tasks that may wait may be refreshes: whoever may ask the read API brings them about.
const REFRESHES_PART: u32 = 10;

/// The queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    redis: Redis,
    keys: Keys,
    scripts: std::sync::Arc<Scripts>,
    max_waiting: u32,
}

#[derive(Debug)]
struct Scripts {
    enqueue: Script,
    hold: Script,
    keep: Script,
    begun: Script,
    tell: Script,
    alone: Script,
    moved: Script,
    tend: Script,
    retry: Script,
}

/// When a task is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Also while no process has the role `tasks`: it waits for one.
    Always,
    /// Only while there is one.
    Served,
}

/// What became of a task that was to be put into the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is in the queue.
    Queued(String),
    /// The same one waits already, under this id.
    Waiting(String),
    /// So many wait, and no more may.
    Full(u64),
    /// No process has the role `tasks`.
    Nobody,
}

/// Whose list a task is taken out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of the worker that does so.
    Own,
    /// That of one whose lease has ended.
    Dead,
}

/// Where a task goes from a processing list.
#[derive(Clone, Debug)]
pub(super) enum To {
    /// Nowhere: it is done.
    Done,
    /// To the queue, before all others.
    Next(String),
    /// To the queue, after a while.
    Later(String, Duration),
    /// To the parked ones.
    Parked(Parked),
}

/// What was found of tasks that nobody runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the queue.
    Queue,
    /// Due later.
    Later,
    /// Given up.
    Parked,
}

impl Queue {
    /// The queue of a configuration, over connections that are there.
    pub fn new(redis: Redis, config: &config::Config) -> Self {
        Self {
            redis,
            keys: Keys::new(&config.redis.key_prefix),
            scripts: std::sync::Arc::new(Scripts {
                enqueue: Script::new(include_str!("enqueue.lua")),
                hold: Script::of_one_key(include_str!("hold.lua")),
                keep: Script::of_one_key(include_str!("keep.lua")),
                begun: Script::of_one_key(include_str!("begun.lua")),
                tell: Script::of_one_key(include_str!("tell.lua")),
                alone: Script::of_one_key(include_str!("alone.lua")),
                moved: Script::new(include_str!("move.lua")),
                tend: Script::new(include_str!("tend.lua")),
                retry: Script::new(include_str!("retry.lua")),
            }),
            max_waiting: config.tasks.max_waiting,
        }
    }

    /// Puts work into the queue.
    pub async fn enqueue(&self, work: &Work, when: When) -> RedisResult<Enqueued> {
        let task = Task::new(work, jiff::Timestamp::now().as_millisecond());
        self.put(&task, work, when).await
    }

    /// Puts a task, made of `work`, into the queue. It may be put again when the answer was lost: it is there once.
    pub async fn put(&self, task: &Task, work: &Work, when: When) -> RedisResult<Enqueued> {
        let keys = &self.keys;
        let refresh = is_refresh(&task.kind);
        let status = Status {
            state: "waiting".to_owned(),
            at: task.enqueued_at,
            ..Status::of(task)
        };
        let mut call = self.scripts.enqueue.call(6);
        call.arg(keys.task_queue())
            .arg(keys.tasks_later())
            .arg(work.waiting_key(keys))
            .arg(keys.task_leases())
            .arg(keys.task_refreshes())
            .arg(keys.task_status(&task.id))
            .arg(task.text())
            .arg(&task.id)
            .arg(self.max_waiting)
            .arg(if refresh {
                TASK_WAITING_TTL_SECONDS
            } else {
                TASK_STATUS_TTL_SECONDS
            })
            .arg(u8::from(when == When::Served));
        if refresh {
            call.arg((self.max_waiting / REFRESHES_PART).max(1)).arg("");
        } else {
            call.arg("").arg(text_of(&status));
        }
        call.arg(TASK_STATUS_TTL_SECONDS);
        let answer: String = self.scripted(&self.scripts.enqueue, call).await?;
        Ok(match answer.split_once(':') {
            Some(("waiting", id)) => Enqueued::Waiting(id.to_owned()),
            Some(("full", count)) => Enqueued::Full(count.parse().unwrap_or(0)),
            _ if answer == "nobody" => Enqueued::Nobody,
            _ => Enqueued::Queued(task.id.clone()),
        })
    }

    /// Takes or renews a worker's lease; false if `held`, a task and its text, is no longer its own.
    pub(super) async fn hold(
        &self,
        worker: &str,
        lease: Duration,
        held: Option<(&Task, &[u8])>,
    ) -> RedisResult<bool> {
        let mut call = self.scripts.hold.call(1);
        call.arg(self.keys.task_leases())
            .arg(worker)
            .arg(lease.as_millis() as u64);
        self.scripted::<i64>(&self.scripts.hold, call).await?;
        let Some((task, text)) = held else {
            return Ok(true);
        };
        // Only now: whoever takes a task out of this list looks at the lease in the same step, and finds it from here on.
        if !self.processing(worker).await?.iter().any(|kept| kept == text) {
            return Ok(false);
        }
        self.waits_no_longer(task).await?;
        self.still_alone(worker, lease, task).await?;
        if is_refresh(&task.kind) {
            let mut begun = cmd("ZREM");
            begun.arg(self.keys.task_refreshes()).arg(&task.id);
            self.redis.command::<i64>(&begun).await?;
        }
        Ok(true)
    }

    /// Gives a task another text in a worker's own list. False if it was not there.
    pub(super) async fn keep(&self, worker: &str, text: &[u8], anew: &str) -> RedisResult<bool> {
        let mut call = self.scripts.keep.call(1);
        call.arg(self.keys.tasks_processing(worker)).arg(text).arg(anew);
        Ok(self.scripted::<i64>(&self.scripts.keep, call).await? == 0)
    }

    /// Takes the next task over `blocking`, a connection of the worker's own; none if there was none for a while.
    pub(super) async fn take(&self, blocking: &Redis, worker: &str) -> RedisResult<Option<Vec<u8>>> {
        let mut take = cmd("BLMOVE");
        take.arg(self.keys.task_queue())
            .arg(self.keys.tasks_processing(worker))
            .arg("RIGHT")
            .arg("LEFT")
            .arg(BLOCK.as_secs());
        blocking.command(&take).await
    }

    /// What the server of the queue knows `blocking` by.
    pub(super) async fn client(&self, blocking: &Redis) -> RedisResult<Client> {
        blocking.client(&self.keys.task_queue()).await
    }

    /// Ends what that connection waits for. False if it waits for nothing.
    pub(super) async fn unblock(&self, client: &Client) -> RedisResult<bool> {
        self.redis.unblock(client).await
    }

    /// What is in a worker's processing list.
    pub(super) async fn processing(&self, worker: &str) -> RedisResult<Vec<Vec<u8>>> {
        self.bytes(&self.keys.tasks_processing(worker)).await
    }

    /// Moves a task out of a worker's list, and in the same step tells what became of it. False if it was not there.
    pub(super) async fn moved(
        &self,
        (worker, whose): (&str, Whose),
        text: &[u8],
        to: To,
        told: Option<&Status>,
    ) -> RedisResult<bool> {
        let keys = &self.keys;
        let (name, put, delay) = match to {
            To::Done => ("done", String::new(), Duration::ZERO),
            To::Next(text) => ("next", text, Duration::ZERO),
            To::Later(text, delay) => ("later", text, delay),
            To::Parked(parked) => (
                "parked",
                serde_json::to_string(&parked).unwrap_or_default(),
                Duration::ZERO,
            ),
        };
        let mut call = self.scripts.moved.call(6);
        call.arg(keys.tasks_processing(worker))
            .arg(keys.task_leases())
            .arg(keys.task_queue())
            .arg(keys.tasks_later())
            .arg(keys.tasks_parked())
            .arg(keys.task_status(told.map_or("", |status| &status.id)))
            .arg(if whose == Whose::Dead { worker } else { "" })
            .arg(text)
            .arg(name)
            .arg(put)
            .arg(delay.as_millis() as u64)
            .arg(PARKED_TASKS)
            .arg(PARKED_TTL_SECONDS)
            .arg(told.map(text_of).unwrap_or_default())
            .arg(TASK_STATUS_TTL_SECONDS);
        let gone: i64 = self.scripted(&self.scripts.moved, call).await?;
        if gone > 0 {
            tracing::warn!(tasks = gone, "the oldest parked tasks had to go for newer ones");
        }
        Ok(gone >= 0)
    }

    /// Puts what is due into the queue, and forgets dead workers that have nothing left. Answers the dead ones that may
    /// have something.
    pub(super) async fn tend(&self) -> RedisResult<Vec<String>> {
        let keys = &self.keys;
        let leases = self.leases().await?;
        let mut call = self.scripts.tend.call(3 + leases.len());
        call.arg(keys.task_queue())
            .arg(keys.tasks_later())
            .arg(keys.task_leases());
        for (worker, _) in &leases {
            call.arg(keys.tasks_processing(worker));
        }
        call.arg(FORGOTTEN_AFTER.as_millis() as u64);
        for (worker, _) in &leases {
            call.arg(worker);
        }
        let now: String = self.scripted(&self.scripts.tend, call).await?;
        let now: i64 = now.parse().unwrap_or(i64::MIN);
        let dead = leases.into_iter().filter(|(_, deadline)| *deadline <= now);
        Ok(dead.map(|(worker, _)| worker).collect())
    }

    /// Each worker with its lease's end, ms by Redis's clock.
    async fn leases(&self) -> RedisResult<Vec<(String, i64)>> {
        self.scored(&self.keys.task_leases()).await
    }

    /// Puts a task that nobody runs into the queue again, in the form `anew`, or drops it without one. False if it was
    /// not there, none if the queue is full.
    /// In the same step `told` is told of it.
    pub async fn again(
        &self,
        place: Place,
        text: &str,
        anew: Option<&Task>,
        told: Option<&Status>,
    ) -> RedisResult<Option<bool>> {
        let keys = &self.keys;
        let mut call = self.scripts.retry.call(5);
        call.arg(keys.task_queue())
            .arg(keys.tasks_later())
            .arg(keys.tasks_parked())
            .arg(keys.task_refreshes())
            .arg(keys.task_status(told.map_or("", |status| &status.id)))
            .arg(match place {
                Place::Queue => "queue",
                Place::Later => "later",
                Place::Parked => "parked",
            })
            .arg(text)
            .arg(anew.map(Task::text).unwrap_or_default())
            .arg(self.max_waiting)
            .arg(Task::parse(text.as_bytes()).map_or(String::new(), |task| task.id))
            .arg(told.map(text_of).unwrap_or_default())
            .arg(TASK_STATUS_TTL_SECONDS);
        let answer: i64 = self.scripted(&self.scripts.retry, call).await?;
        Ok((answer >= 0).then_some(answer == 1))
    }

    /// A task that waits no longer stands for no others.
    pub async fn waits_no_longer(&self, task: &Task) -> RedisResult<()> {
        if let Ok(work) = task.work() {
            self.names_no_longer(&work.waiting_key(&self.keys), &task.id)
                .await?;
        }
        Ok(())
    }

    async fn names_no_longer(&self, key: &str, named: &str) -> RedisResult<()> {
        let mut call = self.scripts.begun.call(1);
        call.arg(key).arg(named);
        self.scripted::<i64>(&self.scripts.begun, call).await.map(|_| ())
    }

    /// Tells how far a task has come, unless what became of it is told already.
    pub async fn tell(&self, status: &Status) -> RedisResult<()> {
        let mut call = self.scripts.tell.call(1);
        call.arg(self.keys.task_status(&status.id))
            .arg(text_of(status))
            .arg(TASK_STATUS_TTL_SECONDS);
        self.scripted::<i64>(&self.scripts.tell, call).await.map(|_| ())
    }

    /// What was told last of a task.
    pub async fn told(&self, id: &str) -> RedisResult<Option<Status>> {
        let text: Option<String> = self
            .redis
            .command(cmd("GET").arg(self.keys.task_status(id)))
            .await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    async fn bytes(&self, key: &str) -> RedisResult<Vec<Vec<u8>>> {
        self.redis.command(cmd("LRANGE").arg(key).arg(0).arg(-1)).await
    }

    async fn scored(&self, key: &str) -> RedisResult<Vec<(String, i64)>> {
        let all: Vec<(String, f64)> = self
            .redis
            .command(cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES"))
            .await?;
        Ok(all
            .into_iter()
            .map(|(name, score)| (name, score as i64))
            .collect())
    }

    async fn scripted<T: FromRedisValue>(&self, script: &Script, call: Cmd) -> RedisResult<T> {
        let mut pipe = ::redis::pipe();
        pipe.add_command(call);
        let answers = self.redis.scripted(&[script], &pipe).await?;
        Ok(T::from_redis_value(
            answers.into_iter().next().unwrap_or(Value::Nil),
        )?)
    }
}

/// As it stands in Redis.
fn text_of(status: &Status) -> String {
    // Texts and numbers: nothing in it can fail to be JSON.
    serde_json::to_string(status).unwrap_or_default()
}
