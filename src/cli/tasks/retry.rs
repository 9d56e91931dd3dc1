//! `sluice tasks retry`: what was given up goes into the queue once more.

use std::process::ExitCode;

use anyhow::anyhow;

use super::{Cli, find, no_task, parked_of, status};
use crate::cli::{CliError, print};
use crate::tasks::queue::Place;
use crate::tasks::task::Task;

/// So many of those that cannot be tried again are named.
const MOST_NAMED: usize = 20;

/// What became of a task that was to be tried again.
enum Again {
    Waits,
    /// Somebody else was faster.
    Gone,
    Full,
}

pub(super) async fn one(cli: &Cli, id: &str) -> Result<ExitCode, CliError> {
    let listing = cli.listing().await?;
    let mut parked = listing.parked.iter().map(|text| (text, parked_of(text)));
    match parked.find(|(_, (_, shown, _))| shown == id) {
        Some((text, (_, _, Some(task)))) => match again(cli, text, task).await? {
            Again::Waits => {
                print(&format!("task {id} is in the queue again\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            Again::Gone => Err(anyhow!("task {id} has just gone elsewhere").into()),
            Again::Full => Err(full(cli).into()),
        },
        Some((_, (parked, _, None))) => {
            Err(anyhow!("task {id} cannot be tried again: {}", parked.error).into())
        }
        None if find(&listing, id).is_some() => {
            Err(anyhow!("task {id} was not given up: it waits for its turn").into())
        }
        None => Err(no_task(&listing, id)),
    }
}

pub(super) async fn all(cli: &Cli) -> Result<ExitCode, CliError> {
    let listing = cli.listing().await?;
    let (mut count, mut unread, mut is_full) = (0, Vec::new(), false);
    // The oldest first, as they were.
    for text in listing.parked.iter().rev() {
        match parked_of(text) {
            (_, id, None) => unread.push(id),
            (_, _, Some(task)) => match again(cli, text, task).await? {
                Again::Waits => count += 1,
                Again::Gone => {}
                Again::Full => {
                    is_full = true;
                    break;
                }
            },
        }
    }
    print(&format!("{count} tasks are in the queue again\n"))?;
    if is_full {
        return Err(full(cli).context("the others stay given up").into());
    }
    if unread.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(anyhow!(
        "{} cannot be read, and stay given up: {}; `sluice tasks show ID` tells what each is, `sluice tasks drop ID` \
         takes it away",
        unread.len(),
        named(&unread)
    )
    .into())
}

fn named(ids: &[String]) -> String {
    let shown = ids[..ids.len().min(MOST_NAMED)].join(", ");
    if ids.len() > MOST_NAMED {
        shown + ", …"
    } else {
        shown
    }
}

fn full(cli: &Cli) -> anyhow::Error {
    anyhow!(
        "the queue is full: tasks.max_waiting = {}",
        cli.config.tasks.max_waiting
    )
}

/// Puts a parked task into the queue, as one that was never tried.
async fn again(cli: &Cli, text: &str, mut task: Task) -> anyhow::Result<Again> {
    task.attempts = 0;
    let told = status(&task, "waiting");
    let again = cli.queue.again(Place::Parked, text, Some(&task), Some(&told));
    Ok(match cli.told(again.await)? {
        Some(true) => Again::Waits,
        Some(false) => Again::Gone,
        None => Again::Full,
    })
}
