//! Who does what only one task at a time may do. Moves nothing.
//!
//! A key in Redis names the task and its worker, for as long as a lease: renewed with it, given up at the task's end, and
//! forgotten by itself after a death. It keeps apart what was pushed by other programs as well, also under one id. It is
//! no fence: a process that was frozen, or a Redis that forgot the key, can bring two to run at once, which then are as
//! two rebuilds of which one has the other's users among its own: see the README.

use std::time::Duration;

use ::redis::RedisResult;

use super::Queue;
use crate::tasks::task::{Task, Work};

/// Stands between the task's id and its worker: in neither.
const BETWEEN: char = '/';

impl Queue {
    /// Begins with what only one task may do; else answers the id of the task that does it.
    pub(in crate::tasks) async fn alone(
        &self,
        worker: &str,
        lease: Duration,
        (task, work): (&Task, &Work),
    ) -> RedisResult<Option<String>> {
        if !work.is_done_alone() {
            return Ok(None);
        }
        let key = work.running_key(&self.keys);
        let own = name(task, worker);
        let mut other = self.hold_alone(&key, &own, lease, "").await?;
        if let Some((id, theirs)) = other.split_once(BETWEEN)
            && !self.has(theirs, id).await?
        {
            // It ended, or was given to somebody else, and could not say so.
            let ended = other.clone();
            other = self.hold_alone(&key, &own, lease, &ended).await?;
        }
        Ok(other.split_once(BETWEEN).map(|(id, _)| id.to_owned()))
    }

    /// The same for a task that runs. Where Redis forgot that it does, and another one has begun, both go on.
    pub(super) async fn still_alone(&self, worker: &str, lease: Duration, task: &Task) -> RedisResult<()> {
        if let Ok(work) = task.work()
            && work.is_done_alone()
        {
            let key = work.running_key(&self.keys);
            self.hold_alone(&key, &name(task, worker), lease, "").await?;
        }
        Ok(())
    }

    /// A task that has ended holds up no others.
    pub(in crate::tasks) async fn alone_no_longer(&self, worker: &str, task: &Task) -> RedisResult<()> {
        match task.work() {
            Ok(work) if work.is_done_alone() => {
                self.names_no_longer(&work.running_key(&self.keys), &name(task, worker))
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Answers nothing, or who holds it.
    async fn hold_alone(&self, key: &str, own: &str, lease: Duration, ended: &str) -> RedisResult<String> {
        let mut call = self.scripts.alone.call(1);
        call.arg(key).arg(own).arg(lease.as_millis() as u64).arg(ended);
        self.scripted(&self.scripts.alone, call).await
    }

    /// Whether a task is in a worker's list.
    async fn has(&self, worker: &str, id: &str) -> RedisResult<bool> {
        let texts = self.processing(worker).await?;
        Ok(texts
            .iter()
            .any(|text| Task::parse(text).is_ok_and(|task| task.id == id)))
    }
}

fn name(task: &Task, worker: &str) -> String {
    format!("{}{BETWEEN}{worker}", task.id)
}
