//! Rebalances: what this worker does when partitions come and go.
//!
//! Owns the life of a partition's tasks and its place in the ownership table. Where it starts is in `start`. Runs inside the polling
//! thread's `poll`; partitions that are given away settle or are dropped before the rebalance goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;

use super::committer::{Committer, Ownership};
use super::intake::{AtEnd, Intake};
use super::metadata::UnknownVersion;
use super::position::{Refusal, Start};
use super::reach::Reach;
use super::start::{self, Asked, Committed};
use crate::faults;
use crate::pipeline::Worker;
use crate::pipeline::lane::{Assigned, Highest, Lane};
use crate::telemetry::{self, Rebalance, Service, metrics};

/// How long a rebalance waits for blocks under way of the partitions that are given away.
const SETTLE_ON_REVOKE: Duration = Duration::from_secs(10);
/// How long a rebalance waits for a commit under way.
const COMMIT_ENDS: Duration = Duration::from_secs(5);
/// Time for all partitions' bounds within a rebalance; those that are not known by then are asked for later.
const ASK_BOUNDS: Duration = Duration::from_secs(10);
/// Time for later questions, between two polls.
const ASK_BOUNDS_AGAIN: Duration = Duration::from_secs(1);

/// What the callbacks need; shared with the loop.
pub(super) struct Context {
    pub(super) worker: Arc<Worker>,
    pub(super) runtime: Handle,
    committer: Committer,
    ownership: Arc<Ownership>,
    intakes: Mutex<BTreeMap<i32, Intake>>,
    /// Assigned partitions that cannot start, because nobody tells where they begin and end.
    waiting: Mutex<VecDeque<Committed>>,
    /// Partitions that seem to end before the block that was announced, each with that block's end.
    cut_off: Mutex<BTreeMap<i32, i64>>,
    reach: Mutex<Reach>,
    /// How many calls the client made to this.
    called: AtomicU64,
    broken: Mutex<Option<Broken>>,
}

/// Why the session cannot go on; found out in a callback, acted on by the loop.
pub(super) enum Broken {
    /// The consumer must be made anew.
    Again(String),
    /// A newer worker was here: for good.
    Version(UnknownVersion),
}

/// Counts assignments over all sessions of this process.
static EPOCH: AtomicU64 = AtomicU64::new(1);

impl Context {
    pub(super) fn new(worker: &Arc<Worker>, runtime: &Handle, committer: Committer) -> Self {
        Self {
            worker: Arc::clone(worker),
            runtime: runtime.clone(),
            committer,
            ownership: Arc::default(),
            intakes: Mutex::default(),
            waiting: Mutex::default(),
            cut_off: Mutex::default(),
            reach: Mutex::default(),
            called: AtomicU64::new(0),
            broken: Mutex::default(),
        }
    }

    /// Who may commit what.
    pub(super) fn ownership(&self) -> &Arc<Ownership> {
        &self.ownership
    }

    /// How many calls the client made to this: a poll without an answer in which there was one may have left records.
    pub(super) fn called(&self) -> u64 {
        self.called.load(Ordering::Relaxed)
    }

    fn is_called(&self) {
        self.called.fetch_add(1, Ordering::Relaxed);
    }

    /// What a callback has found, once.
    pub(super) fn broken(&self) -> Option<Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The assigned partitions.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Intake>> {
        self.intakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self, partition: i32, refusal: &Refusal) {
        self.worker
            .health
            .partition_stopped(partition, refusal.to_string());
        tracing::error!(partition, reason = %refusal, "the partition is stopped");
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Committed>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        metrics()
            .rebalances
            .of(Rebalance::Assigned)
            .increment(partitions.len() as u64);
        let topic = &self.worker.config.kafka.topic;
        let committed = start::committed(consumer, topic, partitions).unwrap_or_else(|error| {
            self.fail(format!("the committed offsets could not be read: {error}"));
            Vec::new()
        });
        let until = Instant::now() + ASK_BOUNDS;
        let highest = Highest::new(Arc::clone(&self.worker), partitions.to_vec());
        let (mut run, mut stop) = (TopicPartitionList::new(), TopicPartitionList::new());
        for &partition in partitions {
            let committed = committed.iter().find(|c| c.partition == partition);
            let read_from = committed.and_then(|committed| {
                let patience = until.saturating_duration_since(Instant::now());
                match start::ask(consumer, &self.worker.config.kafka, committed, patience) {
                    Asked::Unknown(error) => {
                        self.wait(committed.clone(), &error);
                        None
                    }
                    Asked::Refused(refusal) => {
                        self.refuse(partition, &refusal);
                        None
                    }
                    Asked::Starts(start) => Some(self.begin(partition, start, highest.clone())),
                }
            });
            // Those that are stopped belong to this member, but nothing is read from them.
            if read_from.is_none() {
                stop.add_partition(topic, partition);
            }
            let offset = read_from.map_or(Offset::End, Offset::Offset);
            if let Err(error) = run.add_partition_offset(topic, partition, offset) {
                self.fail(format!("an offset could not be set: {error}"));
            }
        }
        // Once, and also for none at all (a rebalance that brought nothing): the group waits for this answer.
        if let Err(error) = consumer.incremental_assign(&run) {
            self.fail(format!("partitions could not be assigned: {error}"));
        }
        if stop.count() > 0
            && let Err(error) = consumer.pause(&stop)
        {
            self.fail(format!("partitions could not be paused: {error}"));
        }
    }

    /// Grants the partition and starts its tasks. Answers the offset to read from.
    fn begin(&self, partition: i32, mut start: Start, highest: Highest) -> i64 {
        if faults::without("without-recut") {
            start.announced = None;
        }
        if start.missing > 0 {
            metrics().offsets_missing.increment(start.missing as u64);
            tracing::error!(
                partition,
                from = start.committed,
                records = start.missing,
                "retention removed records before they were read"
            );
        }
        let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            partition,
            epoch,
            offset = start.committed,
            announced_end = start.announced.map(|a| a.end),
            "the partition starts"
        );
        self.ownership.grant(partition, epoch);
        let assigned = Assigned {
            partition,
            epoch,
            committed: start.committed,
            set_by: start.by,
            highest,
        };
        let lane = Lane::spawn(&self.worker, &self.runtime, self.committer.clone(), &assigned);
        let incarnation = self.worker.config.kafka.incarnation;
        let intake = Intake::new(start, epoch, incarnation, &self.worker.in_flight, lane);
        self.lock().insert(partition, intake);
        start.read_from
    }

    fn refuse(&self, partition: i32, refusal: &Refusal) {
        match refusal {
            Refusal::Version(version) => self.break_off(Broken::Version(version.clone())),
            refusal => self.stopped(partition, refusal),
        }
    }

    fn wait(&self, waiting: Committed, error: &KafkaError) {
        let partition = waiting.partition;
        let why = format!("Kafka does not tell where it begins and ends: {error}; asking again");
        tracing::warn!(partition, error = %error, "the partition cannot start; asking again");
        self.worker.health.partition_stopped(partition, why);
        self.waiting().push_back(waiting);
    }

    /// Starts those of the waiting partitions that can be now. Called between polls; each in its turn.
    pub(super) fn start_waiting(&self, consumer: &BaseConsumer<Self>) {
        let until = Instant::now() + ASK_BOUNDS_AGAIN;
        // Not within the loop's head, where the lock would be held all through it.
        let turns = self.waiting().len();
        for _ in 0..turns {
            let patience = until.saturating_duration_since(Instant::now());
            let Some(waiting) = (!patience.is_zero())
                .then(|| self.waiting().pop_front())
                .flatten()
            else {
                return;
            };
            let partition = waiting.partition;
            match start::ask(consumer, &self.worker.config.kafka, &waiting, patience) {
                Asked::Unknown(error) => {
                    tracing::debug!(partition, error = %error, "the partition cannot start yet");
                    self.waiting().push_back(waiting);
                }
                Asked::Refused(refusal) => self.refuse(partition, &refusal),
                Asked::Starts(start) => {
                    self.worker.health.partition_gone(partition);
                    let highest = Highest::new(Arc::clone(&self.worker), vec![partition]);
                    let read_from = self.begin(partition, start, highest);
                    if let Err(error) = self.assign_anew(consumer, partition, read_from) {
                        self.fail(format!("a partition could not be assigned: {error}"));
                    }
                }
            }
        }
    }

    /// Stops the partitions that end before the block that was announced: others would come in the place of the records
    /// that were lost, and pass for them. Called between polls. Only their leaders know, for a follower may be behind.
    pub(super) fn stop_cut_off(&self, consumer: &BaseConsumer<Self>) {
        let suspects = std::mem::take(&mut *self.cut_off.lock().unwrap_or_else(PoisonError::into_inner));
        let kafka = &self.worker.config.kafka;
        for (partition, announced_end) in suspects {
            match consumer.fetch_watermarks(&kafka.topic, partition, ASK_BOUNDS_AGAIN) {
                Ok((_, high)) if high < announced_end => {
                    let refusal = Refusal::BeyondEnd {
                        committed: announced_end,
                        high,
                        incarnation: kafka.incarnation,
                    };
                    self.stop(consumer, partition, &refusal);
                }
                // It is heard of again with the next statistics.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Ends the partition's tasks and reads nothing more of it, until an operator has looked.
    pub(super) fn stop(&self, consumer: &BaseConsumer<Self>, partition: i32, refusal: &Refusal) {
        let lane = self.lock().get_mut(&partition).and_then(Intake::stop);
        self.stopped(partition, refusal);
        self.runtime
            .block_on(join_all(lane.map(|lane| lane.end(Duration::ZERO))));
        self.pause(consumer, partition, true);
    }

    /// Fetches nothing more of the partition, or goes on with it.
    pub(super) fn pause(&self, consumer: &BaseConsumer<Self>, partition: i32, pause: bool) {
        let mut tpl = TopicPartitionList::new();
        tpl.add_partition(&self.worker.config.kafka.topic, partition);
        if let Some(intake) = self.lock().get_mut(&partition) {
            intake.refetches();
        }
        let done = if pause {
            consumer.pause(&tpl)
        } else {
            consumer.resume(&tpl)
        };
        if let Err(error) = done {
            tracing::warn!(partition, pause, error = %error, "a partition could not be paused or resumed");
        }
    }

    /// Until now it was assigned without being read.
    fn assign_anew(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: i32,
        read_from: i64,
    ) -> Result<(), KafkaError> {
        let mut tpl = TopicPartitionList::new();
        tpl.add_partition_offset(
            &self.worker.config.kafka.topic,
            partition,
            Offset::Offset(read_from),
        )?;
        consumer.incremental_unassign(&tpl)?;
        consumer.incremental_assign(&tpl)?;
        consumer.resume(&tpl)
    }

    fn told_end(&self, partition: i32, end: i64) {
        let at_end = self.lock().get_mut(&partition).map(|intake| intake.told_end(end));
        match at_end {
            Some(AtEnd::PassedOver) => {
                tracing::info!(
                    partition,
                    end,
                    "what is no record at the partition's end is passed over"
                );
            }
            Some(AtEnd::BeforeAnnounced(announced_end)) => {
                let mut cut_off = self.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
                cut_off.insert(partition, announced_end);
            }
            Some(AtEnd::Nothing) | None => {}
        }
    }

    fn fail(&self, why: String) {
        self.break_off(Broken::Again(why));
    }

    fn break_off(&self, broken: Broken) {
        self.broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(broken);
    }

    /// Whether something is under way that will free memory; closes what stands in its way.
    pub(super) fn frees_memory(&self) -> bool {
        let mut intakes = self.lock();
        intakes.values_mut().for_each(Intake::close_if_idle);
        intakes.values().any(Intake::is_working)
    }

    /// Ends the partitions' tasks: what is under way has `patience` to settle, the rest is dropped.
    pub(super) fn give_away(&self, partitions: &[i32], patience: Duration) {
        self.waiting().retain(|w| !partitions.contains(&w.partition));
        let lanes: Vec<Lane> = {
            let mut intakes = self.lock();
            partitions
                .iter()
                .filter_map(|p| intakes.remove(p))
                .filter_map(|mut intake| intake.stop())
                // Those that nobody ends go on with what they have: a zombie's blocks.
                .filter(|_| !(patience.is_zero() && faults::without("without-epoch")))
                .collect()
        };
        if patience.is_zero() {
            // Withdrawn first, so that nothing of theirs is committed from here on.
            self.ownership
                .withdraw(partitions.iter().copied(), Duration::ZERO);
        }
        self.runtime
            .block_on(join_all(lanes.into_iter().map(|lane| lane.end(patience))));
        if !self.ownership.withdraw(partitions.iter().copied(), COMMIT_ENDS) {
            // It may wait for a coordinator that only a rebalance brings, and this is one: it must go on. A commit that
            // lands late is harmless, for the next owner asks the table what it has.
            self.fail("a commit did not end while its partition was given away".to_owned());
        }
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
        self.is_called();
        let kafka_up_for = self.worker.health.up_for(Service::Kafka);
        let lost = self.reach.lock().unwrap_or_else(PoisonError::into_inner).told(
            &statistics,
            kafka_up_for,
            Instant::now(),
        );
        if let Some(why) = lost {
            self.fail(why.to_owned());
        }
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
                self.told_end(partition, stats.eof_offset);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.is_called();
        // Reaching the end of a partition is heard of by polling.
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!(error = %error, reason, "the Kafka client reports");
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, tpl: &mut TopicPartitionList) {
        self.is_called();
        let partitions: Vec<i32> = tpl
            .elements()
            .iter()
            .map(TopicPartitionListElem::partition)
            .collect();
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, &partitions),
            _ => self.revoked(consumer, tpl, &partitions),
        }
    }
}
