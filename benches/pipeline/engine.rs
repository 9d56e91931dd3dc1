//! The peer: a Kafka engine table and a materialised view, at the best settings found for it.

use std::time::{Duration, Instant};

use crate::Run;
use crate::stack::{Stack, TOPIC};

/// Reads the whole topic into a plain `MergeTree`, so that nothing is merged away while the rows are counted.
pub(crate) fn run(stack: &Stack, events: u64, round: usize) -> Run {
    let db = format!("engine_{round}");
    for sql in [
        format!("CREATE DATABASE {db}"),
        format!(
            "CREATE TABLE {db}.rows (uuid UUID, token LowCardinality(String), event LowCardinality(String), \
             distinct_id String, timestamp DateTime64(3, 'UTC'), properties String, kafka_topic LowCardinality(String), \
             kafka_partition UInt32, kafka_offset UInt64, ingested_at DateTime64(3, 'UTC')) ENGINE = MergeTree \
             PARTITION BY toYYYYMM(timestamp) ORDER BY (token, toDate(timestamp), event, cityHash64(distinct_id), uuid, timestamp)"
        ),
        format!(
            "CREATE TABLE {db}.queue (uuid UUID, token String, event String, distinct_id String, \
             timestamp DateTime64(3, 'UTC'), properties String) ENGINE = Kafka SETTINGS kafka_broker_list = '{brokers}', \
             kafka_topic_list = '{TOPIC}', kafka_group_name = '{db}', kafka_format = 'JSONEachRow', \
             kafka_num_consumers = 2, kafka_thread_per_consumer = 1, kafka_max_block_size = 262144, \
             kafka_poll_max_batch_size = 65536, kafka_flush_interval_ms = 2000, \
             input_format_json_read_objects_as_strings = 1, date_time_input_format = 'best_effort', \
             input_format_skip_unknown_fields = 1",
            brokers = stack.get("SLUICE_KAFKA__BROKERS"),
        ),
    ] {
        stack.query(&sql);
    }
    let (before, start) = (stack.cpu(None), Instant::now());
    stack.query(&format!(
        "CREATE MATERIALIZED VIEW {db}.view TO {db}.rows AS SELECT *, _topic AS kafka_topic, \
         toUInt32(_partition) AS kafka_partition, _offset AS kafka_offset, now64(3) AS ingested_at FROM {db}.queue"
    ));
    let most = Duration::from_mins(5);
    while stack.query(&format!("SELECT count() FROM {db}.rows")) != events.to_string() {
        assert!(
            start.elapsed() < most,
            "the engine did not finish within {most:?}"
        );
        // It tells nobody when it is done.
        std::thread::sleep(Duration::from_millis(100));
    }
    let run = Run {
        seconds: start.elapsed().as_secs_f64(),
        cpu: stack.cpu(None).since(before),
        peak: 0,
    };
    stack.query(&format!("DROP DATABASE {db} SYNC"));
    run
}
