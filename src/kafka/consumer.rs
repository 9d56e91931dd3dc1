//! The polling thread: membership of the group, rebalances, back-pressure.
//!
//! Owns the consumer. One thread polls and hears of rebalances; commits go through [`super::committer`], whose
//! fence this thread moves. Never waits for a service while it should poll, except for the partitions that it
//! gives away: those settle or are dropped before the rebalance goes on.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::client_config;
use super::committer::{self, Committer, Ownership};
use super::intake::{Bounds, Intake};
use super::metadata::{self, Refusal, Start, UnknownVersion};
use crate::event::{Headers, Record};
use crate::pipeline::Worker;
use crate::pipeline::lane::{Assigned, Highest, Lane};
use crate::telemetry::{self, Rebalance, Service, metrics};

/// How long one poll waits; also how late a block may close by age.
const POLL: Duration = Duration::from_millis(5);
/// Messages between two looks at which blocks are due.
const MESSAGES_PER_LOOK: usize = 512;
/// How long all intake may stand still for memory before the partitions are paused, so that polling can go on.
const STALL_BEFORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a rebalance waits for blocks under way of the partitions that are given away.
const SETTLE_ON_REVOKE: Duration = Duration::from_secs(10);
/// How long a dropped partition waits for its rebalance before the consumer is made anew.
const REJOIN_AFTER: Duration = Duration::from_secs(10);
/// Time for each question to Kafka within a rebalance.
const ASK_KAFKA: Duration = Duration::from_secs(5);
const ASK_KAFKA_TRIES: usize = 3;

/// Why the worker cannot go on, until somebody has changed something.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A configuration that librdkafka refuses.
    #[error("the Kafka client could not be made")]
    Client(#[source] KafkaError),
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] std::io::Error),
    /// A newer worker was here.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

/// How a session of the group ended.
enum End {
    /// As asked.
    Shutdown,
    /// The consumer must be made anew.
    Again(String),
    /// For good.
    Fatal(Fatal),
}

/// Runs the consumer until `shutdown`, anew after errors that only a new consumer mends. Blocks; call it on a
/// thread of its own.
pub fn run(worker: &Arc<Worker>, runtime: &Handle, shutdown: &CancellationToken) -> Result<(), Fatal> {
    loop {
        match session(worker, runtime, shutdown) {
            End::Shutdown => return Ok(()),
            End::Fatal(fatal) => return Err(fatal),
            End::Again(why) => {
                metrics().consumer_restarts.increment(1);
                tracing::warn!(reason = why, "the consumer joins the group anew");
                let pause = runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(1), shutdown.cancelled())
                        .await
                        .is_ok()
                });
                if pause {
                    return Ok(());
                }
            }
        }
    }
}

fn session(worker: &Arc<Worker>, runtime: &Handle, shutdown: &CancellationToken) -> End {
    let kafka = &worker.config.kafka;
    let (committer, requests) = Committer::new();
    let context = Context {
        worker: Arc::clone(worker),
        runtime: runtime.clone(),
        committer: committer.clone(),
        ownership: Arc::default(),
        intakes: Mutex::default(),
        broken: Mutex::default(),
        fatal: Mutex::default(),
    };
    let ownership = Arc::clone(&context.ownership);
    let mut client = client_config(
        kafka,
        &[
            ("group.id", &kafka.group_id),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("allow.auto.create.topics", "false"),
            ("topic.metadata.refresh.interval.ms", "30000"),
            ("statistics.interval.ms", "5000"),
            ("queued.max.messages.kbytes", "32768"),
            ("fetch.queue.backoff.ms", "10"),
            ("fetch.max.bytes", "16777216"),
            ("message.max.bytes", "16777216"),
        ],
    );
    if kafka.options.get("group.protocol").map(String::as_str) != Some("consumer") {
        client.set("partition.assignment.strategy", "cooperative-sticky");
    }
    for (name, value) in &kafka.options {
        client.set(name, value);
    }
    let consumer: Arc<BaseConsumer<Context>> = match client.create_with_context(context) {
        Ok(consumer) => Arc::new(consumer),
        Err(error) => return End::Fatal(Fatal::Client(error)),
    };
    let committing = match committer::spawn(requests, Arc::clone(&consumer), kafka.topic.clone(), ownership) {
        Ok(thread) => thread,
        Err(error) => return End::Fatal(Fatal::Thread(error)),
    };
    let end = match consumer.subscribe(&[&kafka.topic]) {
        Ok(()) => Session::new(&consumer).run(shutdown),
        Err(error) => End::Again(error.to_string()),
    };
    let context = consumer.context();
    // Dropping the consumer runs the rebalance callback in this thread: settle first, so that it finds nothing.
    let drain = match end {
        End::Shutdown => Duration::from_secs(worker.config.worker.drain_seconds),
        _ => Duration::ZERO,
    };
    let all: Vec<i32> = context.lock().keys().copied().collect();
    context.give_away(&all, drain);
    committer.stop();
    if committing.join().is_err() {
        tracing::error!("the committing thread panicked");
    }
    drop(consumer);
    end
}

/// The loop's own state.
struct Session<'a> {
    consumer: &'a BaseConsumer<Context>,
    context: &'a Context,
    worker: &'a Worker,
    bounds: Bounds,
    headers: Vec<u8>,
    stalled_since: Option<Instant>,
    all_paused: bool,
    dropped_since: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(consumer: &'a BaseConsumer<Context>) -> Self {
        let context: &Context = consumer.context();
        let batch = &context.worker.config.batch;
        Self {
            consumer,
            context,
            worker: &context.worker,
            bounds: Bounds {
                rows: batch.max_rows as usize,
                bytes: batch.max_bytes as usize,
            },
            headers: Vec::new(),
            stalled_since: None,
            all_paused: false,
            dropped_since: None,
        }
    }

    fn run(mut self, shutdown: &CancellationToken) -> End {
        while !shutdown.is_cancelled() {
            self.worker.health.polled();
            if let Some(fatal) = self
                .context
                .fatal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                return End::Fatal(fatal);
            }
            if let Some(why) = self
                .context
                .broken
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                return End::Again(why);
            }
            if let Some(why) = self.dropped() {
                return End::Again(why);
            }
            self.close_due();
            if self.memory_is_short() {
                std::thread::park_timeout(POLL);
                continue;
            }
            for _ in 0..MESSAGES_PER_LOOK {
                match self.consumer.poll(POLL) {
                    Some(Ok(message)) => self.accept(&message),
                    Some(Err(KafkaError::PartitionEOF(partition))) => {
                        if let Some(intake) = self.context.lock().get_mut(&partition) {
                            intake.reached_end();
                        }
                        break;
                    }
                    Some(Err(error)) => {
                        if let Some(why) = judge(&error) {
                            return End::Again(why);
                        }
                        break;
                    }
                    None => break,
                }
            }
        }
        End::Shutdown
    }

    fn accept(&mut self, message: &BorrowedMessage<'_>) {
        self.headers.clear();
        if let Some(headers) = message.headers() {
            for i in 0..headers.count() {
                // The client library panics on a name that is not UTF-8, which any producer can send. No name of
                // ours is such a one, so the header is passed over.
                let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(i)));
                if let Ok(Some(header)) = header {
                    Headers::encode(&mut self.headers, header.key.as_bytes(), header.value);
                }
            }
        }
        let record = Record {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key(),
            payload: message.payload(),
            headers: Headers(&self.headers),
        };
        let partition = message.partition();
        let mut intakes = self.context.lock();
        let Some(intake) = intakes.get_mut(&partition) else {
            return;
        };
        let accepted = intake.accept(&record);
        let full = intake.is_full(self.bounds);
        if let Err(refusal) = accepted {
            let lane = intake.stop();
            drop(intakes);
            self.context.stopped(partition, &refusal);
            self.context
                .runtime
                .block_on(join_all(lane.map(|lane| lane.end(Duration::ZERO))));
            self.pause(partition, true);
        } else if full {
            drop(intakes);
            self.close_due();
        }
    }

    /// Closes what is due, pauses the partitions whose blocks nobody takes, and resumes those that are taken again.
    fn close_due(&mut self) {
        let mut changes = Vec::new();
        {
            let mut intakes = self.context.lock();
            let active = intakes.values().filter(|i| i.is_active()).count() as u64;
            let clickhouse = &self.worker.config.clickhouse;
            let by_budget = active * 1000 / u64::from(clickhouse.max_inserts_per_second.max(1));
            let age = Duration::from_millis(self.worker.config.batch.max_age_ms.max(by_budget));
            for (&partition, intake) in intakes.iter_mut() {
                let pause = intake.close_due(self.bounds, age);
                if pause != intake.paused {
                    intake.paused = pause;
                    changes.push((partition, pause));
                }
            }
            metrics().assigned_partitions.set(intakes.len() as f64);
            metrics()
                .paused_partitions
                .set(intakes.values().filter(|i| i.paused).count() as f64);
        }
        if !self.all_paused {
            for (partition, pause) in changes {
                self.pause(partition, pause);
            }
        }
    }

    /// Bounds memory: beyond `worker.max_in_flight_bytes` nothing is polled. Short waits keep what the client has
    /// fetched; a long one pauses the partitions, so that polling, and with it the membership, goes on. Where nothing
    /// is under way that could free memory (it is all in announced blocks, which must be read whole), the bound
    /// gives way.
    fn memory_is_short(&mut self) -> bool {
        let bytes = self.worker.in_flight.bytes();
        let most = self.worker.config.worker.max_in_flight_bytes;
        metrics().in_flight_bytes.set(bytes as f64);
        let frees = |context: &Context| {
            let mut intakes = context.lock();
            intakes.values_mut().for_each(Intake::close_if_idle);
            intakes.values().any(Intake::is_working)
        };
        if self.all_paused {
            if bytes < most / 4 * 3 || !frees(self.context) {
                self.all_paused = false;
                self.stalled_since = None;
                self.pause_all(false);
            }
            return false;
        }
        if bytes < most || !frees(self.context) {
            self.stalled_since = None;
            return false;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STALL_BEFORE_PAUSE {
            self.all_paused = true;
            self.pause_all(true);
            return false;
        }
        true
    }

    fn pause_all(&self, pause: bool) {
        let partitions: Vec<i32> = {
            let intakes = self.context.lock();
            intakes
                .iter()
                .filter(|(_, i)| pause || !i.paused)
                .map(|(&p, _)| p)
                .collect()
        };
        for partition in partitions {
            self.pause(partition, pause);
        }
    }

    fn pause(&self, partition: i32, pause: bool) {
        let mut tpl = TopicPartitionList::new();
        tpl.add_partition(&self.worker.config.kafka.topic, partition);
        let done = if pause {
            self.consumer.pause(&tpl)
        } else {
            self.consumer.resume(&tpl)
        };
        if let Err(error) = done {
            tracing::warn!(partition, pause, error = %error, "a partition could not be paused or resumed");
        }
    }

    /// A partition whose tasks ended by themselves was dropped: its commit was refused. The group will say so
    /// too; if it does not, the consumer is made anew.
    fn dropped(&mut self) -> Option<String> {
        let any = self.context.lock().values().any(Intake::is_dropped);
        if !any {
            self.dropped_since = None;
            return None;
        }
        let since = *self.dropped_since.get_or_insert_with(Instant::now);
        (since.elapsed() > REJOIN_AFTER)
            .then(|| "a partition was dropped and no rebalance took it".to_owned())
    }
}

/// Whether a polling error needs a new consumer.
fn judge(error: &KafkaError) -> Option<String> {
    match error {
        KafkaError::MessageConsumptionFatal(code) => Some(format!("fatal: {code}")),
        KafkaError::MessageConsumption(
            code @ (RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset),
        ) => {
            // Retention overtook us, or the topic was cut: the new assignment decides, visibly.
            Some(format!("an offset is out of range: {code}"))
        }
        _ => {
            metrics().retries.of(Service::Kafka).increment(1);
            tracing::warn!(error = %error, "polling failed; the client goes on by itself");
            None
        }
    }
}

/// What the callbacks need; shared with the loop.
struct Context {
    worker: Arc<Worker>,
    runtime: Handle,
    committer: Committer,
    ownership: Arc<Ownership>,
    intakes: Mutex<BTreeMap<i32, Intake>>,
    broken: Mutex<Option<String>>,
    fatal: Mutex<Option<Fatal>>,
}

/// Where each partition starts, or why it does not.
type Starts = Vec<(i32, Result<Start, Refusal>)>;

/// Counts assignments over all sessions of this process.
static EPOCH: AtomicU64 = AtomicU64::new(1);

impl Context {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Intake>> {
        self.intakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self, partition: i32, refusal: &Refusal) {
        self.worker
            .health
            .partition_stopped(partition, refusal.to_string());
        tracing::error!(partition, reason = %refusal, "the partition is stopped");
    }

    /// Reads where each of the partitions starts.
    fn starts(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) -> Result<Starts, KafkaError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let topic = &self.worker.config.kafka.topic;
        let committed = again(|| {
            let mut tpl = TopicPartitionList::with_capacity(partitions.len());
            for &partition in partitions {
                tpl.add_partition(topic, partition);
            }
            consumer.committed_offsets(tpl, ASK_KAFKA)
        })?;
        let mut starts = Vec::new();
        for &partition in partitions {
            let (low, high) = again(|| consumer.fetch_watermarks(topic, partition, ASK_KAFKA))?;
            let element = committed.find_partition(topic, partition);
            if let Some(Err(error)) = element
                .as_ref()
                .map(rdkafka::topic_partition_list::TopicPartitionListElem::error)
            {
                return Err(error);
            }
            let committed = element.as_ref().and_then(|element| match element.offset() {
                // The client library panics on metadata that is not UTF-8: foreign text, so none of ours.
                Offset::Offset(offset) => Some((
                    offset,
                    catch_unwind(AssertUnwindSafe(|| element.metadata())).unwrap_or_default(),
                )),
                _ => None,
            });
            starts.push((
                partition,
                metadata::start(committed, low, high, self.worker.config.kafka.incarnation),
            ));
        }
        Ok(starts)
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        metrics()
            .rebalances
            .of(Rebalance::Assigned)
            .increment(partitions.len() as u64);
        let kafka = &self.worker.config.kafka;
        let starts = match self.starts(consumer, partitions) {
            Ok(starts) => starts,
            Err(error) => {
                self.fail(format!("the committed offsets could not be read: {error}"));
                Vec::new()
            }
        };
        let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        let highest = Highest::new(Arc::clone(&self.worker), partitions.to_vec());
        let (mut run, mut stop) = (TopicPartitionList::new(), TopicPartitionList::new());
        for &partition in partitions {
            let start = match starts.iter().find(|(p, _)| *p == partition) {
                Some((_, Ok(start))) => *start,
                Some((_, Err(Refusal::Version(version)))) => {
                    *self.fatal.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Fatal::Version(version.clone()));
                    stop.add_partition(&kafka.topic, partition);
                    continue;
                }
                Some((_, Err(refusal))) => {
                    self.stopped(partition, refusal);
                    stop.add_partition(&kafka.topic, partition);
                    continue;
                }
                None => {
                    stop.add_partition(&kafka.topic, partition);
                    continue;
                }
            };
            if start.missing > 0 {
                metrics().offsets_missing.increment(start.missing as u64);
                tracing::error!(
                    partition,
                    from = start.committed,
                    records = start.missing,
                    "retention removed records before they were read"
                );
            }
            tracing::info!(
                partition,
                epoch,
                offset = start.committed,
                announced_end = start.announced.map(|a| a.end),
                "the partition starts"
            );
            if let Err(error) =
                run.add_partition_offset(&kafka.topic, partition, Offset::Offset(start.read_from))
            {
                self.fail(format!("an offset could not be set: {error}"));
            }
            self.ownership.grant(partition, epoch);
            let assigned = Assigned {
                partition,
                epoch,
                committed: start.committed,
                highest: highest.clone(),
            };
            let lane = Lane::spawn(&self.worker, &self.runtime, self.committer.clone(), &assigned);
            let intake = Intake::new(start, epoch, kafka.incarnation, &self.worker.in_flight, lane);
            self.lock().insert(partition, intake);
        }
        // They belong to this member, but nothing is read from them.
        let stopped = stop.elements();
        let added = stopped
            .iter()
            .try_for_each(|p| run.add_partition_offset(&kafka.topic, p.partition(), Offset::End));
        // Once, and also for none at all (a rebalance that brought nothing): the group waits for this answer.
        if let Err(error) = added.and_then(|()| consumer.incremental_assign(&run)) {
            self.fail(format!("partitions could not be assigned: {error}"));
        }
        if stop.count() > 0
            && let Err(error) = consumer.pause(&stop)
        {
            self.fail(format!("partitions could not be paused: {error}"));
        }
    }

    fn fail(&self, why: String) {
        self.broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
    }

    /// Ends the partitions' tasks: what is under way has `patience` to settle, the rest is dropped.
    fn give_away(&self, partitions: &[i32], patience: Duration) {
        let lanes: Vec<Lane> = {
            let mut intakes = self.lock();
            partitions
                .iter()
                .filter_map(|p| intakes.remove(p))
                .filter_map(|mut intake| intake.stop())
                .collect()
        };
        if patience.is_zero() {
            // Withdrawn first, so that nothing of theirs is committed from here on.
            self.ownership.withdraw(partitions.iter().copied());
        }
        self.runtime
            .block_on(join_all(lanes.into_iter().map(|lane| lane.end(patience))));
        self.ownership.withdraw(partitions.iter().copied());
        for &partition in partitions {
            self.worker.health.partition_gone(partition);
            telemetry::consumer_lag(partition).set(0.0);
        }
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, tpl: &TopicPartitionList, partitions: &[i32]) {
        let lost = consumer.assignment_lost();
        let rebalance = if lost { Rebalance::Lost } else { Rebalance::Revoked };
        metrics()
            .rebalances
            .of(rebalance)
            .increment(partitions.len() as u64);
        tracing::info!(?partitions, lost, "partitions are given away");
        self.give_away(partitions, if lost { Duration::ZERO } else { SETTLE_ON_REVOKE });
        if let Err(error) = consumer.incremental_unassign(tpl) {
            self.fail(format!("partitions could not be unassigned: {error}"));
        }
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        if let Some(topic) = statistics.topics.get(&self.worker.config.kafka.topic) {
            for (&partition, stats) in topic.partitions.iter().filter(|(p, s)| **p >= 0 && s.desired) {
                // Committed by this consumer, or, before its first commit, where it reads.
                let settled = if stats.committed_offset >= 0 {
                    stats.committed_offset
                } else {
                    stats.app_offset
                };
                if stats.hi_offset >= 0 && settled >= 0 {
                    telemetry::consumer_lag(partition).set((stats.hi_offset - settled).max(0) as f64);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Reaching the end of a partition is heard of by polling.
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!(error = %error, reason, "the Kafka client reports");
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, tpl: &mut TopicPartitionList) {
        let partitions: Vec<i32> = tpl
            .elements()
            .iter()
            .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
            .collect();
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, &partitions),
            _ => self.revoked(consumer, tpl, &partitions),
        }
    }
}

/// Asks up to [`ASK_KAFKA_TRIES`] times.
fn again<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let mut outcome = ask();
    for _ in 1..ASK_KAFKA_TRIES {
        if outcome.is_ok() {
            break;
        }
        outcome = ask();
    }
    outcome
}
