//! The way to Kafka: polling and rebalances, commits and what they say, and the producer of rejects.

pub mod committer;
pub mod consumer;
pub mod intake;
pub mod metadata;
mod poll;
pub mod position;
pub mod producer;
mod reach;
mod rebalance;
pub(crate) mod settled;
mod start;
pub(crate) mod topics;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::config;

/// The options that every client starts from; the configured ones override them last.
pub(crate) fn client_config(kafka: &config::Kafka, ours: &[(&str, &str)]) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "sluice");
    client.set_log_level(RDKafkaLogLevel::Error);
    for (name, value) in ours {
        client.set(*name, *value);
    }
    client
}
