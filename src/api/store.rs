//! Redis as the API uses it: little patience, and a failure is a problem that names the service.

use std::future::Future;
use std::time::Duration;

use ::redis::{Pipeline, RedisResult, Value};

use super::problem::Problem;
use crate::redis::{Redis, Script};
use crate::telemetry::Service;

/// A worker's block may wait ten seconds for Redis; somebody who looks at a page may not.
const PATIENCE: Duration = Duration::from_secs(2);

/// The Redis of the state.
#[derive(Clone, Debug)]
pub(super) struct Store(Redis);

impl Store {
    pub(super) fn new(redis: Redis) -> Self {
        Self(redis)
    }

    /// Sends all commands in one round trip; one answer each.
    pub(super) async fn pipeline(&self, pipe: &Pipeline) -> Result<Vec<Value>, Problem> {
        within(PATIENCE, self.0.pipeline(pipe))
            .await
            .ok_or_else(unavailable)
    }

    /// Sends calls of `script`.
    pub(super) async fn scripted(&self, script: &Script, pipe: &Pipeline) -> Result<Vec<Value>, Problem> {
        within(PATIENCE, self.0.scripted(&[script], pipe))
            .await
            .ok_or_else(unavailable)
    }
}

fn unavailable() -> Problem {
    Problem::unavailable(Service::Redis)
}

/// The answer, if there is one in time. What went wrong is logged here and told to nobody.
pub(super) async fn within<T>(patience: Duration, call: impl Future<Output = RedisResult<T>>) -> Option<T> {
    let error = match tokio::time::timeout(patience, call).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::warn!(service = "redis", error, "a request went without a service");
    None
}
