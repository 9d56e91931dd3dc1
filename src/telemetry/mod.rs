//! What the program tells about itself: every metric's name, unit and help, and how logs are written.
//!
//! Owns all names. The rest of the crate takes handles from [`metrics()`] and adds to them: a handle is fetched
//! once, so counting is one atomic operation. An outcome is counted in the branch in which it happened.

#![expect(
    clippy::disallowed_macros,
    reason = "this is the one file that names metrics, and describes each"
)]

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::util::TryInitError;

pub use labels::{
    BlockKind, CacheLookup, Outcome, Rebalance, RedisKind, RedisServer, Service, Stage, TaskOutcome,
};
pub use logs::{LogFormat, init_logs, log_filter};
pub use redis::{RedisLooks, RedisSeries, redis_looks, redis_series};

use labels::Label;

mod labels;
mod logs;
mod redis;

const EVENTS: &str = "sluice_events_total";
const DEAD_LETTERS: &str = "sluice_dead_letters_total";
const RECORDS_CONSUMED: &str = "sluice_records_consumed_total";
const BYTES_CONSUMED: &str = "sluice_bytes_consumed_total";
const BLOCKS: &str = "sluice_blocks_total";
const STAGE_DURATION: &str = "sluice_stage_duration_seconds";
const INSERTS: &str = "sluice_inserts_total";
const INSERT_ROWS: &str = "sluice_insert_rows_total";
const INSERT_RETRIES: &str = "sluice_insert_retries_total";
const COMMITS: &str = "sluice_commits_total";
const COMMITS_REFUSED: &str = "sluice_commits_refused_total";
const REBALANCES: &str = "sluice_rebalances_total";
const RETRIES: &str = "sluice_retries_total";
const SERVICE_UP: &str = "sluice_service_up";
const IN_FLIGHT_BYTES: &str = "sluice_in_flight_bytes";
const ASSIGNED_PARTITIONS: &str = "sluice_assigned_partitions";
const PAUSED_PARTITIONS: &str = "sluice_paused_partitions";
const STOPPED_PARTITIONS: &str = "sluice_stopped_partitions";
const CONSUMER_LAG: &str = "sluice_consumer_lag_records";
const OFFSETS_MISSING: &str = "sluice_offsets_missing_total";
const CLOCK_DIFFERENCE: &str = "sluice_clock_difference_seconds";
const CONSUMER_RESTARTS: &str = "sluice_consumer_restarts_total";
const DECIDED_OTHERWISE: &str = "sluice_decided_otherwise_total";
const LOST_ROWS: &str = "sluice_lost_rows_total";
const BEYOND_WINDOW_LOOKUPS: &str = "sluice_beyond_window_lookups_total";
const BEYOND_WINDOW_EVENTS: &str = "sluice_beyond_window_events_total";
const USER_PROPERTIES_CUT: &str = "sluice_user_properties_cut_total";
const EVENTS_WITHOUT_REDIS: &str = "sluice_events_without_redis_total";
const STALE_PROFILES: &str = "sluice_stale_profiles_total";
const BLOCKS_UNREMEMBERED: &str = "sluice_blocks_unremembered_total";
const VIEWS_DOUBTFUL: &str = "sluice_views_doubtful_total";
const ANNOUNCEMENTS_LOST: &str = "sluice_announcements_lost_total";
const BAD_OVERRIDES: &str = "sluice_bad_overrides_total";
const REDIS_RECONNECTS: &str = "sluice_redis_reconnects_total";
const REDIS_FAILOVERS: &str = "sluice_redis_failovers_total";
const REDIS_REDIRECTS: &str = "sluice_redis_redirects_total";
const BUILD_INFO: &str = "sluice_build_info";
const HTTP_REQUESTS: &str = "sluice_http_requests_total";
const HTTP_DURATION: &str = "sluice_http_request_duration_seconds";
const CACHE_LOOKUPS: &str = "sluice_cache_lookups_total";
const TASKS: &str = "sluice_tasks_total";
const TASK_DURATION: &str = "sluice_task_duration_seconds";
const TASKS_WAITING: &str = "sluice_tasks_waiting";
const TASKS_RUNNING: &str = "sluice_tasks_running";
const TASKS_PARKED: &str = "sluice_tasks_parked";
const TASKS_USERS_LEFT: &str = "sluice_tasks_users_left_total";

/// Name, unit and help of every counter.
const COUNTERS: [(&str, Unit, &str); 32] = [
    (
        STALE_PROFILES,
        Unit::Count,
        "Cached profiles of changed users that stay until they expire: the cache was away for too long.",
    ),
    (
        EVENTS_WITHOUT_REDIS,
        Unit::Count,
        "Events judged without claims and permits while Redis was gone (rate_limit.on_redis_down = local).",
    ),
    (
        BLOCKS_UNREMEMBERED,
        Unit::Count,
        "Blocks that timelines, user properties and counters lack, for Redis was gone (rate_limit.on_redis_down = local).",
    ),
    (EVENTS, Unit::Count, "Records settled, by what became of them."),
    (
        DEAD_LETTERS,
        Unit::Count,
        "Records sent to the dead-letter topic, by reason.",
    ),
    (
        RECORDS_CONSUMED,
        Unit::Count,
        "Records polled from Kafka, repeats after a restart included.",
    ),
    (
        BYTES_CONSUMED,
        Unit::Bytes,
        "Bytes of keys and payloads polled from Kafka.",
    ),
    (
        BLOCKS,
        Unit::Count,
        "Blocks settled: fresh, or recovered from an earlier attempt.",
    ),
    (INSERTS, Unit::Count, "Inserts that ClickHouse acknowledged."),
    (
        INSERT_ROWS,
        Unit::Count,
        "Rows in acknowledged inserts, those of repeated inserts included.",
    ),
    (INSERT_RETRIES, Unit::Count, "Inserts sent again after a failure."),
    (COMMITS, Unit::Count, "Offset commits that the broker accepted."),
    (
        COMMITS_REFUSED,
        Unit::Count,
        "Offset commits that the broker refused; the partition is dropped.",
    ),
    (REBALANCES, Unit::Count, "Partitions assigned, revoked and lost."),
    (
        RETRIES,
        Unit::Count,
        "Calls repeated after a failure of a service, by service.",
    ),
    (
        OFFSETS_MISSING,
        Unit::Count,
        "Offsets gone from the topic before they were read.",
    ),
    (
        CONSUMER_RESTARTS,
        Unit::Count,
        "Times the Kafka consumer was made anew after an error.",
    ),
    (
        DECIDED_OTHERWISE,
        Unit::Count,
        "Events that a recovery sent to overflow because an earlier attempt had not written them.",
    ),
    (
        LOST_ROWS,
        Unit::Count,
        "Rows that ClickHouse had acknowledged and did not have, as after a crash; they were written again.",
    ),
    (
        BEYOND_WINDOW_LOOKUPS,
        Unit::Count,
        "Queries to the table for events that are older than the window of claims; one a block at the most.",
    ),
    (
        BEYOND_WINDOW_EVENTS,
        Unit::Count,
        "Events that such a query asked for.",
    ),
    (
        USER_PROPERTIES_CUT,
        Unit::Count,
        "Changes of user properties that Redis did not keep: too long, or beyond the most fields of a user.",
    ),
    (
        VIEWS_DOUBTFUL,
        Unit::Count,
        "Blocks recovered late, or after a rewind, of which views may lack rows: compare them with the table.",
    ),
    (
        ANNOUNCEMENTS_LOST,
        Unit::Count,
        "Announced blocks whose records had changed when they were read again.",
    ),
    (
        BAD_OVERRIDES,
        Unit::Count,
        "Tokens' own limits that could not be read and were ignored.",
    ),
    (
        REDIS_RECONNECTS,
        Unit::Count,
        "Connections to Redis replaced because they led nowhere.",
    ),
    (
        REDIS_FAILOVERS,
        Unit::Count,
        "Times that another primary of Redis was found than before.",
    ),
    (
        REDIS_REDIRECTS,
        Unit::Count,
        "Commands sent again because a node of the Redis Cluster sent them on or could not do them yet.",
    ),
    (
        HTTP_REQUESTS,
        Unit::Count,
        "HTTP requests answered, by route and status.",
    ),
    (
        CACHE_LOOKUPS,
        Unit::Count,
        "Answers of the read API by cache and whether it had them.",
    ),
    (
        TASKS,
        Unit::Count,
        "Attempts at background tasks, by kind and how they ended.",
    ),
    (
        TASKS_USERS_LEFT,
        Unit::Count,
        "Users that rebuilds left as they were, for the workers changed them faster than they could be read.",
    ),
];

/// Name, unit and help of every gauge.
const GAUGES: [(&str, Unit, &str); 11] = [
    (
        SERVICE_UP,
        Unit::Count,
        "1 while a service answers, 0 while it does not.",
    ),
    (
        IN_FLIGHT_BYTES,
        Unit::Bytes,
        "Bytes of records held by this worker.",
    ),
    (ASSIGNED_PARTITIONS, Unit::Count, "Partitions this worker owns."),
    (
        PAUSED_PARTITIONS,
        Unit::Count,
        "Partitions not polled, for back-pressure.",
    ),
    (
        STOPPED_PARTITIONS,
        Unit::Count,
        "Partitions stopped until an operator decides.",
    ),
    (
        CONSUMER_LAG,
        Unit::Count,
        "Records of a partition that are not settled yet.",
    ),
    (
        CLOCK_DIFFERENCE,
        Unit::Seconds,
        "This machine's clock minus the service's.",
    ),
    (
        TASKS_WAITING,
        Unit::Count,
        "Background tasks that wait, those that are due later included.",
    ),
    (
        TASKS_RUNNING,
        Unit::Count,
        "Background tasks that this process runs.",
    ),
    (
        TASKS_PARKED,
        Unit::Count,
        "Background tasks that were given up and wait for an operator.",
    ),
    (BUILD_INFO, Unit::Count, "Always 1; the label tells the version."),
];

/// Name, unit and help of every histogram.
const HISTOGRAMS: [(&str, Unit, &str); 3] = [
    (
        STAGE_DURATION,
        Unit::Seconds,
        "Time a block spent in a stage, retries included.",
    ),
    (
        HTTP_DURATION,
        Unit::Seconds,
        "Time to answer an HTTP request, by route.",
    ),
    (
        TASK_DURATION,
        Unit::Seconds,
        "Time an attempt at a background task took, by kind.",
    ),
];

/// Upper bounds of every histogram, in seconds: from one Redis round trip to an insert's deadline.
const BUCKETS_SECONDS: [f64; 15] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// The handles of one metric, one for each value of its label.
#[derive(Debug)]
pub struct Family<L, H> {
    handles: Vec<H>,
    label: std::marker::PhantomData<L>,
}

#[expect(private_bounds, reason = "labels are declared in this file alone")]
impl<L: Label, H> Family<L, H> {
    fn new(register: fn(&'static str, &'static str, &'static str) -> H, name: &'static str) -> Self {
        let handles = L::VALUES
            .iter()
            .map(|value| register(name, L::KEY, value.text()))
            .collect();
        Self {
            handles,
            label: std::marker::PhantomData,
        }
    }

    /// The handle of one value.
    pub fn of(&self, value: L) -> &H {
        &self.handles[value.index()]
    }
}

/// Every metric whose labels are known beforehand. All series exist, at zero, from the start.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is described once, in the tables above")]
pub struct Metrics {
    pub events: Family<Outcome, Counter>,
    pub records_consumed: Counter,
    pub bytes_consumed: Counter,
    pub blocks: Family<BlockKind, Counter>,
    pub stage_duration: Family<Stage, Histogram>,
    pub inserts: Counter,
    pub insert_rows: Counter,
    pub insert_retries: Counter,
    pub commits: Counter,
    pub commits_refused: Counter,
    pub rebalances: Family<Rebalance, Counter>,
    pub retries: Family<Service, Counter>,
    pub service_up: Family<Service, Gauge>,
    pub in_flight_bytes: Gauge,
    pub assigned_partitions: Gauge,
    pub paused_partitions: Gauge,
    pub stopped_partitions: Gauge,
    pub offsets_missing: Counter,
    pub consumer_restarts: Counter,
    pub decided_otherwise: Counter,
    pub lost_rows: Counter,
    pub events_without_redis: Counter,
    pub blocks_unremembered: Counter,
    pub views_doubtful: Counter,
    pub user_properties_cut: Counter,
    pub beyond_window_lookups: Counter,
    pub beyond_window_events: Counter,
    pub announcements_lost: Counter,
    pub bad_overrides: Counter,
    pub stale_profiles: Counter,
    pub redis_reconnects: Counter,
    pub redis_failovers: Counter,
    pub redis_redirects: Counter,
    pub clock_difference: Family<Service, Gauge>,
    pub tasks_waiting: Gauge,
    pub tasks_running: Gauge,
    pub tasks_parked: Gauge,
    pub tasks_users_left: Counter,
}

impl Metrics {
    fn register() -> Self {
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
        Self {
            events: Family::new(labelled_counter, EVENTS),
            records_consumed: counter!(RECORDS_CONSUMED),
            bytes_consumed: counter!(BYTES_CONSUMED),
            blocks: Family::new(labelled_counter, BLOCKS),
            stage_duration: Family::new(labelled_histogram, STAGE_DURATION),
            inserts: counter!(INSERTS),
            insert_rows: counter!(INSERT_ROWS),
            insert_retries: counter!(INSERT_RETRIES),
            commits: counter!(COMMITS),
            commits_refused: counter!(COMMITS_REFUSED),
            rebalances: Family::new(labelled_counter, REBALANCES),
            retries: Family::new(labelled_counter, RETRIES),
            service_up: Family::new(labelled_gauge, SERVICE_UP),
            in_flight_bytes: gauge!(IN_FLIGHT_BYTES),
            assigned_partitions: gauge!(ASSIGNED_PARTITIONS),
            paused_partitions: gauge!(PAUSED_PARTITIONS),
            stopped_partitions: gauge!(STOPPED_PARTITIONS),
            offsets_missing: counter!(OFFSETS_MISSING),
            consumer_restarts: counter!(CONSUMER_RESTARTS),
            decided_otherwise: counter!(DECIDED_OTHERWISE),
            lost_rows: counter!(LOST_ROWS),
            events_without_redis: counter!(EVENTS_WITHOUT_REDIS),
            blocks_unremembered: counter!(BLOCKS_UNREMEMBERED),
            views_doubtful: counter!(VIEWS_DOUBTFUL),
            user_properties_cut: counter!(USER_PROPERTIES_CUT),
            beyond_window_lookups: counter!(BEYOND_WINDOW_LOOKUPS),
            beyond_window_events: counter!(BEYOND_WINDOW_EVENTS),
            announcements_lost: counter!(ANNOUNCEMENTS_LOST),
            bad_overrides: counter!(BAD_OVERRIDES),
            stale_profiles: counter!(STALE_PROFILES),
            redis_reconnects: counter!(REDIS_RECONNECTS),
            redis_failovers: counter!(REDIS_FAILOVERS),
            redis_redirects: counter!(REDIS_REDIRECTS),
            clock_difference: Family::new(labelled_gauge, CLOCK_DIFFERENCE),
            tasks_waiting: gauge!(TASKS_WAITING),
            tasks_running: gauge!(TASKS_RUNNING),
            tasks_parked: gauge!(TASKS_PARKED),
            tasks_users_left: counter!(TASKS_USERS_LEFT),
        }
    }
}

fn labelled_counter(name: &'static str, key: &'static str, value: &'static str) -> Counter {
    counter!(name, key => value)
}

fn labelled_gauge(name: &'static str, key: &'static str, value: &'static str) -> Gauge {
    gauge!(name, key => value)
}

fn labelled_histogram(name: &'static str, key: &'static str, value: &'static str) -> Histogram {
    histogram!(name, key => value)
}

/// The handles, the same for the whole process. Before [`install_metrics`] they lead nowhere, for good: a
/// command that shows metrics installs them first.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::register);
    &METRICS
}

/// Dead letters of one reason. The words are few and known; keep the handle where they are counted often.
pub fn dead_letters(reason: &'static str) -> Counter {
    counter!(DEAD_LETTERS, "reason" => reason)
}

/// How many records of a partition are not settled yet. Set it to zero when the partition goes: the series
/// stays.
pub fn consumer_lag(partition: i32) -> Gauge {
    gauge!(CONSUMER_LAG, "partition" => partition.to_string())
}

/// Counts one answered request. `route` is the route's pattern, never the path: paths are without number.
pub fn http_request(route: &'static str, status: u16, elapsed: Duration) {
    counter!(HTTP_REQUESTS, "route" => route, "status" => status.to_string()).increment(1);
    histogram!(HTTP_DURATION, "route" => route).record(elapsed);
}

/// Counts one look into a cache of the read API.
pub fn cache_lookup(cache: &'static str, lookup: CacheLookup) {
    counter!(CACHE_LOOKUPS, "cache" => cache, "result" => lookup.name()).increment(1);
}

/// Counts one attempt at a task, and what it took where that is known. `kind` is one of the known kinds: whoever can reach
/// Redis can name others without number.
pub fn task_ended(kind: &'static str, outcome: TaskOutcome, elapsed: Option<Duration>) {
    counter!(TASKS, "kind" => kind, "outcome" => outcome.name()).increment(1);
    if let Some(elapsed) = elapsed {
        histogram!(TASK_DURATION, "kind" => kind).record(elapsed);
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The recorder's settings are wrong.
    #[error("metrics cannot be set up")]
    Recorder(#[from] BuildError),
    /// This process has a recorder already.
    #[error("metrics are set up already")]
    RecorderTaken,
    /// This process has a log subscriber already.
    #[error("logs are set up already")]
    LogsTaken(#[from] TryInitError),
}

/// Makes [`metrics()`] lead to the returned handle, which renders them for Prometheus. Call its `run_upkeep`
/// every few seconds: the admin server does.
pub fn install_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&BUCKETS_SECONDS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::RecorderTaken)?;
    describe();
    // Registered now, so that every series is there at zero before its first event.
    metrics();
    Ok(handle)
}

fn describe() {
    for (name, unit, help) in COUNTERS.into_iter().chain(redis::COUNTERS) {
        metrics::describe_counter!(name, unit, help);
    }
    for (name, unit, help) in GAUGES.into_iter().chain(redis::GAUGES) {
        metrics::describe_gauge!(name, unit, help);
    }
    for (name, unit, help) in HISTOGRAMS {
        metrics::describe_histogram!(name, unit, help);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rendered() -> String {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&BUCKETS_SECONDS)
            .unwrap()
            .build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            let metrics = Metrics::register();
            metrics.events.of(Outcome::DeadLetter).increment(3);
            metrics
                .stage_duration
                .of(Stage::Advance)
                .record(Duration::from_millis(2));
            for stage in Stage::ALL {
                metrics.stage_duration.of(*stage).record(0.1);
            }
            dead_letters("not_json").increment(1);
            consumer_lag(7).set(5);
            http_request("/v1/query", 200, Duration::from_millis(3));
            cache_lookup("query", CacheLookup::Hit);
            redis_series(RedisServer::Cache, Some("a:1")).set_rdb_enabled(true);
            redis_looks(RedisServer::Cache).failures.increment(1);
            task_ended("rebuild-users", TaskOutcome::Done, Some(Duration::from_secs(1)));
        });
        recorder.handle().render()
    }

    #[test]
    fn every_metric_has_a_description_and_every_description_a_metric() {
        let text = rendered();
        let names = |start: &str| -> BTreeSet<String> {
            text.lines()
                .filter_map(|line| line.strip_prefix(start))
                .map(|line| line.split(' ').next().unwrap().to_owned())
                .collect()
        };
        let (helped, typed) = (names("# HELP "), names("# TYPE "));
        assert_eq!(helped, typed);
        assert_eq!(
            typed.len(),
            COUNTERS.len() + GAUGES.len() + HISTOGRAMS.len() + redis::COUNTERS.len() + redis::GAUGES.len(),
            "{typed:?}"
        );
        assert!(typed.iter().all(|name| name.starts_with("sluice_")));
    }

    #[test]
    fn alerts_and_their_tests_name_metrics_that_are_there() {
        let known: BTreeSet<&str> = COUNTERS
            .iter()
            .chain(&redis::COUNTERS)
            .chain(&GAUGES)
            .chain(&redis::GAUGES)
            .chain(&HISTOGRAMS)
            .map(|(name, _, _)| *name)
            .collect();
        let rules = include_str!("../../deploy/prometheus/sluice-redis.rules.yml");
        let tests = include_str!("../../deploy/prometheus/sluice-redis.test.yml");
        for text in [rules, tests] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let named: BTreeSet<&str> = words.filter(|word| word.starts_with("sluice_")).collect();
            assert!(named.len() > 5, "{named:?}");
            for name in named {
                let base = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or(name);
                assert!(known.contains(name) || known.contains(base), "{name}");
            }
        }
    }

    #[test]
    fn outcomes_are_counted_under_the_names_of_the_contract() {
        let text = rendered();
        for outcome in ["written", "duplicate", "limited"] {
            assert!(
                text.contains(&format!("sluice_events_total{{outcome=\"{outcome}\"}} 0")),
                "{text}"
            );
        }
        assert!(
            text.contains("sluice_events_total{outcome=\"dead_letter\"} 3"),
            "{text}"
        );
        assert!(
            text.contains("sluice_stage_duration_seconds_bucket{stage=\"advance\",le=\"0.0025\"} 1"),
            "{text}"
        );
    }
}
