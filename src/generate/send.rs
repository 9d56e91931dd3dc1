//! To Kafka: threads that make records, one producer, and the count of what went out.
//!
//! Owns the promise that a summary counts acknowledged records only: one failed delivery fails the run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use backon::{BackoffBuilder as _, ConstantBuilder};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use serde::Serialize;

use super::{Generator, Kind, LONGEST, Made, Plan};
use crate::config;
use crate::kafka::client_config;
use crate::kafka::producer::CONSUMER_ONLY;

/// Records that a thread takes at once; one that takes records finishes them, so that no duplicate is sent whose
/// original is not.
const CHUNK: u64 = 1024;
/// Time for the last records to be acknowledged, and for Kafka to answer at all.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a topic that has just been made may be unknown to some broker.
const NEW_TOPIC: Duration = Duration::from_secs(5);

/// When a run ends, and how fast it goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Records to send, at most.
    pub count: u64,
    /// Records a second.
    pub rate: Option<u64>,
    /// Time after which no more are begun.
    pub duration: Option<Duration>,
    /// Threads that make records. With one, the order within a partition is the same at each run.
    pub threads: usize,
}

/// What was sent and acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// All records: the sum of the next three.
    pub records: u64,
    /// Events that were new.
    pub events: u64,
    /// Events sent once more.
    pub duplicates: u64,
    /// Records that are no events.
    pub bad_records: u64,
    /// Those, by reason.
    pub bad: BTreeMap<&'static str, u64>,
    /// New events of the hot token.
    pub hot_events: u64,
    /// Duplicates of the hot token.
    pub hot_duplicates: u64,
    /// Bytes of payloads.
    pub bytes: u64,
    /// How long it took, until the last acknowledgement.
    pub seconds: f64,
}

impl Summary {
    fn count(&mut self, made: &Made<'_>) {
        self.records += 1;
        self.bytes += made.payload.map_or(0, <[u8]>::len) as u64;
        match made.kind {
            Kind::Event => {
                self.events += 1;
                self.hot_events += u64::from(made.hot);
            }
            Kind::Duplicate => {
                self.duplicates += 1;
                self.hot_duplicates += u64::from(made.hot);
            }
            Kind::Bad(reason) => {
                self.bad_records += 1;
                *self.bad.entry(reason.as_str()).or_default() += 1;
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.events += other.events;
        self.duplicates += other.duplicates;
        self.bad_records += other.bad_records;
        self.hot_events += other.hot_events;
        self.hot_duplicates += other.hot_duplicates;
        self.bytes += other.bytes;
        for (reason, count) in other.bad {
            *self.bad.entry(reason).or_default() += count;
        }
    }
}

/// The settings that every client of this module starts from.
pub(super) fn client(kafka: &config::Kafka) -> ClientConfig {
    let mut client = client_config(kafka, &[]);
    for (name, value) in &kafka.options {
        if !CONSUMER_ONLY.contains(&name.as_str()) {
            client.set(name, value);
        }
    }
    client
}

/// How a run is watched and ended from outside.
#[derive(Debug, Default)]
pub struct Watch {
    /// Records handed to the client so far.
    pub sent: AtomicU64,
    /// Ends the run at the next chunk.
    pub stop: AtomicBool,
}

/// Sends the plan's records until a bound is reached or a stop is asked for, and waits until all are acknowledged.
/// Blocks.
pub fn send(
    kafka: &config::Kafka,
    topic: &str,
    plan: &Plan,
    bounds: Bounds,
    watch: &Watch,
) -> anyhow::Result<Summary> {
    let producer = producer(kafka)?;
    let run = Run {
        partitions: partitions(&producer, kafka, topic)?,
        producer: &producer,
        topic,
        bounds,
        chunk: bounds.rate.map_or(CHUNK, |rate| (rate / 50).clamp(1, CHUNK)),
        next: AtomicU64::new(0),
        begun: Instant::now(),
        watch,
    };
    let mut summary = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..bounds.threads.max(1))
            .map(|_| scope.spawn(|| run.work(Generator::new(plan.clone()))))
            .collect();
        let mut all = Summary::default();
        for thread in threads {
            all.add(
                thread
                    .join()
                    .map_err(|_| anyhow!("a sending thread panicked"))??,
            );
        }
        anyhow::Ok(all)
    })?;
    producer
        .flush(PATIENCE)
        .with_context(|| format!("Kafka at {} does not acknowledge records", kafka.brokers))?;
    if let Some(failure) = producer.context().failure() {
        bail!(failure);
    }
    summary.seconds = run.begun.elapsed().as_secs_f64();
    Ok(summary)
}

struct Run<'a> {
    producer: &'a ThreadedProducer<Deliveries>,
    topic: &'a str,
    partitions: u64,
    bounds: Bounds,
    chunk: u64,
    next: AtomicU64,
    begun: Instant,
    watch: &'a Watch,
}

impl Run<'_> {
    fn work(&self, mut generator: Generator) -> anyhow::Result<Summary> {
        let mut summary = Summary::default();
        while let Some(chunk) = self.take() {
            let records = chunk.end - chunk.start;
            for index in chunk {
                let made = generator.record(index);
                self.enqueue(&made)?;
                summary.count(&made);
            }
            self.watch.sent.fetch_add(records, Ordering::Relaxed);
        }
        Ok(summary)
    }

    /// The next indexes, once their time has come.
    fn take(&self) -> Option<Range<u64>> {
        let failed = self.producer.context().failed.load(Ordering::Relaxed);
        if failed || self.is_over() {
            return None;
        }
        let start = self.next.fetch_add(self.chunk, Ordering::Relaxed);
        let end = self.bounds.count.min(start + self.chunk);
        if start >= end {
            return None;
        }
        if let Some(rate) = self.bounds.rate {
            let due = Duration::from_secs_f64(start as f64 / rate.max(1) as f64);
            while let Some(early) = due.checked_sub(self.begun.elapsed()) {
                // In short sleeps: a low rate must not keep a stop waiting.
                std::thread::sleep(early.min(Duration::from_millis(100)));
                if self.is_over() {
                    return None;
                }
            }
        }
        Some(start..end)
    }

    fn is_over(&self) -> bool {
        let over = |limit| self.begun.elapsed() >= limit;
        self.watch.stop.load(Ordering::Relaxed) || self.bounds.duration.is_some_and(over)
    }

    fn enqueue(&self, made: &Made<'_>) -> anyhow::Result<()> {
        let mut record = BaseRecord::to(self.topic).key(made.key);
        record.payload = made.payload;
        record.partition = made.astray.map(|spread| (spread % self.partitions) as i32);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    // It drains by itself, unless deliveries fail, and then they time out.
                    std::thread::sleep(Duration::from_millis(1));
                    record = back;
                }
                Err((error, _)) => return Err(error).context("a record could not be sent"),
            }
        }
    }
}

fn producer(kafka: &config::Kafka) -> anyhow::Result<ThreadedProducer<Deliveries>> {
    let mut client = client(kafka);
    for (name, value) in [
        ("acks", "all"),
        // Without it a retry could add a record that no summary counts.
        ("enable.idempotence", "true"),
        ("compression.type", "lz4"),
        ("linger.ms", "10"),
        ("batch.num.messages", "10000"),
        ("queue.buffering.max.messages", "500000"),
        ("queue.buffering.max.kbytes", "131072"),
        ("message.timeout.ms", "60000"),
        // Java's, so that other producers of the same keys meet these.
        ("partitioner", "murmur2_random"),
        // Success is what is left when a flush finds nothing open: no report for each of a million records.
        ("delivery.report.only.error", "true"),
    ] {
        if !kafka.options.contains_key(name) {
            client.set(name, value);
        }
    }
    client.set("message.max.bytes", LONGEST.to_string());
    client
        .create_with_context(Deliveries::default())
        .context("the Kafka client could not be made")
}

/// The topic's number of partitions. All topics are asked for: to ask for one by its name could create it. A topic that
/// has just been made is not known to every broker at once, so a missing one is asked for again for a while.
fn partitions(
    producer: &ThreadedProducer<Deliveries>,
    kafka: &config::Kafka,
    topic: &str,
) -> anyhow::Result<u64> {
    let ask = || {
        let metadata = producer
            .client()
            .fetch_metadata(None, PATIENCE / 4)
            .with_context(|| format!("Kafka at {} does not answer", kafka.brokers))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map_or(0, |found| found.partitions().len() as u64))
    };
    let pauses = ConstantBuilder::new()
        .with_delay(NEW_TOPIC / 20)
        .with_max_times(20);
    let mut found: anyhow::Result<u64> = ask();
    for pause in pauses.build() {
        if !matches!(found, Ok(0)) {
            break;
        }
        std::thread::sleep(pause);
        found = ask();
    }
    match found? {
        0 => bail!("the topic {topic:?} does not exist: --create-topics PARTITIONS makes it"),
        partitions => Ok(partitions),
    }
}

/// Hears of failed deliveries.
#[derive(Debug, Default)]
struct Deliveries {
    failed: AtomicBool,
    first: Mutex<Option<String>>,
}

impl Deliveries {
    fn failure(&self) -> Option<String> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {
        if let Err((error, message)) = result {
            self.failed.store(true, Ordering::Relaxed);
            self.first
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| {
                    format!(
                        "a record of {} bytes was not delivered: {error}",
                        message.payload_len()
                    )
                });
        }
    }
}
