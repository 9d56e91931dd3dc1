//! Whether the consumer still knows its way to the group, as its statistics tell it.
//!
//! Owns the judgement that a client is lost while Kafka answers others, so that only a new one helps. Never talks to a
//! service.
//!
//! A broker that stood still for some seconds is fenced at first, and an answer that comes then names no broker: the
//! client (librdkafka 2.12.1) forgets its only one, and asks nobody any more, for ever.

use std::time::{Duration, Instant};

use rdkafka::statistics::Statistics;

/// How long both must be so: that the client is lost, and that Kafka answers others. Well below the usual session
/// time-out, within which the broker takes the old member for alive anyway.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a client's statistics have told so far.
#[derive(Debug, Default)]
pub(super) struct Reach {
    lost_since: Option<Instant>,
}

impl Reach {
    /// Takes in `statistics` of this moment, while Kafka has answered others for `kafka_up_for`. Answers why the client
    /// must be made anew, if it must.
    pub(super) fn told(
        &mut self,
        statistics: &Statistics,
        kafka_up_for: Option<Duration>,
        now: Instant,
    ) -> Option<&'static str> {
        let Some(what) = lost(statistics) else {
            self.lost_since = None;
            return None;
        };
        let since = *self.lost_since.get_or_insert(now);
        let patient = now.duration_since(since) < PATIENCE || kafka_up_for.is_none_or(|up| up < PATIENCE);
        (!patient).then_some(what)
    }
}

/// What the client has lost: every broker, or the coordinator of its group.
fn lost(statistics: &Statistics) -> Option<&'static str> {
    let known = |source: &str| matches!(source, "learned" | "configured");
    if !statistics.brokers.values().any(|broker| known(&broker.source)) {
        return Some("the client has lost every broker, though Kafka answers");
    }
    let coordinated = statistics.cgrp.as_ref().is_none_or(|group| group.state == "up");
    (!coordinated).then_some("the client has lost the group's coordinator, though Kafka answers")
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Broker, ConsumerGroup};

    use super::*;

    fn statistics(sources: &[&str], state: &str) -> Statistics {
        let broker = |source: &&str| {
            let broker = Broker {
                source: (*source).to_owned(),
                ..Broker::default()
            };
            ((*source).to_owned(), broker)
        };
        Statistics {
            brokers: sources.iter().map(broker).collect(),
            cgrp: Some(ConsumerGroup {
                state: state.to_owned(),
                ..ConsumerGroup::default()
            }),
            ..Statistics::default()
        }
    }

    #[test]
    fn a_client_is_made_anew_once_it_has_been_lost_for_long_while_kafka_answers() {
        let start = Instant::now();
        let up = Some(Duration::from_mins(1));
        for lost in [
            statistics(&["internal", "logical"], "up"),
            statistics(&["learned", "internal", "logical"], "query-coord"),
        ] {
            let mut reach = Reach::default();
            let mut told = |statistics: &Statistics, up, second: u64| {
                reach
                    .told(statistics, up, start + Duration::from_secs(second))
                    .is_some()
            };
            assert!(!told(&lost, up, 0) && !told(&lost, up, 10));
            assert!(!told(&statistics(&["configured"], "up"), up, 14), "it is back");
            assert!(!told(&lost, up, 16) && !told(&lost, None, 31), "Kafka is down");
            assert!(
                !told(&lost, Some(Duration::from_secs(14)), 45),
                "Kafka has just come back"
            );
            assert!(told(&lost, Some(PATIENCE), 46));
        }
    }
}
