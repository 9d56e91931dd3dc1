//! Producing records, reading topics, and what a group has committed.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::wait::eventually;

const ASK: Duration = Duration::from_secs(10);

/// A header; a value of `None` is null.
pub(crate) type NamedValue = (String, Option<Vec<u8>>);

/// A record to send, or one that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) headers: Vec<NamedValue>,
    /// ms since 1970; when it is sent if `None`.
    pub(crate) timestamp: Option<i64>,
    /// Given by Kafka; not sent.
    pub(crate) offset: i64,
}

impl Record {
    /// A record with that payload and nothing else.
    pub(crate) fn of(partition: i32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            partition,
            payload: Some(payload.into()),
            ..Self::default()
        }
    }

    /// With one more header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .push((name.to_owned(), Some(value.as_bytes().to_vec())));
        self
    }

    /// The text of the header of that name.
    pub(crate) fn header_text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rfind(|(found, _)| found == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// Where it stands.
    pub(crate) fn place(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transaction {
    Committed,
    Aborted,
}

/// Notes where each record landed.
#[derive(Default)]
struct Deliveries(Arc<Mutex<Vec<Landed>>>);

type Landed = (usize, Result<i64, KafkaError>);

impl rdkafka::ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, index: Box<usize>) {
        let landed = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().unwrap().push((*index, landed));
    }
}

/// A producer that stays, for a load that goes on while brokers come and go.
pub(crate) struct Stream {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    sent: Vec<Record>,
    landed: Arc<Mutex<Vec<Landed>>>,
}

impl Stream {
    /// Sends records to their partitions; does not wait for them to land.
    pub(crate) fn send(&mut self, records: Vec<Record>) {
        for record in records {
            let index = Box::new(self.sent.len());
            let mut base = BaseRecord::<[u8], [u8], Box<usize>>::with_opaque_to(&self.topic, index);
            base = base.partition(record.partition).headers(owned(&record.headers));
            (base.key, base.payload) = (record.key.as_deref(), record.payload.as_deref());
            base.timestamp = record.timestamp;
            self.producer.send(base).map_err(|(error, _)| error).unwrap();
            self.sent.push(record);
        }
    }

    /// How many records have landed.
    pub(crate) fn landed(&self) -> u64 {
        self.landed.lock().unwrap().len() as u64
    }

    /// Waits until all have landed, and returns them with the offsets that they got.
    pub(crate) fn finish(self) -> Vec<Record> {
        self.producer.flush(Duration::from_secs(130)).unwrap();
        let mut records = self.sent;
        let landed = std::mem::take(&mut *self.landed.lock().unwrap());
        assert_eq!(landed.len(), records.len(), "every record was delivered");
        for (index, offset) in landed {
            records[index].offset = offset.unwrap();
        }
        records
    }
}

/// One cluster.
pub(crate) struct Kafka {
    brokers: String,
    /// Of each topic that is created.
    replicas: i32,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    /// A cluster whose topics get so many replicas.
    pub(crate) fn at(brokers: &str, replicas: i32) -> Self {
        let admin = config(brokers).create().unwrap();
        Self {
            brokers: brokers.to_owned(),
            replicas,
            admin,
        }
    }

    /// Creates topics and waits until every partition can be asked.
    pub(crate) fn create_topics(&self, topics: &[(&str, i32)]) {
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|(name, partitions)| {
                NewTopic::new(name, *partitions, TopicReplication::Fixed(self.replicas))
            })
            .collect();
        for (topic, _) in topics {
            // One that was deleted just now is on its way out.
            eventually("a deleted topic is gone", ASK, || match self.partitions(topic) {
                0 => Ok(()),
                n => Err(format!("{topic} has {n} partitions")),
            });
        }
        for result in block_on(self.admin.create_topics(&new, &AdminOptions::new())).unwrap() {
            result.unwrap();
        }
        for (topic, partitions) in topics {
            self.led(topic, *partitions);
        }
    }

    fn partitions(&self, topic: &str) -> i32 {
        let metadata = self.admin.inner().fetch_metadata(Some(topic), ASK).unwrap();
        metadata
            .topics()
            .first()
            .map_or(0, |topic| topic.partitions().len() as i32)
    }

    /// Whether every partition of the cluster has a leader and all of its replicas in sync.
    pub(crate) fn is_whole(&self) -> Result<(), String> {
        let metadata = self.admin.inner().fetch_metadata(None, ASK);
        for topic in metadata.map_err(|error| error.to_string())?.topics() {
            for partition in topic.partitions() {
                let (leader, isr, all) = (
                    partition.leader(),
                    partition.isr().len(),
                    partition.replicas().len(),
                );
                if leader < 0 || isr < all {
                    return Err(format!(
                        "{} {}: leader {leader}, {isr} of {all} in sync",
                        topic.name(),
                        partition.id()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Deletes topics; those that are not there are passed over.
    pub(crate) fn delete_topics(&self, topics: &[&str]) {
        block_on(self.admin.delete_topics(topics, &AdminOptions::new())).unwrap();
    }

    /// Sets some of a topic's settings; the others get their defaults.
    pub(crate) fn configure(&self, topic: &str, settings: &[(&str, &str)]) {
        let config = settings.iter().fold(
            AlterConfig::new(ResourceSpecifier::Topic(topic)),
            |config, (name, value)| config.set(name, value),
        );
        let results = block_on(self.admin.alter_configs([&config], &AdminOptions::new())).unwrap();
        for result in results {
            result.unwrap();
        }
    }

    /// Adds partitions to a topic, up to `partitions`.
    pub(crate) fn grow(&self, topic: &str, partitions: i32) {
        let new = NewPartitions::new(topic, partitions as usize);
        let results = block_on(self.admin.create_partitions([&new], &AdminOptions::new())).unwrap();
        for result in results {
            result.unwrap();
        }
        self.led(topic, partitions);
    }

    /// Waits until every partition can be asked.
    fn led(&self, topic: &str, partitions: i32) {
        eventually("a topic has its partitions", ASK, || {
            match self.partitions(topic) {
                n if n == partitions => Ok(()),
                n => Err(format!("{topic} has {n} partitions")),
            }
        });
        let consumer = self.consumer("it-ask");
        for partition in 0..partitions {
            eventually("a new partition has a leader", ASK, || {
                consumer
                    .fetch_watermarks(topic, partition, ASK)
                    .map_err(|error| error.to_string())
            });
        }
    }

    /// Removes a partition's records below `offset`, as retention would.
    pub(crate) fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .unwrap();
        block_on(self.admin.delete_records(&list, &AdminOptions::new())).unwrap();
    }

    /// Removes everything that a group without members has committed.
    pub(crate) fn delete_group(&self, group: &str) {
        eventually("the group has no members", Duration::from_mins(1), || {
            let results = block_on(self.admin.delete_groups(&[group], &AdminOptions::new()));
            match results.map_err(|error| error.to_string())?.remove(0) {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => Ok(()),
                Err((_, code)) => Err(code.to_string()),
            }
        });
    }

    /// Sends records to their partitions and returns them with the offsets that they got.
    pub(crate) fn produce(&self, topic: &str, records: Vec<Record>) -> Vec<Record> {
        let mut stream = self.stream(topic);
        stream.send(records);
        stream.finish()
    }

    /// The same in one transaction, which is then committed or aborted: a marker follows the records.
    pub(crate) fn transact(&self, topic: &str, records: Vec<Record>, end: Transaction) -> Vec<Record> {
        let id = format!("{topic}-transactions");
        let options = [
            ("transactional.id", id.as_str()),
            ("transaction.timeout.ms", "120000"),
        ];
        let mut stream = self.stream_with(topic, &options);
        let patience = Duration::from_mins(1);
        stream.producer.init_transactions(patience).unwrap();
        stream.producer.begin_transaction().unwrap();
        stream.send(records);
        stream.producer.flush(Duration::from_secs(130)).unwrap();
        match end {
            Transaction::Committed => stream.producer.commit_transaction(patience).unwrap(),
            Transaction::Aborted => stream.producer.abort_transaction(patience).unwrap(),
        }
        stream.finish()
    }

    /// A producer for `topic`.
    pub(crate) fn stream(&self, topic: &str) -> Stream {
        self.stream_with(topic, &[])
    }

    fn stream_with(&self, topic: &str, options: &[(&str, &str)]) -> Stream {
        let deliveries = Deliveries::default();
        let landed = Arc::clone(&deliveries.0);
        let mut client = config(&self.brokers);
        for (name, value) in options {
            client.set(*name, *value);
        }
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("message.max.bytes", "8000000")
            .set("queue.buffering.max.messages", "1000000")
            .set("message.timeout.ms", "120000");
        Stream {
            producer: client.create_with_context(deliveries).unwrap(),
            topic: topic.to_owned(),
            sent: Vec::new(),
            landed,
        }
    }

    /// Where the cluster is.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Everything that a topic holds now, by partition and offset.
    pub(crate) fn read(&self, topic: &str) -> Vec<Record> {
        let consumer = self.consumer("it-read");
        let mut assignment = TopicPartitionList::new();
        let mut open = HashSet::new();
        for partition in 0..self.partitions(topic) {
            let (low, high) = consumer.fetch_watermarks(topic, partition, ASK).unwrap();
            assignment
                .add_partition_offset(topic, partition, Offset::Offset(low))
                .unwrap();
            if high > 0 {
                open.insert(partition);
            }
        }
        consumer.assign(&assignment).unwrap();
        let mut records = Vec::new();
        let deadline = std::time::Instant::now() + Duration::from_mins(1);
        while !open.is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "{topic} could not be read to its end"
            );
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let headers = message.headers().map(|headers| {
                        headers
                            .iter()
                            .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
                            .collect()
                    });
                    records.push(Record {
                        partition: message.partition(),
                        offset: message.offset(),
                        key: message.key().map(<[u8]>::to_vec),
                        payload: message.payload().map(<[u8]>::to_vec),
                        headers: headers.unwrap_or_default(),
                        timestamp: message.timestamp().to_millis(),
                    });
                }
                // Also of the empty ones.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => panic!("{topic} could not be read: {error}"),
                None => {}
            }
        }
        records.sort_by_key(Record::place);
        records
    }

    /// First and end offset of each partition.
    pub(crate) fn bounds(&self, topic: &str) -> Vec<(i64, i64)> {
        let consumer = self.consumer("it-ask");
        // A broker that was frozen may not know its partitions yet.
        let ask = |partition| {
            eventually("Kafka tells where a partition begins and ends", ASK, || {
                let bounds = consumer.fetch_watermarks(topic, partition, ASK);
                bounds.map_err(|error| error.to_string())
            })
        };
        let partitions = eventually("Kafka knows the topic", ASK, || match self.partitions(topic) {
            0 => Err("no partition".to_owned()),
            partitions => Ok(partitions),
        });
        (0..partitions).map(ask).collect()
    }

    /// What a group has committed of each partition: offset and metadata.
    pub(crate) fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Vec<Option<(i64, String)>>, String> {
        thread_local! {
            static LAST: RefCell<Option<(String, BaseConsumer)>> = const { RefCell::new(None) };
        }
        let name = format!("{}/{group}", self.brokers);
        LAST.with_borrow_mut(|last| {
            if last.as_ref().is_none_or(|(of, _)| *of != name) {
                *last = Some((name, self.consumer(group)));
            }
            let (_, consumer) = last.as_ref().unwrap();
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(topic, 0, partitions - 1);
            let committed = consumer
                .committed_offsets(asked, ASK)
                .map_err(|error| error.to_string())?;
            (0..partitions)
                .map(|partition| {
                    let element = committed
                        .find_partition(topic, partition)
                        .ok_or("a partition is missing")?;
                    element.error().map_err(|error| error.to_string())?;
                    Ok(match element.offset() {
                        Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
                        _ => None,
                    })
                })
                .collect()
        })
    }

    /// Commits offsets for a group from outside, while it has no member.
    pub(crate) fn commit(&self, group: &str, topic: &str, offsets: &[(i32, i64)]) {
        self.commit_with(group, topic, offsets, &[]);
    }

    /// The same, each with the metadata of an earlier commit.
    pub(crate) fn commit_with(
        &self,
        group: &str,
        topic: &str,
        offsets: &[(i32, i64)],
        earlier: &[Option<(i64, String)>],
    ) {
        let consumer = self.consumer(group);
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let mut element = list.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(*offset)).unwrap();
            if let Some(Some((_, metadata))) = earlier.get(*partition as usize) {
                element.set_metadata(metadata);
            }
        }
        eventually(
            "offsets are committed from outside",
            Duration::from_mins(1),
            || {
                consumer
                    .commit(&list, CommitMode::Sync)
                    .map_err(|error| error.to_string())
            },
        );
    }

    fn consumer(&self, group: &str) -> BaseConsumer {
        config(&self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("fetch.message.max.bytes", "8000000")
            .create()
            .unwrap()
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.max.ms", "1000");
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    config
}

fn owned(headers: &[NamedValue]) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header {
            key,
            value: value.as_deref(),
        })
    })
}
