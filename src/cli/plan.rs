//! `sluice plan`: what a load takes of Redis, Kafka, the workers and `ClickHouse`, from what was measured.
//!
//! Asks no service. The reckoning is [`crate::plan`]'s; here are the arguments, and how the result is told.

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{CliError, print};
use crate::config::{Config, LONGEST_PACKED, Layout};
use crate::plan::{BUSY, DecidedBy, Demand, FULL, Masters, Plan};

/// What the numbers rest on.
const ASSUMPTIONS: [&str; 7] = [
    "Estimates from this project's own measurements on two cores that all services shared (src/plan/constants.rs \
     says where each comes from): expect a third more or less, and measure your own load before you buy.",
    "Memory is that of one copy: each replica takes the same again, and the machine needs as much free as maxmemory \
     for snapshots and rewrites.",
    "All events are different; resends take CPU and no memory. Payloads compress as made-up ones do; yours may not.",
    "All users have as many events as each other: timelines are at most this, never more.",
    "A user counts for 30 days after the last event, a claim for the window (packed ones for a bit longer, which is \
     reckoned in).",
    "Redis has one thread a master, and forks to write its files: above a share of either, claims and users are spread \
     over several masters by a Cluster. The fullest is reckoned with: packed claims are 256 shards.",
    "Replication of Kafka and ClickHouse is not reckoned in: multiply disk by the number of copies.",
];

/// Arguments of `sluice plan`. Window, layout, blocks and deadline are the configuration's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Events a day, 1 to 10^13.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000_000_000))]
    events_per_day: u64,
    /// Users that have an event within 30 days.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=100_000_000_000))]
    users: u64,
    /// Project tokens.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    tokens: u64,
    /// Partitions of the topic [default: as many as the workers want].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    partitions: Option<u64>,
    /// Days that rows stay in ClickHouse.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    retention_days: u64,
    /// How long Redis remembers an id, in seconds [default: `dedup.window_seconds`].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=366 * 86_400))]
    window_seconds: Option<u64>,
    /// The busiest second by the average, 1 to 1000.
    #[arg(long, value_name = "FACTOR", default_value_t = 3.0, value_parser = factor)]
    peak_factor: f64,
    /// Bytes of an event's payload.
    #[arg(long, value_name = "BYTES", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    event_bytes: u64,
    /// Properties that Redis keeps of a user.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=500))]
    properties: u64,
    /// Profiles that are asked for in an hour [default: those of one user in a hundred].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=10_000_000_000))]
    cached_profiles: Option<u64>,
    /// Different queries that are asked for in an hour.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=10_000_000_000))]
    cached_queries: u64,
    /// The largest maxmemory of one Redis master, in GiB. Its machine needs twice that: a snapshot or a rewrite of the
    /// append-only file forks, and pages that change meanwhile are there twice. The larger a master is, the longer a fork, a
    /// restart and the first copy to a replica take.
    #[arg(long, value_name = "GIB", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=4_096))]
    redis_memory_gib: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=1_000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 1 to 1000".to_owned()),
    }
}

/// Reckons and prints.
#[expect(clippy::unused_async, reason = "as every command")]
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    let demand = demand(&config, &args);
    if demand.layout == Layout::Packed && demand.window_seconds > LONGEST_PACKED {
        return Err(CliError::Usage(format!(
            "--window-seconds {} and dedup.layout = \"packed\": at most {LONGEST_PACKED} (45 days)",
            demand.window_seconds
        )));
    }
    let plan = Plan::of(&demand);
    if args.json {
        print(&json(&demand, &plan)?)?;
    } else {
        print(&told(&demand, &plan))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn demand(config: &Config, args: &Args) -> Demand {
    Demand {
        events_per_day: args.events_per_day,
        users: args.users,
        tokens: args.tokens,
        partitions: args.partitions,
        retention_days: args.retention_days,
        window_seconds: args.window_seconds.unwrap_or(config.dedup.window_seconds),
        peak_factor: args.peak_factor,
        event_bytes: args.event_bytes,
        properties: args.properties,
        cached_profiles: args.cached_profiles.unwrap_or(args.users.div_ceil(100)),
        cached_queries: args.cached_queries,
        redis_memory_gib: args.redis_memory_gib,
        layout: config.dedup.layout,
        max_rows: u64::from(config.batch.max_rows),
        max_age_ms: config.batch.max_age_ms,
        max_inserts_per_second: u64::from(config.clickhouse.max_inserts_per_second),
        insert_deadline_seconds: u64::from(config.clickhouse.insert_deadline_seconds),
    }
}

fn json(demand: &Demand, plan: &Plan) -> Result<String, CliError> {
    #[derive(Serialize)]
    struct All<'a> {
        demand: &'a Demand,
        #[serde(flatten)]
        plan: &'a Plan,
        assumptions: [&'a str; 7],
    }
    let all = All {
        demand,
        plan,
        assumptions: ASSUMPTIONS,
    };
    let text = serde_json::to_string_pretty(&all)
        .map_err(|error| anyhow::Error::new(error).context("cannot write JSON"))?;
    Ok(text + "\n")
}

fn told(demand: &Demand, plan: &Plan) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["", "what", "", "from"]);
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.add_row(load_row(demand, plan));
    table.add_rows(state_rows(demand, plan));
    table.add_rows(other_rows(demand, plan));
    let mut text = format!("{}\n\nAssumptions\n", table.trim_fmt());
    for assumption in ASSUMPTIONS {
        text.push_str("- ");
        text.push_str(assumption);
        text.push('\n');
    }
    text
}

/// Service, what, how much, and from what.
type Row = [String; 4];

fn row(service: &str, what: impl Into<String>, value: String, from: impl Into<String>) -> Row {
    [service.to_owned(), what.into(), value, from.into()]
}

fn load_row(demand: &Demand, plan: &Plan) -> Row {
    row(
        "load",
        "events a second",
        format!("{} / {}", count(plan.average_rate), count(plan.peak_rate)),
        format!("average / busiest, {} times the average", demand.peak_factor),
    )
}

fn state_rows(demand: &Demand, plan: &Plan) -> Vec<Row> {
    let chosen = |layout| if demand.layout == layout { " (this)" } else { "" };
    let redis = &plan.redis;
    let tokens = count(demand.tokens as f64);
    vec![
        row(
            "redis, state",
            format!("claims, packed{}", chosen(Layout::Packed)),
            size(redis.claims_packed_bytes),
            format!(
                "{} in {} s; {} in the first window",
                count(redis.claims),
                demand.window_seconds,
                size(redis.claims_packed_first_window_bytes)
            ),
        ),
        row(
            "",
            format!("claims, keys{}", chosen(Layout::Keys)),
            size(redis.claims_keys_bytes),
            "the same, one key an event",
        ),
        row(
            "",
            "timelines",
            size(redis.timelines_bytes),
            format!("{} users", count(demand.users as f64)),
        ),
        row(
            "",
            "users",
            size(redis.users_bytes),
            format!("{} properties each", demand.properties),
        ),
        row(
            "",
            "decisions, watermarks",
            size(redis.decisions_bytes),
            format!("{tokens} tokens x {} partitions", plan.kafka.partitions),
        ),
        row(
            "",
            "limits, counters, recent actions",
            size(redis.tokens_bytes),
            format!("{tokens} tokens"),
        ),
        row(
            "",
            if plan.redis_masters.needs_cluster {
                "maxmemory of all masters, at least"
            } else {
                "maxmemory, at least"
            },
            size(redis.state_maxmemory_bytes),
            format!(
                "{} with layout {}, {:.0}% full",
                size(redis.state_bytes),
                demand.layout,
                FULL * 100.0
            ),
        ),
        row(
            "",
            "cores busy at the peak",
            format!("{:.2} / {:.2}", plan.cpu.redis_packed, plan.cpu.redis_keys),
            "layouts packed / keys",
        ),
        masters_row(&plan.redis_masters),
        row(
            "",
            "maxmemory of each master",
            size(plan.redis_masters.maxmemory_bytes_each),
            format!(
                "at most {} GiB (--redis-memory-gib); its machine needs twice that, for a snapshot or rewrite forks",
                demand.redis_memory_gib
            ),
        ),
    ]
}

fn masters_row(masters: &Masters) -> Row {
    let Masters {
        by_memory, by_cpu, ..
    } = masters;
    let by = format!(
        "{by_memory} by memory, {by_cpu} by CPU (one thread each, busy for {:.0}%)",
        BUSY * 100.0
    );
    let decided = match masters.decided_by {
        DecidedBy::Neither => ": one is enough",
        DecidedBy::Memory => ": memory decides",
        DecidedBy::Cpu => ": CPU decides",
    };
    let cluster = if masters.too_much {
        "; MORE THAN A CLUSTER HOLDS: shorten the window, or give each more memory"
    } else if masters.needs_cluster {
        "; set redis.mode = \"cluster\""
    } else {
        ""
    };
    row(
        "",
        "masters",
        masters.masters.to_string(),
        format!("{by}{decided}{cluster}"),
    )
}

fn other_rows(demand: &Demand, plan: &Plan) -> Vec<Row> {
    let (cpu, kafka, table) = (&plan.cpu, &plan.kafka, &plan.clickhouse);
    let partitions = if kafka.too_few_partitions {
        "FEWER THAN WORKERS: some would have nothing to do"
    } else {
        "of kafka.topic"
    };
    vec![
        row(
            "redis, cache",
            "maxmemory",
            size(plan.redis.cache_maxmemory_bytes),
            format!(
                "{} profiles, {} queries an hour; with less it misses more",
                count(demand.cached_profiles as f64),
                count(demand.cached_queries as f64)
            ),
        ),
        row(
            "workers",
            "processes",
            plan.workers.to_string(),
            format!("{:.2} cores busy at the peak", cpu.workers),
        ),
        row("kafka", "partitions", kafka.partitions.to_string(), partitions),
        row(
            "",
            "bytes a day",
            size(kafka.bytes_per_day),
            format!("uncompressed, one copy; {:.2} cores busy for reading", cpu.kafka),
        ),
        row(
            "clickhouse",
            "disk",
            size(table.disk_bytes),
            format!(
                "{} rows in {} days, one copy",
                count(table.rows),
                demand.retention_days
            ),
        ),
        row(
            "",
            "inserts a second at the peak",
            format!("{:.1}", table.inserts_per_second),
            format!(
                "{} rows each; {:.2} cores busy, reads not counted",
                count(table.rows_per_insert),
                cpu.clickhouse
            ),
        ),
        row(
            "",
            "deduplication window",
            table.deduplication_window.to_string(),
            "entries, at least; `sluice migrate` sets 100000",
        ),
    ]
}

/// A number with three digits that count.
fn count(number: f64) -> String {
    scaled(number, 1e3, &["", " k", " M", " G", " T"])
}

/// Bytes, in units of 1024.
fn size(bytes: f64) -> String {
    scaled(bytes, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}

fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let mut number = number;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        if number < step {
            break;
        }
        number /= step;
        unit = next;
    }
    let digits = usize::from(number < 100.0 && number.fract() != 0.0);
    format!("{number:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_units_that_can_be_read() {
        assert_eq!(size(0.0), "0 B");
        assert_eq!(size(1_536.0), "1.5 KiB");
        assert_eq!(size(40.0 * (1_u64 << 30) as f64), "40 GiB");
        assert_eq!(count(864e6), "864 M");
        assert_eq!(count(11.57), "11.6");
        assert_eq!(count(1e16), "10000 T");
    }

    #[test]
    fn factors_out_of_range_are_refused() {
        assert!(factor("1").is_ok() && factor("2.5").is_ok());
        for text in ["0.9", "1001", "NaN", "inf", "many", ""] {
            assert!(factor(text).is_err(), "{text}");
        }
    }
}
