//! One assigned partition's tasks: while a block is being written, the next one is prepared.
//!
//! Owns the life of these tasks. What they do to a block is in [`super`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::block::Block;
use super::outstanding::Outstanding;
use super::{Dropped, Partition, Prepared, Worker, recovery, timed};
use crate::kafka::committer::Committer;
use crate::kafka::position::SetBy;
use crate::telemetry::Stage;

/// How long a settled block waits for the next one's announcement to carry its commit.
const ADVANCE_AFTER: Duration = Duration::from_millis(100);

/// The highest offset that the table has of each partition of one assignment, asked once for all of them.
#[derive(Clone)]
pub struct Highest(Shared<BoxFuture<'static, Arc<HashMap<i32, i64>>>>);

impl std::fmt::Debug for Highest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Highest").finish()
    }
}

impl Highest {
    /// Asked when the first partition needs it, and until there is an answer.
    pub fn new(worker: Arc<Worker>, partitions: Vec<i32>) -> Self {
        Self(
            async move { Arc::new(recovery::highest(&worker, &partitions).await) }
                .boxed()
                .shared(),
        )
    }

    async fn of(self, partition: i32) -> Option<i64> {
        self.0.await.get(&partition).copied()
    }
}

/// A partition as it was assigned.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// The partition.
    pub partition: i32,
    /// Counts assignments.
    pub epoch: u64,
    /// The committed offset.
    pub committed: i64,
    /// Who committed it.
    pub set_by: SetBy,
    /// What the table has.
    pub highest: Highest,
}

/// A running partition.
#[derive(Debug)]
pub struct Lane {
    blocks: UnboundedSender<Block>,
    outstanding: Arc<Outstanding>,
    stop: CancellationToken,
    stopped: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Lane {
    /// Starts the tasks of a partition.
    pub fn spawn(worker: &Arc<Worker>, runtime: &Handle, committer: Committer, assigned: &Assigned) -> Self {
        // Unbounded, and yet bounded: the polling thread closes no block beyond a few outstanding ones.
        let (blocks, incoming) = unbounded_channel();
        let stop = CancellationToken::new();
        let partition = Partition::new(Arc::clone(worker), committer, assigned);
        let stopped = Arc::<AtomicBool>::default();
        let task = runtime.spawn(run(
            partition,
            assigned.clone(),
            incoming,
            stop.clone(),
            Arc::clone(&stopped),
        ));
        Self {
            blocks,
            outstanding: Arc::default(),
            stop,
            stopped,
            task,
        }
    }

    /// Hands a closed block on.
    pub fn offer(&self, block: Block) {
        // The tasks have ended where the partition was dropped; the block is read again by its next owner.
        drop(self.blocks.send(block));
    }

    /// Blocks handed on and not settled.
    pub fn outstanding(&self) -> &Arc<Outstanding> {
        &self.outstanding
    }

    /// Whether the tasks have ended by themselves, so that somebody must begin anew.
    pub fn is_dropped(&self) -> bool {
        self.task.is_finished() && !self.is_stopped()
    }

    /// Whether the partition waits for an operator: beginning anew would end as this did.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends the tasks. The block under way has `patience` to settle; everything else is dropped, to be read again.
    pub async fn end(mut self, patience: Duration) {
        self.stop.cancel();
        if patience.is_zero() || tokio::time::timeout(patience, &mut self.task).await.is_err() {
            self.task.abort();
            // Cancelled, as asked, or ended meanwhile.
            drop((&mut self.task).await);
        }
    }
}

async fn run(
    partition: Partition,
    assigned: Assigned,
    mut incoming: UnboundedReceiver<Block>,
    stop: CancellationToken,
    stopped: Arc<AtomicBool>,
) {
    let (prepared, mut ready) = channel::<Prepared>(1);
    let number = partition.number;
    let prepare = async {
        let mut highest = assigned.highest.of(number).await;
        let unannounced = match assigned.set_by {
            SetBy::Worker => false,
            SetBy::Stranger => true,
            // Without a row the group has not been here: its first insert came after its first commit.
            SetBy::Nobody => highest.is_some(),
        };
        if unannounced {
            partition.wait_out_earlier_inserts().await;
            // What landed meanwhile may stand above what was the highest.
            highest = recovery::highest(&partition.worker, &[number])
                .await
                .remove(&number);
        }
        while let Some(block) = incoming.recv().await {
            match partition.prepare(block, highest).await {
                Ok(block) => {
                    if prepared.send(block).await.is_err() {
                        return Ok(());
                    }
                }
                Err(dropped) => return Err(dropped),
            }
        }
        Ok(())
    };
    let settle = async {
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                next = ready.recv() => next,
                () = tokio::time::sleep(ADVANCE_AFTER), if partition.is_behind() => {
                    timed(Stage::Advance, partition.advance()).await?;
                    continue;
                }
            };
            match next {
                Some(block) => partition.settle(block).await?,
                // Given away: what is settled is committed, the rest is read again.
                None => return timed(Stage::Advance, partition.advance()).await,
            }
        }
    };
    let outcome = tokio::select! {
        outcome = settle => outcome,
        // Ends first only where the partition is dropped.
        Err(dropped) = prepare => Err(dropped),
    };
    let Err(dropped) = outcome else { return };
    // Whoever tried again would come to the same end.
    if matches!(dropped, Dropped::OtherRecords { .. } | Dropped::Coordinate(_)) {
        stopped.store(true, Ordering::Release);
        partition
            .worker
            .health
            .partition_stopped(number, dropped.to_string());
        tracing::error!(partition = number, reason = %dropped, "the partition is stopped");
    } else {
        tracing::warn!(partition = number, reason = %dropped, "the partition is dropped");
    }
}
