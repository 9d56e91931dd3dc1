//! What the program tells about itself: handles of all metrics (named in `names`), and how logs are written.
//!
//! The rest of the crate takes handles from [`metrics()`] and adds to them: a handle is fetched
//! once, so counting is one atomic operation. An outcome is counted in the branch in which it happened.

#![expect(
    clippy::disallowed_macros,
    reason = "this is the one file that makes handles of metrics, and describes each"
)]

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::util::TryInitError;

pub use labels::{
    BlockKind, CacheLookup, Outcome, Rebalance, RedisKind, RedisServer, Service, Stage, TaskOutcome, WaitsFor,
};
pub use logs::{LogFormat, init_logs, log_filter};
pub use redis::{RedisLooks, RedisSeries, redis_looks, redis_series};

use labels::Label;

mod labels;
mod logs;
mod names;
mod redis;

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
    pub waiting_partitions: Family<WaitsFor, Gauge>,
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
        gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
        Self {
            events: Family::new(labelled_counter, names::EVENTS),
            records_consumed: counter!(names::RECORDS_CONSUMED),
            bytes_consumed: counter!(names::BYTES_CONSUMED),
            blocks: Family::new(labelled_counter, names::BLOCKS),
            stage_duration: Family::new(labelled_histogram, names::STAGE_DURATION),
            inserts: counter!(names::INSERTS),
            insert_rows: counter!(names::INSERT_ROWS),
            insert_retries: counter!(names::INSERT_RETRIES),
            commits: counter!(names::COMMITS),
            commits_refused: counter!(names::COMMITS_REFUSED),
            rebalances: Family::new(labelled_counter, names::REBALANCES),
            retries: Family::new(labelled_counter, names::RETRIES),
            service_up: Family::new(labelled_gauge, names::SERVICE_UP),
            in_flight_bytes: gauge!(names::IN_FLIGHT_BYTES),
            assigned_partitions: gauge!(names::ASSIGNED_PARTITIONS),
            paused_partitions: gauge!(names::PAUSED_PARTITIONS),
            stopped_partitions: gauge!(names::STOPPED_PARTITIONS),
            waiting_partitions: Family::new(labelled_gauge, names::WAITING_PARTITIONS),
            offsets_missing: counter!(names::OFFSETS_MISSING),
            consumer_restarts: counter!(names::CONSUMER_RESTARTS),
            decided_otherwise: counter!(names::DECIDED_OTHERWISE),
            lost_rows: counter!(names::LOST_ROWS),
            events_without_redis: counter!(names::EVENTS_WITHOUT_REDIS),
            blocks_unremembered: counter!(names::BLOCKS_UNREMEMBERED),
            views_doubtful: counter!(names::VIEWS_DOUBTFUL),
            user_properties_cut: counter!(names::USER_PROPERTIES_CUT),
            beyond_window_lookups: counter!(names::BEYOND_WINDOW_LOOKUPS),
            beyond_window_events: counter!(names::BEYOND_WINDOW_EVENTS),
            announcements_lost: counter!(names::ANNOUNCEMENTS_LOST),
            bad_overrides: counter!(names::BAD_OVERRIDES),
            stale_profiles: counter!(names::STALE_PROFILES),
            redis_reconnects: counter!(names::REDIS_RECONNECTS),
            redis_failovers: counter!(names::REDIS_FAILOVERS),
            redis_redirects: counter!(names::REDIS_REDIRECTS),
            clock_difference: Family::new(labelled_gauge, names::CLOCK_DIFFERENCE),
            tasks_waiting: gauge!(names::TASKS_WAITING),
            tasks_running: gauge!(names::TASKS_RUNNING),
            tasks_parked: gauge!(names::TASKS_PARKED),
            tasks_users_left: counter!(names::TASKS_USERS_LEFT),
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
    counter!(names::DEAD_LETTERS, "reason" => reason)
}

/// How many records of a partition are not settled yet. Set it to zero when the partition goes: the series
/// stays.
pub fn consumer_lag(partition: i32) -> Gauge {
    gauge!(names::CONSUMER_LAG, "partition" => partition.to_string())
}

/// Counts one answered request. `route` is the route's pattern, never the path: paths are without number.
pub fn http_request(route: &'static str, status: u16, elapsed: Duration) {
    counter!(names::HTTP_REQUESTS, "route" => route, "status" => status.to_string()).increment(1);
    histogram!(names::HTTP_DURATION, "route" => route).record(elapsed);
}

/// Counts one look into a cache of the read API.
pub fn cache_lookup(cache: &'static str, lookup: CacheLookup) {
    counter!(names::CACHE_LOOKUPS, "cache" => cache, "result" => lookup.name()).increment(1);
}

/// Counts one attempt at a task, and what it took where that is known. `kind` is one of the known kinds: whoever can reach
/// Redis can name others without number.
pub fn task_ended(kind: &'static str, outcome: TaskOutcome, elapsed: Option<Duration>) {
    counter!(names::TASKS, "kind" => kind, "outcome" => outcome.name()).increment(1);
    if let Some(elapsed) = elapsed {
        histogram!(names::TASK_DURATION, "kind" => kind).record(elapsed);
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
    for (name, unit, help) in names::COUNTERS.into_iter().chain(redis::COUNTERS) {
        metrics::describe_counter!(name, unit, help);
    }
    for (name, unit, help) in names::GAUGES.into_iter().chain(redis::GAUGES) {
        metrics::describe_gauge!(name, unit, help);
    }
    for (name, unit, help) in names::HISTOGRAMS {
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
            names::COUNTERS.len()
                + names::GAUGES.len()
                + names::HISTOGRAMS.len()
                + redis::COUNTERS.len()
                + redis::GAUGES.len(),
            "{typed:?}"
        );
        assert!(typed.iter().all(|name| name.starts_with("sluice_")));
    }

    #[test]
    fn alerts_and_their_tests_name_metrics_that_are_there() {
        let known: BTreeSet<&str> = names::COUNTERS
            .iter()
            .chain(&redis::COUNTERS)
            .chain(&names::GAUGES)
            .chain(&redis::GAUGES)
            .chain(&names::HISTOGRAMS)
            .map(|(name, _, _)| *name)
            .collect();
        for text in [
            include_str!("../../deploy/prometheus/sluice.rules.yml"),
            include_str!("../../deploy/prometheus/sluice.test.yml"),
            include_str!("../../deploy/prometheus/sluice-redis.rules.yml"),
            include_str!("../../deploy/prometheus/sluice-redis.test.yml"),
        ] {
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
