//! `sluice tasks show`: one task, as lines for people or JSON for programs.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::anyhow;
use serde_json::{Value, json};

use super::Cli;
use super::list::{as_json, is_behind, left, text, time};
use crate::cli::{CliError, print};
use crate::tasks::task::Status;

pub(super) async fn show(cli: &Cli, id: &str, json: bool) -> Result<ExitCode, CliError> {
    // Before the lists: what is told as parked stands there by then.
    let status = cli.told(cli.queue.told(id).await)?;
    let listing = cli.listing().await?;
    let all = as_json(&listing);
    let places = ["running", "waiting", "later", "parked"];
    let found = places.iter().find_map(|place| {
        let tasks = all[place].as_array()?;
        let task = tasks.iter().find(|task| task["id"] == id)?;
        Some((*place, task.clone()))
    });
    if found.is_none() && status.is_none() {
        return Err(anyhow!("there is no task {id}, and there was none in the last day").into());
    }
    let behind = found
        .as_ref()
        .is_some_and(|(place, task)| *place == "later" && is_behind(&listing, task));
    let (place, task) = found.unzip();
    print(&if json {
        json!({ "id": id, "place": place, "task": task, "status": status }).to_string() + "\n"
    } else {
        let task = task.unwrap_or_default();
        lines(id, (place.unwrap_or_default(), &task, behind), status.as_ref())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each thing that is known.
fn lines(id: &str, (place, task, behind): (&str, &Value, bool), status: Option<&Status>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // A String takes everything.
            writeln!(out, "{name:<10} {value}").ok();
        }
    };
    line("task", id);
    let kind = text(&task["kind"]);
    let kind = status.map_or(kind, |status| status.kind.clone());
    line("kind", &kind);
    if !task["arguments"].is_null() {
        line("what", &what(&kind, &task["arguments"]));
    }
    line("state", &state(place, (task, behind), status));
    line("as", &text(&task["text"]));
    line("added", &text(&task["enqueued_at"]));
    if let Some(status) = status {
        let at = time(status.at).map_or(String::new(), |at| at.to_string());
        line("told", &at);
        line("come", &come(status));
    }
    if let Some(failed) = task["attempts"].as_u64().filter(|failed| *failed > 0) {
        line("failed", &format!("{failed} times"));
    }
    let error = text(&task["error"]);
    let told = status.and_then(|status| status.error.clone()).unwrap_or_default();
    line("error", if error.is_empty() { &told } else { &error });
    if let Some(status) = status {
        for users in &status.left_users {
            let [token, user] = [&users.token, &users.user].map(|name| name.as_deref().unwrap_or_default());
            line("left", &format!("{user:?} of {token:?}"));
        }
    }
    if place == "parked" {
        line(
            "then",
            "sluice tasks retry ID, once what was wrong is mended, or sluice tasks drop ID",
        );
    }
    out
}

/// What the task is about.
fn what(kind: &str, arguments: &Value) -> String {
    let known = |names: &[&str]| {
        let members = arguments.as_object();
        members.is_some_and(|members| members.keys().all(|name| names.contains(&name.as_str())))
    };
    match (kind, arguments["token"].as_str(), arguments["user"].as_str()) {
        ("rebuild-users", Some(token), Some(user)) => format!("user {user:?} of token {token:?}"),
        ("rebuild-users", Some(token), None) => format!("users of token {token:?}"),
        ("rebuild-users", None, None) if known(&[]) => "all users of all tokens".to_owned(),
        ("warm-cache", Some(token), _) => format!("queries of token {token:?}"),
        _ => arguments.to_string(),
    }
}

fn state(place: &str, (task, behind): (&Value, bool), status: Option<&Status>) -> String {
    match place {
        "running" => format!(
            "running on {}, lease {:.0} s{}",
            text(&task["worker"]),
            task["lease_left_seconds"].as_f64().unwrap_or_default(),
            left(&task["progress"])
        ),
        "later" if behind => "waits until another task has done the same".to_owned(),
        "later" => format!("tried again at {}", text(&task["due_at"])),
        "parked" => format!("given up at {}", text(&task["parked_at"])),
        "waiting" => "waiting for its turn".to_owned(),
        // In no place: what was told last of it.
        _ => status.map_or(String::new(), |status| match status.state.as_str() {
            state if status.is_last() => state.to_owned(),
            state => format!("{state}, when it was heard of last; it is nowhere to be seen now"),
        }),
    }
}

/// How far it has come.
fn come(status: &Status) -> String {
    let parts = if status.kind == "warm-cache" {
        "queries"
    } else {
        "users"
    };
    let mut come = match (status.done, status.total) {
        (0, None) => return String::new(),
        (done, Some(total)) if !status.is_last() => format!("{done} of {total} {parts}"),
        (done, _) => format!("{done} {parts}"),
    };
    if let Some(per_second) = status.per_second().filter(|_| status.state == "running") {
        write!(come, ", {per_second:.0} a second").ok();
    }
    if status.left > 0 {
        write!(come, ", {} left as they were", status.left).ok();
    }
    come
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_told_in_lines_with_its_whole_error() {
        let error = "x".repeat(400);
        let task = json!({
            "id": "7", "kind": "rebuild-users", "arguments": { "token": "shop", "user": "ann" }, "attempts": 5,
            "enqueued_at": "2026-01-01T00:00:00Z", "error": error, "parked_at": "2026-01-01T00:01:00Z",
        });
        let told = lines("7", ("parked", &task, false), None);
        for part in [
            "task       7\n",
            "kind       rebuild-users\n",
            "what       user \"ann\" of token \"shop\"\n",
            "state      given up at 2026-01-01T00:01:00Z\n",
            "failed     5 times\n",
            &error,
            "tasks drop",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains('{'), "{told}");
    }

    #[test]
    fn what_a_task_is_about_is_told_as_far_as_it_is_known() {
        let of = |kind, arguments: &str| what(kind, &serde_json::from_str(arguments).unwrap());
        assert_eq!(of("rebuild-users", "{}"), "all users of all tokens");
        assert_eq!(of("rebuild-users", r#"{"token":"a"}"#), r#"users of token "a""#);
        assert_eq!(of("rebuild-users", r#"{"usr":"a"}"#), r#"{"usr":"a"}"#);
        assert_eq!(of("paint", r#"{"token":"a"}"#), r#"{"token":"a"}"#);
    }

    #[test]
    fn who_is_nowhere_is_told_as_that() {
        let mut status = Status {
            kind: "rebuild-users".to_owned(),
            state: "running".to_owned(),
            done: 30,
            total: Some(90),
            before: 10,
            since: Some(0),
            at: 2_000,
            ..Status::default()
        };
        let told = lines("7", ("", &Value::Null, false), Some(&status));
        assert!(
            told.contains("nowhere to be seen") && told.contains("30 of 90 users, 10 a second"),
            "{told}"
        );
        "done".clone_into(&mut status.state);
        let told = lines("7", ("", &Value::Null, false), Some(&status));
        assert!(
            told.contains("state      done\n") && told.contains("come       30 users\n"),
            "{told}"
        );
    }
}
