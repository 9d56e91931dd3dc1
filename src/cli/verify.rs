//! `sluice verify`: the ledger, counted at the destinations, and who does not add up.

use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use tokio::runtime::Handle;

use super::progress::Progress;
use super::{CliError, print, with_causes};
use crate::config::Config;
use crate::verify::{self, BadRange, Bound, Ledger, Offenders, Options, Range, Watch};

/// Offenders of a kind in the text; JSON has more.
const SHOWN: usize = 10;

/// Arguments of `sluice verify`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Settles every record from the topic's first to the group's committed offsets, or those of a \
                        range. Topic, group and destinations are those of the configuration: the overflow topic's \
                        own worker is verified with that worker's configuration. Reads only.\n\n\
                        Exit code 0 if it adds up; 1 if a record is missing, there twice or in two destinations, if an \
                        event has rows of two records, or a row no record, or with --settled-within if the group has \
                        not settled; 2 if the range cannot be."
)]
pub struct Args {
    /// Print the ledger as one JSON object.
    #[arg(long)]
    json: bool,
    /// Only these partitions, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// First record: an offset, a time (2026-01-31T12:00:00Z, as Kafka has it) or how long ago (90s, 15m, 2h, 7d)
    /// [default: the topic's first].
    #[arg(long, value_name = "BOUND")]
    from: Option<Bound>,
    /// End, not included: as --from [default: the group's committed offsets].
    #[arg(long, value_name = "BOUND")]
    to: Option<Bound>,
    /// Wait up to so long for the group to settle what the range holds now, and fail if it does not; 0 does not wait.
    #[arg(long, value_name = "SECONDS")]
    settled_within: Option<u32>,
    /// Read no more records a second from a topic, nor rows from the table [default: as many as it can].
    #[arg(long, value_name = "N")]
    max_records_per_second: Option<NonZeroU32>,
}

/// Runs the command.
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    let options = Options {
        range: Range {
            partitions: args.partition,
            from: args.from,
            to: args.to,
        },
        wait: args
            .settled_within
            .map(|seconds| Duration::from_secs(u64::from(seconds))),
        max_per_second: args.max_records_per_second,
    };
    let must_be_settled = options.wait.is_some();
    let runtime = Handle::current();
    let (ledger, config) = tokio::task::spawn_blocking(move || {
        let ledger = verify::verify(&config, &options, &runtime, &mut Steps::default());
        (ledger, config)
    })
    .await
    .context("the verifying thread failed")?;
    let ledger = ledger.map_err(|error| match error.downcast::<BadRange>() {
        Ok(refused) => CliError::Usage(refused.to_string()),
        // Client libraries may repeat what they were given.
        Err(error) => anyhow::anyhow!(config.scrub(&with_causes(error.as_ref()))).into(),
    })?;
    if args.json {
        print(&(serde_json::to_string(&ledger).map_err(anyhow::Error::from)? + "\n"))?;
    } else {
        print(&text(&ledger, &config))?;
    }
    Ok(if !ledger.adds_up() || must_be_settled && ledger.behind > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
#[derive(Default)]
struct Steps(Option<Progress>);

impl Watch for Steps {
    fn step(&mut self, name: &'static str, total: Option<u64>) {
        self.0 = Some(Progress::new(name, total));
    }

    fn done(&mut self, parts: u64) {
        // A look at the clock for each record would cost more than the record.
        if let Some(progress) = self.0.as_ref().filter(|_| parts.is_multiple_of(1024)) {
            progress.set(parts);
        }
    }
}

fn text(ledger: &Ledger, config: &Config) -> String {
    let kafka = &config.kafka;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["outcome", "records", "counted in"]);
    let mut row = |outcome: &str, count: u64, place: &str| {
        table.add_row([outcome.to_owned(), count.to_string(), place.to_owned()]);
    };
    let rows = format!("{}.events, without FINAL", config.clickhouse.database);
    row("written", ledger.written, &rows);
    row(
        "duplicates",
        ledger.duplicates,
        "no destination, but another record of their id is in one",
    );
    row("limited", ledger.limited, &kafka.overflow_topic);
    row("dead letters", ledger.dead_letters, &kafka.dead_letter_topic);
    for (reason, count) in &ledger.reasons {
        row(&format!("  {reason}"), *count, "");
    }
    row("missing", ledger.missing.count, "no destination");
    let topic = format!("{}, within the offsets of group {}", kafka.topic, kafka.group_id);
    row("all", ledger.records, &topic);
    row(
        "twice",
        ledger.twice.count,
        "more than one row (also counted above)",
    );
    row("both", ledger.both.count, "two destinations (also counted above)");
    row(
        "repeated",
        ledger.repeated.count,
        "a row, and an earlier one of another record of their event (also counted above)",
    );
    row(
        "stray",
        ledger.stray.count,
        "rows, but no record (not counted above)",
    );
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines = vec![table.to_string(), sum(ledger)];
    for (kind, offenders) in ledger.offences() {
        lines.extend(names(kind, offenders));
    }
    if ledger.behind > 0 {
        lines.push(format!("not settled yet: {} offsets", ledger.behind));
    }
    lines.extend(ledger.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n") + "\n"
}

fn sum(ledger: &Ledger) -> String {
    let Ledger {
        records,
        written,
        duplicates,
        limited,
        dead_letters,
        ..
    } = ledger;
    let parts = format!(
        "{written} written + {duplicates} duplicates + {limited} limited + {dead_letters} dead letters"
    );
    if *records == 0 && ledger.adds_up() {
        // A wrong group or range must not read like a success.
        "0 records: there was nothing to settle".to_owned()
    } else if ledger.adds_up() {
        format!("{records} records = {parts}: it adds up")
    } else {
        let offences = ledger.offences();
        let counts: Vec<String> = offences
            .iter()
            .map(|(kind, offenders)| format!("{} {kind}", offenders.count))
            .collect();
        format!(
            "{records} records, {parts}: IT DOES NOT ADD UP, {}",
            counts.join(", ")
        )
    }
}

fn names(kind: &str, offenders: &Offenders) -> Option<String> {
    if offenders.count == 0 {
        return None;
    }
    let shown: Vec<String> = offenders
        .first
        .iter()
        .take(SHOWN)
        .map(|at| format!("{}:{}", at.partition, at.offset))
        .collect();
    let more = match offenders.count.saturating_sub(shown.len() as u64) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{kind} (partition:offset): {}{more}", shown.join(" ")))
}
