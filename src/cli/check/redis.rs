//! Redis: is it found, does it answer, may we do what a worker does, is it new enough, and does it keep what it is given?

use futures::future::try_join_all;
use redis::{FromRedisValue, Pipeline, RedisResult, Value};

use super::redis_mode::{CACHE, Named, STATE, is_sentinel};
use super::{Finding, clock_difference, clock_finding, redis_marks, redis_overrides, redis_state};
use crate::config::{Config, RedisMode};
use crate::redis::info::text as field;
use crate::redis::{self as transport, Redis, Settings, Topology, keys::Keys, needs};

/// Oldest major version whose scripts and commands are the ones in use.
const OLDEST: u32 = 7;

/// The server of claims, limits and timelines.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let found = find(Settings::state(&config.redis), config, &STATE).await;
    let of_keys = match &found {
        Ok(found) => of_keys(&found.redis, config).await,
        Err(_) => Vec::new(),
    };
    let mut findings = findings(found, |server| {
        let mode = config.redis.mode;
        let shared = config.redis.cache_url.is_none();
        let mut findings = about(server.info.as_deref(), |info| {
            let mut findings = vec![version(info)];
            findings.extend(STATE.misfit(info, mode));
            findings.extend(redis_state::judge(info, &server.settings, mode, shared));
            findings
        });
        findings.push(clock_finding(
            server.clock_difference,
            config.clickhouse.insert_deadline_seconds,
        ));
        findings
    });
    findings.extend(of_keys);
    findings
}

/// What is amiss with keys that workers rely on, or that operators write.
async fn of_keys(redis: &Redis, config: &Config) -> Vec<Finding> {
    let (marks, overrides) = tokio::join!(
        redis_marks::check(redis, config),
        redis_overrides::check(redis, config)
    );
    let mut findings = vec![marks];
    findings.extend(overrides);
    if config.rate_limit.allow_list {
        findings.push(allow_list(redis, config).await);
    }
    findings
}

/// Who may send events at all.
async fn allow_list(redis: &Redis, config: &Config) -> Finding {
    let subject = "allow-list";
    let key = Keys::new(&config.redis.key_prefix).allow_list();
    match redis.command::<u64>(redis::cmd("SCARD").arg(&key)).await {
        Ok(0) => Finding::problem(
            subject,
            format!("{key} is empty: workers wait, for no token may send events (rate_limit.allow_list)"),
            format!(
                "SADD {key} TOKEN TOKEN …, all at once: as soon as one is on it, the others are known not to be"
            ),
        ),
        Ok(tokens) => Finding::good(subject, format!("{tokens} tokens in {key}")),
        Err(error) if error.code() == Some("WRONGTYPE") => Finding::problem(
            subject,
            format!("{key}: {error}"),
            "it is to be a set of tokens; as long as it is none, every token may send events",
        ),
        Err(error) => Finding::problem(
            subject,
            format!("{key}: {error}"),
            "workers wait until they may ask for it",
        ),
    }
}

/// The server of what can be computed again: it may forget.
pub(super) async fn check_cache(config: &Config) -> Vec<Finding> {
    let found = find(Settings::cache(&config.redis), config, &CACHE).await;
    findings(found, |server| {
        about(server.info.as_deref(), |info| {
            let mut findings = vec![version(info)];
            findings.extend(CACHE.misfit(info, config.redis.cache_mode.unwrap_or(RedisMode::Standalone)));
            findings.extend(redis_state::judge_cache(info));
            findings
        })
    })
}

/// What was found of a Redis, the way a worker would find it.
struct Found {
    redis: Redis,
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
    /// Where the user may ask.
    settings: redis_state::Settings,
    clock_difference: f64,
}

async fn find(settings: RedisResult<Settings>, config: &Config, named: &Named) -> Result<Found, Finding> {
    let found = async {
        let settings = settings?;
        let redis = Redis::open(&settings, 1)?;
        let topology = redis.topology().await?;
        let servers = redis.servers().await?;
        let key = Keys::new(&config.redis.key_prefix).session("check");
        Ok(Found {
            mode: settings.mode(),
            topology,
            servers: try_join_all(servers.iter().map(look_at)).await?,
            refused: needs::refused(&redis, &key).await,
            redis,
        })
    };
    found.await.map_err(|error| named.not_found(&error))
}

async fn look_at(server: &transport::Server) -> RedisResult<Server> {
    let mut ask = Pipeline::new();
    ask.cmd("INFO");
    ask.cmd("CONFIG").arg("GET").arg(&redis_state::ASKED);
    let mut answers = server.send(&ask).await?.into_iter().map(Value::extract_error);
    let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
    let info = next().ok().and_then(|info| String::from_redis_value(info).ok());
    let settings = next()
        .ok()
        .and_then(|settings| FromRedisValue::from_redis_value(settings).ok());
    if let Some(error) = info.as_deref().and_then(|info| is_sentinel(info, server)) {
        return Err(error);
    }
    Ok(Server {
        address: server.address(),
        info,
        settings: settings.unwrap_or_default(),
        clock_difference: clock_difference(async || time_of(server).await).await?,
    })
}

/// A server's time in microseconds.
async fn time_of(server: &transport::Server) -> RedisResult<i64> {
    let mut ask = Pipeline::new();
    ask.cmd("TIME");
    let answers = server.pipeline(&ask).await?;
    let ((seconds, micros),): ((i64, i64),) = FromRedisValue::from_redis_value(Value::Array(answers))?;
    Ok(seconds * 1_000_000 + micros)
}

/// All findings: the first server's, and of the others what is amiss.
fn findings(found: Result<Found, Finding>, of: impl Fn(&Server) -> Vec<Finding>) -> Vec<Finding> {
    let found = match found {
        Ok(found) => found,
        Err(finding) => return vec![finding],
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

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n";

    #[test]
    fn an_old_version_is_a_problem() {
        assert_eq!(version(INFO).verdict, Verdict::Good);
        assert_eq!(version("redis_version:6.2.14\r\n").verdict, Verdict::Problem);
        assert_eq!(version("").verdict, Verdict::Problem);
    }
}
