//! Sluice: exactly-once event ingestion from Kafka through Redis into `ClickHouse`.

pub mod cli;
pub mod config;
pub mod health;
pub mod telemetry;
