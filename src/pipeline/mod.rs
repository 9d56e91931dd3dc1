//! The data path of one partition, top to bottom. Each step is a file.
//!
//! Invariants: a block's decisions are stable (two attempts at it agree, or the later one finds out what the earlier
//! one did); nothing is committed before everything below it is acknowledged by its destination.

pub mod block;
pub mod claim;
pub mod lane;
pub mod outstanding;

mod alone;
mod announce;
mod complete;
mod decode;
mod frontier;
mod limits;
mod permit;
mod profiles;
mod recovery;
mod reject;
mod remember;
mod retry;
pub(crate) mod source;
mod spare;
mod worker;
mod write;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use self::block::{Block, Cut};
use self::decode::Decoding;
use self::frontier::Frontier;
use self::lane::Assigned;
use self::write::Written;
use crate::event::{Origin, Reason};
use crate::faults;
use crate::health::Waiter;
use crate::kafka::committer::Committer;
use crate::kafka::metadata::Announcement;
use crate::telemetry::{self, BlockKind, Stage, metrics};

pub use self::limits::{Limit, Limits};
pub use self::source::Source;
pub use self::worker::{StartError, Worker};

/// Why a partition's tasks end by themselves. Its blocks are read again by whoever owns it next.
#[derive(Debug, thiserror::Error)]
pub enum Dropped {
    /// The group gave the partition to somebody else.
    #[error("it belongs to another member of the group now")]
    NotOwned,
    /// Redis knows of a later commit than this worker.
    #[error("another worker has gone past this one")]
    Stale,
    /// A position that does not fit the packed coordinate.
    #[error("offset {0} does not fit the packed coordinate")]
    Coordinate(i64),
    /// The table has rows for these offsets, and of other records. Not for anybody to try again: it must stop.
    #[error(
        "the table's rows for offsets {start} to {end} are of other records: was the topic made anew? If so, raise \
         kafka.incarnation (now {incarnation})"
    )]
    OtherRecords {
        /// The block's first offset.
        start: i64,
        /// The offset after its last.
        end: i64,
        /// `kafka.incarnation`.
        incarnation: u32,
    },
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A row.
    Pass,
    /// Its id is claimed by another record.
    Duplicate,
    /// Over its token's limit: the overflow topic.
    Over,
    /// `ClickHouse` refuses its row for good: the dead-letter topic.
    Refused,
}

/// How a block is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For the first time, as far as anybody can know.
    Fresh,
    /// Perhaps not for the first time: ask the table what it has.
    Recovery,
}

/// A block whose decisions are taken.
#[derive(Debug)]
struct Prepared {
    block: Block,
    decoding: Decoding,
    /// One for each event of `decoding`.
    outcomes: Vec<Outcome>,
    kind: Kind,
    unlimited: bool,
    /// When the block was announced first, as in [`Announcement`].
    first_ms: Option<i64>,
}

/// One partition of one assignment.
#[derive(Debug)]
struct Partition {
    worker: Arc<Worker>,
    committer: Committer,
    number: i32,
    epoch: u64,
    frontier: Frontier,
}

impl Partition {
    fn new(worker: Arc<Worker>, committer: Committer, assigned: &Assigned) -> Self {
        Self {
            worker,
            committer,
            number: assigned.partition,
            epoch: assigned.epoch,
            frontier: Frontier::new(assigned.committed),
        }
    }

    /// Decode, claim, permit: everything that may run while the block before is being written.
    async fn prepare(&self, block: Block, highest: Option<i64>) -> Result<Prepared, Dropped> {
        metrics().records_consumed.increment(block.len() as u64);
        metrics().bytes_consumed.increment(block.bytes() as u64);
        self.worker.pace(block.len()).await;
        let kind = match block.cut {
            Cut::Announced(_) => Kind::Recovery,
            Cut::Free if highest.is_some_and(|h| block.start <= h) && !faults::without("without-highest") => {
                Kind::Recovery
            }
            Cut::Free => Kind::Fresh,
        };
        let (block, decoding) = timed(Stage::Decode, self.decode(block)).await;
        if kind == Kind::Recovery {
            // Before anything is claimed: a claim made by mistake would stand.
            self.compare_with_rows(&block, &decoding).await?;
        }
        self.worker.register.begin_block();
        let (outcomes, unlimited) = loop {
            // A block that may have been tried has decisions in Redis: they are waited for.
            let judged = match kind {
                Kind::Fresh => self.unless_alone(self.judge(&block, &decoding, kind)).await,
                Kind::Recovery => Some(self.judge(&block, &decoding, kind).await),
            };
            if let Some(judged) = judged {
                break judged?;
            }
            if let Some(outcomes) = self.judge_alone(&decoding.events).await {
                break (outcomes, true);
            }
        };
        let first_ms = match block.cut {
            // Where the records have changed, the token is another one.
            Cut::Announced(announced) if announced.digest == decoding.digest => announced.first_ms,
            _ => None,
        };
        Ok(Prepared {
            block,
            decoding,
            outcomes,
            kind,
            unlimited,
            first_ms,
        })
    }

    /// Claim and permit. Answers what becomes of each event, and whether all passed without being asked for.
    async fn judge(
        &self,
        block: &Block,
        decoding: &Decoding,
        kind: Kind,
    ) -> Result<(Vec<Outcome>, bool), Dropped> {
        let mut outcomes = timed(Stage::Claim, self.claim(block, &decoding.events)).await?;
        faults::moment("after-claim").await;
        let unlimited = self.passes_unasked(block, kind);
        if kind == Kind::Recovery && self.may_have_been_alone(block, unlimited) {
            // An earlier attempt may have been without Redis: what it took for duplicates has no claim, but a row.
            self.look_up_passing(&decoding.events, &mut outcomes).await;
        }
        if !unlimited {
            timed(Stage::Permit, self.permit(block, &decoding.events, &mut outcomes)).await?;
            faults::moment("after-permit").await;
        }
        Ok((outcomes, unlimited))
    }

    /// Announce, write and reject, remember, advance: one block at a time, in offset order.
    async fn settle(&self, mut prepared: Prepared) -> Result<(), Dropped> {
        let settled = match prepared.kind {
            Kind::Fresh => {
                let mut announcement = self.announcement(&prepared).await;
                announcement.first_ms = Some(announcement.time_ms);
                prepared.first_ms = announcement.first_ms;
                timed(Stage::Announce, self.announce(&prepared.block, announcement)).await?;
                // Rejects go out while the insert is under way: they were decided, whatever becomes of it.
                let none = HashSet::new();
                let (written, ()) = tokio::join!(
                    timed(Stage::Write, self.write(&prepared, announcement, &none, 0)),
                    timed(Stage::Reject, self.reject(&prepared))
                );
                // Where a token stands for its part, there is nothing to complete.
                let doubtful = matches!(written, Written::Acknowledged { doubtful: true, .. })
                    && !self.worker.table.replicated;
                self.refuse(&mut prepared, written).await
                    && (!doubtful || self.complete(&mut prepared, announcement).await.is_some())
            }
            Kind::Recovery => false,
        };
        if !settled {
            self.recover(&mut prepared).await?;
            timed(Stage::Reject, self.reject(&prepared)).await;
        }
        let remember = self.unless_alone(self.remember(&prepared));
        if timed(Stage::Remember, remember).await.is_none() {
            metrics().blocks_unremembered.increment(1);
        }
        faults::moment("before-advance").await;
        self.frontier.settled(&prepared.block);
        self.worker.health.settled();
        prepared.count();
        let mut decoded = prepared.decoding.events;
        decoded.clear();
        self.worker.decoded.give(decoded);
        Ok(())
    }

    /// What is announced of a block, now that its insert has a place in the budget: the wait for it must not age the
    /// announcement.
    async fn announcement(&self, prepared: &Prepared) -> Announcement {
        if prepared.outcomes.contains(&Outcome::Pass) {
            self.worker.insert_budget.until_ready().await;
        }
        Announcement {
            end: prepared.block.end,
            digest: prepared.decoding.digest,
            time_ms: worker::now_ms(),
            unlimited: prepared.unlimited,
            first_ms: prepared.first_ms,
        }
    }

    /// Sends the rows that `ClickHouse` refused for good to the dead letters. Answers whether the rest is written.
    async fn refuse(&self, prepared: &mut Prepared, written: Written) -> bool {
        let (refused, acknowledged) = match written {
            Written::Acknowledged { refused, .. } => (refused, true),
            Written::Stale { refused } => (refused, false),
        };
        for event in refused {
            prepared.outcomes[event] = Outcome::Refused;
        }
        if acknowledged {
            self.reject_refused(prepared).await;
        }
        acknowledged
    }

    /// This partition, as one that may have to wait.
    fn waiter(&self) -> Waiter<'_> {
        self.worker.health.waiter(Some(self.number))
    }

    fn origin(&self, offset: i64) -> Origin {
        let kafka = &self.worker.config.kafka;
        Origin {
            topic: kafka.topic.clone(),
            incarnation: kafka.incarnation,
            partition: self.number,
            offset,
        }
    }
}

impl Prepared {
    /// Counts each record under its outcome, once the block is settled.
    fn count(&self) {
        let of = |outcome| self.outcomes.iter().filter(|o| **o == outcome).count() as u64;
        let rejected = &self.decoding.events.rejected;
        let events = &metrics().events;
        events
            .of(telemetry::Outcome::Written)
            .increment(of(Outcome::Pass));
        events
            .of(telemetry::Outcome::Duplicate)
            .increment(of(Outcome::Duplicate));
        events
            .of(telemetry::Outcome::Limited)
            .increment(of(Outcome::Over));
        events
            .of(telemetry::Outcome::DeadLetter)
            .increment(rejected.len() as u64 + of(Outcome::Refused));
        for rejected in rejected {
            telemetry::dead_letters(rejected.reason.as_str()).increment(1);
        }
        telemetry::dead_letters(Reason::Refused.as_str()).increment(of(Outcome::Refused));
        let kind = match self.kind {
            Kind::Fresh => BlockKind::Fresh,
            Kind::Recovery => BlockKind::Recovery,
        };
        metrics().blocks.of(kind).increment(1);
    }
}

/// Runs a stage and records how long it took.
async fn timed<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let done = work.await;
    metrics().stage_duration.of(stage).record(start.elapsed());
    done
}
