//! Reading topics from one offset to another, without a group.
//!
//! The consumer names the group only to ask for its offsets: it assigns partitions to itself, which joins nothing,
//! and commits nothing.
//!
//! A range ends with its last record, or, where transactions and compaction have left no record at its end, once the
//! partition is known to have been read up to there. A partition that seems to end earlier does not: a broker that has
//! just become its leader, or a replica nearby, may not know yet how far it goes.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::pace::Pace;
use crate::config;
use crate::event::{Headers, Record};
use crate::kafka::client_config;

/// How long Kafka may be silent before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(500);

/// A range of offsets in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Span {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    #[serde(rename = "from")]
    pub start: i64,
    /// The offset after the last.
    #[serde(rename = "to")]
    pub end: i64,
}

impl Span {
    pub(super) fn contains(&self, offset: i64) -> bool {
        (self.start..self.end).contains(&offset)
    }
}

/// Offsets in ranges.
pub(super) fn total(spans: &[Span]) -> u64 {
    spans
        .iter()
        .map(|span| (span.end - span.start).max(0) as u64)
        .sum()
}

/// Whether more of a partition is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    Wanted,
    Enough,
}

/// Reads topics.
pub(super) struct Reader<'a> {
    kafka: &'a config::Kafka,
    pace: Pace,
    patience: Duration,
}

impl<'a> Reader<'a> {
    pub(super) fn new(kafka: &'a config::Kafka, pace: Pace) -> Self {
        Self {
            kafka,
            pace,
            patience: PATIENCE,
        }
    }

    /// A consumer, which belongs to no group.
    pub(super) fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        self.config()
            .create()
            .context("the Kafka client could not be made")
    }

    fn config(&self) -> ClientConfig {
        let kafka = self.kafka;
        let mut client = client_config(
            kafka,
            &[
                ("group.id", kafka.group_id.as_str()),
                // Batches are a few times as large once they are decompressed: these keep memory modest, whatever
                // the number of partitions. A batch that is larger still comes, alone.
                ("queued.max.messages.kbytes", "8192"),
                ("fetch.message.max.bytes", "524288"),
                ("fetch.max.bytes", "4194304"),
                ("message.max.bytes", "4194304"),
                ("fetch.queue.backoff.ms", "5"),
            ],
        );
        for (name, value) in &kafka.options {
            client.set(name, value);
        }
        for (name, value) in [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            // Retention may take the front away meanwhile: what is gone is out of scope.
            ("auto.offset.reset", "earliest"),
            // Where a partition ends is told by the statistics alone, and by them only if this is on.
            ("enable.partition.eof", "true"),
            ("statistics.interval.ms", "500"),
            ("allow.auto.create.topics", "false"),
        ] {
            client.set(name, value);
        }
        client
    }

    /// Those of the ranges in which there is a record. Others hold only what transactions and compaction leave.
    pub(super) fn with_records(&self, topic: &str, spans: &[Span]) -> anyhow::Result<Vec<Span>> {
        let mut found = HashSet::new();
        self.each(topic, spans, &mut |_| {}, |_, partition| {
            found.insert(partition);
            Ok(More::Enough)
        })?;
        Ok(spans
            .iter()
            .filter(|span| found.contains(&span.partition))
            .copied()
            .collect())
    }

    /// Hands every record in the ranges to `each`, with its partition. Offsets within a partition come in order, each
    /// once. `done` is told how many offsets are behind.
    pub(super) fn each(
        &self,
        topic: &str,
        spans: &[Span],
        done: &mut dyn FnMut(u64),
        mut each: impl FnMut(&Record<'_>, i32) -> anyhow::Result<More>,
    ) -> anyhow::Result<()> {
        let mut open = Open::new(spans);
        if open.spans.is_empty() {
            return Ok(());
        }
        // Of its own: what an earlier reading left in its queue, the end of a partition of another topic, say, cannot
        // be told from what belongs to this one.
        let consumer: BaseConsumer<Ends> = self
            .config()
            .create_with_context(Ends::of(topic))
            .context("the Kafka client could not be made")?;
        let mut assignment = TopicPartitionList::new();
        for span in open.spans.values() {
            assignment.add_partition_offset(topic, span.partition, Offset::Offset(span.start))?;
        }
        consumer.assign(&assignment)?;
        let all = total(spans);
        let mut headers = Vec::new();
        let mut heard = Instant::now();
        let mut trouble = None;
        let mut told_ends = HashMap::new();
        while !open.spans.is_empty() {
            let mut ended = Vec::new();
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let mut more = More::Wanted;
                    if open.is_next(partition, offset) {
                        self.pace.wait();
                        copy_headers(&message, &mut headers);
                        more = each(&record(&message, &headers), partition)?;
                    }
                    ended.extend(open.read(partition, offset, more));
                    done(all - open.left);
                    // Not before: `each` may have asked other services.
                    heard = Instant::now();
                }
                // It does not say which offset it means.
                Some(Err(KafkaError::PartitionEOF(_))) => heard = Instant::now(),
                // The client mends its connections itself; patience decides.
                Some(Err(error)) => trouble = Some(error),
                None => {
                    // What the client had of these partitions when it told their ends has been read by now.
                    ended = open.end_at(&told_ends);
                    told_ends = consumer.context().told();
                }
            }
            for partition in ended {
                let mut list = TopicPartitionList::new();
                list.add_partition(topic, partition);
                consumer.incremental_unassign(&list)?;
            }
            if heard.elapsed() > self.patience {
                bail!(self.silence(topic, &open, &consumer.context().told(), trouble));
            }
        }
        Ok(())
    }

    /// Why nothing more comes.
    fn silence(
        &self,
        topic: &str,
        open: &Open,
        ends: &HashMap<i32, i64>,
        trouble: Option<KafkaError>,
    ) -> String {
        let (brokers, seconds) = (&self.kafka.brokers, self.patience.as_secs());
        let trouble = trouble.map_or_else(String::new, |error| format!(": {error}"));
        match open.early_end(ends) {
            Some((span, end)) => format!(
                "partition {} of {topic} ends at {end} for its leader or the replica that is read, and has for \
                 {seconds} s, although it went to {} or beyond: records are lost, or a broker is far behind{trouble}",
                span.partition, span.end
            ),
            None => format!("Kafka at {brokers} has sent nothing of {topic} for {seconds} s{trouble}"),
        }
    }
}

/// Up to where the client has read partitions to their ends, markers of transactions included.
#[derive(Debug)]
struct Ends {
    topic: String,
    told: Mutex<HashMap<i32, i64>>,
}

impl Ends {
    fn of(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            told: Mutex::default(),
        }
    }

    fn told(&self) -> HashMap<i32, i64> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Ends {
    /// Statistics overtake the records that the client has fetched and nobody has polled yet.
    fn stats(&self, statistics: Statistics) {
        if let Some(topic) = statistics.topics.get(&self.topic) {
            let ends = topic
                .partitions
                .iter()
                .map(|(partition, of)| (*partition, of.eof_offset));
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) =
                ends.filter(|(_, end)| *end >= 0).collect();
        }
    }
}

impl ConsumerContext for Ends {}

/// What is still to be read.
struct Open {
    spans: HashMap<i32, Span>,
    left: u64,
}

impl Open {
    fn new(spans: &[Span]) -> Self {
        Self {
            spans: spans
                .iter()
                .filter(|span| span.start < span.end)
                .map(|span| (span.partition, *span))
                .collect(),
            left: total(spans),
        }
    }

    /// Whether the record is in range and was not read before: a log that was cut off makes the client begin anew.
    fn is_next(&self, partition: i32, offset: i64) -> bool {
        self.spans
            .get(&partition)
            .is_some_and(|span| span.contains(offset))
    }

    /// An offset and what comes before it is read; gaps count as read. Answers the partition if nothing more of it is
    /// to be read.
    fn read(&mut self, partition: i32, offset: i64, more: More) -> Option<i32> {
        let span = self.spans.get_mut(&partition)?;
        let next = (offset + 1).clamp(span.start, span.end);
        self.left -= (next - span.start) as u64;
        span.start = next;
        if more == More::Enough || next >= span.end {
            return self.end(partition);
        }
        None
    }

    /// Partitions were read up to these offsets, where they ended: those whose range ends no later are done.
    fn end_at(&mut self, ends: &HashMap<i32, i64>) -> Vec<i32> {
        let spans = self.spans.values();
        let done = spans.filter(|span| ends.get(&span.partition).is_some_and(|end| *end >= span.end));
        let done: Vec<i32> = done.map(|span| span.partition).collect();
        done.iter().filter_map(|partition| self.end(*partition)).collect()
    }

    /// A partition that seems to end before its range does, and where.
    fn early_end(&self, ends: &HashMap<i32, i64>) -> Option<(Span, i64)> {
        let early = |span: &Span| Some((*span, *ends.get(&span.partition)?));
        let mut early = self.spans.values().filter_map(early);
        early.find(|(span, end)| *end < span.end)
    }

    /// Nothing more is read of a partition.
    fn end(&mut self, partition: i32) -> Option<i32> {
        let span = self.spans.remove(&partition)?;
        self.left -= (span.end - span.start) as u64;
        Some(partition)
    }
}

fn record<'a>(message: &'a BorrowedMessage<'_>, headers: &'a [u8]) -> Record<'a> {
    Record {
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key(),
        payload: message.payload(),
        headers: Headers(headers),
    }
}

fn copy_headers(message: &BorrowedMessage<'_>, out: &mut Vec<u8>) {
    out.clear();
    let Some(headers) = message.headers() else {
        return;
    };
    for index in 0..headers.count() {
        // The client library panics on a name that is not UTF-8. No name of ours is such a one.
        let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)));
        if let Ok(Some(header)) = header {
            Headers::encode(out, header.key.as_bytes(), header.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

    use super::*;

    /// Ten records, of which the replica that is read knows the first five.
    fn lagging(cluster: &MockCluster<'_, DefaultProducerContext>) -> config::Kafka {
        cluster.create_topic("t", 1, 2).unwrap();
        cluster.partition_leader("t", 0, Some(1)).unwrap();
        let brokers = cluster.bootstrap_servers();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .create()
            .unwrap();
        for n in 0..10_u8 {
            let record = BaseRecord::<[u8], [u8]>::to("t").payload(std::slice::from_ref(&n));
            producer
                .send(record.partition(0))
                .map_err(|(error, _)| error)
                .unwrap();
            producer.flush(Duration::from_secs(10)).unwrap();
        }
        cluster.partition_follower("t", 0, 2).unwrap();
        cluster.follower_watermarks("t", 0, Some(0), Some(5)).unwrap();
        // The mock's replicas only have another end of records, none of transactions.
        let options = [("isolation.level".to_owned(), "read_uncommitted".to_owned())];
        config::Kafka {
            brokers,
            options: options.into_iter().collect(),
            ..config::Kafka::default()
        }
    }

    const WHOLE: [Span; 1] = [Span {
        partition: 0,
        start: 0,
        end: 10,
    }];

    #[test]
    fn a_broker_that_does_not_know_the_end_yet_is_waited_for_and_one_that_never_does_is_told() {
        let cluster = MockCluster::new(2).unwrap();
        let kafka = lagging(&cluster);
        let mut reader = Reader::new(&kafka, Pace::new(None));
        reader.patience = Duration::from_secs(3);
        let mut read = Vec::new();
        let told = reader.each("t", &WHOLE, &mut |_| {}, |record, _| {
            read.push(record.offset);
            Ok(More::Wanted)
        });
        assert_eq!(
            told.unwrap_err().to_string(),
            "partition 0 of t ends at 5 for its leader or the replica that is read, and has for 3 s, although it went \
             to 10 or beyond: records are lost, or a broker is far behind"
        );
        // The mock tells the end, and gives one record more.
        assert_eq!(read, [0, 1, 2, 3, 4, 5]);

        reader.patience = Duration::from_secs(30);
        let begun = Instant::now();
        let read = std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut read = Vec::new();
                let each = |record: &Record<'_>, _| {
                    read.push(record.offset);
                    Ok(More::Wanted)
                };
                reader.each("t", &WHOLE, &mut |_| {}, each).unwrap();
                read
            });
            // Nobody tells that a client has come to an end.
            std::thread::sleep(Duration::from_secs(2));
            cluster.follower_watermarks("t", 0, Some(0), Some(10)).unwrap();
            reading.join().unwrap()
        });
        assert_eq!(read, (0..10).collect::<Vec<_>>());
        assert!(begun.elapsed() >= Duration::from_secs(2));
    }

    #[test]
    fn each_offset_of_a_range_is_read_once_and_gaps_count_as_read() {
        let span = |partition, start, end| Span {
            partition,
            start,
            end,
        };
        let mut open = Open::new(&[span(0, 10, 20), span(1, 5, 5), span(2, 0, 3)]);
        assert_eq!((open.spans.len(), open.left), (2, 13));
        assert!(open.is_next(0, 10) && open.is_next(0, 19));
        assert!(!open.is_next(0, 9) && !open.is_next(0, 20) && !open.is_next(1, 5) && !open.is_next(7, 0));
        assert_eq!(open.read(0, 12, More::Wanted), None);
        assert_eq!(
            (open.left, open.is_next(0, 12), open.is_next(0, 13)),
            (10, false, true)
        );
        assert_eq!(
            open.read(0, 3, More::Wanted),
            None,
            "read from the beginning once more"
        );
        assert_eq!((open.left, open.is_next(0, 12)), (10, false));
        assert_eq!(open.read(0, 40, More::Wanted), Some(0), "a gap at the end");
        assert_eq!(open.read(0, 41, More::Wanted), None);
        assert_eq!(open.left, 3);
        assert_eq!(open.read(2, 0, More::Enough), Some(2));
        assert_eq!((open.left, open.spans.len(), open.end(2)), (0, 0, None));
    }

    #[test]
    fn a_partition_ends_where_its_range_does_or_beyond_and_not_before() {
        let span = |partition, end| Span {
            partition,
            start: 0,
            end,
        };
        let mut open = Open::new(&[span(0, 10), span(1, 10), span(2, 10), span(3, 10)]);
        let ends = [(0, 9), (1, 10), (2, 11), (7, 20)].into_iter().collect();
        let mut ended = open.end_at(&ends);
        ended.sort_unstable();
        assert_eq!((ended, open.left), (vec![1, 2], 20));
        assert_eq!(open.early_end(&ends), Some((span(0, 10), 9)));
    }
}
