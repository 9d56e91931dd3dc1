//! The poll loop: records in, and back-pressure.
//!
//! Owns what is polled, paused and resumed, and when a block is looked at. Never waits for a service while it should poll.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use tokio_util::sync::CancellationToken;

use super::intake::{Bounds, Intake};
use super::metadata::UnknownVersion;
use super::rebalance::{Broken, Context};
use crate::event::{Headers, Record};
use crate::pipeline::Worker;
use crate::telemetry::{Service, metrics};

/// How long one poll waits; also how late a block may close by age.
pub(super) const POLL: Duration = Duration::from_millis(5);
/// So many polls in a row without anything say that nothing waits to be polled.
const QUIET: u32 = 4;
/// Messages between two looks at which blocks are due.
const MESSAGES_PER_LOOK: usize = 512;
/// The least that a partition may hold where memory is shared out, in bytes: a record always fits.
const SMALLEST_SHARE: u64 = 1 << 20;
/// How long all intake may stand still for memory before it is shared out, so that polling can go on.
const STALL_BEFORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a dropped partition waits for its rebalance before the consumer is made anew.
const REJOIN_AFTER: Duration = Duration::from_secs(10);
/// How often partitions that could not start are tried again.
const START_WAITING_EVERY: Duration = Duration::from_secs(5);

/// How a session of the group ended.
pub(super) enum End {
    /// As asked.
    Shutdown,
    /// The consumer must be made anew.
    Again(String),
    /// For good: a newer worker was here.
    Version(UnknownVersion),
}

/// The loop's own state.
pub(super) struct Session<'a> {
    consumer: &'a BaseConsumer<Context>,
    context: &'a Context,
    worker: &'a Worker,
    bounds: Bounds,
    headers: Vec<u8>,
    stalled_since: Option<Instant>,
    /// Memory was short for long: each partition has its share.
    sharing: bool,
    dropped_since: Option<Instant>,
    started_waiting_at: Instant,
    /// Polls in a row in which nothing came, nor any call.
    quiet: u32,
}

impl<'a> Session<'a> {
    pub(super) fn new(consumer: &'a BaseConsumer<Context>) -> Self {
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
            sharing: false,
            dropped_since: None,
            started_waiting_at: Instant::now(),
            quiet: 0,
        }
    }

    pub(super) fn run(mut self, shutdown: &CancellationToken) -> End {
        while !shutdown.is_cancelled() {
            self.worker.health.polled();
            match self.context.broken() {
                Some(Broken::Again(why)) => return End::Again(why),
                Some(Broken::Version(version)) => return End::Version(version),
                None => {}
            }
            if let Some(why) = self.dropped() {
                return End::Again(why);
            }
            if self.started_waiting_at.elapsed() > START_WAITING_EVERY {
                self.context.start_waiting(self.consumer);
                self.started_waiting_at = Instant::now();
            }
            self.context.stop_cut_off(self.consumer);
            self.close_due();
            if self.memory_is_short() {
                std::thread::park_timeout(POLL);
                continue;
            }
            for _ in 0..MESSAGES_PER_LOOK {
                let called = self.context.called();
                let polled = self.consumer.poll(POLL);
                let quiet = polled.is_none() && called == self.context.called();
                self.quiet = if quiet { self.quiet + 1 } else { 0 };
                match polled {
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
                    None => {
                        if self.quiet == QUIET {
                            self.context.lock().values_mut().for_each(Intake::drained);
                        }
                        break;
                    }
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
            drop(intakes);
            self.context.stop(self.consumer, partition, &refusal);
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
                    if !intake.over_share {
                        changes.push((partition, pause));
                    }
                }
            }
            metrics().assigned_partitions.set(intakes.len() as f64);
            metrics()
                .paused_partitions
                .set(intakes.values().filter(|i| i.paused || i.over_share).count() as f64);
        }
        for (partition, pause) in changes {
            self.context.pause(self.consumer, partition, pause);
        }
    }

    /// Bounds memory: beyond `worker.max_in_flight_bytes` nothing is polled. Short waits keep what the client has
    /// fetched. After a long one each partition has its share: those that hold more are paused, and the others go on,
    /// so that one that waits (for permits, say) does not hold up the rest, and polling, and with it the membership,
    /// goes on. Where nothing is under way that could free memory (it is all in announced blocks, which must be read
    /// whole), the bound gives way.
    fn memory_is_short(&mut self) -> bool {
        let bytes = self.worker.in_flight.bytes();
        let most = self.worker.config.worker.max_in_flight_bytes;
        metrics().in_flight_bytes.set(bytes as f64);
        if self.sharing {
            self.sharing = bytes >= most / 4 * 3;
            self.share(if self.sharing { most } else { u64::MAX });
            return false;
        }
        if bytes < most || !self.context.frees_memory() {
            self.stalled_since = None;
            return false;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        self.sharing = since.elapsed() > STALL_BEFORE_PAUSE;
        !self.sharing
    }

    /// Pauses the partitions that hold more than their share of `most` bytes, and resumes those that hold half of it.
    fn share(&mut self, most: u64) {
        self.stalled_since = None;
        let mut changes = Vec::new();
        {
            let mut intakes = self.context.lock();
            let share = (most / (intakes.len() as u64).max(1)).max(SMALLEST_SHARE);
            for (&partition, intake) in intakes.iter_mut() {
                intake.close_if_idle();
                let over = !intake.is_announced()
                    && intake.is_working()
                    && intake.held() > if intake.over_share { share / 2 } else { share };
                if over != intake.over_share {
                    intake.over_share = over;
                    if !intake.paused {
                        changes.push((partition, over));
                    }
                }
            }
        }
        for (partition, pause) in changes {
            self.context.pause(self.consumer, partition, pause);
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
