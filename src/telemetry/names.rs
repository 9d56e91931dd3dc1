//! Every metric's name, with its unit and help.
//!
//! Owns all names but those of Redis's looks (`redis`). Counts nothing.

use metrics::Unit;

/// Name, unit and help.
pub(super) type Description = (&'static str, Unit, &'static str);

pub(super) const EVENTS: &str = "sluice_events_total";
pub(super) const DEAD_LETTERS: &str = "sluice_dead_letters_total";
pub(super) const RECORDS_CONSUMED: &str = "sluice_records_consumed_total";
pub(super) const BYTES_CONSUMED: &str = "sluice_bytes_consumed_total";
pub(super) const BLOCKS: &str = "sluice_blocks_total";
pub(super) const STAGE_DURATION: &str = "sluice_stage_duration_seconds";
pub(super) const INSERTS: &str = "sluice_inserts_total";
pub(super) const INSERT_ROWS: &str = "sluice_insert_rows_total";
pub(super) const INSERT_RETRIES: &str = "sluice_insert_retries_total";
pub(super) const COMMITS: &str = "sluice_commits_total";
pub(super) const COMMITS_REFUSED: &str = "sluice_commits_refused_total";
pub(super) const REBALANCES: &str = "sluice_rebalances_total";
pub(super) const RETRIES: &str = "sluice_retries_total";
pub(super) const SERVICE_UP: &str = "sluice_service_up";
pub(super) const IN_FLIGHT_BYTES: &str = "sluice_in_flight_bytes";
pub(super) const ASSIGNED_PARTITIONS: &str = "sluice_assigned_partitions";
pub(super) const PAUSED_PARTITIONS: &str = "sluice_paused_partitions";
pub(super) const STOPPED_PARTITIONS: &str = "sluice_stopped_partitions";
pub(super) const WAITING_PARTITIONS: &str = "sluice_waiting_partitions";
pub(super) const CONSUMER_LAG: &str = "sluice_consumer_lag_records";
pub(super) const OFFSETS_MISSING: &str = "sluice_offsets_missing_total";
pub(super) const CLOCK_DIFFERENCE: &str = "sluice_clock_difference_seconds";
pub(super) const CONSUMER_RESTARTS: &str = "sluice_consumer_restarts_total";
pub(super) const DECIDED_OTHERWISE: &str = "sluice_decided_otherwise_total";
pub(super) const LOST_ROWS: &str = "sluice_lost_rows_total";
pub(super) const BEYOND_WINDOW_LOOKUPS: &str = "sluice_beyond_window_lookups_total";
pub(super) const BEYOND_WINDOW_EVENTS: &str = "sluice_beyond_window_events_total";
pub(super) const USER_PROPERTIES_CUT: &str = "sluice_user_properties_cut_total";
pub(super) const EVENTS_WITHOUT_REDIS: &str = "sluice_events_without_redis_total";
pub(super) const STALE_PROFILES: &str = "sluice_stale_profiles_total";
pub(super) const BLOCKS_UNREMEMBERED: &str = "sluice_blocks_unremembered_total";
pub(super) const VIEWS_DOUBTFUL: &str = "sluice_views_doubtful_total";
pub(super) const ANNOUNCEMENTS_LOST: &str = "sluice_announcements_lost_total";
pub(super) const BAD_OVERRIDES: &str = "sluice_bad_overrides_total";
pub(super) const REDIS_RECONNECTS: &str = "sluice_redis_reconnects_total";
pub(super) const REDIS_FAILOVERS: &str = "sluice_redis_failovers_total";
pub(super) const REDIS_REDIRECTS: &str = "sluice_redis_redirects_total";
pub(super) const BUILD_INFO: &str = "sluice_build_info";
pub(super) const HTTP_REQUESTS: &str = "sluice_http_requests_total";
pub(super) const HTTP_DURATION: &str = "sluice_http_request_duration_seconds";
pub(super) const CACHE_LOOKUPS: &str = "sluice_cache_lookups_total";
pub(super) const TASKS: &str = "sluice_tasks_total";
pub(super) const TASK_DURATION: &str = "sluice_task_duration_seconds";
pub(super) const TASKS_WAITING: &str = "sluice_tasks_waiting";
pub(super) const TASKS_RUNNING: &str = "sluice_tasks_running";
pub(super) const TASKS_PARKED: &str = "sluice_tasks_parked";
pub(super) const TASKS_USERS_LEFT: &str = "sluice_tasks_users_left_total";

/// Name, unit and help of every counter.
pub(super) const COUNTERS: [Description; 32] = [
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
pub(super) const GAUGES: [Description; 12] = [
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
        WAITING_PARTITIONS,
        Unit::Count,
        "Partitions (a worker that starts counts as one) that have waited for more than half a minute, by what for.",
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
pub(super) const HISTOGRAMS: [Description; 3] = [
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
