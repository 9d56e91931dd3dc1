//! The whole worker against `ClickHouse`'s own Kafka engine: the same topic, the same machine, in turn.
//!
//! Each takes a drained backlog of `--events` records (10% duplicates) from nothing to the last row, start-up
//! included. The engine only parses and inserts, at least once; the worker also claims, limits, keeps timelines and
//! user properties, and writes each event once. Prints each rate, their ratio run by run, and CPU an event of each
//! process. These machines are noisy: the ratio and its spread say more than a rate.
//!
//! With `--beyond ROWS`, instead: what the look beyond the window costs the worker, on a table of so many rows.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that shows its result, and stops at whatever it did not expect"
)]

mod beyond;
mod engine;
mod stack;
mod worker;

use comfy_table::{CellAlignment, Table};

use stack::{Cpu, Stack, TOPIC};

/// What one run took.
struct Run {
    seconds: f64,
    /// CPU seconds by process.
    cpu: Cpu,
    /// The worker's peak memory in bytes; 0 for the engine.
    peak: u64,
}

struct Arguments {
    events: u64,
    rounds: usize,
    /// Rows of the table that is looked into; 0 for the engine's benchmark.
    beyond: u64,
}

fn arguments() -> Arguments {
    let mut parsed = Arguments {
        events: 1_000_000,
        rounds: 3,
        beyond: 0,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || {
            let value = given.next().unwrap_or_default();
            value
                .parse()
                .unwrap_or_else(|_| usage(&format!("{name} takes a number, not {value:?}")))
        };
        match name.as_str() {
            "--events" => parsed.events = value(),
            "--rounds" => parsed.rounds = value() as usize,
            "--beyond" => parsed.beyond = value(),
            // What cargo itself passes.
            "--bench" => {}
            other => usage(&format!("unknown argument {other}")),
        }
    }
    parsed
}

fn usage(problem: &str) -> ! {
    eprintln!(
        "{problem}\nusage: make bench ARGS='--bench pipeline -- [--events N] [--rounds N] [--beyond ROWS]'"
    );
    std::process::exit(2)
}

fn main() {
    let Arguments {
        events,
        rounds,
        beyond,
    } = arguments();
    let stack = Stack::up();
    if beyond > 0 {
        return beyond::run(&stack, events, rounds, beyond);
    }
    stack.generate(TOPIC, events, 0.0);
    println!("{events} records in 8 partitions; {rounds} rounds, each the engine and the worker in turn");
    let (mut engine, mut worker) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Whoever is second finds warm caches: take turns.
        for first in [round % 2 == 0, round % 2 == 1] {
            let (name, run) = if first {
                ("engine", engine::run(&stack, events, round))
            } else {
                ("worker", worker::run(&stack, events, round))
            };
            println!(
                "round {round}, {name}: {:.0} records/s",
                events as f64 / run.seconds
            );
            if first { engine.push(run) } else { worker.push(run) }
        }
    }
    report(events, &engine, &worker);
}

fn report(events: u64, engine: &[Run], worker: &[Run]) {
    let rate = |run: &Run| events as f64 / run.seconds;
    let mut table = Table::new();
    table.set_header(["records/s", "min", "median", "max"]);
    let mut row = |name: &str, values: Vec<f64>, digits: usize| {
        let [min, median, max] = spread(values).map(|v| format!("{v:.digits$}"));
        table.add_row([name.to_owned(), min, median, max]);
    };
    row("ClickHouse Kafka engine", engine.iter().map(rate).collect(), 0);
    row("sluice", worker.iter().map(rate).collect(), 0);
    row(
        "ratio sluice / engine",
        engine
            .iter()
            .zip(worker)
            .map(|(e, w)| rate(w) / rate(e))
            .collect(),
        2,
    );
    println!("{}", aligned(table));

    let mut table = Table::new();
    table.set_header(["CPU µs a record", "min", "median", "max"]);
    let mut row = |name: &str, runs: &[Run], of: fn(&Cpu) -> f64| {
        let [min, median, max] = spread(
            runs.iter()
                .map(|run| of(&run.cpu) * 1e6 / events as f64)
                .collect(),
        )
        .map(|v| format!("{v:.2}"));
        table.add_row([name.to_owned(), min, median, max]);
    };
    row("engine: clickhouse", engine, |cpu| cpu.clickhouse);
    row("engine: kafka", engine, |cpu| cpu.kafka);
    row("sluice: worker", worker, |cpu| cpu.worker);
    row("sluice: redis", worker, |cpu| cpu.redis);
    row("sluice: clickhouse", worker, |cpu| cpu.clickhouse);
    row("sluice: kafka", worker, |cpu| cpu.kafka);
    println!("{}", aligned(table));
    let peak = worker.iter().map(|run| run.peak).max().unwrap_or(0);
    println!("peak memory of the worker: {} MiB", peak >> 20);
}

fn aligned(mut table: Table) -> Table {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}
