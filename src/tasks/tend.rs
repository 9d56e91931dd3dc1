//! What every process with the role `tasks` does for all: tasks that are due come into the queue, and tasks of the dead to
//! those that live.
//!
//! Several do it at once. Each step is a script that looks at Redis's clock once more, so each task is moved once.

use std::time::Duration;

use ::redis::RedisResult;
use tokio::time::{MissedTickBehavior, interval};

use super::queue::{Queue, To, Whose};
use super::runner::parked;
use super::task::{Status, Task, is_refresh, known_kind};
use crate::redis::told::logged;
use crate::telemetry::{self, TaskOutcome, metrics};

/// At the most between two looks; a short lease is looked after more often.
const LONGEST: Duration = Duration::from_secs(2);

/// Tends until it is dropped.
pub(super) async fn tend(queue: &Queue, lease: Duration, max_attempts: u32) {
    let mut ticks = interval((lease / 4).min(LONGEST));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fails = false;
    loop {
        ticks.tick().await;
        let tended = once(queue, max_attempts).await;
        // The first failure of an outage: all others say the same.
        if let Err(error) = &tended
            && !fails
        {
            tracing::warn!(
                service = "redis",
                error = logged(error),
                "tasks cannot be tended; trying again"
            );
        }
        fails = tended.is_err();
    }
}

async fn once(queue: &Queue, max_attempts: u32) -> RedisResult<()> {
    for worker in queue.tend().await? {
        for text in queue.processing(&worker).await? {
            let dead = after_death(&worker, &text, max_attempts);
            let (kind, outcome) = (dead.kind, dead.outcome);
            let theirs = (worker.as_str(), Whose::Dead);
            if queue.moved(theirs, &text, dead.to, dead.told.as_ref()).await? {
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

/// What becomes of a dead worker's task.
struct Dead {
    to: To,
    kind: &'static str,
    outcome: TaskOutcome,
    told: Option<Status>,
}

/// A death is an attempt, if the task had begun: one that kills its processes must not do so for ever. One that landed at a
/// process that was dead already has harmed nobody.
fn after_death(worker: &str, text: &[u8], max_attempts: u32) -> Dead {
    let mut task = match Task::parse(text) {
        Ok(task) => task,
        Err(error) => {
            let shown = String::from_utf8_lossy(text);
            return Dead {
                to: To::Parked(parked(&shown, &error)),
                kind: known_kind(""),
                outcome: TaskOutcome::Parked,
                told: None,
            };
        }
    };
    let begun = task.worker.take().is_some_and(|by| by == worker);
    task.attempts += u32::from(begun);
    let kind = known_kind(&task.kind);
    if is_refresh(&task.kind) {
        let (to, outcome) = if begun {
            (To::Done, TaskOutcome::Dropped)
        } else {
            (To::Next(task.text()), TaskOutcome::Redelivered)
        };
        let told = None;
        return Dead {
            to,
            kind,
            outcome,
            told,
        };
    }
    let mut told = Status {
        at: jiff::Timestamp::now().as_millisecond(),
        ..Status::of(&task)
    };
    let (to, outcome, state) = if task.attempts >= max_attempts {
        let error = "its process died";
        told.error = Some(error.to_owned());
        let to = To::Parked(parked(&task.text(), error));
        (to, TaskOutcome::Parked, "parked")
    } else {
        (To::Next(task.text()), TaskOutcome::Redelivered, "waiting")
    };
    state.clone_into(&mut told.state);
    Dead {
        to,
        kind,
        outcome,
        told: Some(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::task::{Query, Token, Work};

    #[test]
    fn a_task_that_kills_its_processes_is_parked_in_the_end() {
        let token = "t".to_owned();
        let mut task = Task::new(&Work::WarmCache(Token { token }), 1);
        for attempts in 1..3 {
            // Taken twice, begun once.
            task.worker = None;
            for (begun, expected) in [(None, attempts - 1), (Some("w".to_owned()), attempts)] {
                task.worker = begun;
                let To::Next(next) = after_death("w", task.text().as_bytes(), 3).to else {
                    panic!("{task:?}");
                };
                task = Task::parse(next.as_bytes()).unwrap();
                assert_eq!((task.attempts, &task.worker), (expected, &None));
            }
        }
        task.worker = Some("w".to_owned());
        let dead = after_death("w", task.text().as_bytes(), 3);
        assert!(matches!(dead.to, To::Parked(_)));
        assert_eq!(dead.told.unwrap().state, "parked");
        assert!(matches!(after_death("w", b"\xff", 3).to, To::Parked(_)));
    }

    #[test]
    fn a_refresh_that_had_begun_dies_with_its_process() {
        let (token, query) = ("t".to_owned(), "{}".to_owned());
        let mut task = Task::new(&Work::RefreshQuery(Query { token, query }), 1);
        let dead = after_death("w", task.text().as_bytes(), 3);
        assert!(matches!(dead.to, To::Next(_)) && dead.told.is_none());
        task.worker = Some("w".to_owned());
        let dead = after_death("w", task.text().as_bytes(), 3);
        assert!(matches!(dead.to, To::Done) && dead.told.is_none());
        assert_eq!(dead.outcome, TaskOutcome::Dropped);
    }
}
