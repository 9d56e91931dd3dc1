//! Tests of the real binary on the real services: Kafka, Redis and `ClickHouse` as `make test` starts them.
//!
//! Every test has a [`harness::Scene`] of its own: topics, key prefix, database, group and ports. Those that stop a
//! service have a stack of their own as well. Nothing here sleeps for a fixed time: everything awaits what it wants
//! to see, until a generous deadline.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells its story on standard error"
)]

mod alone;
mod api;
mod api_mutated;
mod api_query;
mod api_server;
mod api_users;
mod beyond;
#[path = "../fuzz/cases/mod.rs"]
mod cases;
mod chaos;
mod check;
mod claims;
mod columns;
mod corners;
mod crashes;
mod dead_letters;
mod every_redis;
mod generate;
mod harness;
mod late_inserts;
mod limits;
mod main_path;
mod mutated;
mod offsets;
mod operators;
mod outages;
mod overflow_chain;
mod permits;
mod plan;
mod redis_failover;
mod redis_files;
mod redis_memory;
mod redis_moves;
mod redis_secured;
mod redis_seen;
mod tasks;
mod tasks_alone;
mod tasks_bounds;
mod tasks_rebuild;
mod tasks_told;
mod verify;
mod verify_edges;
mod verify_events;
