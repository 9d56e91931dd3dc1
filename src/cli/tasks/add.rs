//! `sluice tasks add`: puts work into the queue, and waits for it if asked to.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::Cli;
use crate::cli::progress::Progress;
use crate::cli::{CliError, print};
use crate::tasks::queue::{Enqueued, When};
use crate::tasks::task::{Status, Token, Users, Work};

/// How often is looked at how far the task has come.
const LOOK: Duration = Duration::from_millis(100);

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
        #[arg(long, value_name = "TOKEN", required_unless_present = "all")]
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

/// Runs the command.
pub(super) async fn add(cli: &Cli, add: &Add) -> Result<ExitCode, CliError> {
    let (work, then) = match add {
        Add::RebuildUsers {
            token, user, then, ..
        } => {
            let (token, user) = (token.clone(), user.clone());
            if let Some(blank) = [&token, &user].into_iter().flatten().find(|text| text.is_empty()) {
                return Err(CliError::Usage(format!(
                    "--token and --user name what there is: {blank:?} is nobody's"
                )));
            }
            (Work::RebuildUsers(Users { token, user }), then)
        }
        Add::WarmCache { token, then } => (Work::WarmCache(Token { token: token.clone() }), then),
    };
    let kind = work.kind();
    let (id, told) = match cli.told(cli.queue.enqueue(&work, When::Always).await)? {
        Enqueued::Queued(id) => {
            let told = format!("{kind} is task {id}\n");
            (id, told)
        }
        Enqueued::Waiting(id) => {
            let told = format!("{kind} waits already, as task {id}\n");
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
    if cli.listing().await?.workers == 0 {
        tracing::warn!("no process has the role tasks: the task waits for one");
    }
    if then.wait {
        return wait(cli, &id).await;
    }
    Ok(ExitCode::SUCCESS)
}

async fn wait(cli: &Cli, id: &str) -> Result<ExitCode, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut look = tokio::time::interval(LOOK);
    let mut bar: Option<Progress> = None;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = interrupt.recv() => return goes_on(id),
            _ = terminate.recv() => return goes_on(id),
        }
        let Some(status) = cli.told(cli.queue.told(id).await)? else {
            continue;
        };
        match status.state.as_str() {
            "done" => {
                drop(bar);
                print(&done(&status))?;
                return Ok(ExitCode::SUCCESS);
            }
            "parked" | "dropped" => {
                drop(bar);
                let why = status.error.unwrap_or_else(|| "somebody dropped it".to_owned());
                return Err(anyhow!("task {id} was given up: {why}").into());
            }
            _ => {}
        }
        if let Some(total) = status.total {
            let bar = bar.get_or_insert_with(|| Progress::new("users", Some(total)));
            bar.set(status.done);
        }
    }
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
    format!("done: {} {parts}\n", status.done)
}
