//! Redis: is it found, does it answer, may we do what a worker does, is it new enough, and does it keep what it is given?

use redis::{FromRedisValue, Pipeline, RedisResult, Value};

use super::{Finding, clock_difference, clock_finding, now_micros};
use crate::config::{Config, RedisMode};
use crate::redis::{Redis, Settings, Topology, keys::Keys, needs};

/// Oldest major version whose scripts and commands are the ones in use.
const OLDEST: u32 = 7;

/// The server of claims, limits and timelines.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let found = find(Settings::state(&config.redis), config).await;
    findings(found, |server| {
        let mut findings = about(server.info.as_deref(), |info| {
            vec![
                version(info),
                eviction(info),
                persistence(info, server.save.as_deref()),
            ]
        });
        findings.push(clock_finding(
            server.clock_difference,
            config.clickhouse.insert_deadline_seconds,
        ));
        findings
    })
}

/// The server of what can be computed again: it may forget.
pub(super) async fn check_cache(config: &Config) -> Vec<Finding> {
    let found = find(Settings::cache(&config.redis), config).await;
    findings(found, |server| {
        about(server.info.as_deref(), |info| vec![version(info)])
    })
}

/// What was found of a Redis, the way a worker would find it.
struct Found {
    mode: RedisMode,
    topology: Topology,
    /// Commands that the user may not send.
    refused: RedisResult<Vec<String>>,
    servers: Vec<Server>,
}

/// One primary.
struct Server {
    address: String,
    /// `INFO`, where the user may ask.
    info: Option<String>,
    /// `CONFIG GET save`, where the user may ask.
    save: Option<String>,
    clock_difference: f64,
}

async fn find(settings: RedisResult<Settings>, config: &Config) -> RedisResult<Found> {
    let settings = settings?;
    let redis = Redis::open(&settings, 1)?;
    let topology = redis.topology().await?;
    let mut pipe = Pipeline::new();
    pipe.cmd("TIME").cmd("INFO").cmd("CONFIG").arg("GET").arg("save");
    let before = now_micros();
    let answers = redis.each(&pipe).await?;
    let after = now_micros();
    let servers = answers
        .into_iter()
        .map(|(address, answers)| server(address, answers, (before, after)))
        .collect::<RedisResult<_>>()?;
    let key = Keys::new(&config.redis.key_prefix).session("check");
    Ok(Found {
        mode: settings.mode(),
        topology,
        refused: needs::refused(&redis, &key).await,
        servers,
    })
}

fn server(address: String, answers: Vec<Value>, (before, after): (i64, i64)) -> RedisResult<Server> {
    let mut answers = answers.into_iter().map(Value::extract_error);
    let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
    let (seconds, micros): (i64, i64) = FromRedisValue::from_redis_value(next()?)?;
    let info = next().ok().and_then(|info| String::from_redis_value(info).ok());
    let save = next()
        .ok()
        .and_then(|save| <(String, String)>::from_redis_value(save).ok());
    Ok(Server {
        address,
        info,
        save: save.map(|(_, save)| save),
        clock_difference: clock_difference(before, seconds * 1_000_000 + micros, after),
    })
}

/// All findings: the first server's, and of the others what is amiss.
fn findings(found: RedisResult<Found>, of: impl Fn(&Server) -> Vec<Finding>) -> Vec<Finding> {
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![Finding::unreachable(error.to_string())],
    };
    let mut findings = vec![whereabouts(&found), permissions(found.refused)];
    for (n, server) in found.servers.iter().enumerate() {
        for mut finding in of(server) {
            if found.servers.len() > 1 && !finding.is_good() {
                finding.detail = format!("{}: {}", server.address, finding.detail);
            }
            if n == 0 || !finding.is_good() {
                findings.push(finding);
            }
        }
    }
    findings
}

fn whereabouts(found: &Found) -> Finding {
    let subject = "mode";
    let primaries = found.topology.primaries.join(", ");
    match (found.topology.sentinels, found.topology.slots) {
        (Some((naming, all)), _) => {
            let detail = format!(
                "{}: primary {primaries}, named by {naming} of {all} sentinels",
                found.mode
            );
            if naming == all {
                Finding::good(subject, detail)
            } else {
                Finding::warning(subject, detail, "start the others: a failover needs most of them")
            }
        }
        (None, Some(slots)) => {
            let detail = format!(
                "{}: {} primaries ({primaries}) serve {slots} of {} slots",
                found.mode,
                found.topology.primaries.len(),
                Topology::SLOTS
            );
            if slots == Topology::SLOTS {
                Finding::good(subject, detail)
            } else {
                Finding::problem(subject, detail, "redis-cli --cluster check tells what is missing")
            }
        }
        (None, None) => Finding::good(subject, found.mode.to_string()),
    }
}

fn permissions(refused: RedisResult<Vec<String>>) -> Finding {
    let subject = "permissions";
    let remedy = "docs/redis-connections.md has the ACL rule that is needed";
    match refused {
        Ok(refused) if refused.is_empty() => Finding::good(subject, "all that a worker sends"),
        Ok(refused) => Finding::problem(
            subject,
            format!("the user may not send {}", refused.join(", ")),
            remedy,
        ),
        Err(error) => Finding::problem(subject, error.to_string(), remedy),
    }
}

/// What `INFO` tells, or that it may not be asked.
fn about(info: Option<&str>, of: impl Fn(&str) -> Vec<Finding>) -> Vec<Finding> {
    match info {
        Some(info) => of(info),
        None => vec![Finding::warning(
            "connection",
            "version, memory and persistence are unknown: INFO may not be asked",
            "allow the user INFO and CONFIG GET, or check as another user",
        )],
    }
}

fn field<'a>(info: &'a str, name: &str) -> &'a str {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .unwrap_or_default()
}

fn version(info: &str) -> Finding {
    let version = field(info, "redis_version");
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0);
    let detail = format!("Redis {version}, {}", field(info, "redis_mode"));
    if major >= OLDEST {
        Finding::good("connection", detail)
    } else {
        Finding::problem("version", detail, format!("use Redis {OLDEST}.0 or newer"))
    }
}

fn eviction(info: &str) -> Finding {
    let (policy, limit) = (field(info, "maxmemory_policy"), field(info, "maxmemory"));
    let used = field(info, "used_memory_human");
    let detail = format!("maxmemory {limit} bytes, policy {policy}, {used} used");
    if policy == "noeviction" || limit == "0" {
        Finding::good("memory", detail)
    } else {
        Finding::warning(
            "memory",
            detail,
            "set maxmemory-policy noeviction: an evicted claim lets a duplicate through; \
             caches go to a server of their own (redis.cache_url)",
        )
    }
}

fn persistence(info: &str, save: Option<&str>) -> Finding {
    let appends = field(info, "aof_enabled") == "1";
    match (appends, save) {
        (true, _) => Finding::good("persistence", "append-only file"),
        (false, Some("")) => Finding::warning(
            "persistence",
            "none: a restart forgets every claim and limit",
            "set appendonly yes: what Redis forgets may be written twice",
        ),
        (false, Some(save)) => Finding::warning(
            "persistence",
            format!("snapshots alone (save {save}): a crash forgets what came after the last one"),
            "set appendonly yes",
        ),
        (false, None) => Finding::warning(
            "persistence",
            "no append-only file; whether there are snapshots may not be asked",
            "set appendonly yes",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\
                        maxmemory:1048576\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n";

    #[test]
    fn an_old_version_is_a_problem() {
        assert_eq!(version(INFO).verdict, Verdict::Good);
        assert_eq!(version("redis_version:6.2.14\r\n").verdict, Verdict::Problem);
        assert_eq!(version("").verdict, Verdict::Problem);
    }

    #[test]
    fn eviction_of_claims_is_warned_of_where_it_can_happen() {
        assert_eq!(eviction(INFO).verdict, Verdict::Warning);
        assert_eq!(
            eviction(&INFO.replace("allkeys-lru", "noeviction")).verdict,
            Verdict::Good
        );
        assert_eq!(eviction(&INFO.replace("1048576", "0")).verdict, Verdict::Good);
    }

    #[test]
    fn a_server_that_forgets_is_warned_of() {
        assert_eq!(persistence(INFO, Some("")).verdict, Verdict::Good);
        let without = INFO.replace("aof_enabled:1", "aof_enabled:0");
        assert!(
            persistence(&without, Some(""))
                .detail
                .contains("forgets every claim")
        );
        assert!(
            persistence(&without, Some("3600 1"))
                .detail
                .contains("save 3600 1")
        );
        assert_eq!(persistence(&without, None).verdict, Verdict::Warning);
    }
}
