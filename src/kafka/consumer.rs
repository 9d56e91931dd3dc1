//! The consumer: made, joined to the group, left in good order, and made anew where only that helps.
//!
//! Owns the consumer and the thread of its commits ([`super::committer`]). Polling is in `poll`; what a rebalance does is
//! in `rebalance`.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::client_config;
use super::committer::{self, Committer};
use super::metadata::UnknownVersion;
use super::poll::{End, POLL, Session};
use super::rebalance::Context;
use crate::pipeline::Worker;
use crate::telemetry::metrics;

/// How long the committing thread may take to end, once with the consumer open and once with it closed.
const COMMITTER_ENDS: Duration = Duration::from_secs(3);
/// How long closing a consumer whose commit hangs may take.
const CLOSES: Duration = Duration::from_secs(10);

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

/// Runs the consumer until `shutdown`, anew after errors that only a new consumer mends. Blocks; call it on a
/// thread of its own.
pub fn run(worker: &Arc<Worker>, runtime: &Handle, shutdown: &CancellationToken) -> Result<(), Fatal> {
    loop {
        match session(worker, runtime, shutdown)? {
            End::Shutdown => return Ok(()),
            End::Version(version) => return Err(version.into()),
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

fn session(worker: &Arc<Worker>, runtime: &Handle, shutdown: &CancellationToken) -> Result<End, Fatal> {
    let kafka = &worker.config.kafka;
    let (committer, requests) = Committer::new();
    let context = Context::new(worker, runtime, committer.clone());
    let ownership = Arc::clone(context.ownership());
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
            // The default, `rebootstrap`, loses the group's coordinator for good when a broker stood still for some
            // seconds (librdkafka 2.12.1): heartbeats and commits then wait for ever.
            ("metadata.recovery.strategy", "none"),
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
    let consumer: BaseConsumer<Context> = client.create_with_context(context).map_err(Fatal::Client)?;
    let consumer = Arc::new(consumer);
    let committing = committer::spawn(requests, Arc::clone(&consumer), kafka.topic.clone(), ownership)
        .map_err(Fatal::Thread)?;
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
    if !ends_within(&committing, COMMITTER_ENDS) {
        // A commit that waits for a coordinator ends with its consumer.
        close(&consumer);
        if !ends_within(&committing, COMMITTER_ENDS) {
            tracing::error!("a commit does not end; its thread and its consumer are left behind");
            return Ok(end);
        }
    }
    if committing.join().is_err() {
        tracing::error!("the committing thread panicked");
    }
    drop(consumer);
    Ok(end)
}

/// Whether `thread` ends in time; it tells nobody.
fn ends_within(thread: &JoinHandle<()>, patience: Duration) -> bool {
    let start = Instant::now();
    while !thread.is_finished() {
        if start.elapsed() > patience {
            return false;
        }
        std::thread::park_timeout(POLL);
    }
    true
}

/// Leaves the group, as far as the broker lets it.
fn close(consumer: &BaseConsumer<Context>) {
    let start = Instant::now();
    if let Err(error) = consumer.close_queue() {
        tracing::warn!(error = %error, "the consumer could not be closed");
        return;
    }
    while !consumer.closed() && start.elapsed() < CLOSES {
        // Rebalances are heard of here; no message comes any more.
        drop(consumer.poll(POLL));
    }
}
