//! A task that this process runs: what it keeps of it in the list, and what it tells of it.
//!
//! Owns the task's text while it is held: whoever changes it does so here, in one step with what stands in Redis. Never
//! decides what becomes of the task: that is the runner's.

use std::sync::Arc;
use std::time::Duration;

use ::redis::RedisResult;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Mutex;

use super::queue::Queue;
use super::task::{Status, Task, Users, is_refresh};

/// Why a task was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// Trying again would end as this did.
    #[error("{0}")]
    Hopeless(String),
    /// It may succeed another time.
    #[error("{0}")]
    Failed(String),
    /// Somebody else has it.
    #[error("the task was given to another worker")]
    Lost,
}

/// What went wrong, as a reason to try again.
pub(super) fn failed(error: impl std::fmt::Display) -> TaskError {
    TaskError::Failed(error.to_string())
}

/// A task that this process runs.
#[derive(Debug)]
pub(super) struct Held {
    queue: Queue,
    worker: String,
    /// The task, and its text as it stands in the list.
    state: Arc<Mutex<(Task, Vec<u8>)>>,
    status: std::sync::Mutex<Status>,
}

impl Held {
    pub(super) fn new(queue: Queue, worker: String, task: Task, text: Vec<u8>) -> Self {
        let status = Status {
            state: "running".to_owned(),
            since: Some(Timestamp::now().as_millisecond()),
            ..Status::of(&task)
        };
        Self {
            queue,
            worker,
            state: Arc::new(Mutex::new((task, text))),
            status: std::sync::Mutex::new(status),
        }
    }

    /// The task, and its text as it stands in the list.
    pub(super) async fn state(&self) -> (Task, Vec<u8>) {
        self.state.lock().await.clone()
    }

    /// Where an attempt before this one was, if it said so in a form that is still known.
    pub(super) async fn progress<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let state = self.state.lock().await;
        serde_json::from_str(state.0.progress.as_ref()?.get()).ok()
    }

    /// Keeps `progress` with the task: whoever goes on with it begins there, and may fail as often as at the beginning.
    pub(super) async fn keep(&self, progress: &impl Serialize) -> Result<(), TaskError> {
        let progress: Box<RawValue> = to_raw_value(progress).map_err(failed)?;
        if self
            .rewrite(|task| (task.progress, task.attempts) = (Some(progress), 0))
            .await?
        {
            Ok(())
        } else {
            Err(TaskError::Lost)
        }
    }

    /// Notes that this worker has begun, and so has tried. False if the task is no longer its own.
    pub(super) async fn begin(&self) -> Result<bool, TaskError> {
        self.rewrite(|task| task.worker = Some(self.worker.clone())).await
    }

    /// Changes the task where it stands. False if it is no longer there.
    async fn rewrite(&self, change: impl FnOnce(&mut Task)) -> Result<bool, TaskError> {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        let mut task = state.0.clone();
        change(&mut task);
        let (queue, worker) = (self.queue.clone(), self.worker.clone());
        // To its end, also where the work is broken off meanwhile: what stands in the list must be known to whoever moves it.
        let rewriting = tokio::spawn(async move {
            let text = task.text();
            let rewritten = queue.keep(&worker, &state.1, &text).await?;
            if rewritten {
                *state = (task, text.into_bytes());
            }
            RedisResult::Ok(rewritten)
        });
        rewriting.await.map_err(failed)?.map_err(failed)
    }

    /// Renews the lease. False if the task is no longer its own.
    pub(super) async fn renew(&self, lease: Duration) -> RedisResult<bool> {
        let state = self.state.lock().await;
        self.queue
            .hold(&self.worker, lease, Some((&state.0, &state.1)))
            .await
    }

    /// Tells how far it has come; that this fails holds up nothing. Of a refresh nobody asks that.
    pub(super) async fn tell(&self, done: u64, total: Option<u64>) {
        let status = self.change(|status| (status.done, status.total) = (done, total));
        if !is_refresh(&status.kind) {
            self.queue.tell(&status).await.ok();
        }
    }

    /// Notes what was done before this attempt, of how much, and tells it.
    pub(super) async fn goes_on_from(&self, done: u64, total: u64) {
        self.change(|status| status.before = done);
        self.tell(done, Some(total)).await;
    }

    /// Notes how many users could not be settled, and some of them: it is told with what is told next.
    pub(super) fn leaves(&self, left: u64, some: &[Users]) {
        self.change(|status| {
            status.left = left;
            status.left_users = some.to_vec();
        });
    }

    /// What is told of it at its end.
    pub(super) fn last_word(&self, state: &str, attempts: u32, error: Option<&str>) -> Status {
        self.change(|status| {
            state.clone_into(&mut status.state);
            status.attempts = attempts;
            status.error = error.map(str::to_owned);
        })
    }

    fn change(&self, change: impl FnOnce(&mut Status)) -> Status {
        let mut status = self
            .status
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut status);
        status.at = Timestamp::now().as_millisecond();
        status.clone()
    }
}
