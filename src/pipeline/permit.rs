//! Permit: which of a block's candidates pass their token's limit, decided once and remembered.
//!
//! One call of `permit.lua` for each token of the block, all in one round trip. A block that comes again gets its old
//! answer, however it is cut this time, and is not charged again.

use std::time::Duration;

use ::redis::{FromRedisValue as _, RedisResult, Value};

use super::block::{Block, Cut};
use super::limits::Limit;
use super::retry::until_done;
use super::{Dropped, Kind, Outcome, Partition};
use crate::config::WhenOver;
use crate::event::Decoded;
use crate::faults;
use crate::kafka::committer::CommitError;
use crate::redis::COMMANDS_AT_ONCE;
use crate::telemetry::{Service, WaitsFor};

/// A window is counted in this many buckets; a permit counts for up to one bucket longer than the window.
const BUCKETS: u64 = 100;

/// What was decided of a token's candidates.
#[derive(Debug, PartialEq, Eq)]
struct Decisions(Vec<(i64, i64)>);

impl Decisions {
    fn parse(text: &str) -> Option<Self> {
        let segments = text.split_terminator(';').map(|segment| {
            let (to, passed) = segment.split_once(':')?;
            Some((to.parse().ok()?, passed.parse().ok()?))
        });
        segments.collect::<Option<_>>().map(Self)
    }

    /// Whether the record at `offset` passed; `None` where that is not decided yet.
    fn passed(&self, offset: i64) -> Option<bool> {
        self.0
            .iter()
            .find(|(to, _)| offset < *to)
            .map(|(_, passed)| offset <= *passed)
    }
}

/// The candidates of one token, by their place among the block's events, in offset order.
struct Candidates {
    token: usize,
    limit: Limit,
    events: Vec<usize>,
}

enum Answer {
    Decided(Decisions),
    /// Redis knows of a later commit.
    Stale(i64),
}

impl Partition {
    /// Whether all pass without being asked for: limits are off, and this is no repeat of a block that asked.
    pub(super) fn passes_unasked(&self, block: &Block, kind: Kind) -> bool {
        match (kind, block.cut) {
            (_, Cut::Announced(announced)) => announced.unlimited,
            (Kind::Recovery, Cut::Free) => false,
            (Kind::Fresh, Cut::Free) => !self.worker.config.rate_limit.enabled,
        }
    }

    /// Decides every candidate: it passes, or is over the limit.
    pub(super) async fn permit(
        &self,
        block: &Block,
        decoded: &Decoded,
        outcomes: &mut [Outcome],
    ) -> Result<(), Dropped> {
        let config = &self.worker.config.rate_limit;
        let may_wait = config.enabled && config.when_over == WhenOver::Wait;
        let mut groups = self.candidates(decoded, outcomes).await;
        let mut rewound = false;
        let mut wait = None;
        while !groups.is_empty() {
            let ask = async || self.ask(block, decoded, &groups, rewound, may_wait).await;
            let answers = until_done(self.waiter(), Service::Redis, "permit", ask).await;
            let mut undecided = Vec::new();
            let mut stale = false;
            rewound = false;
            for (group, answer) in groups.into_iter().zip(answers) {
                match answer {
                    Answer::Decided(decisions) => {
                        let open = decide(&group, &decisions, decoded, outcomes);
                        if !open.is_empty() {
                            undecided.push(Candidates {
                                events: open,
                                ..group
                            });
                        }
                    }
                    Answer::Stale(commit) => {
                        rewound |= self.insist_only_if_rewound(commit).await?;
                        stale = true;
                        undecided.push(group);
                    }
                }
            }
            groups = undecided;
            if !groups.is_empty() && !stale {
                let what = over_limit(&groups, decoded);
                match &wait {
                    None => wait = Some(self.waiter().waits_for(WaitsFor::Permits, what)),
                    Some(wait) => wait.is_for(what),
                }
                // Permits come back as buckets leave the window, or with another limit; there is no event to await.
                tokio::time::sleep(shortest_bucket(&groups)).await;
                let limits = self.limits(decoded).await;
                for group in &mut groups {
                    group.limit = limits[group.token];
                }
            }
        }
        Ok(())
    }

    /// The limit of each token of the block, as it is now.
    async fn limits(&self, decoded: &Decoded) -> Vec<Limit> {
        let mut limits = self
            .worker
            .limits
            .of(&self.worker, self.waiter(), &decoded.tokens)
            .await;
        if !self.worker.config.rate_limit.enabled {
            // With limits switched off since, only old decisions count: new candidates are not charged.
            for limit in &mut limits {
                limit.events = None;
            }
        }
        limits
    }

    async fn candidates(&self, decoded: &Decoded, outcomes: &[Outcome]) -> Vec<Candidates> {
        let mut groups: Vec<Candidates> = self
            .limits(decoded)
            .await
            .into_iter()
            .enumerate()
            .map(|(token, limit)| Candidates {
                token,
                limit,
                events: Vec::new(),
            })
            .collect();
        for (i, (event, outcome)) in decoded.events.iter().zip(outcomes).enumerate() {
            if *outcome == Outcome::Pass {
                groups[event.token as usize].events.push(i);
            }
        }
        groups.retain(|group| !group.events.is_empty());
        groups
    }

    async fn ask(
        &self,
        block: &Block,
        decoded: &Decoded,
        groups: &[Candidates],
        rewound: bool,
        wait: bool,
    ) -> RedisResult<Vec<Answer>> {
        let worker = &self.worker;
        let script = &worker.scripts.permit;
        let field = if faults::without("without-decision") {
            // What was decided stands where nobody looks.
            uuid::Uuid::now_v7().to_string()
        } else {
            worker.source.field(self.number)
        };
        let committed = self.frontier.acknowledged();
        let call = |group: &Candidates| {
            let token = &decoded.tokens[group.token];
            let (first, distances) =
                distances(group.events.iter().map(|&event| decoded.events[event].offset));
            let window_ms = group.limit.window_seconds * 1000;
            let mut call = script.call(2);
            call.arg(worker.keys.rate(token))
                .arg(worker.keys.decided(token))
                .arg(&field)
                .arg(committed);
            call.arg(first)
                .arg(block.end)
                .arg(group.limit.events.map_or(-1, |n| n.min(1 << 53) as i64));
            call.arg(window_ms)
                .arg(bucket_ms(group.limit))
                .arg(worker.config.dedup.window_seconds);
            let wait = wait && group.limit.can_be_waited_for();
            call.arg(u8::from(rewound)).arg(u8::from(wait)).arg(distances);
            call
        };
        let mut answers = Vec::with_capacity(groups.len());
        for groups in groups.chunks(COMMANDS_AT_ONCE) {
            let mut pipe = ::redis::Pipeline::with_capacity(groups.len());
            for group in groups {
                pipe.add_command(call(group));
            }
            answers.extend(worker.redis.scripted(&[script], &pipe).await?);
        }
        answers.into_iter().map(answer).collect()
    }

    /// Redis knows of the commit `stored`, later than the one that the call had. Either somebody else owns the partition
    /// and has gone on, or the group's offset was rewound: Kafka says which. Answers whether the next call may insist; if
    /// not, our own commits have gone that far since (after a rewind, too), and it has the present one.
    async fn insist_only_if_rewound(&self, stored: i64) -> Result<bool, Dropped> {
        faults::moment("before-asking-kafka").await;
        let committed = until_done(
            self.waiter(),
            Service::Kafka,
            "read the committed offset",
            async || match self.committer.committed(self.number, self.epoch).await {
                Err(CommitError::Refused) => Ok(None),
                other => other.map(Some),
            },
        )
        .await;
        match committed {
            None => Err(Dropped::NotOwned),
            Some(committed) if committed >= stored => {
                // Kafka may have acknowledged a commit of ours without our knowing it yet. If it was not ours, ours is
                // never acknowledged, and the partition is dropped or given away meanwhile.
                self.frontier
                    .reaches(stored)
                    .await
                    .then_some(false)
                    .ok_or(Dropped::Stale)
            }
            Some(committed) => {
                tracing::info!(
                    partition = self.number,
                    committed,
                    stored,
                    "offsets were rewound; deciding anew"
                );
                Ok(true)
            }
        }
    }
}

/// Whose permits are waited for.
fn over_limit(groups: &[Candidates], decoded: &Decoded) -> String {
    let waits = |group: &Candidates| {
        let limit = group.limit.events.unwrap_or_default();
        format!(
            "token {:?} is over its limit of {limit} in {} s",
            decoded.tokens[group.token], group.limit.window_seconds
        )
    };
    match groups {
        [] => String::new(),
        [one] => waits(one),
        [first, rest @ ..] => format!("{}, and {} more tokens", waits(first), rest.len()),
    }
}

fn decide(
    group: &Candidates,
    decisions: &Decisions,
    decoded: &Decoded,
    outcomes: &mut [Outcome],
) -> Vec<usize> {
    let mut open = Vec::new();
    for &event in &group.events {
        match decisions.passed(decoded.events[event].offset) {
            Some(true) => {}
            Some(false) => outcomes[event] = Outcome::Over,
            None => open.push(event),
        }
    }
    open
}

/// Rising offsets as scripts take them: the first, and each one's distance from it (u32, big-endian). Not from the
/// block's start, which retention may have left further behind than 32 bits reach.
pub(super) fn distances(offsets: impl Iterator<Item = i64>) -> (i64, Vec<u8>) {
    let mut offsets = offsets.peekable();
    let first = offsets.peek().copied().unwrap_or(0);
    let distances = offsets.flat_map(|offset| ((offset - first) as u32).to_be_bytes());
    (first, distances.collect())
}

fn bucket_ms(limit: Limit) -> u64 {
    (limit.window_seconds * 1000).div_ceil(BUCKETS).max(1)
}

fn shortest_bucket(groups: &[Candidates]) -> Duration {
    let shortest = groups
        .iter()
        .map(|group| bucket_ms(group.limit))
        .min()
        .unwrap_or(1000);
    Duration::from_millis(shortest.clamp(10, 1000))
}

fn answer(value: Value) -> RedisResult<Answer> {
    let text = String::from_redis_value(value)?;
    let parsed = match text.strip_prefix("stale:") {
        Some(commit) => commit.parse().ok().map(Answer::Stale),
        None => Decisions::parse(&text).map(Answer::Decided),
    };
    parsed.ok_or_else(|| {
        ::redis::RedisError::from((
            ::redis::ErrorKind::UnexpectedReturnType,
            "permit.lua answers otherwise",
            text,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_tell_passed_from_over_from_open() {
        let decisions = Decisions::parse("10:9;20:14;30:-1;").unwrap();
        let passed: Vec<_> = [0, 9, 10, 14, 15, 19, 20, 29, 30]
            .map(|o| decisions.passed(o))
            .to_vec();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(passed, [yes, yes, yes, yes, no, no, no, no, None]);
        assert_eq!(Decisions::parse(""), Some(Decisions(Vec::new())));
        assert_eq!(Decisions::parse("x"), None);
    }

    #[test]
    fn distances_do_not_depend_on_where_the_block_starts() {
        let far = 6 << 32;
        assert_eq!(
            distances([far, far + 1, far + 256].into_iter()),
            (far, vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0])
        );
        assert_eq!(distances(std::iter::empty()), (0, Vec::new()));
    }
}
