//! `sluice tasks`: what waits, runs and was given up; adding work, trying again, dropping.
//!
//! Reads and moves what is in Redis; what tasks do is done by processes with the role `tasks`.

mod add;
mod list;
mod retry;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Subcommand;

use super::{CliError, print};
use crate::config::Config;
use crate::redis::{Redis, Settings};
use crate::tasks::queue::listing::{Listing, Running};
use crate::tasks::queue::{Place, Queue};
use crate::tasks::task::{Parked, Status, Task};

/// Longer than a connection may take. A Redis that does not answer by then is told about.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `sluice tasks`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tasks wait in Redis and are run by processes with the role `tasks` (sluice run --role tasks). One that \
                  fails is tried again, and parked with its error after tasks.max_attempts. The task of a process that \
                  dies goes to another once its lease ends (tasks.lease_seconds).\n\n\
                  Exit code 0 if it was done; 1 if not, with --wait also if the task was given up, is gone, or left users as \
                  they were; 2 if the arguments make no sense."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what runs (by whom, and how long its lease lasts), what waits, and what was given up and why.
    List {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Add a task.
    #[command(subcommand)]
    Add(add::Add),
    /// Show a task: where it is, how far it has come, what became of it in the last day, and its whole error.
    Show {
        /// Its id, as `list` and `add` tell it.
        id: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Put a task that was given up into the queue again; it goes on where it was.
    #[command(arg_required_else_help = true)]
    Retry {
        /// Its id.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<String>,
        /// All that can be read.
        #[arg(long)]
        all: bool,
    },
    /// Take a task that nobody runs out of the queue, or out of those that were given up.
    Drop {
        /// Its id.
        id: String,
    },
}

/// Runs the command.
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    let cli = Cli::open(config)?;
    if let Command::Add(add) = &args.command {
        add.check()?;
    }
    cli.reach().await?;
    match args.command {
        Command::List { json } => list::list(&cli, json).await,
        Command::Add(add) => add::add(&cli, &add).await,
        Command::Show { id, json } => show::show(&cli, &id, json).await,
        Command::Retry { id: Some(id), .. } => retry::one(&cli, &id).await,
        Command::Retry { id: None, .. } => retry::all(&cli).await,
        Command::Drop { id } => drop_one(&cli, &id).await,
    }
}

/// What all of these need.
struct Cli {
    config: Config,
    queue: Queue,
}

impl Cli {
    fn open(config: Config) -> anyhow::Result<Self> {
        let settings = Settings::state(&config.redis).context("redis.url cannot be used")?;
        let redis = Redis::open(&settings, 1).context("redis.url cannot be used")?;
        let queue = Queue::new(redis, &config);
        Ok(Self { config, queue })
    }

    /// Asks Redis for something small, so that one that is away is told about soon, and with what to do.
    async fn reach(&self) -> anyhow::Result<()> {
        let why = match tokio::time::timeout(PATIENCE, self.queue.reached()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => self.config.scrub(&error.to_string()),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        Err(anyhow!(
            "tasks wait in Redis, and redis.url = {} does not answer: {why}; see that it runs and can be reached from \
             here, or name another one (redis.url in the file of --config, or SLUICE_REDIS__URL); `sluice check` tries \
             it, and says more",
            self.config.redis.url
        ))
    }

    /// An answer of Redis, or what to tell of its error.
    fn told<T>(&self, answer: ::redis::RedisResult<T>) -> anyhow::Result<T> {
        // A client library may repeat what it was given.
        answer.map_err(|error| {
            let error = self.config.scrub(&error.to_string());
            anyhow!("Redis at {} does not do it: {error}", self.config.redis.url)
        })
    }

    async fn listing(&self) -> anyhow::Result<Listing> {
        self.told(self.queue.list().await)
    }
}

/// A task as it stands somewhere, found by its id.
struct Found {
    place: Place,
    text: String,
    task: Task,
}

/// The id under which a parked task that cannot be read is shown.
fn unread_id(text: &str) -> String {
    format!("unread-{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

fn task_of(text: &str) -> Option<Task> {
    Task::parse(text.as_bytes()).ok()
}

/// A parked task, what it is shown under, and the task itself if it can be read.
fn parked_of(text: &str) -> (Parked, String, Option<Task>) {
    let parked: Parked = serde_json::from_str(text).unwrap_or_else(|_| Parked {
        task: text.to_owned(),
        error: "it was parked by another program".to_owned(),
        parked_at: 0,
    });
    let task = task_of(&parked.task);
    let id = task
        .as_ref()
        .map_or_else(|| unread_id(text), |task| task.id.clone());
    (parked, id, task)
}

/// The task of that id among those that nobody runs.
fn find(listing: &Listing, id: &str) -> Option<Found> {
    let waiting = listing.waiting.iter().map(|text| (Place::Queue, text));
    let later = listing.later.iter().map(|(text, _)| (Place::Later, text));
    waiting.chain(later).find_map(|(place, text)| {
        let task = task_of(text).filter(|task| task.id == id)?;
        let text = text.clone();
        Some(Found { place, text, task })
    })
}

fn no_task(listing: &Listing, id: &str) -> CliError {
    let runs = |running: &&Running| task_of(&running.task).is_some_and(|task| task.id == id);
    match listing.running.iter().find(runs) {
        Some(running) => anyhow!("task {id} is run by {} just now", running.worker).into(),
        None => anyhow!("there is no task {id}; `sluice tasks list` shows those that there are").into(),
    }
}

fn status(task: &Task, state: &str) -> Status {
    Status {
        state: state.to_owned(),
        at: jiff::Timestamp::now().as_millisecond(),
        ..Status::of(task)
    }
}

async fn drop_one(cli: &Cli, id: &str) -> Result<ExitCode, CliError> {
    let listing = cli.listing().await?;
    let parked = listing.parked.iter().map(|text| (text, parked_of(text)));
    let parked = parked.into_iter().find(|(_, (_, shown, _))| shown == id);
    let (place, text, task) = match (find(&listing, id), parked) {
        (Some(found), _) => (found.place, found.text, Some(found.task)),
        (None, Some((text, (_, _, task)))) => (Place::Parked, text.clone(), task),
        (None, None) => return Err(no_task(&listing, id)),
    };
    if let Some(task) = &task
        && place != Place::Parked
    {
        // First, or one that is added now would be taken for the one that goes.
        cli.told(cli.queue.waits_no_longer(task).await)?;
    }
    let told = task.map(|task| status(&task, "dropped"));
    if cli.told(cli.queue.again(place, &text, None, told.as_ref()).await)? != Some(true) {
        return Err(anyhow!("task {id} has just gone elsewhere").into());
    }
    print(&format!("task {id} is dropped\n"))?;
    Ok(ExitCode::SUCCESS)
}
