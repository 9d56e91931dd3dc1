//! What kind of key a name is: the other direction of [`keys`](super::keys), for whoever looks at a server from
//! outside.
//!
//! Pure. A name that is none of ours, or another deployment's, is `other`.

use crate::telemetry::RedisKind;

/// How the names of each kind begin, after the prefix. What comes from outside stands behind it, so nobody chooses it.
const BEGINNINGS: [(&str, RedisKind); 14] = [
    ("event:dedup:", RedisKind::Claims),
    ("rate:", RedisKind::Rate),
    ("decided:", RedisKind::Decided),
    ("applied:", RedisKind::Applied),
    ("counter:", RedisKind::Counters),
    ("recent_actions:", RedisKind::RecentActions),
    ("timeline:user:", RedisKind::Timelines),
    ("user:", RedisKind::Users),
    ("cache:user:", RedisKind::CachedUsers),
    ("query_result:", RedisKind::QueryResults),
    ("session:", RedisKind::Sessions),
    ("config:", RedisKind::Config),
    // Known before there is a task queue, so that its keys are never `other` in a fleet of mixed versions.
    ("{task_queue}", RedisKind::Tasks),
    ("recent_queries:", RedisKind::Tasks),
];

/// The kind of a key of a deployment with that prefix.
pub fn kind_of(prefix: &str, key: &[u8]) -> RedisKind {
    let Some(name) = key.strip_prefix(prefix.as_bytes()) else {
        return RedisKind::Other;
    };
    BEGINNINGS
        .iter()
        .find(|(beginning, _)| name.starts_with(beginning.as_bytes()))
        .map_or(RedisKind::Other, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::keys::Keys;

    #[test]
    fn every_key_that_is_made_is_of_its_kind() {
        let keys = Keys::new("p:");
        for (key, kind) in [
            (keys.claims_of("t"), RedisKind::Claims),
            (keys.claims_of_shard(7), RedisKind::Claims),
            (keys.rate("t"), RedisKind::Rate),
            (keys.decided("t"), RedisKind::Decided),
            (keys.applied("t"), RedisKind::Applied),
            (keys.events_counter("t"), RedisKind::Counters),
            (keys.api_calls_counter("t"), RedisKind::Counters),
            (keys.recent_actions("t"), RedisKind::RecentActions),
            (keys.timeline("t", "u"), RedisKind::Timelines),
            (keys.user("t", "u"), RedisKind::Users),
            (keys.cached_user("t", "u"), RedisKind::CachedUsers),
            (keys.query_result("h"), RedisKind::QueryResults),
            (keys.session("s"), RedisKind::Sessions),
            (keys.sources(), RedisKind::Config),
            (keys.layout(), RedisKind::Config),
            (keys.claims_window(), RedisKind::Config),
            (keys.app_version(), RedisKind::Config),
            (keys.allow_list(), RedisKind::Config),
            (keys.rate_limit_override("t"), RedisKind::Config),
        ] {
            assert_eq!(kind_of("p:", key.as_bytes()), kind, "{key}");
            assert_eq!(kind_of("q:", key.as_bytes()), RedisKind::Other, "{key}");
        }
        assert_eq!(kind_of("", b"users"), RedisKind::Other);
    }

    /// How the names that `keys.rs` makes begin, read from its text: a new one must be told about everywhere.
    fn beginnings_in_code() -> Vec<String> {
        let code = include_str!("keys.rs");
        let (code, _) = code.split_once("#[cfg(test)]").unwrap();
        let makers = code.lines().filter(|line| {
            let line = line.trim_start();
            line.starts_with("pub fn") && line.contains("&self") && line.contains("-> String")
        });
        let in_quotes = |start: &'static str, before: &'static str| {
            code.split(start)
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().replace("{{", "\u{1}"))
                .map(|name| name.split('{').next().unwrap().replace('\u{1}', "{"))
                // A separator alone is a helper's, whose callers give the name.
                .filter(|name| name != ":")
                .map(move |name| format!("{before}{name}"))
        };
        let names: Vec<String> = in_quotes("self.tagged(\"", "")
            .chain(in_quotes("format!(\"{}", ""))
            .chain(in_quotes("self.of_tasks(\"", "{task_queue}:"))
            .chain(in_quotes("self.of_tasks(&format!(\"", "{task_queue}:"))
            .map(|name| name.replace("}}", "}"))
            .collect();
        assert_eq!(names.len(), makers.count(), "{names:?}: each name is found");
        names
    }

    #[test]
    fn the_documentation_and_the_kinds_have_every_key() {
        let docs = include_str!("../../docs/redis.md");
        for name in beginnings_in_code() {
            assert!(
                docs.contains(&format!("| `{name}")),
                "docs/redis.md has no row for {name}"
            );
            assert_ne!(
                kind_of("", name.as_bytes()),
                RedisKind::Other,
                "BEGINNINGS has nothing for {name}"
            );
        }
        for kind in RedisKind::ALL {
            assert!(
                docs.contains(&format!("`{}`", kind.name())),
                "docs/redis.md has no kind {}",
                kind.name()
            );
        }
    }
}
