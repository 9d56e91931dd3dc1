//! `sluice generate`: made-up records into the topic, the same ones for the same seed.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table};
use jiff::Timestamp;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::progress::Progress;
use super::{CliError, print};
use crate::config::Config;
use crate::generate::{self, Bounds, Hot, Plan, Shape, Summary, Watch};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(100);
const DEFAULT_COUNT: u64 = 100_000;
/// How far back events reach unless told otherwise, ms: within the default window of claims.
const HALF_A_DAY: u64 = 43_200_000;

/// Arguments of `sluice generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topic that is written to [default: kafka.topic].
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Records to send [default: 100000; without end if --duration is given].
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Seconds after which it ends.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Records a second [default: as many as it can].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Where all randomness comes from: the same seed makes the same records [default: another each time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Shape of the events.
    #[arg(long, value_enum, default_value_t)]
    shape: Shape,
    /// Project tokens, token-0 to token-N-1; the first have the most events.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Users, user-0 to user-N-1; the first are the busiest.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Share of records that repeat an earlier event, half of them in any partition.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    duplicates: f64,
    /// Share of bad records, which cycle through every reason for a dead letter.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    bad: f64,
    /// A token that floods, with --hot-share of the events.
    #[arg(long, value_name = "TOKEN", value_parser = token)]
    hot_token: Option<String>,
    /// Share of events that the hot token has.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share, requires = "hot_token")]
    hot_share: f64,
    /// About how many bytes an event has.
    #[arg(long, value_name = "BYTES", default_value_t = 500, value_parser = size)]
    size: usize,
    /// Days over which the events are spread [default: half a day, as live traffic is].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// Share of events that come late: they happened up to 60 days before the others.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    late: f64,
    /// When the events end, RFC 3339 [default: the latest full hour].
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Create the three topics where they are missing, with so many partitions.
    #[arg(long, value_name = "PARTITIONS", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    create_topics: Option<i32>,
    /// Threads that make records. With more than one, their order in the topic varies from run to run.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = threads)]
    threads: usize,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What the command prints at the end.
#[derive(Debug, Serialize)]
struct Report {
    topic: String,
    seed: u64,
    until: String,
    #[serde(flatten)]
    summary: Summary,
    hot_token: Option<String>,
    records_per_second: u64,
}

/// Runs the command.
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    if args.duplicates + args.bad > 1.0 {
        return Err(CliError::Usage(format!(
            "--duplicates {} and --bad {} together are more than 1",
            args.duplicates, args.bad
        )));
    }
    let topic = args.topic.clone().unwrap_or_else(|| config.kafka.topic.clone());
    if let Some(partitions) = args.create_topics {
        for name in generate::create_topics(&config.kafka, &topic, partitions).await? {
            tracing::info!(topic = name, partitions, "topic created");
        }
    }
    let until = match args.until {
        Some(until) => until,
        None => full_hour()?,
    };
    let plan = Plan {
        // Events of two runs must not be each other's duplicates unless somebody asks for it.
        seed: args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
        shape: args.shape,
        tokens: args.tokens,
        users: args.users,
        duplicates: args.duplicates,
        bad: args.bad,
        hot: args.hot_token.clone().map(|token| Hot {
            token,
            share: args.hot_share,
        }),
        size: args.size,
        late: args.late,
        until_ms: until.as_millisecond(),
        span_ms: args
            .days
            .map_or(HALF_A_DAY, |days| 2 * HALF_A_DAY * u64::from(days)),
    };
    let bounds = bounds(&args)?;
    let seed = plan.seed;
    let summary = send(config, topic.clone(), plan, bounds).await?;
    let report = Report {
        topic,
        seed,
        until: until.to_string(),
        records_per_second: (summary.records as f64 / summary.seconds.max(1e-9)) as u64,
        summary,
        hot_token: args.hot_token,
    };
    print(&if args.json { report.json()? } else { report.text() })?;
    Ok(ExitCode::SUCCESS)
}

fn bounds(args: &Args) -> Result<Bounds, CliError> {
    let duration = args
        .duration
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|error| CliError::Usage(format!("--duration: {error}")))?;
    let unbounded = if duration.is_some() {
        u64::MAX
    } else {
        DEFAULT_COUNT
    };
    Ok(Bounds {
        count: args.count.unwrap_or(unbounded),
        rate: args.rate,
        duration,
        threads: args.threads,
    })
}

/// Sends on threads of its own, shows how far it is, and ends early, but in good order, at a signal.
async fn send(config: Config, topic: String, plan: Plan, bounds: Bounds) -> anyhow::Result<Summary> {
    let watch = Arc::new(Watch::default());
    let watched = Arc::clone(&watch);
    let mut sending =
        tokio::task::spawn_blocking(move || generate::send(&config.kafka, &topic, &plan, bounds, &watched));
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let progress = Progress::new("records", (bounds.count < u64::MAX).then_some(bounds.count));
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            summary = &mut sending => return summary.context("the sending thread failed")?,
            _ = interrupt.recv() => watch.stop.store(true, Ordering::Relaxed),
            _ = terminate.recv() => watch.stop.store(true, Ordering::Relaxed),
            _ = look.tick() => progress.set(watch.sent.load(Ordering::Relaxed)),
        }
    }
}

impl Report {
    fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    fn text(&self) -> String {
        let Summary {
            records,
            events,
            duplicates,
            bad_records,
            bad,
            hot_events,
            hot_duplicates,
            bytes,
            seconds,
        } = &self.summary;
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        let mut row = |name: &str, count: u64| {
            table.add_row([name.to_owned(), count.to_string()]);
        };
        row("records", *records);
        row("  events", *events);
        row("  duplicates", *duplicates);
        row("  bad records", *bad_records);
        for (reason, count) in bad {
            row(&format!("    {reason}"), *count);
        }
        if let Some(hot) = &self.hot_token {
            row(&format!("of {hot}: events"), *hot_events);
            row(&format!("of {hot}: duplicates"), *hot_duplicates);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{table}\n{} MB to {} in {seconds:.1} s, {} records/s, seed {}, events until {}\n",
            bytes / 1_000_000,
            self.topic,
            self.records_per_second,
            self.seed,
            self.until
        )
    }
}

/// The latest full hour: two runs within an hour with the same seed make the same bytes.
fn full_hour() -> anyhow::Result<Timestamp> {
    let now = Timestamp::now().as_millisecond();
    Timestamp::from_millisecond(now - now.rem_euclid(3_600_000)).context("the clock has no such time")
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if size <= 500_000 => Ok(size),
        _ => Err("must be a number of bytes up to 500000".to_owned()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=64) => Ok(threads),
        _ => Err("must be a number from 1 to 64".to_owned()),
    }
}

/// A token that no rule refuses and that needs no escape in JSON.
fn token(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 characters of ASCII without blanks, quotes and backslashes".to_owned())
    }
}
