//! Capacity: what a number of events and users takes of each service.
//!
//! Pure: values in, values out. Owns the reckoning; what things cost is [`constants`] alone. Everything here is an
//! estimate, and where it can be off it is too high rather than too low.

pub mod constants;
mod masters;

use serde::Serialize;

use self::constants as cost;
pub use self::masters::{DecidedBy, Masters};
use crate::config::Layout;
use crate::redis::keys::{TIMELINE_EVENTS, USER_TTL_SECONDS};

const DAY: f64 = 86_400.0;
const GIB: f64 = (1_u64 << 30) as f64;
/// A Redis is planned to be busy for no more than this share of its one thread, and workers for no more of theirs.
pub const BUSY: f64 = 0.6;
/// Redis's memory is planned to be used up to this share of `maxmemory`: what `sluice check` warns above.
pub const FULL: f64 = 0.8;
/// Partitions for each worker, so that those of one that is lost spread evenly over the others.
const PARTITIONS_A_WORKER: u64 = 4;
/// Fewer workers are no group: one may be restarted.
const LEAST_WORKERS: u64 = 2;
/// Table partitions (months) that an insert touches, where it matters: around a month's end.
const MONTHS_AN_INSERT: u64 = 2;

/// What is to be carried.
#[derive(Clone, Debug, Serialize)]
pub struct Demand {
    /// Events a day.
    pub events_per_day: u64,
    /// Users with an event within 30 days.
    pub users: u64,
    /// Project tokens.
    pub tokens: u64,
    /// Partitions of the topic, if they are given.
    pub partitions: Option<u64>,
    /// Days that rows stay in the table.
    pub retention_days: u64,
    /// How long Redis remembers an id, in seconds.
    pub window_seconds: u64,
    /// The busiest second's rate by the average.
    pub peak_factor: f64,
    /// Bytes of a payload.
    pub event_bytes: u64,
    /// Properties of a user.
    pub properties: u64,
    /// Profiles that are asked for in an hour.
    pub cached_profiles: u64,
    /// Different queries that are asked for in an hour.
    pub cached_queries: u64,
    /// The largest `maxmemory` of one Redis master, in GiB.
    pub redis_memory_gib: u64,
    /// How claims are kept.
    pub layout: Layout,
    /// Rows of a block, at most.
    pub max_rows: u64,
    /// Age of a block, at most, in ms.
    pub max_age_ms: u64,
    /// Inserts a second of one worker, at most.
    pub max_inserts_per_second: u64,
    /// After which an insert is refused, in seconds.
    pub insert_deadline_seconds: u64,
}

/// What that takes.
#[derive(Clone, Debug, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are the names in the output, which `sluice plan` explains"
)]
pub struct Plan {
    pub average_rate: f64,
    pub peak_rate: f64,
    pub redis: RedisMemory,
    pub redis_masters: Masters,
    pub cpu: Cores,
    pub workers: u64,
    pub kafka: Kafka,
    pub clickhouse: ClickHouse,
}

/// Bytes of Redis by kind, and what to give it.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "as above")]
pub struct RedisMemory {
    pub claims: f64,
    pub claims_packed_bytes: f64,
    pub claims_packed_first_window_bytes: f64,
    pub claims_keys_bytes: f64,
    pub timelines_bytes: f64,
    pub users_bytes: f64,
    pub decisions_bytes: f64,
    pub tokens_bytes: f64,
    /// Of the state, with the layout of the demand.
    pub state_bytes: f64,
    pub state_maxmemory_bytes: f64,
    pub cache_bytes: f64,
    pub cache_maxmemory_bytes: f64,
}

/// Cores that are busy at the peak.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Cores {
    pub redis_packed: f64,
    pub redis_keys: f64,
    pub workers: f64,
    pub clickhouse: f64,
    pub kafka: f64,
}

/// The topic.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Kafka {
    pub partitions: u64,
    /// Fewer partitions than workers: some would have nothing to do.
    pub too_few_partitions: bool,
    pub bytes_per_day: f64,
}

/// The table.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ClickHouse {
    pub rows: f64,
    pub disk_bytes: f64,
    pub inserts_per_second: f64,
    pub rows_per_insert: f64,
    /// Entries that the table's deduplication window must have, at least.
    pub deduplication_window: u64,
}

impl Plan {
    /// Reckons.
    pub fn of(demand: &Demand) -> Self {
        let events = demand.events_per_day as f64;
        let average_rate = events / DAY;
        let peak_rate = average_rate * demand.peak_factor;
        let workers = whole(peak_rate / (cost::WORKER_RATE * BUSY)).max(LEAST_WORKERS);
        let partitions = demand.partitions.unwrap_or(workers * PARTITIONS_A_WORKER);
        let redis = RedisMemory::of(demand, peak_rate, partitions);
        let cpu = Cores::of(peak_rate);
        let (packed_bytes, cores) = match demand.layout {
            Layout::Packed => (redis.claims_packed_bytes, cpu.redis_packed),
            Layout::Keys => (0.0, cpu.redis_keys),
        };
        let redis_masters = Masters::of(masters::Load {
            packed_bytes,
            other_bytes: redis.state_bytes - packed_bytes,
            cores,
            most_bytes: demand.redis_memory_gib as f64 * GIB,
        });
        Self {
            average_rate,
            peak_rate,
            redis,
            redis_masters,
            cpu,
            workers,
            kafka: Kafka {
                partitions,
                too_few_partitions: partitions < workers,
                bytes_per_day: events * demand.event_bytes as f64,
            },
            clickhouse: ClickHouse::of(demand, peak_rate, workers, partitions),
        }
    }
}

impl RedisMemory {
    fn of(demand: &Demand, peak_rate: f64, partitions: u64) -> Self {
        let (events, users, tokens) = (
            demand.events_per_day as f64,
            demand.users as f64,
            demand.tokens as f64,
        );
        let window = demand.window_seconds as f64;
        // A short window may fall into the peak, but no day has more events than a day.
        let claims = (peak_rate * window).min(events * (window / DAY).max(1.0));
        let (packed, keys) = (claims * cost::CLAIM_PACKED, claims * cost::CLAIM_KEYS);

        // All of them alike: where some have more than a full timeline, others have less than this.
        let remembered = events * USER_TTL_SECONDS as f64 / DAY;
        let a_user = if users > 0.0 { remembered / users } else { 0.0 };
        let timeline = cost::TIMELINE + cost::TIMELINE_EVENT * a_user.clamp(1.0, TIMELINE_EVENTS as f64);
        let timelines = users * timeline;
        let of_users = users * (cost::USER + cost::USER_PROPERTY * demand.properties as f64);
        let a_partition = if partitions > cost::PACKED_FIELDS {
            cost::TOKEN_PARTITION_OF_MANY
        } else {
            cost::TOKEN_PARTITION
        };
        let decisions = tokens * partitions as f64 * a_partition;
        let of_tokens = tokens * cost::TOKEN;

        let claims_bytes = match demand.layout {
            Layout::Packed => packed,
            Layout::Keys => keys,
        };
        let state = claims_bytes + timelines + of_users + decisions + of_tokens;
        let profile = cost::CACHED_PROFILE + cost::USER_PROPERTY * demand.properties as f64;
        let cache =
            demand.cached_profiles as f64 * profile + demand.cached_queries as f64 * cost::CACHED_QUERY;
        Self {
            claims,
            claims_packed_bytes: packed,
            claims_packed_first_window_bytes: claims * cost::CLAIM_PACKED_FIRST,
            claims_keys_bytes: keys,
            timelines_bytes: timelines,
            users_bytes: of_users,
            decisions_bytes: decisions,
            tokens_bytes: of_tokens,
            state_bytes: state,
            state_maxmemory_bytes: state / FULL,
            cache_bytes: cache,
            cache_maxmemory_bytes: cache / FULL,
        }
    }
}

impl Cores {
    fn of(peak_rate: f64) -> Self {
        let cores = |micros: f64| peak_rate * micros / 1e6;
        let (packed, keys) = (cores(cost::REDIS_PACKED_MICROS), cores(cost::REDIS_KEYS_MICROS));
        Self {
            redis_packed: packed,
            redis_keys: keys,
            workers: cores(cost::WORKER_MICROS),
            clickhouse: cores(cost::CLICKHOUSE_MICROS),
            kafka: cores(cost::KAFKA_MICROS),
        }
    }
}

impl ClickHouse {
    fn of(demand: &Demand, peak_rate: f64, workers: u64, partitions: u64) -> Self {
        let rows = demand.events_per_day as f64 * demand.retention_days as f64;
        // Each partition closes a block at its age, or when it is full, and a worker's budget makes blocks grow older.
        let by_age = partitions as f64 * 1e3 / demand.max_age_ms as f64;
        let by_rows = peak_rate / demand.max_rows as f64;
        let budget = (workers.min(partitions) * demand.max_inserts_per_second) as f64;
        // A partition without an event has no block.
        let inserts = by_age
            .max(by_rows)
            .min(budget)
            .min(peak_rate.max(f64::MIN_POSITIVE));
        let window = 2.0 * demand.insert_deadline_seconds as f64 * budget * MONTHS_AN_INSERT as f64;
        Self {
            rows,
            disk_bytes: rows * demand.event_bytes as f64 * cost::DISK_A_PAYLOAD_BYTE,
            inserts_per_second: inserts,
            rows_per_insert: peak_rate / inserts,
            deduplication_window: whole(window),
        }
    }
}

/// Up to a whole number, and one at least.
fn whole(number: f64) -> u64 {
    number.ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand() -> Demand {
        Demand {
            events_per_day: 864_000_000,
            users: 1_000_000,
            tokens: 100,
            partitions: None,
            retention_days: 30,
            window_seconds: 86_400,
            peak_factor: 4.0,
            event_bytes: 500,
            properties: 10,
            cached_profiles: 0,
            cached_queries: 0,
            redis_memory_gib: 1_000,
            layout: Layout::Packed,
            max_rows: 65_536,
            max_age_ms: 1_000,
            max_inserts_per_second: 10,
            insert_deadline_seconds: 60,
        }
    }

    #[track_caller]
    fn assert_near(found: f64, wanted: f64) {
        assert!((found / wanted - 1.0).abs() < 1e-9, "{found}, not {wanted}");
    }

    #[test]
    fn a_day_of_events_is_reckoned_through() {
        let plan = Plan::of(&demand());
        assert_near(plan.average_rate, 10_000.0);
        assert_near(plan.peak_rate, 40_000.0);
        assert_near(plan.redis.claims, 864e6);
        assert_near(plan.redis.claims_packed_bytes, 864e6 * cost::CLAIM_PACKED);
        assert_near(plan.redis.claims_keys_bytes, 864e6 * cost::CLAIM_KEYS);
        // 25,920 events a user in 30 days: timelines are full.
        assert_near(
            plan.redis.timelines_bytes,
            1e6 * (cost::TIMELINE + 100.0 * cost::TIMELINE_EVENT),
        );
        assert_eq!((plan.workers, plan.kafka.partitions), (2, 8));
        assert_near(plan.cpu.workers, 0.04 * cost::WORKER_MICROS);
        assert_near(plan.clickhouse.rows, 864e6 * 30.0);
        assert_near(plan.clickhouse.inserts_per_second, 8.0);
        assert_eq!(plan.clickhouse.deduplication_window, 2 * 60 * 20 * 2);
        let parts = &plan.redis;
        assert_near(
            parts.state_bytes,
            parts.claims_packed_bytes
                + parts.timelines_bytes
                + parts.users_bytes
                + parts.decisions_bytes
                + parts.tokens_bytes,
        );
        assert_near(parts.state_maxmemory_bytes * FULL, parts.state_bytes);
    }

    #[test]
    fn a_window_has_its_peak_but_never_more_than_the_days_events() {
        let claims = |window_seconds| {
            let demand = Demand {
                window_seconds,
                ..demand()
            };
            Plan::of(&demand).redis.claims
        };
        assert_near(claims(3_600), 40_000.0 * 3_600.0);
        assert_near(claims(12 * 3_600), 864e6);
        assert_near(claims(2 * 86_400), 2.0 * 864e6);
    }

    #[test]
    fn one_thread_of_redis_is_not_asked_for_more_than_it_has() {
        let of = |layout, events_per_day| {
            let demand = Demand {
                events_per_day,
                layout,
                ..demand()
            };
            Plan::of(&demand)
        };
        assert_eq!(of(Layout::Packed, 1_000).redis_masters.masters, 1);
        let much = 864_000_000 * 10;
        let (packed, keys) = (of(Layout::Packed, much), of(Layout::Keys, much));
        assert!(packed.cpu.redis_packed > packed.cpu.redis_keys);
        let (packed_masters, keys_masters) = (&packed.redis_masters, &keys.redis_masters);
        assert!(packed_masters.by_cpu as f64 * BUSY >= packed.cpu.redis_packed);
        assert!(packed_masters.by_cpu > keys_masters.by_cpu);
    }

    #[test]
    fn one_master_is_not_asked_for_more_memory_than_it_may_have() {
        let of = |redis_memory_gib| {
            let demand = Demand {
                events_per_day: 864_000_000 * 10,
                redis_memory_gib,
                ..demand()
            };
            Plan::of(&demand)
        };
        let large = of(1_000);
        assert_eq!(large.redis_masters.decided_by, DecidedBy::Cpu);
        let small = of(25);
        assert_eq!(small.redis_masters.decided_by, DecidedBy::Memory);
        let (masters, bytes) = (
            small.redis_masters.masters as f64,
            small.redis.state_maxmemory_bytes,
        );
        assert!(masters * 25.0 * GIB >= bytes && small.redis_masters.masters > large.redis_masters.masters);
        assert!(small.redis_masters.maxmemory_bytes_each <= 25.0 * GIB);
    }

    #[test]
    fn partitions_that_are_given_are_taken_and_too_few_are_told() {
        let demand = Demand {
            events_per_day: 864_000_000 * 20,
            partitions: Some(6),
            ..demand()
        };
        let plan = Plan::of(&demand);
        assert_eq!(plan.kafka.partitions, 6);
        assert!(plan.workers > 6 && plan.kafka.too_few_partitions);
    }

    #[test]
    fn nothing_takes_nothing_and_is_no_nan() {
        let demand = Demand {
            events_per_day: 1,
            users: 0,
            tokens: 0,
            ..demand()
        };
        let plan = Plan::of(&demand);
        assert!(plan.redis.timelines_bytes + plan.redis.users_bytes < 1.0);
        let json = serde_json::to_string(&plan).unwrap();
        assert!(!json.contains("null"), "{json}");
    }
}
