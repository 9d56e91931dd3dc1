//! Whether the Redis of the state keeps what it is given, as far as `INFO` and `CONFIG` tell.
//!
//! Pure. A *problem* is what breaks a promise now: keys were evicted (2 and 3), or the server refuses to write, so that
//! workers would wait for ever (4): a replica, too few replicas, full memory, a disk that fails. A *warning* is what
//! breaks one as soon as something happens: a crash, a failover, a day of growth. docs/redis.md explains each.

use std::collections::HashMap;

use super::Finding;
use crate::config::RedisMode;
use crate::redis::info::{number, text};
use crate::redis::look::{evicts, wants_replicas};

/// The settings that are asked for.
pub(super) const ASKED: [&str; 3] = ["save", "appendfsync", "min-replicas-to-write"];

/// What `CONFIG GET` answered; nothing where the user may not ask.
pub(super) type Settings = HashMap<String, String>;

/// Memory in use above this share of `maxmemory` is warned of.
const NEARLY_FULL: f64 = 0.8;

/// All findings on a primary that is found by `mode`. `shared`: the caches are on the same server.
pub(super) fn judge(info: &str, settings: &Settings, mode: RedisMode, shared: bool) -> Vec<Finding> {
    let setting = |name: &str| settings.get(name).map(String::as_str);
    let mut findings = vec![memory(info, shared)];
    findings.push(persistence(info, setting("save"), setting("appendfsync")));
    findings.extend(failing_disk(info));
    findings.extend(replicas(info, setting("min-replicas-to-write"), mode));
    findings
}

/// What keeps the caches' server from taking what is put there. It may forget, so it should evict.
pub(super) fn judge_cache(info: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = is_replica(info, "redis.cache_url").into_iter().collect();
    if share(info) > NEARLY_FULL && !evicts(info) {
        findings.push(Finding::warning(
            "memory",
            format!(
                "{:.0}% of maxmemory used, and it evicts nothing: full, it caches nothing more",
                share(info) * 100.0
            ),
            "set maxmemory-policy allkeys-lru: what is evicted is made again",
        ));
    }
    findings
}

/// Memory in use by `maxmemory`; zero without one.
fn share(info: &str) -> f64 {
    let used = number(info, "used_memory").unwrap_or(0.0);
    number(info, "maxmemory")
        .filter(|most| *most > 0.0)
        .map_or(0.0, |most| used / most)
}

fn is_replica(info: &str, key: &str) -> Option<Finding> {
    (text(info, "role") == "slave").then(|| {
        Finding::problem(
            "role",
            "a replica: it refuses writes",
            format!("name the master in {key}"),
        )
    })
}

fn memory(info: &str, shared: bool) -> Finding {
    let policy = text(info, "maxmemory_policy");
    let most = number(info, "maxmemory").unwrap_or(0.0);
    let detail = format!(
        "maxmemory {most} bytes, policy {policy}, {} used",
        text(info, "used_memory_human")
    );
    let evicted = number(info, "evicted_keys").unwrap_or(0.0);
    if evicts(info) {
        let whose = if shared {
            "; the caches are on this server, too: as they grow, claims go"
        } else {
            ""
        };
        let remedy = "set maxmemory-policy noeviction: an evicted claim lets a duplicate through; caches go to a server of \
                      their own (redis.cache_url)";
        return if evicted > 0.0 {
            let detail = format!("{detail}; {evicted} keys were evicted since it started{whose}");
            Finding::problem("memory", detail, remedy)
        } else {
            Finding::warning("memory", format!("{detail}{whose}"), remedy)
        };
    }
    if number(info, "maxmemory") == Some(0.0) {
        let detail = format!(
            "no maxmemory, {} used: it grows until the machine has no more and the system ends it, and nothing tells before \
             that it is nearly full (the alert SluiceRedisNearlyFull goes by maxmemory)",
            text(info, "used_memory_human")
        );
        return Finding::warning(
            "memory",
            detail,
            "set maxmemory (`sluice plan` says how much it takes; the machine needs twice that) with maxmemory-policy \
             noeviction",
        );
    }
    let share = share(info);
    let remedy = "raise maxmemory (`sluice plan` says how much it takes), or shorten dedup.window_seconds";
    if share >= 1.0 {
        Finding::problem(
            "memory",
            format!("{detail}: full, every write is refused"),
            remedy,
        )
    } else if share > NEARLY_FULL {
        let detail = format!(
            "{detail}: {:.0}% full; a full server refuses writes, and workers wait",
            share * 100.0
        );
        Finding::warning("memory", detail, remedy)
    } else {
        Finding::good("memory", detail)
    }
}

fn persistence(info: &str, save: Option<&str>, appendfsync: Option<&str>) -> Finding {
    let remedy = "set appendonly yes: what Redis forgets may be written twice";
    let appends = text(info, "aof_enabled") == "1";
    match (appends, save) {
        (true, _) => match appendfsync {
            Some("always") => Finding::good("persistence", "append-only file, flushed before each answer"),
            Some("no") => Finding::warning(
                "persistence",
                "append-only file, flushed when the system likes: a crash of the machine forgets half a minute",
                "set appendfsync everysec, or always",
            ),
            _ => Finding::good(
                "persistence",
                "append-only file; with appendfsync everysec a crash of the machine forgets up to a second of claims and \
                 decisions, with always none",
            ),
        },
        (false, Some("")) => Finding::warning(
            "persistence",
            "none: a restart forgets every claim and limit",
            remedy,
        ),
        (false, Some(save)) => Finding::warning(
            "persistence",
            format!("snapshots alone (save {save}): a crash forgets what came after the last one"),
            remedy,
        ),
        (false, None) => Finding::warning(
            "persistence",
            "no append-only file; whether there are snapshots may not be asked",
            remedy,
        ),
    }
}

/// A server whose disk takes nothing more. (It says so only where it writes at all.)
fn failing_disk(info: &str) -> Option<Finding> {
    let failed: Vec<&str> = [
        ("aof_last_write_status", "appending"),
        ("rdb_last_bgsave_status", "the last snapshot"),
    ]
    .into_iter()
    .filter(|(name, _)| text(info, name) == "err")
    .map(|(_, what)| what)
    .collect();
    (!failed.is_empty()).then(|| {
        Finding::problem(
            "disk",
            format!(
                "{} failed: it refuses writes until that works again",
                failed.join(" and ")
            ),
            "look at its log and its disk",
        )
    })
}

fn replicas(info: &str, to_write: Option<&str>, mode: RedisMode) -> Option<Finding> {
    if let Some(replica) = is_replica(info, "redis.url") {
        return Some(replica);
    }
    let connected = number(info, "connected_slaves").unwrap_or(0.0);
    let near = number(info, "min_slaves_good_slaves");
    let wanted: Option<f64> = to_write.and_then(|text| text.parse().ok());
    let too_few = matches!((near, wanted), (Some(near), Some(wanted)) if near < wanted);
    if too_few || wants_replicas(info) {
        let detail = format!(
            "{connected} connected, {} near enough, and min-replicas-to-write is {}: every write is refused",
            near.unwrap_or(0.0),
            to_write.unwrap_or("set")
        );
        return Some(Finding::problem(
            "replicas",
            detail,
            "start replicas, or set min-replicas-to-write 0 for a server that shall be alone",
        ));
    }
    if connected == 0.0 {
        let nobody = match mode {
            // A choice that many make knowingly; its price stands in the documentation.
            RedisMode::Standalone => return None,
            RedisMode::Sentinel => "none is connected: when the primary dies there is nobody to promote",
            RedisMode::Cluster => {
                "none is connected: when this primary dies, its slots and all workers wait for it"
            }
        };
        return Some(Finding::warning("replicas", nobody, "start replicas"));
    }
    let detail = format!("{connected} connected");
    Some(if wanted == Some(0.0) {
        Finding::warning(
            "replicas",
            format!(
                "{detail}, and min-replicas-to-write is 0: a master that is cut off goes on granting claims that a \
                     failover forgets"
            ),
            "set min-replicas-to-write 1 and min-replicas-max-lag 10",
        )
    } else {
        Finding::good("replicas", detail)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const INFO: &str = "role:master\r\nused_memory:1000\r\nused_memory_human:1K\r\nmaxmemory:10000\r\n\
                        maxmemory_policy:noeviction\r\nevicted_keys:0\r\naof_enabled:1\r\naof_last_write_status:ok\r\n\
                        rdb_last_bgsave_status:ok\r\nconnected_slaves:0\r\n";

    /// The verdict on a subject; good where there is nothing to say.
    fn verdict(info: &str, settings: &[(&str, &str)], subject: &str) -> Verdict {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        judge(info, &settings.collect(), RedisMode::Standalone, false)
            .into_iter()
            .find(|finding| finding.subject == subject)
            .map_or(Verdict::Good, |finding| finding.verdict)
    }

    #[test]
    fn eviction_is_warned_of_where_it_can_happen_and_a_problem_once_it_has() {
        let evicting = INFO.replace("noeviction", "allkeys-lru");
        let of = |info: &str| verdict(info, &[], "memory");
        assert_eq!(of(INFO), Verdict::Good);
        assert_eq!(of(&evicting), Verdict::Warning);
        assert_eq!(
            of(&evicting.replace("evicted_keys:0", "evicted_keys:7")),
            Verdict::Problem
        );
        let shared = judge(&evicting, &Settings::new(), RedisMode::Standalone, true);
        assert!(shared[0].detail.contains("caches"), "{}", shared[0].detail);
    }

    #[test]
    fn memory_is_warned_of_above_four_fifths_and_a_problem_when_it_is_full() {
        let of = |used: u32| {
            verdict(
                &INFO.replace("used_memory:1000", &format!("used_memory:{used}")),
                &[],
                "memory",
            )
        };
        assert_eq!(of(8_000), Verdict::Good);
        assert_eq!(of(8_001), Verdict::Warning);
        assert_eq!(of(10_000), Verdict::Problem);
    }

    #[test]
    fn memory_without_a_bound_is_warned_of_whatever_the_policy() {
        for policy in ["noeviction", "allkeys-lru"] {
            let unbounded = INFO
                .replace("maxmemory:10000", "maxmemory:0")
                .replace("noeviction", policy);
            let finding = memory(&unbounded, false);
            assert_eq!(finding.verdict, Verdict::Warning, "{policy}");
            assert!(finding.remedy.contains("noeviction"), "{}", finding.remedy);
        }
    }

    #[test]
    fn a_server_that_forgets_is_warned_of_and_everysec_is_told() {
        let of = |info: &str, settings: &[(&str, &str)]| verdict(info, settings, "persistence");
        let without = INFO.replace("aof_enabled:1", "aof_enabled:0");
        assert_eq!(of(INFO, &[("appendfsync", "everysec")]), Verdict::Good);
        assert_eq!(of(INFO, &[("appendfsync", "no")]), Verdict::Warning);
        assert_eq!(of(&without, &[("save", "")]), Verdict::Warning);
        assert_eq!(of(&without, &[]), Verdict::Warning);
        let detail = |info: &str, save, fsync| persistence(info, save, fsync).detail;
        assert!(detail(INFO, None, Some("everysec")).contains("up to a second"));
        assert!(detail(&without, Some(""), None).contains("forgets every claim"));
        assert!(detail(&without, Some("3600 1"), None).contains("save 3600 1"));
    }

    #[test]
    fn a_primary_that_nobody_would_follow_is_warned_of() {
        let of = |info: &str, mode| replicas(info, Some("0"), mode).map(|finding| finding.verdict);
        assert_eq!(of(INFO, RedisMode::Standalone), None);
        assert_eq!(of(INFO, RedisMode::Sentinel), Some(Verdict::Warning));
        assert_eq!(of(INFO, RedisMode::Cluster), Some(Verdict::Warning));
        let one = INFO.replace("connected_slaves:0", "connected_slaves:1");
        assert_eq!(
            replicas(&one, Some("1"), RedisMode::Cluster).map(|finding| finding.verdict),
            Some(Verdict::Good)
        );
    }

    #[test]
    fn caches_that_take_nothing_more_are_told() {
        let of = |info: &str| judge_cache(info).iter().map(|finding| finding.verdict).max();
        let full = INFO.replace("used_memory:1000", "used_memory:8001");
        assert_eq!(of(INFO), None);
        assert_eq!(of(&full), Some(Verdict::Warning));
        assert_eq!(of(&full.replace("noeviction", "allkeys-lru")), None);
        assert_eq!(of(&INFO.replace("master", "slave")), Some(Verdict::Problem));
    }

    #[test]
    fn a_server_that_refuses_to_write_is_a_problem() {
        let of = |info: String, settings: &[(&str, &str)], subject| verdict(&info, settings, subject);
        let near =
            |near: u32| format!("{INFO}min_slaves_good_slaves:{near}\r\n").replace("slaves:0", "slaves:2");
        assert_eq!(
            of(INFO.to_owned(), &[("min-replicas-to-write", "0")], "replicas"),
            Verdict::Good
        );
        assert_eq!(
            of(near(2), &[("min-replicas-to-write", "1")], "replicas"),
            Verdict::Good
        );
        assert_eq!(
            of(near(1), &[("min-replicas-to-write", "2")], "replicas"),
            Verdict::Problem
        );
        let none = format!("{INFO}min_slaves_good_slaves:0\r\n");
        assert_eq!(of(none, &[], "replicas"), Verdict::Problem);
        let unguarded = INFO.replace("connected_slaves:0", "connected_slaves:1");
        assert_eq!(
            of(unguarded, &[("min-replicas-to-write", "0")], "replicas"),
            Verdict::Warning
        );
        assert_eq!(of(INFO.replace("master", "slave"), &[], "role"), Verdict::Problem);
        for status in ["aof_last_write_status", "rdb_last_bgsave_status"] {
            let failing = INFO.replace(&format!("{status}:ok"), &format!("{status}:err"));
            assert_eq!(of(failing, &[], "disk"), Verdict::Problem, "{status}");
        }
    }
}
