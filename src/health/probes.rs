//! What each service is asked: something small that it answers only when it can do its work.
//!
//! Reasons are shown to whoever asks `/readyz`, so they hold no text of a client library.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::types::RDKafkaErrorCode;

use crate::clickhouse::{self, Client};
use crate::kafka::producer::Rejects;
use crate::redis::Redis;
use crate::redis::told::told;
use crate::telemetry::{Service, metrics};

/// Below the prober's own time-out, so that the client's reason is heard.
const KAFKA: Duration = Duration::from_millis(2500);

/// Asks Redis for its time, and compares clocks.
pub async fn redis(redis: Redis) -> Result<(), String> {
    let theirs = redis.time_ms().await.map_err(|error| told(&error))?;
    compare_clocks(Service::Redis, theirs);
    Ok(())
}

/// Asks `ClickHouse` for its time, and compares clocks.
pub async fn clickhouse(client: Client) -> Result<(), String> {
    let ask = client
        .query_raw("SELECT toUnixTimestamp64Milli(now64(3))")
        .fetch_one::<i64>();
    let theirs = ask.await.map_err(|error| clickhouse::error::told(&error))?;
    compare_clocks(Service::ClickHouse, theirs);
    Ok(())
}

/// Asks a broker for the partitions of each topic, which is given with its key. A destination that is missing is told
/// before the first record needs it.
pub async fn kafka(rejects: Rejects, topics: Arc<[(&'static str, String)]>) -> Result<(), String> {
    let ask = move || {
        let begun = Instant::now();
        topics.iter().try_for_each(|(key, topic)| {
            topic_found(&rejects, key, topic, KAFKA.saturating_sub(begun.elapsed()))
        })
    };
    tokio::task::spawn_blocking(ask)
        .await
        .unwrap_or_else(|_| Err("it could not be asked".to_owned()))
}

fn topic_found(rejects: &Rejects, key: &str, topic: &str, patience: Duration) -> Result<(), String> {
    match rejects.probe(topic, patience) {
        Ok(0) => Err(format!("the topic \"{topic}\" ({key}) has no partitions")),
        Ok(_) => Ok(()),
        Err(error) => Err(match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                format!("the topic \"{topic}\" ({key}) does not exist")
            }
            Some(code) => code.to_string(),
            None => "no answer".to_owned(),
        }),
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
