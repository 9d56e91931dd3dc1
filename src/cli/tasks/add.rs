//! `sluice tasks add`: puts work into the queue, and waits for it if asked to.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::{Cli, parked_of, task_of};
use crate::cli::progress::Progress;
use crate::cli::{CliError, print};
use crate::tasks::queue::listing::Listing;
use crate::tasks::queue::{Enqueued, When};
use crate::tasks::task::{Status, Task, Token, Users, Work};

/// How often is looked at how far the task has come.
const LOOK: Duration = Duration::from_millis(100);
/// A task of which nothing new is told for so long is looked for where tasks are.
const SILENCE: Duration = Duration::from_secs(5);
/// So often it must not be found in turn: tasks move while they are listed.
const MISSED: u32 = 2;
/// How often a task is put into the queue whose answer was lost, and what is waited in between. It is there once all the
/// same.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Add {
    /// Make users' timelines and properties in Redis anew from the events table, beside the running workers.
    #[command(
        after_help = "For what Redis has lost, or what was changed in the table by hand. The result is what the workers \
                      had built. Users without an event in the last 30 days are left out, as the workers would have let \
                      them expire; name one with --user to have it all the same. tasks.users_per_second bounds the \
                      load."
    )]
    RebuildUsers {
        /// Users of this project token.
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
        /// One user of the token, by its distinct id.
        #[arg(long, value_name = "DISTINCT_ID", requires = "token")]
        user: Option<String>,
        /// All users of all tokens.
        #[arg(long, conflicts_with_all = ["token", "user"])]
        all: bool,
        #[command(flatten)]
        then: Then,
    },
    /// Make the results of the queries that a token asked in the last hour, where they are gone or old.
    WarmCache {
        /// The project token.
        #[arg(long, value_name = "TOKEN")]
        token: String,
        #[command(flatten)]
        then: Then,
    },
}

/// What follows.
#[derive(Debug, clap::Args)]
pub(super) struct Then {
    /// Wait until it is done, and show how far it has come. Interrupted, the task goes on.
    #[arg(long)]
    wait: bool,
}

impl Add {
    /// Whether the arguments make sense together.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let Self::RebuildUsers { token, user, all, .. } = self else {
            return Ok(());
        };
        if token.is_none() && !all {
            return Err(CliError::Usage(
                "rebuild-users needs to be told whose users: those of one token (--token TOKEN), one user of it \
                 (--token TOKEN --user DISTINCT_ID), or all users of all tokens (--all)"
                    .to_owned(),
            ));
        }
        match [token, user].into_iter().flatten().find(|text| text.is_empty()) {
            Some(blank) => Err(CliError::Usage(format!(
                "--token and --user name what there is: {blank:?} is nobody's"
            ))),
            None => Ok(()),
        }
    }
}

/// Runs the command.
pub(super) async fn add(cli: &Cli, add: &Add) -> Result<ExitCode, CliError> {
    let (work, then) = match add {
        Add::RebuildUsers {
            token, user, then, ..
        } => {
            let (token, user) = (token.clone(), user.clone());
            (Work::RebuildUsers(Users { token, user }), then)
        }
        Add::WarmCache { token, then } => (Work::WarmCache(Token { token: token.clone() }), then),
    };
    let kind = work.kind();
    let (id, told) = match put(cli, &work).await? {
        Enqueued::Queued(id) => {
            let told = format!("{kind} is task {id}\n");
            (id, told)
        }
        Enqueued::Waiting(id) => {
            let told = format!("{kind} waits already, as task {id}: nobody has begun with it yet\n");
            (id, told)
        }
        Enqueued::Full(count) => {
            return Err(anyhow!(
                "the queue is full: {count} tasks wait, tasks.max_waiting = {}",
                cli.config.tasks.max_waiting
            )
            .into());
        }
        Enqueued::Nobody => return Err(anyhow!("no process has the role tasks").into()),
    };
    print(&told)?;
    let listing = cli.listing().await?;
    if let Some((other, worker)) = done_now(&listing, &work).filter(|(other, _)| *other != id) {
        print(&format!(
            "task {other} does the same just now, on {worker}; task {id} begins once that has ended, and takes in what \
             was changed meanwhile\n"
        ))?;
    }
    if listing.workers == 0 {
        tracing::warn!("no process has the role tasks: the task waits for one");
    }
    if then.wait {
        return wait(cli, &id).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// The task that does the same just now, and its worker.
fn done_now(listing: &Listing, work: &Work) -> Option<(String, String)> {
    listing.running.iter().find_map(|running| {
        let task = task_of(&running.task)?;
        let same = task.work().is_ok_and(|its| its == *work);
        (same && task.worker.is_some()).then(|| (task.id, running.worker.clone()))
    })
}

/// Puts it into the queue. Its id is made here, so that asking again adds nothing.
async fn put(cli: &Cli, work: &Work) -> anyhow::Result<Enqueued> {
    let task = Task::new(work, jiff::Timestamp::now().as_millisecond());
    let mut answer = cli.queue.put(&task, work, When::Always).await;
    for _ in 1..TRIES {
        match &answer {
            Err(error) if error.is_timeout() || error.is_io_error() => {
                tokio::time::sleep(BETWEEN_TRIES).await;
                answer = cli.queue.put(&task, work, When::Always).await;
            }
            _ => break,
        }
    }
    cli.told(answer).with_context(|| {
        let id = &task.id;
        format!("whether task {id} is in the queue is not known; `sluice tasks show {id}` tells it")
    })
}

async fn wait(cli: &Cli, id: &str) -> Result<ExitCode, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut look = tokio::time::interval(LOOK);
    let mut bar: Option<Progress> = None;
    let mut last = None;
    let (mut heard, mut missed) = (Instant::now(), 0);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = interrupt.recv() => return goes_on(id),
            _ = terminate.recv() => return goes_on(id),
        }
        let status = cli.told(cli.queue.told(id).await)?;
        if let Some(status) = status.as_ref().filter(|status| status.is_last()) {
            drop(bar);
            return ended(status);
        }
        if status != last {
            (heard, missed) = (Instant::now(), 0);
        } else if heard.elapsed() >= SILENCE {
            heard = Instant::now();
            missed = if is_anywhere(&cli.listing().await?, id) {
                0
            } else {
                missed + 1
            };
            if missed >= MISSED {
                return Err(anyhow!(
                    "task {id} is gone, and what became of it was not told: Redis has lost it, or somebody took it away"
                )
                .into());
            }
        }
        if let Some((done, total, per_second)) = status
            .as_ref()
            .and_then(|status| Some((status.done, status.total?, status.per_second())))
        {
            let bar = bar.get_or_insert_with(|| Progress::watched("users", total));
            bar.told(done, total, per_second);
        }
        last = status;
    }
}

/// Whether a task still waits, runs or is parked.
fn is_anywhere(listing: &Listing, id: &str) -> bool {
    let texts = listing.waiting.iter();
    let texts = texts.chain(listing.later.iter().map(|(text, _)| text));
    let mut texts = texts.chain(listing.running.iter().map(|running| &running.task));
    texts.any(|text| task_of(text).is_some_and(|task| task.id == id))
        || listing.parked.iter().any(|text| parked_of(text).1 == id)
}

fn ended(status: &Status) -> Result<ExitCode, CliError> {
    let id = &status.id;
    if status.state != "done" {
        let why = status.error.as_deref().unwrap_or("somebody dropped it");
        return Err(anyhow!("task {id} was given up: {why}").into());
    }
    print(&done(status))?;
    if status.left == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(anyhow!(
        "{} users were left as they are, for the workers changed them faster than they could be read{}; \
         rebuild-users with --token and --user tries one again",
        status.left,
        named(status)
    )
    .into())
}

/// Users that were left, as far as they are named.
fn named(status: &Status) -> String {
    let named = status.left_users.iter().enumerate().map(|(i, users)| {
        let [token, user] = [&users.token, &users.user].map(|name| name.as_deref().unwrap_or_default());
        let before = if i == 0 { ": " } else { ", " };
        format!("{before}{user:?} of {token:?}")
    });
    let more = if status.left as usize > status.left_users.len() {
        ", …"
    } else {
        ""
    };
    named.collect::<String>() + more
}

fn goes_on(id: &str) -> Result<ExitCode, CliError> {
    print(&format!("task {id} goes on; see `sluice tasks show {id}`\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn done(status: &Status) -> String {
    let parts = match status.kind.as_str() {
        "warm-cache" => "queries",
        _ => "users",
    };
    let why = match (parts, status.done, status.left) {
        ("users", 0, 0) => {
            "; those without an event in the last 30 days are left out, unless --user names one"
        }
        _ => "",
    };
    format!("done: {} {parts}{why}\n", status.done)
}
