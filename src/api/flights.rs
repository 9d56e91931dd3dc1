//! Requests for the same answer at the same time are answered by one piece of work.
//!
//! The work is a task of its own: it goes on, and fills the cache, though the caller that began it has gone.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::problem::{Kind, Problem};
use crate::telemetry::CacheLookup;

/// An answer, and whether the cache had it.
pub(super) type Outcome = Result<(CacheLookup, Bytes), Problem>;

type Flight = Shared<BoxFuture<'static, Outcome>>;
type Under = Arc<Mutex<HashMap<String, Flight>>>;

/// The work that is under way, by what it will answer.
#[derive(Default)]
pub(super) struct Flights(Under);

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights")
            .field("under_way", &lock(&self.0).len())
            .finish()
    }
}

impl Flights {
    /// The outcome of the work that is under way for `key`, or of `work`, which is begun if there is none.
    pub(super) async fn join(
        &self,
        key: &str,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> Outcome {
        let flight = {
            // Held while the task is begun, so that it cannot end before it is entered.
            let mut under_way = lock(&self.0);
            if let Some(flight) = under_way.get(key) {
                flight.clone()
            } else {
                let flight = begin(&self.0, key, work);
                under_way.insert(key.to_owned(), flight.clone());
                flight
            }
        };
        flight.await
    }
}

fn begin(under_way: &Under, key: &str, work: impl Future<Output = Outcome> + Send + 'static) -> Flight {
    let landing = Landing {
        under_way: Arc::clone(under_way),
        key: key.to_owned(),
    };
    let task = tokio::spawn(async move {
        let _landing = landing;
        work.await
    });
    task.map(|joined| joined.unwrap_or_else(|_| Err(broken())))
        .boxed()
        .shared()
}

/// Takes the entry out when the work ends, also by a panic.
struct Landing {
    under_way: Under,
    key: String,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}

fn lock(under_way: &Under) -> MutexGuard<'_, HashMap<String, Flight>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken() -> Problem {
    Problem::new(Kind::Internal, "the fault is not in the request; it was logged")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_who_ask_the_same_are_answered_by_one_piece_of_work() {
        let flights = Flights::default();
        let runs = Arc::new(AtomicU32::new(0));
        let ask = |key: &'static str| {
            let runs = Arc::clone(&runs);
            flights.join(key, async move {
                runs.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok((CacheLookup::Miss, Bytes::from_static(b"{}")))
            })
        };
        let answers = futures::future::join_all((0..50).map(|_| ask("a"))).await;
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().1 == "{}"));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert!(ask("a").await.is_ok() && ask("b").await.is_ok());
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert!(lock(&flights.0).is_empty());
    }

    #[tokio::test]
    async fn work_that_panics_is_a_problem_and_leaves_nothing_behind() {
        let flights = Flights::default();
        assert!(flights.join("a", async { panic!("on purpose") }).await.is_err());
        assert!(lock(&flights.0).is_empty());
    }
}
