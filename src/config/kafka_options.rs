//! Which of librdkafka's settings an operator may choose.
//!
//! Owns the list of those that would break a promise, each with its reason. Everything else passes, once
//! librdkafka itself knows the name and takes the value.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use toml::Value;

use super::is_secret_option;
use super::raw::{Layers, Source, quote, show};
use super::secret::HIDDEN;

const KEY: &str = "kafka.options";
const ACCEPTED: &str =
    "a table of quoted librdkafka settings, such as { \"security.protocol\" = \"SASL_SSL\" }";

/// Settings that stay the worker's own, and why.
const OWNED: [(&str, &str); 13] = [
    ("bootstrap.servers", "is kafka.brokers"),
    ("metadata.broker.list", "is kafka.brokers"),
    ("group.id", "is kafka.group_id"),
    (
        "enable.auto.commit",
        "would commit events that are not written yet",
    ),
    (
        "auto.commit.enable",
        "would commit events that are not written yet",
    ),
    (
        "enable.auto.offset.store",
        "would commit events that are not written yet",
    ),
    (
        "offset.store.method",
        "would keep offsets where no other worker finds them",
    ),
    (
        "auto.offset.reset",
        "would skip or repeat events silently; the worker seeks itself",
    ),
    ("enable.partition.eof", "changes what the worker polls"),
    (
        "statistics.interval.ms",
        "would hide where a partition ends from the worker",
    ),
    (
        "delivery.report.only.error",
        "would hide the acknowledgements of dead letters",
    ),
    ("transactional.id", "would leave dead letters uncommitted"),
    ("group.protocol.type", "is always that of a consumer"),
];

/// Settings of which only some values keep the promises.
const RESTRICTED: [(&str, &[&str], &str); 5] = [
    (
        "partition.assignment.strategy",
        &["cooperative-sticky"],
        "an eager strategy takes every partition away at each rebalance",
    ),
    (
        "isolation.level",
        &["read_committed"],
        "events of a transaction that is aborted later would be written for good",
    ),
    (
        "acks",
        &["all", "-1"],
        "a dead letter could be lost with one broker",
    ),
    (
        "request.required.acks",
        &["all", "-1"],
        "a dead letter could be lost with one broker",
    ),
    (
        "enable.idempotence",
        &["true"],
        "a retry could send a dead letter twice",
    ),
];

/// Settings that the broker owns once the group protocol is `consumer`.
const CLASSIC_ONLY: [&str; 3] = [
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
];

/// Takes the settings out of the raw values, noting each that is refused.
pub(super) fn read(layers: &mut Layers) -> BTreeMap<String, String> {
    let Some((value, source)) = layers.compound(KEY, ACCEPTED) else {
        return BTreeMap::new();
    };
    let Value::Table(table) = value else {
        layers.problem(format!("{KEY} ({source}): must be {ACCEPTED}"));
        return BTreeMap::new();
    };
    let mut options = BTreeMap::new();
    for (name, value) in table {
        match option_value(&name, &value) {
            Ok(text) => {
                options.insert(name, text);
            }
            Err(problem) => refuse(layers, &name, &value, &source, &problem),
        }
    }
    if options
        .get("group.protocol")
        .is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
    {
        for name in CLASSIC_ONLY {
            if let Some(value) = options.get(name) {
                layers.problem(format!(
                    "{KEY}.{name:?} = {value:?} with {KEY}.\"group.protocol\" = \"consumer\": \
                     the broker decides it under that protocol; leave one of them out"
                ));
            }
        }
    }
    options
}

fn refuse(layers: &mut Layers, name: &str, value: &Value, source: &Source, problem: &str) {
    // A name that is misspelt may be that of a secret.
    let shown = if is_secret_option(name) || value.is_table() || is_unknown(name) {
        HIDDEN.to_owned()
    } else {
        show(value)
    };
    layers.problem(format!("{KEY}.{name:?} = {shown} ({source}): {problem}"));
}

/// The value as librdkafka takes it, or why it is refused.
fn option_value(name: &str, value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        // Said plainly enough to be taken at its word.
        Value::Integer(number) => number.to_string(),
        Value::Boolean(switch) => switch.to_string(),
        Value::Table(_) => {
            return Err("must be a string; names with dots stand in quotes: \"sasl.username\"".to_owned());
        }
        _ => return Err("must be a string".to_owned()),
    };
    if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == name) {
        return Err(format!("cannot be set: it {reason}"));
    }
    if let Some((_, values, reason)) = RESTRICTED.iter().find(|(restricted, _, _)| *restricted == name)
        && !values.contains(&text.as_str())
    {
        let words: Vec<String> = values.iter().map(|word| quote(word)).collect();
        return Err(format!("must be {}: {reason}", words.join(" or ")));
    }
    known_to_librdkafka(name, &text)?;
    Ok(text)
}

/// Asks the library, which knows the names and the ranges of its version.
fn known_to_librdkafka(name: &str, text: &str) -> Result<(), String> {
    match ClientConfig::new().set(name, text).create_native_config() {
        Ok(_) => Ok(()),
        // The library's text repeats the value.
        Err(KafkaError::ClientConfig(_, reason, _, _)) if !is_secret_option(name) => Err(reason),
        Err(_) => Err("librdkafka does not take this setting".to_owned()),
    }
}

fn is_unknown(name: &str) -> bool {
    matches!(
        ClientConfig::new().set(name, "").create_native_config(),
        Err(KafkaError::ClientConfig(
            RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
            ..
        ))
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Config, tests::load};
    use super::*;

    fn load_option(name: &str, value: &str) -> Result<Config, String> {
        load(&format!("[kafka.options]\n{name:?} = {value:?}"), &[])
    }

    #[test]
    fn options_that_break_a_promise_are_refused_by_name_value_and_reason() {
        let restricted = [
            ("partition.assignment.strategy", "range,roundrobin"),
            ("isolation.level", "read_uncommitted"),
            ("acks", "1"),
            ("request.required.acks", "0"),
            ("enable.idempotence", "false"),
        ];
        let owned = OWNED.map(|(name, _)| (name, "true"));
        for (name, value) in restricted.iter().chain(&owned) {
            let message = load_option(name, value).unwrap_err();
            let start = format!("kafka.options.{name:?} = {value:?} (");
            assert!(message.contains(&start), "{name}: {message}");
        }
        assert!(load_option("acks", "1").unwrap_err().contains("could be lost"));
        assert!(
            load_option("group.id", "x")
                .unwrap_err()
                .contains("kafka.group_id")
        );
    }

    #[test]
    fn options_of_the_operator_are_taken() {
        for (name, value) in [
            ("session.timeout.ms", "6000"),
            ("group.protocol", "consumer"),
            ("security.protocol", "SASL_SSL"),
            ("sasl.password", "12345"),
            ("acks", "all"),
            ("isolation.level", "read_committed"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("group.instance.id", "worker-1"),
        ] {
            let config = load_option(name, value).unwrap();
            assert_eq!(
                config.kafka.options.get(name).map(String::as_str),
                Some(value),
                "{name}"
            );
        }
        let config = load("[kafka.options]\n\"session.timeout.ms\" = 6000", &[]).unwrap();
        assert_eq!(config.kafka.options["session.timeout.ms"], "6000");
    }

    #[test]
    fn names_and_values_that_librdkafka_does_not_know_are_refused() {
        let message = load_option("sesion.timeout.ms", "6000").unwrap_err();
        assert!(
            message.contains("sesion.timeout.ms") && message.contains("No such"),
            "{message}"
        );
        let message = load_option("sasl.pasword", "hunter2").unwrap_err();
        assert!(
            message.contains("sasl.pasword") && !message.contains("hunter2"),
            "{message}"
        );
        let message = load_option("session.timeout.ms", "soon").unwrap_err();
        assert!(
            message.contains("session.timeout.ms") && message.contains("soon"),
            "{message}"
        );
        let message = load("[kafka.options]\nsasl.password = 'hunter2'", &[]).unwrap_err();
        assert!(
            message.contains("quotes") && !message.contains("hunter2"),
            "{message}"
        );
    }

    #[test]
    fn options_of_the_other_group_protocol_are_refused() {
        let file = "[kafka.options]\n\"group.protocol\" = \"consumer\"\n\"session.timeout.ms\" = \"6000\"";
        let message = load(file, &[]).unwrap_err();
        assert!(
            message.contains("\"consumer\"") && message.contains("\"6000\""),
            "{message}"
        );
    }

    #[test]
    fn options_come_from_the_environment_as_json_or_toml() {
        for text in [
            r#"{"sasl.password": "p=1,2"}"#,
            r#"{ "sasl.password" = "p=1,2" }"#,
        ] {
            let config = load("", &[("SLUICE_KAFKA__OPTIONS", text)]).unwrap();
            assert_eq!(config.kafka.options["sasl.password"], "p=1,2");
            assert!(!format!("{config:?}").contains("p=1,2"));
        }
        let message = load("", &[("SLUICE_KAFKA__OPTIONS", "sasl.password=hunter2")]).unwrap_err();
        assert!(
            message.contains("SLUICE_KAFKA__OPTIONS") && !message.contains("hunter2"),
            "{message}"
        );
    }
}
