//! The producer of rejects: dead letters and overflow, `acks=all`.
//!
//! Owns what a reject looks like: key and payload as they came, the record's own headers, and ours that name the
//! reason and the coordinate. Never decides what is rejected.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use uuid::Uuid;

use super::client_config;
use crate::config;
use crate::event::{Origin, Record};

/// A header that names the reason of a reject.
pub const REASON: &str = "sluice-reason";
/// The topic, incarnation, partition and offset at which a reject stood.
pub const COORDINATE: [&str; 4] = [
    "sluice-topic",
    "sluice-incarnation",
    "sluice-partition",
    "sluice-offset",
];

/// Options that only a consumer knows; a producer would warn of each.
pub(crate) const CONSUMER_ONLY: &[&str] = &[
    "group.protocol",
    "group.remote.assignor",
    "group.instance.id",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "partition.assignment.strategy",
    "queued.min.messages",
    "queued.max.messages.kbytes",
    "fetch.wait.max.ms",
    "fetch.queue.backoff.ms",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "fetch.max.bytes",
    "fetch.min.bytes",
    "fetch.error.backoff.ms",
    "check.crcs",
    "isolation.level",
    "enable.partition.eof",
];

/// Sends rejects. Cheap to clone.
#[derive(Clone)]
pub struct Rejects(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    producer: Mutex<FutureProducer>,
}

impl std::fmt::Debug for Rejects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rejects").finish_non_exhaustive()
    }
}

/// One record on its way to another topic.
#[derive(Debug)]
pub struct Reject<'a> {
    /// The topic that it goes to.
    pub to: &'a str,
    /// A short stable word.
    pub reason: &'a str,
    /// The record as it was read.
    pub record: Record<'a>,
    /// Where it stood.
    pub origin: Origin,
    /// The event's uuid, where it was made from the coordinate: a replay stands elsewhere and is the same event.
    pub uuid: Option<u128>,
    /// The event's time, ms since 1970, where only Kafka knew it: a replay's record has another.
    pub timestamp: Option<i64>,
}

impl Rejects {
    /// A producer for the configured brokers.
    pub fn new(kafka: &config::Kafka) -> Result<Self, KafkaError> {
        let mut client: ClientConfig = client_config(
            kafka,
            &[
                ("acks", "all"),
                ("enable.idempotence", "true"),
                ("linger.ms", "5"),
                ("compression.type", "lz4"),
                ("message.timeout.ms", "30000"),
                // The topic's own limit decides; a dead letter is larger than its record by our headers.
                ("message.max.bytes", "67108864"),
                ("queue.buffering.max.messages", "200000"),
            ],
        );
        for (name, value) in &kafka.options {
            if !CONSUMER_ONLY.contains(&name.as_str()) {
                client.set(name, value);
            }
        }
        Self::of(client)
    }

    fn of(config: ClientConfig) -> Result<Self, KafkaError> {
        let producer = Mutex::new(config.create()?);
        Ok(Self(Arc::new(Shared { config, producer })))
    }

    /// The producer; made anew where the client has given it up, which it does when it cannot tell any more which of its
    /// records the broker has. That is no harm here: a reject that is sent again is the same one.
    fn producer(&self) -> Result<FutureProducer, KafkaError> {
        let mut producer = self.0.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reason)) = producer.client().fatal_error() {
            tracing::warn!(reason, "the producer of rejects is made anew");
            *producer = self.0.config.create()?;
        }
        Ok(producer.clone())
    }

    /// Sends them all and waits until every one is acknowledged. After an error some may have landed: sent
    /// again they are the same ones, by their coordinates.
    pub async fn send(&self, rejects: &[Reject<'_>]) -> Result<(), KafkaError> {
        let producer = self.producer()?;
        let mut waiting = Vec::with_capacity(rejects.len());
        for reject in rejects {
            let headers = headers(reject);
            let mut record = FutureRecord::<[u8], [u8]>::to(reject.to).headers(headers);
            record.key = reject.record.key;
            record.payload = reject.record.payload;
            waiting.push(enqueue(&producer, record).await?);
        }
        try_join_all(waiting.into_iter().map(|delivery| async {
            match delivery.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err((error, _))) => Err(error),
                Err(_) => Err(KafkaError::Canceled),
            }
        }))
        .await?;
        Ok(())
    }

    /// Asks the cluster for the topic's partitions; blocks for up to `timeout`.
    pub fn probe(&self, topic: &str, timeout: Duration) -> Result<usize, KafkaError> {
        let metadata = self.producer()?.client().fetch_metadata(Some(topic), timeout)?;
        match metadata.topics().first() {
            Some(topic) => match topic.error() {
                None => Ok(topic.partitions().len()),
                Some(error) => Err(KafkaError::MetadataFetch(error.into())),
            },
            None => Ok(0),
        }
    }
}

async fn enqueue(
    producer: &FutureProducer,
    record: FutureRecord<'_, [u8], [u8]>,
) -> Result<rdkafka::producer::future_producer::DeliveryFuture, KafkaError> {
    let mut record = record;
    loop {
        match producer.send_result(record) {
            Ok(delivery) => return Ok(delivery),
            Err((error, back))
                if error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull) =>
            {
                // The queue drains by itself; there is no event to await.
                tokio::time::sleep(Duration::from_millis(5)).await;
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

fn headers(reject: &Reject<'_>) -> OwnedHeaders {
    let origin = &reject.origin;
    let [topic, incarnation, partition, offset] = COORDINATE;
    let own: Vec<_> = reject
        .record
        .headers
        .iter()
        .filter_map(|(n, v)| Some((std::str::from_utf8(n).ok()?, v)))
        .collect();
    let mut headers = OwnedHeaders::new_with_capacity(own.len() + 5);
    for (name, value) in own {
        // A reject of a reject names where it stood last; its first coordinate is the claim's.
        if name != REASON && !COORDINATE.contains(&name) {
            headers = headers.insert(Header { key: name, value });
        }
    }
    let mut add = |key: &str, value: &str| {
        let all = std::mem::take(&mut headers);
        headers = all.insert(Header {
            key,
            value: Some(value),
        });
    };
    // Of several headers of a name the last counts, so these stand in for blank ones.
    if let Some(uuid) = reject.uuid {
        add("uuid", &Uuid::from_u128(uuid).to_string());
    }
    if let Some(timestamp) = reject.timestamp {
        add("timestamp", &timestamp.to_string());
    }
    add(REASON, reject.reason);
    add(topic, &origin.topic);
    add(incarnation, &origin.incarnation.to_string());
    add(partition, &origin.partition.to_string());
    add(offset, &origin.offset.to_string());
    headers
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::event::Headers;

    #[tokio::test]
    async fn a_producer_that_the_client_has_given_up_is_made_anew() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("dead", 1, 1).unwrap();
        let rejects = Rejects::new(&config::Kafka {
            brokers: cluster.bootstrap_servers(),
            ..config::Kafka::default()
        })
        .unwrap();
        let reject = Reject {
            to: "dead",
            reason: "not_json",
            record: Record {
                offset: 7,
                timestamp: 0,
                key: None,
                payload: Some(b"no event"),
                headers: Headers(b""),
            },
            origin: Origin {
                topic: "events".to_owned(),
                incarnation: 0,
                partition: 0,
                offset: 7,
            },
            uuid: None,
            timestamp: None,
        };
        let rejects_of = || std::slice::from_ref(&reject);
        rejects.send(rejects_of()).await.unwrap();
        // The broker misses a record that it has acknowledged: the client gives its idempotent producer up.
        let missing = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[missing]);
        rejects.send(rejects_of()).await.unwrap_err();
        assert!(
            rejects
                .0
                .producer
                .lock()
                .unwrap()
                .client()
                .fatal_error()
                .is_some()
        );
        rejects.send(rejects_of()).await.unwrap();
    }
}
