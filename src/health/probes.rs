//! What each service is asked: something small that it answers only when it can do its work.
//!
//! Reasons are shown to whoever asks `/readyz`, so they hold no text of a client library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clickhouse::{self, Client};
use crate::kafka::producer::Rejects;
use crate::redis::Redis;
use crate::telemetry::{Service, metrics};

/// Below the prober's own time-out, so that the client's reason is heard.
const KAFKA: Duration = Duration::from_millis(2500);

/// Asks Redis for its time, and compares clocks.
pub async fn redis(redis: Redis) -> Result<(), String> {
    let theirs = redis.time_ms().await.map_err(|error| {
        if error.is_io_error() {
            "it cannot be reached".to_owned()
        } else {
            error.category().to_owned()
        }
    })?;
    compare_clocks(Service::Redis, theirs);
    Ok(())
}

/// Asks `ClickHouse` for its time, and compares clocks.
pub async fn clickhouse(client: Client) -> Result<(), String> {
    let ask = client
        .query_raw("SELECT toUnixTimestamp64Milli(now64(3))")
        .fetch_one::<i64>();
    let theirs = ask.await.map_err(|error| match clickhouse::error::code(&error) {
        // UNKNOWN_DATABASE
        Some(81) => "the database does not exist (error 81)".to_owned(),
        // REQUIRED_PASSWORD, WRONG_PASSWORD, AUTHENTICATION_FAILED
        Some(code @ (193 | 194 | 516)) => format!("it refuses user or password (error {code})"),
        Some(code) => format!("it answers with error {code}"),
        None => "it cannot be reached".to_owned(),
    })?;
    compare_clocks(Service::ClickHouse, theirs);
    Ok(())
}

/// Asks a broker for the topic's partitions.
pub async fn kafka(rejects: Rejects, topic: String) -> Result<(), String> {
    match tokio::task::spawn_blocking(move || rejects.probe(&topic, KAFKA)).await {
        Ok(Ok(0)) => Err("the topic has no partitions".to_owned()),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error
            .rdkafka_error_code()
            .map_or_else(|| "no answer".to_owned(), |code| code.to_string())),
        Err(_) => Err("it could not be asked".to_owned()),
    }
}

fn compare_clocks(service: Service, theirs_ms: i64) {
    let ours = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);
    metrics()
        .clock_difference
        .of(service)
        .set((ours - theirs_ms) as f64 / 1000.0);
}
