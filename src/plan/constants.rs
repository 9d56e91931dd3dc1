//! What things cost, measured, and where. The one place of these numbers: `sluice plan` reckons with nothing else.
//!
//! Measured on two cores with Kafka 4.3.1, Redis 7.0.15 and `ClickHouse` 26.9.2 all on the one machine, so rates are
//! low rather than high, and CPU is that of a noisy neighbourhood. Bytes of Redis are `used_memory` of a real server with
//! `deploy/redis/state.conf`, all overhead included; `tests/it/redis_memory.rs` measures them again and fails where they
//! are off by more than a tenth.

/// A claim of the layout `packed` in its first window, bytes. (`make bench ARGS='--bench claims'`, 10 million claims.)
pub const CLAIM_PACKED_FIRST: f64 = 30.0;
/// The same once the window has passed: what has expired waits in its bucket for the next claim, and buckets are of
/// several ages. (The same bench, turned over: 36.5, and room for a load that changes.)
pub const CLAIM_PACKED: f64 = 40.0;
/// A claim of the layout `keys`, with a token of 36 characters, bytes: 192 to 211, as the server's tables are fuller or
/// emptier; a token of five characters takes 32 less. (`tests/it/redis_memory.rs`.)
pub const CLAIM_KEYS: f64 = 200.0;

/// A timeline without its events, bytes: key, time to live, and what a sorted set has around it.
pub const TIMELINE: f64 = 215.0;
/// An event of a timeline, its name of 12 characters, bytes.
pub const TIMELINE_EVENT: f64 = 62.0;
/// A user's hash without its properties, bytes.
pub const USER: f64 = 170.0;
/// A property of a user: name and value, of every seven one a URL, bytes.
pub const USER_PROPERTY: f64 = 46.0;

/// What a token has besides: the window of its permits (100 buckets), counters, 100 recent actions, and decisions and
/// watermarks without their partitions, bytes.
pub const TOKEN: f64 = 16_500.0;
/// What a token has for each partition that its events come in: decisions and a watermark, bytes.
pub const TOKEN_PARTITION: f64 = 52.0;
/// The same where there are more than [`PACKED_FIELDS`] partitions.
pub const TOKEN_PARTITION_OF_MANY: f64 = 150.0;
/// `hash-max-listpack-entries` of `deploy/redis/state.conf`.
pub const PACKED_FIELDS: u64 = 128;

/// A profile in the cache, beside its properties, bytes.
pub const CACHED_PROFILE: f64 = 410.0;
/// A query's result in the cache, bytes: a day by the hour in ten series, as JSON.
pub const CACHED_QUERY: f64 = 8_400.0;

/// CPU of Redis a record, layout `keys`, µs. (`make bench ARGS='--bench pipeline'`: claims, permits, timelines and
/// properties of a million events of 518 bytes.)
pub const REDIS_KEYS_MICROS: f64 = 8.4;
/// The same with the layout `packed`, whose claims take 2.5 times the 3.8 µs that those of `keys` take of this.
/// (`tests/it/redis_memory.rs` prints both, side by side: 11.4 and 4.6 µs on a machine that was busy otherwise.)
pub const REDIS_PACKED_MICROS: f64 = 14.0;
/// CPU of a worker a record, µs: the dearer end of 5.7 to 7.9. (The same bench.)
pub const WORKER_MICROS: f64 = 7.9;
/// CPU of `ClickHouse` a record, µs, merges included. (The same bench.)
pub const CLICKHOUSE_MICROS: f64 = 3.7;
/// CPU of Kafka a record read, µs. (The same bench.)
pub const KAFKA_MICROS: f64 = 0.7;
/// Records a second of one worker: the slower end of 70,000 to 100,000. (The same bench, beside all services.)
pub const WORKER_RATE: f64 = 70_000.0;

/// Bytes on disk of a row by bytes of its payload, after merges. (`tests/it/plan.rs`: 111 of 589 of made-up events.)
pub const DISK_A_PAYLOAD_BYTE: f64 = 0.2;
