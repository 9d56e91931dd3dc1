//! What the look beyond the window costs: the same worker on topics of which no event is old, about one a block, and all,
//! and on the last with the look switched off, in turn.
//!
//! The table holds so many rows from before, of the same tokens, users and names, spread over the days of the old events.

use comfy_table::Table;

use crate::stack::Stack;
use crate::{Run, aligned, spread, worker};

const DATABASE: &str = "beyond";
/// Records of a block, by default.
const BLOCK: f64 = 65_536.0;
/// Rows of one insert that fills the table: below the table's deadline.
const CHUNK: u64 = 1_000_000;

/// A topic, and whether the worker looks.
struct Case {
    name: &'static str,
    topic: &'static str,
    late: f64,
    looks: bool,
}

const CASES: [Case; 4] = [
    Case {
        name: "no old event",
        topic: "beyond_none",
        late: 0.0,
        looks: true,
    },
    Case {
        name: "about one a block",
        topic: "beyond_one",
        late: 1.5 / BLOCK,
        looks: true,
    },
    Case {
        name: "all old",
        topic: "beyond_all",
        late: 1.0,
        looks: true,
    },
    Case {
        name: "all old, not looked up",
        topic: "beyond_all",
        late: 1.0,
        looks: false,
    },
];

pub(crate) fn run(stack: &Stack, events: u64, rounds: usize, rows: u64) {
    for case in CASES.iter().filter(|case| case.looks) {
        stack.generate(case.topic, events, case.late);
    }
    fill(stack, events, rows);
    let mut runs: Vec<Vec<Run>> = CASES.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (case, runs) in CASES.iter().zip(&mut runs) {
            let group = format!("{}_{}_{round}", case.topic, case.looks);
            let run = worker::run_into(stack, DATABASE, case.topic, events, |command| {
                command
                    .env("SLUICE_KAFKA__GROUP_ID", group)
                    .env("SLUICE_DEDUP__BEYOND_WINDOW", case.looks.to_string());
            });
            println!(
                "round {round}, {}: {:.0} records/s",
                case.name,
                events as f64 / run.seconds
            );
            runs.push(run);
            forget(stack, case.topic);
        }
    }
    let mut table = Table::new();
    table.set_header([
        format!("{rows} rows").as_str(),
        "records/s min",
        "median",
        "max",
        "ClickHouse CPU µs a record, median",
    ]);
    for (case, runs) in CASES.iter().zip(runs) {
        let rates = spread(runs.iter().map(|run| events as f64 / run.seconds).collect());
        let cpu = spread(
            runs.iter()
                .map(|run| run.cpu.clickhouse * 1e6 / events as f64)
                .collect(),
        );
        let [min, median, max] = rates.map(|rate| format!("{rate:.0}"));
        table.add_row([case.name.to_owned(), min, median, max, format!("{:.2}", cpu[1])]);
    }
    println!("{}", aligned(table));
}

/// Takes the rows of a topic out of the table, as a mutation: a lightweight delete is refused where there is a projection.
fn forget(stack: &Stack, topic: &str) {
    stack.query(&format!(
        "ALTER TABLE {DATABASE}.events DELETE WHERE kafka_topic = '{topic}' SETTINGS mutations_sync = 1"
    ));
}

/// Makes the rows of before out of those of one run: each again with other ids, until there are enough.
fn fill(stack: &Stack, events: u64, rows: u64) {
    worker::run_into(stack, DATABASE, "beyond_all", events, |command| {
        command
            .env("SLUICE_KAFKA__GROUP_ID", "fill")
            .env("SLUICE_DEDUP__BEYOND_WINDOW", "false");
    });
    stack.query(&format!(
        "CREATE TABLE {DATABASE}.seed ENGINE = Memory AS SELECT token, event, distinct_id, timestamp \
         FROM {DATABASE}.events LIMIT {CHUNK}"
    ));
    forget(stack, "beyond_all");
    let count = || -> u64 {
        let count = stack.query(&format!("SELECT count() FROM {DATABASE}.events FORMAT TSV"));
        count.parse().expect("a number")
    };
    let seed: u64 = stack
        .query(&format!("SELECT count() FROM {DATABASE}.seed FORMAT TSV"))
        .parse()
        .expect("a number");
    for chunk in 0..rows.div_ceil(seed) {
        stack.query(&format!(
            "INSERT INTO {DATABASE}.events (uuid, token, event, distinct_id, timestamp, properties, kafka_topic, \
             kafka_partition, kafka_offset, ingested_at) SELECT generateUUIDv7(), token, event, distinct_id, \
             timestamp + INTERVAL rand() % 1000 MILLISECOND, '{{}}', 'before', 0, {chunk} * {seed} + rowNumberInAllBlocks(), \
             now64(3) FROM {DATABASE}.seed LIMIT {} SETTINGS insert_deduplicate = 0",
            seed.min(rows - chunk * seed)
        ));
    }
    assert_eq!(count(), rows, "rows of before");
    println!("the table holds {rows} rows of before");
}
