//! Redis: does it answer, is it new enough, and does it keep what it is given?

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};

use super::redis_state::{self, Settings};
use super::{CALL_TIMEOUT, Finding, clock_difference, clock_finding, now_micros};
use crate::config::{Config, SecretUrl};
use crate::redis::info::text as field;

/// Oldest major version whose scripts and commands are the ones in use.
const OLDEST: u32 = 7;

/// The server of claims, limits and timelines.
pub(super) async fn check(url: &SecretUrl, config: &Config) -> Vec<Finding> {
    match ask(url).await {
        Ok(answers) => {
            let mut findings = vec![version(&answers.info)];
            let shared = config.redis.cache_url().expose() == config.redis.url.expose();
            findings.extend(redis_state::judge(&answers.info, &answers.settings, shared));
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
    settings: Settings,
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
    // Not every user may ask.
    let settings = redis::cmd("CONFIG")
        .arg("GET")
        .arg(&redis_state::ASKED)
        .query_async(&mut connection)
        .await
        .unwrap_or_default();
    let before = now_micros();
    let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
    let difference = clock_difference(before, seconds * 1_000_000 + micros, now_micros());
    Ok(Answers {
        info,
        settings,
        clock_difference: difference,
    })
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
