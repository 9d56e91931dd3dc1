//! Whether a worker would start with the claims that Redis has, and whether Redis still has what the group relies on.
//!
//! Reads the marks that workers leave, and never leaves one.

use redis::{FromRedisValue as _, Pipeline, RedisResult, Value};

use super::Finding;
use crate::config::Config;
use crate::kafka::settled::Settled;
use crate::pipeline::claim::compare_marks;
use crate::redis::{Redis, keys::Keys};

const SUBJECT: &str = "claims";
/// For the question what the group has committed. With brokers that are gone it takes longer, and then there are other
/// findings.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What the group's offsets say of a Redis without a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    HasCommitted,
    HasNot,
    Unknown,
}

/// The marks of claims, compared with the configuration.
pub(super) async fn check(redis: &Redis, config: &Config) -> Finding {
    let keys = Keys::new(&config.redis.key_prefix);
    match read(redis, &keys).await {
        Ok((Some(mark), window)) => compare(config, &keys, &mark, window.as_deref()),
        Ok((None, _)) => missing(config, &keys, group(config).await),
        Err(error) => Finding::problem(
            SUBJECT,
            format!("{}: {error}", keys.layout()),
            "workers wait until they may ask for it, and it is theirs",
        ),
    }
}

/// The marks of layout and window.
async fn read(redis: &Redis, keys: &Keys) -> RedisResult<(Option<String>, Option<String>)> {
    let mut pipe = Pipeline::new();
    pipe.cmd("GET").arg(keys.layout());
    pipe.cmd("GET").arg(keys.claims_window());
    let mut answers = redis.pipeline(&pipe).await?.into_iter();
    let mut next = || Option::from_redis_value(answers.next().unwrap_or(Value::Nil));
    Ok((next()?, next()?))
}

fn compare(config: &Config, keys: &Keys, mark: &str, window: Option<&str>) -> Finding {
    match compare_marks(keys, &config.dedup, mark, window) {
        Ok(()) => Finding::good(
            SUBJECT,
            format!(
                "kept as configured: layout {}, {} s",
                config.dedup.layout, config.dedup.window_seconds
            ),
        ),
        Err(error) => Finding::problem(
            SUBJECT,
            format!("no worker starts: {error}"),
            "docs/redis.md, \"Another layout, another window\"",
        ),
    }
}

/// Whether a worker has committed offsets, for which it must have left a mark.
async fn group(config: &Config) -> Group {
    let ask = async {
        let settled = Settled::open(&config.kafka).await?;
        settled.below().await
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(below)) if below.is_empty() => Group::HasNot,
        Ok(Ok(_)) => Group::HasCommitted,
        _ => Group::Unknown,
    }
}

fn missing(config: &Config, keys: &Keys, group: Group) -> Finding {
    let (mark, group_id) = (keys.layout(), &config.kafka.group_id);
    match group {
        Group::HasNot => Finding::good(SUBJECT, format!("none yet; the first worker leaves {mark}")),
        Group::HasCommitted => Finding::problem(
            SUBJECT,
            format!(
                "{mark} is gone, but the group {group_id} has committed offsets: Redis has forgotten claims and limits, \
                 or redis.url or redis.key_prefix is another one than before"
            ),
            "stop all workers, and start them again only then: those that run keep what they read at their start \
             (docs/redis.md, \"What a loss means\")",
        ),
        Group::Unknown => Finding::warning(
            SUBJECT,
            format!(
                "no {mark}, and what the group {group_id} has committed is not known: no worker has started with this \
                 prefix yet, or Redis has forgotten what it knew"
            ),
            "if workers were started before: stop all, and start them again only then",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_missing_mark_is_judged_by_what_the_group_has_committed() {
        let (config, keys) = (Config::default(), Keys::new("p:"));
        let of = |group| missing(&config, &keys, group);
        assert_eq!(of(Group::HasNot).verdict, Verdict::Good);
        assert_eq!(of(Group::Unknown).verdict, Verdict::Warning);
        let forgotten = of(Group::HasCommitted);
        assert_eq!(forgotten.verdict, Verdict::Problem);
        assert!(
            forgotten.remedy.contains("stop all workers"),
            "{}",
            forgotten.remedy
        );
    }
}
