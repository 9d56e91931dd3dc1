//! `sluice verify`: the ledger, counted at the destinations, and who does not add up.

use std::process::ExitCode;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use tokio::runtime::Handle;

use super::progress::Progress;
use super::{CliError, print, with_causes};
use crate::config::Config;
use crate::verify::{self, Ledger, Offenders, Watch};

/// Offenders of a kind in the text; JSON has more.
const SHOWN: usize = 10;

/// Arguments of `sluice verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the ledger as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    let runtime = Handle::current();
    let (ledger, config) = tokio::task::spawn_blocking(move || {
        let ledger = verify::verify(&config, &runtime, &mut Steps::default());
        (ledger, config)
    })
    .await
    .context("the verifying thread failed")?;
    // Client libraries may repeat what they were given.
    let ledger = ledger.map_err(|error| anyhow::anyhow!(config.scrub(&with_causes(error.as_ref()))))?;
    if args.json {
        print(&(serde_json::to_string(&ledger).map_err(anyhow::Error::from)? + "\n"))?;
    } else {
        print(&text(&ledger, &config))?;
    }
    Ok(if ledger.adds_up() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
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
    let topic = format!("{}, up to the offsets of group {}", kafka.topic, kafka.group_id);
    row("all", ledger.records, &topic);
    row(
        "twice",
        ledger.twice.count,
        "more than one row (also counted above)",
    );
    row("both", ledger.both.count, "two destinations (also counted above)");
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines = vec![table.to_string(), sum(ledger)];
    for (kind, offenders) in [
        ("missing", &ledger.missing),
        ("twice", &ledger.twice),
        ("both", &ledger.both),
    ] {
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
    if ledger.adds_up() {
        format!("{records} records = {parts}: it adds up")
    } else {
        format!(
            "{records} records, {parts}: IT DOES NOT ADD UP, {} missing, {} twice",
            ledger.missing.count, ledger.twice.count
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
