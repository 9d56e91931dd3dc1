//! What topics' own settings say of the records that they take and keep.
//!
//! Owns by how much a topic of rejects must take larger records than the topic of events. Changes no topic.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};

/// The headers of a reject, its names and a uuid among them, in bytes.
const HEADERS_OF_A_REJECT: u64 = 512;

/// A topic's settings.
#[derive(Clone, Debug)]
pub(crate) struct TopicSettings {
    pub(crate) max_message_bytes: u64,
    pub(crate) cleanup_policy: String,
}

impl TopicSettings {
    /// What `max.message.bytes` a topic of rejects must have to take every record of this topic.
    pub(crate) fn of_rejects(&self) -> u64 {
        self.max_message_bytes + HEADERS_OF_A_REJECT
    }
}

/// The settings of those topics that are there and that this user may ask about.
pub(crate) async fn settings<C: ClientContext>(
    admin: &AdminClient<C>,
    topics: &[&str],
    patience: Duration,
) -> HashMap<String, TopicSettings> {
    let topics: Vec<_> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(patience));
    let described = admin
        .describe_configs(&topics, &options)
        .await
        .unwrap_or_default();
    let of = |resource: ConfigResource| {
        let OwnedResourceSpecifier::Topic(topic) = &resource.specifier else {
            return None;
        };
        let entries = resource.entry_map();
        let value = |name| entries.get(name)?.value.clone();
        let settings = TopicSettings {
            max_message_bytes: value("max.message.bytes")?.parse().ok()?,
            cleanup_policy: value("cleanup.policy")?,
        };
        Some((topic.clone(), settings))
    };
    described.into_iter().flatten().filter_map(of).collect()
}
