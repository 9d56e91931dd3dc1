//! Sluice: exactly-once event ingestion from Kafka through Redis into `ClickHouse`.
//!
//! Reading order: [`config`] (what it is told), [`event`] (a record becomes an event), [`pipeline`] (the data path, a
//! stage a file), [`kafka`], [`redis`] and [`clickhouse`] (the ways to the three services), [`api`] (reading
//! back), [`tasks`] (what nobody waits for), [`health`] and [`telemetry`] (what it tells), [`plan`] (what it takes);
//! [`faults`] is for tests.

pub mod api;
mod causes;
pub mod cli;
pub mod clickhouse;
pub mod config;
pub mod event;
pub mod faults;
pub mod generate;
pub mod health;
pub mod kafka;
mod person;
pub mod pipeline;
pub mod plan;
pub mod redis;
pub mod tasks;
pub mod telemetry;
pub mod verify;
