//! Sluice: exactly-once event ingestion from Kafka through Redis into `ClickHouse`.

pub mod config;
