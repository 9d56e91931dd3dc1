//! A task as it stands in Redis: JSON, that other programs may push as well.
//!
//! Owns the forms and the kinds. What it cannot read is an error that says why, and the task is parked with it: nothing
//! that was put into the queue is ever dropped for being strange.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::redis::keys::Keys;

/// The form of tasks that this program reads and writes.
const VERSION: u32 = 1;
/// Longest id that is a part of keys.
const MAX_ID: usize = 64;

/// One task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The form.
    #[serde(default = "first_version")]
    pub version: u32,
    /// Names it.
    pub id: String,
    /// Name of what is to be done.
    pub kind: String,
    /// What exactly.
    #[serde(default = "no_arguments")]
    pub arguments: Box<RawValue>,
    /// Attempts that have failed, those whose process died included.
    #[serde(default)]
    pub attempts: u32,
    /// When it was put into the queue, ms since 1970.
    #[serde(default)]
    pub enqueued_at: i64,
    /// Who has begun with it. Whoever only took it has not tried it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How far it has come: whoever goes on with it begins there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Box<RawValue>>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Users' timelines and properties are made anew from the events table.
    RebuildUsers(Users),
    /// One cached query result is made anew.
    RefreshQuery(Query),
    /// The results of the queries that a token asked in the last hour are made anew where they are gone or old.
    WarmCache(Token),
}

/// Whose timelines and properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// One token's; without it, all tokens'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// One `distinct_id` of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A query of the read API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Whose events it is about.
    pub token: String,
    /// Its normal form, as the API writes it.
    pub query: String,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The token.
    pub token: String,
}

/// A task that was given up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parked {
    /// The task, as it was in the queue.
    pub task: String,
    /// Why.
    pub error: String,
    /// When, ms since 1970.
    pub parked_at: i64,
}

/// How far a task has come, or what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Names the task.
    pub id: String,
    /// Name of what is done.
    pub kind: String,
    /// `waiting`, `running`, `retrying`, `done`, `parked` or `dropped`.
    pub state: String,
    /// Attempts that have failed.
    pub attempts: u32,
    /// Parts that are done: users, or queries.
    pub done: u64,
    /// Parts that there are, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Users that a rebuild could not settle, for the workers changed them faster than they could be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left: u64,
    /// Some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_users: Vec<Users>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the attempt began that is under way or was the last, ms since 1970, by the clock of `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Parts that had been done before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before: u64,
    /// When this was so, ms since 1970.
    pub at: i64,
}

fn first_version() -> u32 {
    VERSION
}

fn no_arguments() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Status {
    /// What is told of a task at first: nothing but which it is.
    pub(crate) fn of(task: &Task) -> Self {
        Self {
            id: task.id.clone(),
            kind: task.kind.clone(),
            attempts: task.attempts,
            ..Self::default()
        }
    }

    /// Parts done in a second, while they were worked on: what waited, or lay with a dead process, is not counted.
    pub fn per_second(&self) -> Option<f64> {
        let seconds = (self.at - self.since?) as f64 / 1000.0;
        (seconds > 0.0).then(|| self.done.saturating_sub(self.before) as f64 / seconds)
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(self.state.as_str(), "done" | "parked" | "dropped")
    }
}

impl Task {
    /// A new task.
    pub fn new(work: &Work, now: i64) -> Self {
        Self {
            version: VERSION,
            id: uuid::Uuid::now_v7().to_string(),
            kind: work.kind().to_owned(),
            arguments: work.arguments(),
            attempts: 0,
            enqueued_at: now,
            worker: None,
            progress: None,
        }
    }

    /// Reads a task as it stands in Redis.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let task: Self =
            serde_json::from_slice(text).map_err(|error| format!("the task cannot be read: {error}"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if task.id.is_empty() || task.id.len() > MAX_ID || !task.id.bytes().all(plain) {
            return Err(format!(
                "the task's id must be 1 to {MAX_ID} letters, digits, hyphens, underscores and dots"
            ));
        }
        Ok(task)
    }

    /// As it stands in Redis.
    pub fn text(&self) -> String {
        // Texts, numbers and JSON that was read: nothing in it can fail to be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What it asks for, or why this program cannot do it.
    pub fn work(&self) -> Result<Work, String> {
        if self.version != VERSION {
            return Err(format!(
                "the task's version is {}, and this program knows {VERSION}",
                self.version
            ));
        }
        Work::read(&self.kind, self.arguments.get())
    }
}

impl Work {
    /// Every kind, by its name.
    pub const KINDS: [&'static str; 3] = ["rebuild-users", "refresh-query", "warm-cache"];

    fn read(kind: &str, arguments: &str) -> Result<Self, String> {
        fn parsed<'a, T: Deserialize<'a>>(kind: &str, arguments: &'a str) -> Result<T, String> {
            serde_json::from_str(arguments)
                .map_err(|error| format!("the arguments of {kind} cannot be read: {error}"))
        }
        match kind {
            "rebuild-users" => {
                let users: Users = parsed(kind, arguments)?;
                if users.user.is_some() && users.token.is_none() {
                    return Err("the arguments of rebuild-users name a user without its token".to_owned());
                }
                Ok(Self::RebuildUsers(users))
            }
            "refresh-query" => parsed(kind, arguments).map(Self::RefreshQuery),
            "warm-cache" => parsed(kind, arguments).map(Self::WarmCache),
            other => {
                let shown: String = other.chars().take(100).collect();
                Err(format!(
                    "{shown:?} is no kind of task that this program knows; it knows {}",
                    Self::KINDS.join(", ")
                ))
            }
        }
    }

    /// Its kind's name.
    pub fn kind(&self) -> &'static str {
        let [rebuild, refresh, warm] = Self::KINDS;
        match self {
            Self::RebuildUsers(_) => rebuild,
            Self::RefreshQuery(_) => refresh,
            Self::WarmCache(_) => warm,
        }
    }

    fn arguments(&self) -> Box<RawValue> {
        let raw = match self {
            Self::RebuildUsers(users) => serde_json::value::to_raw_value(users),
            Self::RefreshQuery(query) => serde_json::value::to_raw_value(query),
            Self::WarmCache(token) => serde_json::value::to_raw_value(token),
        };
        raw.unwrap_or_else(|_| no_arguments())
    }

    /// Whether two that ask the same may not run beside each other: the one that read the table first may write last, and
    /// then what was changed there by hand in between is not taken in.
    pub(super) fn is_done_alone(&self) -> bool {
        matches!(self, Self::RebuildUsers(_))
    }

    /// The key under which a task that waits stands for others of the same kind and arguments.
    pub(super) fn waiting_key(&self, keys: &Keys) -> String {
        keys.task_waiting(&self.digest())
    }

    /// The key that the task has that does it, where it is done alone.
    pub(super) fn running_key(&self, keys: &Keys) -> String {
        keys.task_running(&self.digest())
    }

    /// The same for the same kind and arguments, and for no others.
    fn digest(&self) -> String {
        let digest = Sha256::new()
            .chain_update(self.kind())
            .chain_update([0])
            .chain_update(self.arguments().get())
            .finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        format!("{:032x}", u128::from_be_bytes(half))
    }
}

/// Whether a task only makes a cached result anew before somebody asks for it. The read API puts it into the queue by
/// itself, so it may take neither the place nor the memory of what an operator has asked for.
pub(super) fn is_refresh(kind: &str) -> bool {
    let [_, refresh, _] = Work::KINDS;
    kind == refresh
}

/// The name of a kind in metrics.
pub(super) fn known_kind(kind: &str) -> &'static str {
    let known = Work::KINDS.into_iter().find(|known| *known == kind);
    known.unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let users = Users {
            token: Some("t".to_owned()),
            user: Some("ann \"é\"".to_owned()),
        };
        let work = Work::RebuildUsers(users);
        let mut task = Task::new(&work, 5);
        task.progress = Some(RawValue::from_string(r#"{"n":18446744073709551615}"#.to_owned()).unwrap());
        let read = Task::parse(task.text().as_bytes()).unwrap();
        assert_eq!(read.text(), task.text());
        assert_eq!(read.work().unwrap(), work);
    }

    #[test]
    fn what_another_program_pushes_needs_little() {
        let task = Task::parse(br#"{"id":"7","kind":"rebuild-users","arguments":{}}"#).unwrap();
        let all = Users {
            token: None,
            user: None,
        };
        assert_eq!(task.work().unwrap(), Work::RebuildUsers(all));
        assert_eq!((task.version, task.attempts), (1, 0));
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let refused = |text: &str, part: &str| {
            let error = Task::parse(text.as_bytes())
                .and_then(|task| task.work().map(drop))
                .unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        };
        refused("{", "cannot be read");
        refused(r#"{"id":"a b","kind":"x"}"#, "the task's id");
        refused(r#"{"id":"","kind":"x"}"#, "the task's id");
        refused(r#"{"id":"1","kind":"paint"}"#, "it knows rebuild-users");
        refused(r#"{"version":2,"id":"1","kind":"warm-cache"}"#, "version is 2");
        refused(r#"{"id":"1","kind":"warm-cache"}"#, "arguments of warm-cache");
        refused(
            r#"{"id":"1","kind":"rebuild-users","arguments":{"usr":"u"}}"#,
            "usr",
        );
        refused(
            r#"{"id":"1","kind":"rebuild-users","arguments":{"user":"u"}}"#,
            "without its token",
        );
    }

    #[test]
    fn only_the_time_of_the_attempt_counts_and_only_what_it_has_done() {
        let mut status = Status {
            done: 700,
            before: 100,
            since: Some(60_000),
            at: 63_000,
            ..Status::default()
        };
        assert_eq!(status.per_second(), Some(200.0));
        status.at = 60_000;
        assert_eq!(status.per_second(), None);
        status.since = None;
        assert_eq!(status.per_second(), None);
    }

    #[test]
    fn the_same_work_waits_under_one_key_and_other_work_under_another() {
        let keys = Keys::new("p:");
        let of = |token: &str| {
            let token = token.to_owned();
            Work::WarmCache(Token { token }).waiting_key(&keys)
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert!(of("a").starts_with("p:{task_queue}:waiting:"));
    }
}
