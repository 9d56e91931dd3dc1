//! A tasks worker: takes a task, holds its lease while it runs, and says how it ended.
//!
//! It runs one task at a time, so its lease is its task's. Invariant: a task leaves its list only when it is done, given
//! back, to be tried again, or parked, and what became of it is told in the same step; and if the lease ended meanwhile,
//! whoever has the task now decides, and not this one. (A refresh leaves nothing behind: one that fails is dropped and
//! counted, for whoever asks for its result next has it made anew.) What tasks do tolerates being done twice, also at once: a lease cannot keep a process that was frozen from
//! finishing its last step.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ::redis::RedisResult;
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Doer;
use super::held::{Held, TaskError, failed};
use super::queue::{Queue, To, Whose};
use super::task::{Parked, Status, Task, Work, is_refresh, known_kind};
use crate::redis::told::logged;
use crate::redis::{Client, Redis};
use crate::telemetry::{self, TaskOutcome, metrics};

/// Before a task that failed is tried again: this, and four times as long after each further failure.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_mins(5);
/// Before it is looked again whether a task that must wait for another may begin.
const BEHIND: Duration = Duration::from_secs(2);
/// Before Redis is asked again after it failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the last word on a task may take at the end of the process.
const LAST_WORD: Duration = Duration::from_secs(3);

/// One tasks worker.
pub(super) struct Runner {
    pub(super) queue: Queue,
    /// A connection of its own.
    pub(super) blocking: Redis,
    pub(super) name: String,
    pub(super) lease: Duration,
    pub(super) max_attempts: u32,
    /// How long a task may go on once the process is to end.
    pub(super) drain: Duration,
    pub(super) doer: Arc<Doer>,
    pub(super) shutdown: CancellationToken,
}

/// How a task came to its end here.
enum End {
    Ended(Result<(), TaskError>),
    GivenBack,
}

impl Runner {
    /// Takes and runs tasks until shutdown.
    pub(super) async fn run(&self) {
        self.take_and_run().await;
        // The lease ends now, and whoever tends takes what may land in the last moment. If this fails it ends by itself.
        let leave = self.queue.hold(&self.name, Duration::ZERO, None);
        drop(timeout(LAST_WORD, leave).await);
    }

    async fn take_and_run(&self) {
        let mut fails = false;
        while !self.shutdown.is_cancelled() {
            let client = OnceLock::new();
            let taking = self.take(&client);
            tokio::pin!(taking);
            let taken = tokio::select! {
                taken = &mut taking => taken,
                () = self.shutdown.cancelled() => {
                    return self.stop_taking(client.get(), taking).await;
                }
            };
            // The first failure of an outage is told: all others say the same.
            let failed_before = std::mem::replace(&mut fails, taken.is_err());
            match taken {
                Ok(Some(text)) => self.one(text).await,
                Ok(None) => {}
                Err(error) => {
                    if !failed_before {
                        tracing::warn!(
                            service = "redis",
                            error = logged(&error),
                            "no task can be taken; trying again"
                        );
                    }
                    tokio::select! {
                        () = self.shutdown.cancelled() => return,
                        () = sleep(PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Ends the waiting for a task at the server, too: else this process would be given one while it ends, perhaps the
    /// very one that it gave back. One that came in the last moment goes back. Where this fails, the lease ends.
    async fn stop_taking(
        &self,
        client: Option<&Client>,
        taking: impl Future<Output = RedisResult<Option<Vec<u8>>>>,
    ) {
        let last = async {
            if let Some(client) = client {
                self.queue.unblock(client).await.ok()?;
            }
            String::from_utf8(taking.await.ok()??).ok()
        };
        if let Ok(Some(text)) = timeout(LAST_WORD, last).await {
            let to = To::Next(text.clone());
            self.move_it(text.as_bytes(), to, None).await;
        }
    }

    /// The next task, if one comes in time. The lease is held while it is waited for, so that a task is nobody's prey in
    /// the moment in which it lands.
    async fn take(&self, client: &OnceLock<Client>) -> RedisResult<Option<Vec<u8>>> {
        // What landed when the answer was lost.
        if let Some(left) = self.queue.processing(&self.name).await?.into_iter().next() {
            return Ok(Some(left));
        }
        self.queue.hold(&self.name, self.lease, None).await?;
        let own = self.queue.client(&self.blocking).await?;
        client.get_or_init(|| own);
        let renewing = async {
            let mut ticks = self.ticks();
            loop {
                ticks.tick().await;
                if let Err(error) = self.queue.hold(&self.name, self.lease, None).await {
                    return error;
                }
            }
        };
        tokio::select! {
            taken = self.queue.take(&self.blocking, &self.name) => taken,
            error = renewing => Err(error),
        }
    }

    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = interval(self.lease / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    async fn one(&self, text: Vec<u8>) {
        let task = match Task::parse(&text) {
            Ok(task) => task,
            Err(error) => return self.park_unread(&text, error).await,
        };
        let work = task.work();
        if let Ok(work) = &work {
            match self.queue.alone(&self.name, self.lease, (&task, work)).await {
                Ok(None) => {}
                Ok(Some(other)) => return self.put_behind(&other, &task, &text).await,
                Err(error) => {
                    // It stays where it is, and is found there.
                    tracing::warn!(service = "redis", error = %error, "a task cannot begin; trying again");
                    tokio::select! {
                        () = self.shutdown.cancelled() => {}
                        () = sleep(PAUSE) => {}
                    }
                    return;
                }
            }
        }
        let begun = Instant::now();
        let held = Held::new(self.queue.clone(), self.name.clone(), task.clone(), text);
        tracing::info!(
            id = task.id,
            kind = task.kind,
            attempts = task.attempts,
            "task begins"
        );
        metrics().tasks_running.increment(1);
        let end = match work {
            Ok(work) => self.attempt(&work, &held).await,
            Err(error) => End::Ended(Err(TaskError::Hopeless(error))),
        };
        metrics().tasks_running.decrement(1);
        let outcome = self.settle(&held, end).await;
        // Where this fails, whoever comes next sees that the task has gone.
        self.queue.alone_no_longer(&self.name, &task).await.ok();
        if let Some(outcome) = outcome {
            telemetry::task_ended(known_kind(&task.kind), outcome, Some(begun.elapsed()));
            tracing::info!(
                id = task.id,
                kind = task.kind,
                outcome = outcome.name(),
                seconds = begun.elapsed().as_secs_f64(),
                "task ended"
            );
        }
    }

    /// The same is done by another task just now: this one waits, and takes in what was changed since that one began.
    async fn put_behind(&self, other: &str, task: &Task, text: &[u8]) {
        tracing::debug!(id = task.id, other, "a task waits for another that does the same");
        // Of two with one id nothing is told but what becomes of the one that runs.
        let told = (other != task.id).then(|| Status {
            state: "waiting".to_owned(),
            at: Timestamp::now().as_millisecond(),
            ..Status::of(task)
        });
        // As it stands: it has not begun, and goes on waiting under the same name.
        let stands = String::from_utf8(text.to_vec()).unwrap_or_else(|_| task.text());
        self.move_it(text, To::Later(stands, BEHIND), told.as_ref()).await;
    }

    /// Runs it, with its lease held, until it ends, is lost, or the process may wait no longer.
    async fn attempt(&self, work: &Work, held: &Held) -> End {
        let drained = async {
            self.shutdown.cancelled().await;
            sleep(self.drain).await;
        };
        let working = async {
            // Before anything is done: between the taking and this, it may have been given to somebody else.
            if !held.begin().await? || !held.renew(self.lease).await.map_err(failed)? {
                return Err(TaskError::Lost);
            }
            held.tell(0, None).await;
            self.doer.work(work, held).await
        };
        let working = AssertUnwindSafe(working).catch_unwind();
        // Beside the work and not between its steps: both lock what is held.
        let lost = async {
            let mut ticks = self.ticks();
            loop {
                ticks.tick().await;
                match held.renew(self.lease).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(service = "redis", error = %error, "a lease cannot be renewed");
                    }
                }
            }
        };
        tokio::select! {
            ended = working => {
                let panicked = |_| Err(TaskError::Failed("it panicked; the log says where".to_owned()));
                End::Ended(ended.unwrap_or_else(panicked))
            }
            () = lost => End::Ended(Err(TaskError::Lost)),
            () = drained => End::GivenBack,
        }
    }

    /// Moves the task to where it belongs now.
    async fn settle(&self, held: &Held, end: End) -> Option<TaskOutcome> {
        let (mut task, text) = held.state().await;
        task.worker = None;
        let (to, outcome, state, error) = match end {
            End::Ended(Ok(())) => (To::Done, TaskOutcome::Done, "done", None),
            End::GivenBack => (To::Next(task.text()), TaskOutcome::GivenBack, "waiting", None),
            End::Ended(Err(TaskError::Lost)) => {
                tracing::warn!(
                    id = task.id,
                    "a lease ended while its task ran; another worker has it"
                );
                return None;
            }
            End::Ended(Err(error)) => {
                let told = error.to_string();
                let hopeless = matches!(error, TaskError::Hopeless(_));
                tracing::warn!(id = task.id, kind = task.kind, error = told, "a task failed");
                let (to, outcome, state) = self.after_failure(&mut task, hopeless, &told);
                (to, outcome, state, Some(told))
            }
        };
        let status =
            (!is_refresh(&task.kind)).then(|| held.last_word(state, task.attempts, error.as_deref()));
        self.move_it(&text, to, status.as_ref()).await.then_some(outcome)
    }

    fn after_failure(&self, task: &mut Task, hopeless: bool, error: &str) -> (To, TaskOutcome, &'static str) {
        task.attempts += 1;
        if is_refresh(&task.kind) {
            (To::Done, TaskOutcome::Dropped, "dropped")
        } else if hopeless || task.attempts >= self.max_attempts {
            let parked = parked(&task.text(), error);
            (To::Parked(parked), TaskOutcome::Parked, "parked")
        } else {
            let later = To::Later(task.text(), delay(task.attempts));
            (later, TaskOutcome::Retried, "retrying")
        }
    }

    /// Moves it, however often Redis must be asked; whatever it lands on at the end, its lease ends.
    async fn move_it(&self, text: &[u8], to: To, told: Option<&Status>) -> bool {
        let moving = async {
            loop {
                match self
                    .queue
                    .moved((&self.name, Whose::Own), text, to.clone(), told)
                    .await
                {
                    Ok(moved) => return moved,
                    Err(error) => {
                        tracing::warn!(service = "redis", error = %error, "a task cannot be settled; trying again");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        // Meanwhile it stays its own: a slot that moves holds up what moves tasks, and not what holds them.
        let holding = async {
            let mut ticks = self.ticks();
            ticks.reset();
            loop {
                ticks.tick().await;
                self.queue.hold(&self.name, self.lease, None).await.ok();
            }
        };
        let too_late = async {
            self.shutdown.cancelled().await;
            sleep(LAST_WORD + self.drain).await;
        };
        tokio::select! {
            moved = moving => moved,
            () = too_late => false,
            never = holding => never,
        }
    }

    async fn park_unread(&self, text: &[u8], error: String) {
        tracing::warn!(error, "a task cannot be read; it is parked");
        let shown = String::from_utf8_lossy(text);
        if self.move_it(text, To::Parked(parked(&shown, &error)), None).await {
            telemetry::task_ended(known_kind(""), TaskOutcome::Parked, None);
        }
    }
}

/// Before the next attempt.
fn delay(attempts: u32) -> Duration {
    let times = 4_u32.saturating_pow(attempts.saturating_sub(1));
    FIRST_DELAY.saturating_mul(times).min(LONGEST_DELAY)
}

pub(super) fn parked(task: &str, error: &str) -> Parked {
    Parked {
        task: task.to_owned(),
        error: error.to_owned(),
        parked_at: Timestamp::now().as_millisecond(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_and_ends_growing() {
        let delays: Vec<u64> = [1, 2, 3, 4, 5, 6, 100].map(|n| delay(n).as_secs()).into();
        assert_eq!(delays, [1, 4, 16, 64, 256, 300, 300]);
    }
}
