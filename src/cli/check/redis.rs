//! Redis: does it answer, is it new enough, and does it keep what it is given?

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};

use super::{CALL_TIMEOUT, Finding, clock_difference, clock_finding, now_micros};
use crate::config::{Config, SecretUrl};

/// Oldest major version whose scripts and commands are the ones in use.
const OLDEST: u32 = 7;

/// The server of claims, limits and timelines.
pub(super) async fn check(url: &SecretUrl, config: &Config) -> Vec<Finding> {
    match ask(url).await {
        Ok(answers) => {
            let mut findings = vec![version(&answers.info)];
            findings.push(eviction(&answers.info));
            findings.push(persistence(&answers.info, answers.save.as_deref()));
            findings.push(clock_finding(
                answers.clock_difference,
                config.clickhouse.insert_deadline_seconds,
            ));
            findings
        }
        Err(error) => vec![Finding::unreachable(error.to_string())],
    }
}

/// The server of what can be computed again: it may forget.
pub(super) async fn check_cache(url: &SecretUrl) -> Vec<Finding> {
    match ask(url).await {
        Ok(answers) => vec![version(&answers.info)],
        Err(error) => vec![Finding::unreachable(error.to_string())],
    }
}

struct Answers {
    info: String,
    /// `CONFIG GET save`, where the user may ask.
    save: Option<String>,
    clock_difference: f64,
}

async fn ask(url: &SecretUrl) -> Result<Answers, RedisError> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CALL_TIMEOUT))
        .set_response_timeout(Some(CALL_TIMEOUT));
    let client = redis::Client::open(url.expose().as_str())?;
    let mut connection: MultiplexedConnection = client
        .get_multiplexed_async_connection_with_config(&settings)
        .await?;
    redis::cmd("PING").exec_async(&mut connection).await?;
    let info = redis::cmd("INFO").query_async(&mut connection).await?;
    let save: Result<(String, String), _> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("save")
        .query_async(&mut connection)
        .await;
    let before = now_micros();
    let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
    let difference = clock_difference(before, seconds * 1_000_000 + micros, now_micros());
    Ok(Answers {
        info,
        save: save.ok().map(|(_, save)| save),
        clock_difference: difference,
    })
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
