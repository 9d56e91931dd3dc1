//! `sluice tasks list`: a table for people, JSON for programs.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Cli, parked_of, task_of};
use crate::cli::{CliError, print};
use crate::tasks::queue::listing::{Listing, Running};

/// Longest part of arguments and errors in a table.
const SHOWN_CHARS: usize = 80;

pub(super) async fn list(cli: &Cli, json: bool) -> Result<ExitCode, CliError> {
    let listing = cli.listing().await?;
    print(&if json {
        as_json(&listing).to_string() + "\n"
    } else {
        as_text(&listing)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A task as far as it can be read.
fn described(text: &str, id: Option<&str>) -> Value {
    match task_of(text) {
        Some(task) => {
            let arguments: Value = serde_json::from_str(task.arguments.get()).unwrap_or_default();
            let progress: Option<Value> = task
                .progress
                .and_then(|progress| serde_json::from_str(progress.get()).ok());
            json!({
                "id": task.id, "kind": task.kind, "arguments": arguments, "attempts": task.attempts,
                "enqueued_at": time(task.enqueued_at), "progress": progress,
            })
        }
        None => json!({ "id": id, "text": text }),
    }
}

fn with(mut value: Value, more: &[(&str, Value)]) -> Value {
    for (name, more) in more {
        value[*name] = more.clone();
    }
    value
}

pub(super) fn as_json(listing: &Listing) -> Value {
    let running = |running: &Running| {
        let left = json!(running.lease_left_ms as f64 / 1000.0);
        with(
            described(&running.task, None),
            &[("worker", json!(running.worker)), ("lease_left_seconds", left)],
        )
    };
    let later = |(text, due): &(String, i64)| with(described(text, None), &[("due_at", json!(time(*due)))]);
    let parked = |text: &String| {
        let (parked, id, _) = parked_of(text);
        with(
            described(&parked.task, Some(&id)),
            &[
                ("error", json!(parked.error)),
                ("parked_at", json!(time(parked.parked_at))),
            ],
        )
    };
    json!({
        "workers": listing.workers,
        "running": listing.running.iter().map(running).collect::<Vec<_>>(),
        "waiting": listing.waiting.iter().map(|text| described(text, None)).collect::<Vec<_>>(),
        "later": listing.later.iter().map(later).collect::<Vec<_>>(),
        "parked": listing.parked.iter().map(parked).collect::<Vec<_>>(),
    })
}

fn as_text(listing: &Listing) -> String {
    let all = as_json(listing);
    let mut cut = false;
    let mut shortened = |text: &str| {
        let short = shortened(text);
        cut |= short != text;
        short
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["task", "kind", "arguments", "failed", "state"]);
    for place in ["running", "waiting", "later", "parked"] {
        for task in all[place].as_array().into_iter().flatten() {
            let state = match place {
                "running" => format!(
                    "running on {}, lease {:.0} s{}",
                    text(&task["worker"]),
                    task["lease_left_seconds"].as_f64().unwrap_or_default(),
                    left(&task["progress"])
                ),
                "later" if is_behind(listing, task) => "waits until the same has been done".to_owned(),
                "later" => format!("again at {}", text(&task["due_at"])),
                "parked" => format!("parked: {}", shortened(&text(&task["error"]))),
                _ => "waiting".to_owned(),
            };
            let unread = task.get("text").map(text).unwrap_or_default();
            table.add_row([
                text(&task["id"]),
                text(&task["kind"]),
                shortened(&task.get("arguments").map_or(unread, Value::to_string)),
                text(&task["attempts"]),
                state,
            ]);
        }
    }
    let sum = format!(
        "{} running, {} waiting, {} again later, {} parked; {} tasks workers\n",
        listing.running.len(),
        listing.waiting.len(),
        listing.later.len(),
        listing.parked.len(),
        listing.workers
    );
    if table.row_count() == 0 {
        sum
    } else if cut {
        format!("{table}\n{sum}what ends in … is cut: `sluice tasks show ID` has it whole\n")
    } else {
        format!("{table}\n{sum}")
    }
}

/// Whether a task that is due later has never been tried: it waits for another that does the same.
pub(super) fn is_behind(listing: &Listing, task: &Value) -> bool {
    let same = |running: &Running| {
        let running = described(&running.task, None);
        ["kind", "arguments"]
            .iter()
            .all(|name| running[*name] == task[*name])
    };
    task["attempts"] == 0 && listing.running.iter().any(same)
}

/// How many users a rebuild has left as they were, if any.
pub(super) fn left(progress: &Value) -> String {
    match progress["left"].as_u64() {
        Some(left @ 1..) => format!(", {left} users left"),
        _ => String::new(),
    }
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

pub(super) fn time(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok()
}
