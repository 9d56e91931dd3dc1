//! What every process with the role `tasks` does for all: tasks that are due come into the queue, and tasks of the dead to
//! those that live.
//!
//! Several do it at once. Each step is a script that looks at Redis's clock once more, so each task is moved once.

use std::time::Duration;

use ::redis::RedisResult;
use tokio::time::{MissedTickBehavior, interval};

use super::queue::{Queue, To};
use super::runner::parked;
use super::task::{Status, Task, known_kind};
use crate::telemetry::{self, TaskOutcome, metrics};

/// At the most between two looks; a short lease is looked after more often.
const LONGEST: Duration = Duration::from_secs(2);

/// Tends until it is dropped.
pub(super) async fn tend(queue: &Queue, lease: Duration, max_attempts: u32) {
    let mut ticks = interval((lease / 4).min(LONGEST));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = once(queue, max_attempts).await {
            tracing::warn!(service = "redis", error = %error, "tasks cannot be tended");
        }
    }
}

async fn once(queue: &Queue, max_attempts: u32) -> RedisResult<()> {
    for worker in queue.tend().await? {
        for text in queue.processing(&worker).await? {
            let (to, kind) = after_death(&worker, &text, max_attempts);
            let (outcome, state, error) = match &to {
                To::Parked(parked) => (TaskOutcome::Parked, "parked", Some(parked.error.clone())),
                _ => (TaskOutcome::Redelivered, "waiting", None),
            };
            let attempts = match &to {
                To::Next(text) => Task::parse(text.as_bytes()).map_or(0, |task| task.attempts),
                _ => max_attempts,
            };
            if queue.moved(&worker, true, &text, to).await? {
                if let Ok(task) = Task::parse(&text) {
                    let status = Status {
                        id: task.id,
                        kind: task.kind,
                        state: state.to_owned(),
                        attempts,
                        error,
                        at: jiff::Timestamp::now().as_millisecond(),
                        ..Status::default()
                    };
                    queue.tell(&status).await?;
                }
                telemetry::task_ended(kind, outcome, None);
                tracing::warn!(
                    worker,
                    kind,
                    outcome = outcome.name(),
                    "a tasks worker died with its task"
                );
            }
        }
    }
    let (waiting, parked) = queue.counts().await?;
    metrics().tasks_waiting.set(waiting as f64);
    metrics().tasks_parked.set(parked as f64);
    Ok(())
}

/// A death is an attempt, if the task had begun: one that kills its processes must not do so for ever. One that landed at a
/// process that was dead already has harmed nobody.
fn after_death(worker: &str, text: &[u8], max_attempts: u32) -> (To, &'static str) {
    match Task::parse(text) {
        Ok(mut task) => {
            task.attempts += u32::from(task.worker.take().is_some_and(|by| by == worker));
            let kind = known_kind(&task.kind);
            if task.attempts >= max_attempts {
                (To::Parked(parked(&task.text(), "its process died")), kind)
            } else {
                (To::Next(task.text()), kind)
            }
        }
        Err(error) => {
            let shown = String::from_utf8_lossy(text);
            (To::Parked(parked(&shown, &error)), known_kind(""))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::task::{Token, Work};

    #[test]
    fn a_task_that_kills_its_processes_is_parked_in_the_end() {
        let token = "t".to_owned();
        let mut task = Task::new(&Work::WarmCache(Token { token }), 1);
        for attempts in 1..3 {
            // Taken twice, begun once.
            task.worker = None;
            for (begun, expected) in [(None, attempts - 1), (Some("w".to_owned()), attempts)] {
                task.worker = begun;
                let (To::Next(next), "warm-cache") = after_death("w", task.text().as_bytes(), 3) else {
                    panic!("{task:?}");
                };
                task = Task::parse(next.as_bytes()).unwrap();
                assert_eq!((task.attempts, &task.worker), (expected, &None));
            }
        }
        task.worker = Some("w".to_owned());
        assert!(matches!(
            after_death("w", task.text().as_bytes(), 3).0,
            To::Parked(_)
        ));
        assert!(matches!(after_death("w", b"\xff", 3).0, To::Parked(_)));
    }
}
