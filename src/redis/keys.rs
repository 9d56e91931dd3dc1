//! Every Redis key, its time to live or bound, and how text from outside is kept from making two
//! tenants' keys meet.
//!
//! `{…}` is a literal Cluster hash tag: users and events spread over the slots, not whole projects.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// What would end a hash tag or look like our own separators.
const RESERVED: &AsciiSet = &CONTROLS.add(b'%').add(b':').add(b'{').add(b'}');

/// A timeline, and a user's properties, live this long after their last write, in seconds (30 days).
pub const USER_TTL_SECONDS: u64 = 30 * 24 * 3600;
/// A user's hash takes no further name once it has this many fields.
pub const USER_FIELDS: usize = 500;
/// A property with a longer name, in bytes, is not kept in a user's hash.
pub const USER_NAME_BYTES: usize = 256;
/// A property with a longer value, in bytes of JSON, is not kept in a user's hash.
pub const USER_VALUE_BYTES: usize = 4096;
/// A timeline keeps this many events, the newest. Below Redis's `zset-max-listpack-entries` (128).
pub const TIMELINE_EVENTS: usize = 100;
/// A timeline is added to by so many events at a time, and trimmed in between: one that is above the limit of Redis for
/// a moment becomes a skip list of about twice the memory, for good.
pub const TIMELINE_ADDED: usize = 128 - TIMELINE_EVENTS;
/// A timeline's members are cut at this many bytes, Redis's `zset-max-listpack-value`.
pub const TIMELINE_MEMBER_BYTES: usize = 64;
/// The recent actions of a token, the newest.
pub const RECENT_ACTIONS: usize = 100;
/// Cached query results and user profiles, in seconds, before jitter.
pub const CACHE_TTL_SECONDS: u64 = 3600;
/// A read-API session, in seconds from its last use.
pub const SESSION_TTL_SECONDS: u64 = 24 * 3600;
/// Counters live this long after their last event, in seconds (400 days).
pub const COUNTER_TTL_SECONDS: u64 = 400 * 24 * 3600;

/// Parked tasks, the newest.
pub const PARKED_TASKS: usize = 1_000;
/// Parked tasks live this long after the last one was parked, in seconds (30 days).
pub const PARKED_TTL_SECONDS: u64 = 30 * 24 * 3600;
/// What became of a task is told for so long, in seconds.
pub const TASK_STATUS_TTL_SECONDS: u64 = 24 * 3600;
/// So long a refresh that waits stands for others that ask the same, in seconds.
pub const TASK_WAITING_TTL_SECONDS: u64 = 600;
/// The queries of a token that were asked last.
pub const RECENT_QUERIES: usize = 50;
/// Recent queries live this long after the last one, in seconds.
pub const RECENT_QUERIES_TTL_SECONDS: u64 = 24 * 3600;

/// Makes keys under the configured prefix.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// All keys made will start with `prefix`, which may be empty.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    fn tagged(&self, kind: &str, parts: &[&str]) -> String {
        let mut key = String::with_capacity(self.prefix.len() + kind.len() + 48);
        key.push_str(&self.prefix);
        key.push_str(kind);
        key.push('{');
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                key.push(':');
            }
            if part
                .bytes()
                .any(|b| b.is_ascii_control() || matches!(b, b'%' | b':' | b'{' | b'}') || !b.is_ascii())
            {
                key.extend(utf8_percent_encode(part, RESERVED));
            } else {
                // Nearly always; nothing to encode.
                key.push_str(part);
            }
        }
        key.push('}');
        key
    }

    /// The start of a token's claims, `keys` layout; a uuid and `}` follow. String, the packed
    /// coordinate; lives for `dedup.window_seconds`.
    pub fn claims_of(&self, token: &str) -> String {
        let mut key = self.tagged("event:dedup:", &[token, ""]);
        key.pop();
        key
    }

    /// A shard's claims, `packed` layout: string, how many buckets it has; its buckets are strings of that name, `:` and
    /// a number. Both live for two windows after their last claim.
    pub fn claims_of_shard(&self, shard: usize) -> String {
        format!("{}event:dedup:{{{shard:02x}}}", self.prefix)
    }

    /// The sliding window of a token's permits: hash; lives one window.
    pub fn rate(&self, token: &str) -> String {
        self.tagged("rate:", &[token])
    }

    /// What was decided of a token's events: hash, a field for each source and partition; lives for
    /// `dedup.window_seconds`.
    pub fn decided(&self, token: &str) -> String {
        self.tagged("decided:", &[token])
    }

    /// How far counters and recent actions went: hash, a field for each source and partition.
    pub fn applied(&self, token: &str) -> String {
        self.tagged("applied:", &[token])
    }

    /// Events written for a token: string, integer.
    pub fn events_counter(&self, token: &str) -> String {
        self.tagged("counter:events:", &[token])
    }

    /// Authenticated requests of a token: string, integer.
    pub fn api_calls_counter(&self, token: &str) -> String {
        self.tagged("counter:api_calls:", &[token])
    }

    /// A token's newest actions: list of JSON, at most [`RECENT_ACTIONS`].
    pub fn recent_actions(&self, token: &str) -> String {
        self.tagged("recent_actions:", &[token])
    }

    /// A user's timeline: sorted set, score = event time in ms, at most [`TIMELINE_EVENTS`].
    pub fn timeline(&self, token: &str, distinct_id: &str) -> String {
        self.tagged("timeline:user:", &[token, distinct_id])
    }

    /// A user's properties: hash of JSON values, and hidden fields (they start with NUL); at most [`USER_FIELDS`], of
    /// [`USER_NAME_BYTES`] and [`USER_VALUE_BYTES`].
    pub fn user(&self, token: &str, distinct_id: &str) -> String {
        self.tagged("user:", &[token, distinct_id])
    }

    /// A user's assembled profile: string of JSON, [`CACHE_TTL_SECONDS`].
    pub fn cached_user(&self, token: &str, distinct_id: &str) -> String {
        self.tagged("cache:user:", &[token, distinct_id])
    }

    /// A cached query result: string of JSON, [`CACHE_TTL_SECONDS`].
    pub fn query_result(&self, hash: &str) -> String {
        self.tagged("query_result:", &[hash])
    }

    /// The queries of a token that were asked last: sorted set, score = when, ms; at most [`RECENT_QUERIES`],
    /// [`RECENT_QUERIES_TTL_SECONDS`].
    pub fn recent_queries(&self, token: &str) -> String {
        self.tagged("recent_queries:", &[token])
    }

    /// Tasks that wait: list of JSON, the next at its right end; at most `tasks.max_waiting`, with those that are due
    /// later. All keys of tasks have its hash tag: scripts touch several of them.
    pub fn task_queue(&self) -> String {
        format!("{}{{task_queue}}", self.prefix)
    }

    fn of_tasks(&self, what: &str) -> String {
        format!("{}:{what}", self.task_queue())
    }

    /// The task that a tasks worker runs: list, one at the most.
    pub fn tasks_processing(&self, worker: &str) -> String {
        self.of_tasks(&format!("processing:{worker}"))
    }

    /// Until when each tasks worker has its task: sorted set, ms by Redis's clock; dead workers leave it within minutes.
    pub fn task_leases(&self) -> String {
        self.of_tasks("leases")
    }

    /// Tasks that are tried again later: sorted set, score = when, ms.
    pub fn tasks_later(&self) -> String {
        self.of_tasks("later")
    }

    /// Tasks that were given up: list of JSON, [`PARKED_TASKS`], [`PARKED_TTL_SECONDS`].
    pub fn tasks_parked(&self) -> String {
        self.of_tasks("parked")
    }

    /// The id of the task that waits to do that: string, [`TASK_WAITING_TTL_SECONDS`] of a refresh, else
    /// [`TASK_STATUS_TTL_SECONDS`].
    pub fn task_waiting(&self, hash: &str) -> String {
        self.of_tasks(&format!("waiting:{hash}"))
    }

    /// The task that does that, and the worker that runs it: string, as long as its lease.
    pub fn task_running(&self, hash: &str) -> String {
        self.of_tasks(&format!("running:{hash}"))
    }

    /// The refreshes of query results that wait: sorted set of ids, score = when they were asked for, ms; at most a tenth
    /// of `tasks.max_waiting`, a day after the last one.
    pub fn task_refreshes(&self) -> String {
        self.of_tasks("refreshes")
    }

    /// How far a task has come, or what became of it: string of JSON, [`TASK_STATUS_TTL_SECONDS`].
    pub fn task_status(&self, id: &str) -> String {
        self.of_tasks(&format!("status:{id}"))
    }

    /// A read-API session: string, [`SESSION_TTL_SECONDS`].
    pub fn session(&self, id: &str) -> String {
        self.tagged("session:", &[id])
    }

    /// The register that gives each topic and incarnation its small number: hash.
    pub fn sources(&self) -> String {
        format!("{}config:sources", self.prefix)
    }

    /// The layout that the claims are kept in, and the secret of `packed`: string. One that differs from the configuration refuses to start.
    pub fn layout(&self) -> String {
        format!("{}config:dedup_layout", self.prefix)
    }

    /// How long claims of the layout `packed` live, in seconds: string. One that differs from the configuration refuses to
    /// start.
    pub fn claims_window(&self) -> String {
        format!("{}config:dedup_window_seconds", self.prefix)
    }

    /// The version of the worker that started last: string.
    pub fn app_version(&self) -> String {
        format!("{}config:app_version", self.prefix)
    }

    /// A token's own limit, over the configured one: string.
    pub fn rate_limit_override(&self, token: &str) -> String {
        self.tagged("config:rate_limit:", &[token])
    }

    /// The tokens that may send events, where `rate_limit.allow_list` is on: set, kept by operators.
    pub fn allow_list(&self) -> String {
        format!("{}config:tokens", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tenants_keys_meet() {
        let keys = Keys::new("p:");
        assert_eq!(keys.timeline("t", "a:b"), "p:timeline:user:{t:a%3Ab}");
        assert_ne!(keys.user("t:a", "b"), keys.user("t", "a:b"));
        assert_ne!(keys.user("t}", "b"), keys.user("t", "}b"));
        assert_ne!(keys.session("%3A"), keys.session(":"));
        assert_eq!(keys.claims_of("t:"), "p:event:dedup:{t%3A:");
    }
}
