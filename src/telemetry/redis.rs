//! What a Redis server tells about itself: names, units and helps of `sluice_redis_*`, and their handles.
//!
//! Registered only where a server is looked at: a series that nobody feeds would say zero, and zero would be false.

#![expect(
    clippy::disallowed_macros,
    reason = "as telemetry/mod.rs: names and describes each"
)]

use metrics::{Counter, Gauge, Label, Unit, counter, gauge};

use super::labels::Label as _;
use super::{RedisKind, RedisServer};

const KEYS: &str = "sluice_redis_keys";
const KEY_BYTES: &str = "sluice_redis_key_bytes";
const USED_MEMORY: &str = "sluice_redis_used_memory_bytes";
const MAX_MEMORY: &str = "sluice_redis_max_memory_bytes";
const FRAGMENTATION: &str = "sluice_redis_fragmentation_ratio";
const EVICTS: &str = "sluice_redis_evicts";
const REPLICAS: &str = "sluice_redis_connected_replicas";
const ENOUGH_REPLICAS: &str = "sluice_redis_enough_replicas";
const AOF_ENABLED: &str = "sluice_redis_aof_enabled";
const AOF_OK: &str = "sluice_redis_aof_ok";
const RDB_ENABLED: &str = "sluice_redis_rdb_enabled";
const RDB_OK: &str = "sluice_redis_rdb_ok";
const RDB_AGE: &str = "sluice_redis_rdb_age_seconds";
const EVICTED: &str = "sluice_redis_evicted_keys_total";
const EXPIRED: &str = "sluice_redis_expired_keys_total";
const HITS: &str = "sluice_redis_keyspace_hits_total";
const MISSES: &str = "sluice_redis_keyspace_misses_total";
const FORGOTTEN: &str = "sluice_redis_forgotten_total";
const FORGOT: &str = "sluice_redis_forgot";
const SAMPLE_FAILURES: &str = "sluice_redis_sample_failures_total";

pub(super) const GAUGES: [(&str, Unit, &str); 14] = [
    (KEYS, Unit::Count, "Keys by kind; an estimate from a sample."),
    (
        KEY_BYTES,
        Unit::Bytes,
        "Memory of keys by kind; an estimate from a sample.",
    ),
    (USED_MEMORY, Unit::Bytes, "Memory that Redis has allocated."),
    (
        MAX_MEMORY,
        Unit::Bytes,
        "Limit of Redis's memory (maxmemory); 0 for none.",
    ),
    (
        FRAGMENTATION,
        Unit::Count,
        "Resident memory of Redis by what it has allocated.",
    ),
    (
        EVICTS,
        Unit::Count,
        "1 where Redis takes keys away when its memory is full; claims, if it is the state's.",
    ),
    (REPLICAS, Unit::Count, "Replicas that are connected."),
    (
        ENOUGH_REPLICAS,
        Unit::Count,
        "0 while Redis refuses writes for want of replicas (min-replicas-to-write).",
    ),
    (
        AOF_ENABLED,
        Unit::Count,
        "1 where every write is appended to a file.",
    ),
    (AOF_OK, Unit::Count, "0 after an append or a rewrite that failed."),
    (RDB_ENABLED, Unit::Count, "1 where snapshots are taken (save)."),
    (RDB_OK, Unit::Count, "0 after a snapshot that failed."),
    (
        RDB_AGE,
        Unit::Seconds,
        "Age of the last snapshot, or of the server if it took none yet.",
    ),
    (
        FORGOT,
        Unit::Count,
        "1 once Redis was found without what it had held, until this process is started again.",
    ),
];

pub(super) const COUNTERS: [(&str, Unit, &str); 6] = [
    (
        EVICTED,
        Unit::Count,
        "Keys that Redis took away for want of memory, since this process began to look.",
    ),
    (
        EXPIRED,
        Unit::Count,
        "Keys whose time was over, since this process began to look.",
    ),
    (HITS, Unit::Count, "Look-ups in Redis that found a key."),
    (MISSES, Unit::Count, "Look-ups in Redis that found none."),
    (
        FORGOTTEN,
        Unit::Count,
        "Times that Redis was found without what it had held: it came back empty, or was restored.",
    ),
    (SAMPLE_FAILURES, Unit::Count, "Looks at Redis that failed."),
];

/// The handles of one server, the only one or one primary of a Cluster (label `node`). All processes that look at it tell
/// the same, but for what sampling makes of it: compare by `max by (server, node)`.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is described once, in the tables above")]
pub struct RedisSeries {
    keys: Vec<(Gauge, Gauge)>,
    labels: Vec<Label>,
    pub used_memory: Gauge,
    pub max_memory: Gauge,
    pub fragmentation: Gauge,
    pub evicts: Gauge,
    pub replicas: Gauge,
    pub enough_replicas: Gauge,
    pub aof_enabled: Gauge,
    pub aof_ok: Gauge,
    pub rdb_ok: Gauge,
    pub rdb_age: Gauge,
    pub evicted: Counter,
    pub expired: Counter,
    pub hits: Counter,
    pub misses: Counter,
}

/// How looks at a Redis end; of all primaries of a Cluster together.
#[derive(Clone, Debug)]
pub struct RedisLooks {
    /// Times that it was found without what it had held.
    pub forgotten: Counter,
    /// Whether that was so since this process started.
    pub forgot: Gauge,
    /// Looks that failed.
    pub failures: Counter,
}

impl RedisSeries {
    /// How many keys of a kind there are, and their bytes.
    pub fn set_kind(&self, kind: RedisKind, keys: f64, bytes: f64) {
        let (of_keys, of_bytes) = &self.keys[kind.index()];
        of_keys.set(keys);
        of_bytes.set(bytes);
    }

    /// Whether snapshots are taken; not every user may ask.
    pub fn set_rdb_enabled(&self, enabled: bool) {
        gauge!(RDB_ENABLED, self.labels.clone()).set(f64::from(u8::from(enabled)));
    }

    /// It is no primary any more. Its series stay, so they say nothing from now on: amounts are zero, and what was so or
    /// not is no number, which no alert is true for.
    pub fn is_gone(&self) {
        for (keys, bytes) in &self.keys {
            keys.set(0.0);
            bytes.set(0.0);
        }
        for amount in [&self.used_memory, &self.max_memory, &self.evicts] {
            amount.set(0.0);
        }
        for unknown in [
            &self.fragmentation,
            &self.replicas,
            &self.enough_replicas,
            &self.aof_enabled,
            &self.aof_ok,
            &gauge!(RDB_ENABLED, self.labels.clone()),
            &self.rdb_ok,
            &self.rdb_age,
        ] {
            unknown.set(f64::NAN);
        }
    }
}

/// The handles of a server, whose series are there from now on; of a Cluster's `node` its own.
pub fn redis_series(server: RedisServer, node: Option<&str>) -> RedisSeries {
    let mut labels = vec![Label::from_static_parts("server", server.name())];
    labels.extend(node.map(|node| Label::new("node", node.to_owned())));
    let of = |name| gauge!(name, labels.clone());
    let counted = |name| counter!(name, labels.clone());
    let kinds = RedisKind::ALL.iter().map(|kind| {
        let by_kind = |name| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("kind", kind.name()));
            gauge!(name, labels)
        };
        (by_kind(KEYS), by_kind(KEY_BYTES))
    });
    RedisSeries {
        keys: kinds.collect(),
        used_memory: of(USED_MEMORY),
        max_memory: of(MAX_MEMORY),
        fragmentation: of(FRAGMENTATION),
        evicts: of(EVICTS),
        replicas: of(REPLICAS),
        enough_replicas: of(ENOUGH_REPLICAS),
        aof_enabled: of(AOF_ENABLED),
        aof_ok: of(AOF_OK),
        rdb_ok: of(RDB_OK),
        rdb_age: of(RDB_AGE),
        evicted: counted(EVICTED),
        expired: counted(EXPIRED),
        hits: counted(HITS),
        misses: counted(MISSES),
        labels,
    }
}

/// How looks at a Redis end, at zero from now on.
pub fn redis_looks(server: RedisServer) -> RedisLooks {
    let counted = |name| counter!(name, "server" => server.name());
    RedisLooks {
        forgotten: counted(FORGOTTEN),
        forgot: gauge!(FORGOT, "server" => server.name()),
        failures: counted(SAMPLE_FAILURES),
    }
}
