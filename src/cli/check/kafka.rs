//! Kafka: do brokers answer, and are the three topics there?

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;

use super::{CALL_TIMEOUT, Finding};
use crate::config::Kafka;
use crate::kafka::topics::{self, TopicSettings};

/// All findings; without an answer there is only one.
pub(super) async fn check(config: &Kafka) -> Vec<Finding> {
    let mut client = ClientConfig::new();
    for (name, value) in &config.options {
        client.set(name, value);
    }
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "sluice-check");
    // librdkafka blocks, so the question is asked where that is allowed.
    let question = client.clone();
    let metadata = match tokio::task::spawn_blocking(move || fetch_metadata(&question)).await {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(finding)) => return vec![finding],
        Err(error) => return vec![Finding::unreachable(error.to_string())],
    };
    let (creates_topics, settings) = match client.create_with_context(Listener::default()) {
        Ok(admin) => tokio::join!(creates_topics(&admin, &metadata), settings(&admin, config)),
        Err(_) => (None, HashMap::new()),
    };
    let of_rejects = settings.get(&config.topic).map(TopicSettings::of_rejects);
    let brokers: Vec<String> = metadata
        .brokers()
        .iter()
        .map(|broker| format!("{}:{}", broker.host(), broker.port()))
        .collect();
    let mut findings = vec![Finding::good(
        "connection",
        format!("brokers {}", brokers.join(", ")),
    )];
    for (key, subject, name) in [
        ("kafka.topic", "topic", &config.topic),
        ("kafka.overflow_topic", "overflow topic", &config.overflow_topic),
        (
            "kafka.dead_letter_topic",
            "dead-letter topic",
            &config.dead_letter_topic,
        ),
    ] {
        findings.push(match partitions(&metadata, name) {
            Ok(partitions) => Finding::good(subject, format!("{name}, {partitions} partitions")),
            Err(Absent::Refused(reason)) => Finding::problem(
                subject,
                format!("{key} = {name:?}: {reason}"),
                "let this user describe the topic",
            ),
            Err(Absent::Missing) => {
                let settings = match of_rejects {
                    Some(bytes) if *name != config.topic => format!(" --config max.message.bytes={bytes}"),
                    _ => String::new(),
                };
                let command = format!(
                    "kafka-topics.sh --bootstrap-server {} --create --topic {name} --partitions 6{settings}",
                    config.brokers
                );
                missing((key, subject, name), command, creates_topics)
            }
        });
    }
    findings.extend(misfits(config, &settings));
    findings
}

async fn settings(admin: &AdminClient<Listener>, config: &Kafka) -> HashMap<String, TopicSettings> {
    let names = [&config.topic, &config.overflow_topic, &config.dead_letter_topic].map(String::as_str);
    topics::settings(admin, &names, CALL_TIMEOUT).await
}

/// What keeps a topic of rejects from taking, and keeping, every record of the topic of events; as far as this user may
/// ask.
fn misfits(config: &Kafka, settings: &HashMap<String, TopicSettings>) -> Vec<Finding> {
    let rejects = [
        ("kafka.overflow_topic", "overflow topic", &config.overflow_topic),
        (
            "kafka.dead_letter_topic",
            "dead-letter topic",
            &config.dead_letter_topic,
        ),
    ];
    let Some(events) = settings.get(&config.topic) else {
        return Vec::new();
    };
    rejects
        .into_iter()
        .filter_map(|(key, subject, name)| Some(settings.get(name)?.misfits(events, key, subject, name)))
        .flatten()
        .collect()
}

impl TopicSettings {
    /// What keeps this topic of rejects from taking, and keeping, every record of the topic of events.
    fn misfits(&self, events: &Self, key: &str, subject: &'static str, name: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        let wanted = events.of_rejects();
        if self.max_message_bytes < wanted {
            findings.push(Finding::warning(
                subject,
                format!(
                    "{key} = {name:?} takes records of {} bytes, and the topic of events has them of {}: one that is \
                     too large holds its partition",
                    self.max_message_bytes, events.max_message_bytes
                ),
                format!("raise its max.message.bytes to {wanted}"),
            ));
        }
        if self.cleanup_policy.contains("compact") {
            findings.push(Finding::warning(
                subject,
                format!("{key} = {name:?} is compacted: of the rejects of one key only the last would stay"),
                "set its cleanup.policy to delete",
            ));
        }
        findings
    }
}

/// What the brokers know of all topics; asking for one by its name could create it.
fn fetch_metadata(client: &ClientConfig) -> Result<Metadata, Finding> {
    let consumer: BaseConsumer<Listener> = client
        .create_with_context(Listener::default())
        .map_err(|error| Finding::problem("client", error.to_string(), "correct kafka.options"))?;
    consumer.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| {
        // Its log waits in the queue of events, for someone who polls.
        while consumer.poll(Duration::from_millis(10)).is_some() {}
        Finding::unreachable(consumer.context().last().unwrap_or_else(|| error.to_string()))
    })
}

enum Absent {
    Missing,
    Refused(String),
}

fn partitions(metadata: &Metadata, name: &str) -> Result<usize, Absent> {
    let topic = metadata
        .topics()
        .iter()
        .find(|topic| topic.name() == name)
        .ok_or(Absent::Missing)?;
    match topic.error() {
        Some(error) => Err(Absent::Refused(format!("{error:?}"))),
        None => Ok(topic.partitions().len()),
    }
}

/// `make`: the command that makes it.
fn missing(
    (key, subject, name): (&str, &'static str, &str),
    make: String,
    creates_topics: Option<bool>,
) -> Finding {
    let detail = format!("{key} = {name:?} does not exist");
    match creates_topics {
        Some(true) => Finding::warning(
            subject,
            format!("{detail}; the broker makes it at its first use, with its own defaults"),
            format!("choose its partitions, replication and retention: {make}"),
        ),
        Some(false) => Finding::problem(subject, format!("{detail}, and the broker makes none"), make),
        None => Finding::problem(subject, detail, make),
    }
}

/// Whether the brokers make a topic that is written to; nothing where this user may not ask.
async fn creates_topics(admin: &AdminClient<Listener>, metadata: &Metadata) -> Option<bool> {
    let broker = ResourceSpecifier::Broker(metadata.brokers().first()?.id());
    let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
    let described = admin.describe_configs([&broker], &options).await.ok()?;
    let resource = described.into_iter().next()?.ok()?;
    let value = resource
        .entry_map()
        .get("auto.create.topics.enable")?
        .value
        .clone()?;
    Some(value == "true")
}

/// Keeps what librdkafka last complained of: its errors say that it failed, its log says why.
#[derive(Default)]
struct Listener {
    last: Mutex<Option<String>>,
}

impl Listener {
    fn last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Listener {
    fn error(&self, _error: KafkaError, _reason: &str) {
        // The log tells the same, with the address.
    }

    fn log(&self, level: RDKafkaLogLevel, _facility: &str, message: &str) {
        if (level as i32) <= RDKafkaLogLevel::Error as i32 {
            let reason = message.split_once("]: ").map_or(message, |(_, reason)| reason);
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Listener {}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_missing_topic_is_a_problem_unless_the_broker_makes_it() {
        let missing = |creates| missing(("kafka.topic", "topic", "events"), "make it".to_owned(), creates);
        assert_eq!(missing(Some(true)).verdict, Verdict::Warning);
        assert_eq!(missing(Some(false)).verdict, Verdict::Problem);
        assert_eq!(missing(None).verdict, Verdict::Problem);
        assert_eq!(missing(None).remedy, "make it");
    }

    #[test]
    fn topics_of_rejects_must_take_and_keep_whatever_comes() {
        let of = |max_message_bytes, policy: &str| TopicSettings {
            max_message_bytes,
            cleanup_policy: policy.to_owned(),
        };
        let events = of(1_000_000, "compact");
        let misfits = |rejects: TopicSettings| {
            rejects.misfits(&events, "kafka.overflow_topic", "overflow topic", "over")
        };
        assert!(misfits(of(1_001_000, "delete")).is_empty());
        let small = misfits(of(1_000_000, "delete"));
        assert_eq!(small.len(), 1);
        assert!(small[0].remedy.contains("1000512"), "{}", small[0].remedy);
        let compacted = misfits(of(2_000_000, "compact,delete"));
        assert!(
            compacted[0].detail.contains("compacted"),
            "{}",
            compacted[0].detail
        );
    }

    #[tokio::test]
    async fn topics_are_told_with_their_partitions_and_a_missing_one_is_named() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 4, 1).unwrap();
        cluster.create_topic("events_overflow", 2, 1).unwrap();
        let config = Kafka {
            brokers: cluster.bootstrap_servers(),
            ..Kafka::default()
        };
        let findings = check(&config).await;
        let found: Vec<_> = findings
            .iter()
            .map(|finding| (finding.verdict, finding.detail.as_str()))
            .collect();
        assert_eq!(found[1], (Verdict::Good, "events, 4 partitions"));
        assert_eq!(found[2], (Verdict::Good, "events_overflow, 2 partitions"));
        assert_eq!(found[3].0, Verdict::Problem);
        assert!(found[3].1.contains("events_dead_letter"), "{}", found[3].1);
        let make = "--create --topic events_dead_letter";
        assert!(findings[3].remedy.contains(make), "{}", findings[3].remedy);
    }
}
