//! Commits, on a thread of their own: a frozen broker holds a commit far longer than a poll may take.
//!
//! Owns the fence: a commit is sent only for a partition that is owned in the epoch in which its block was
//! read, and a partition changes hands only when no commit of it is under way (or has been for too long: then the
//! consumer is made anew). Never decides what is committed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use crate::faults;

/// How long reading the committed offsets back may take.
const READ_BACK: Duration = Duration::from_secs(10);

/// Which partitions are owned, each in which epoch, and whether a commit is under way.
#[derive(Debug, Default)]
pub struct Ownership {
    state: Mutex<State>,
    quiet: Condvar,
}

#[derive(Debug, Default)]
struct State {
    owned: HashMap<i32, u64>,
    committing: bool,
}

impl Ownership {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `partition` is owned in `epoch`.
    pub fn grant(&self, partition: i32, epoch: u64) {
        self.lock().owned.insert(partition, epoch);
    }

    /// From now on no commit is sent for these partitions. One under way is waited for, up to `patience`; answers
    /// whether none is.
    pub fn withdraw(&self, partitions: impl IntoIterator<Item = i32>, patience: Duration) -> bool {
        let mut state = self.lock();
        for partition in partitions {
            state.owned.remove(&partition);
        }
        let waited = self
            .quiet
            .wait_timeout_while(state, patience, |state| state.committing);
        !waited.unwrap_or_else(PoisonError::into_inner).0.committing
    }

    fn owns(&self, partition: i32, epoch: u64) -> bool {
        self.lock().owned.get(&partition) == Some(&epoch)
    }

    /// Parts the requests into those that may be sent and the others. If there are any, a commit is under way from
    /// the same moment on.
    fn begin(&self, batch: Vec<Request>) -> (Vec<Request>, Vec<Request>) {
        let mut state = self.lock();
        let (ours, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(|r| {
            state.owned.get(&r.partition) == Some(&r.epoch) || faults::without("without-epoch")
        });
        state.committing = !ours.is_empty();
        (ours, others)
    }

    fn end(&self) {
        self.lock().committing = false;
        self.quiet.notify_all();
    }
}

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The partition is not, or no longer, this worker's: drop it.
    #[error("the partition is no longer owned in the epoch in which the block was read")]
    Refused,
    /// It may be tried again.
    #[error("the commit failed")]
    Failed(#[source] KafkaError),
}

#[derive(Debug)]
struct Request {
    partition: i32,
    epoch: u64,
    offset: i64,
    metadata: String,
    reply: oneshot::Sender<Result<(), CommitError>>,
}

#[derive(Debug)]
enum Message {
    Commit(Request),
    Read {
        partition: i32,
        epoch: u64,
        reply: oneshot::Sender<Result<i64, CommitError>>,
    },
    Stop,
}

/// Hands commits to the thread that sends them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Committer(Sender<Message>);

impl Committer {
    /// Commits `offset` with `metadata`, together with whatever else waits to be committed.
    pub async fn commit(
        &self,
        partition: i32,
        epoch: u64,
        offset: i64,
        metadata: String,
    ) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Message::Commit(Request {
                partition,
                epoch,
                offset,
                metadata,
                reply,
            }))
            .map_err(|_| CommitError::Refused)?;
        answer.await.unwrap_or(Err(CommitError::Refused))
    }

    /// The group's committed offset of an owned partition; -1 if there is none.
    pub async fn committed(&self, partition: i32, epoch: u64) -> Result<i64, CommitError> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Message::Read {
                partition,
                epoch,
                reply,
            })
            .map_err(|_| CommitError::Refused)?;
        answer.await.unwrap_or(Err(CommitError::Refused))
    }

    /// Ends the thread after the commits that wait.
    pub fn stop(&self) {
        // A thread that has already ended has nothing left to stop.
        self.0.send(Message::Stop).unwrap_or_default();
    }

    /// Two ends of a new committer: the one to hand out, and the one that [`spawn`] serves.
    pub fn new() -> (Self, Requests) {
        let (sender, receiver) = channel();
        (Self(sender), Requests(receiver))
    }
}

/// What waits to be committed.
#[derive(Debug)]
pub struct Requests(Receiver<Message>);

/// Starts the thread that commits for `consumer`.
pub fn spawn<C: ConsumerContext + 'static>(
    requests: Requests,
    consumer: Arc<BaseConsumer<C>>,
    topic: String,
    ownership: Arc<Ownership>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("sluice-commit".to_owned())
        .spawn(move || {
            let mut more = true;
            while more {
                let Ok(first) = requests.0.recv() else { return };
                let mut batch = Vec::new();
                for message in std::iter::once(first).chain(requests.0.try_iter()) {
                    match message {
                        Message::Commit(request) => batch.push(request),
                        Message::Read {
                            partition,
                            epoch,
                            reply,
                        } => {
                            let answer = if ownership.owns(partition, epoch) {
                                read(&consumer, &topic, partition)
                            } else {
                                Err(CommitError::Refused)
                            };
                            // Nobody listens any more where the partition was dropped meanwhile.
                            drop(reply.send(answer));
                        }
                        Message::Stop => more = false,
                    }
                }
                commit(&consumer, &topic, &ownership, batch);
            }
        })
}

fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    ownership: &Ownership,
    batch: Vec<Request>,
) {
    let (ours, others) = ownership.begin(batch);
    for request in others {
        reply(request, Err(CommitError::Refused));
    }
    if ours.is_empty() {
        return;
    }
    let outcome = if faults::happens("commit-out-of-turn") {
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::IllegalGeneration))
    } else {
        list(topic, &ours).and_then(|tpl| consumer.commit(&tpl, CommitMode::Sync))
    };
    // After an error some partitions may be committed all the same, and the list does not say which.
    let landed = outcome.as_ref().err().map(|_| read_back(consumer, topic, &ours));
    ownership.end();
    if let Err(error) = outcome.as_ref()
        && is_refusal(error)
    {
        tracing::warn!(error = %error, partitions = ours.len(), "the broker refuses a commit");
    }
    for (i, request) in ours.into_iter().enumerate() {
        let answer = match &outcome {
            Ok(()) => Ok(()),
            Err(_) if landed.as_ref().is_some_and(|landed| landed[i]) => Ok(()),
            Err(error) if is_refusal(error) => Err(CommitError::Refused),
            Err(error) => Err(CommitError::Failed(error.clone())),
        };
        reply(request, answer);
    }
}

fn reply(request: Request, answer: Result<(), CommitError>) {
    // Nobody listens any more where the partition was dropped meanwhile.
    drop(request.reply.send(answer));
}

fn list(topic: &str, requests: &[Request]) -> Result<TopicPartitionList, KafkaError> {
    let mut tpl = TopicPartitionList::with_capacity(requests.len());
    for request in requests {
        let mut element = tpl.add_partition(topic, request.partition);
        element.set_offset(Offset::Offset(request.offset))?;
        element.set_metadata(&request.metadata);
    }
    Ok(tpl)
}

fn read_back<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, requests: &[Request]) -> Vec<bool> {
    let nothing = vec![false; requests.len()];
    let mut tpl = TopicPartitionList::with_capacity(requests.len());
    for request in requests {
        tpl.add_partition(topic, request.partition);
    }
    let Ok(committed) = consumer.committed_offsets(tpl, READ_BACK) else {
        return nothing;
    };
    requests
        .iter()
        .map(|request| {
            committed
                .find_partition(topic, request.partition)
                .is_some_and(|element| {
                    element.offset() == Offset::Offset(request.offset)
                        && catch_unwind(AssertUnwindSafe(|| element.metadata() == request.metadata))
                            .unwrap_or(false)
                })
        })
        .collect()
}

fn read<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<i64, CommitError> {
    let mut tpl = TopicPartitionList::new();
    tpl.add_partition(topic, partition);
    let committed = consumer
        .committed_offsets(tpl, READ_BACK)
        .map_err(CommitError::Failed)?;
    let Some(element) = committed.find_partition(topic, partition) else {
        return Ok(-1);
    };
    // No answer is not the answer that nothing is committed: that would be taken for a rewind.
    element.error().map_err(CommitError::Failed)?;
    Ok(element.offset().to_raw().unwrap_or(-1).max(-1))
}

/// Whether the broker says that this member has no business here any more.
///
/// `IllegalGeneration` does not say so: whoever was thrown out is an unknown member. The broker knows a rebalance's new
/// generation a moment before the client does, and refuses commits of partitions that stay where they are; the client
/// keeps them then, and tells nobody. So such a commit is tried again, as during the rebalance itself. No zombie gets
/// further by that: each attempt passes `begin` anew, like a first one at that moment, and what lets it through is that
/// the partition is owned in the epoch. A client that has lost its generation, or finds in the new one that a partition
/// is another's, says so by the callback, which withdraws the partition before the rebalance goes on (`rebalance`).
fn is_refusal(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::FencedMemberEpoch
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::AssignmentLost
                | RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::OffsetMetadataTooLarge
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_membership_is_a_refusal() {
        for (code, refused) in [
            (RDKafkaErrorCode::UnknownMemberId, true),
            (RDKafkaErrorCode::IllegalGeneration, false),
            (RDKafkaErrorCode::FencedMemberEpoch, true),
            (RDKafkaErrorCode::StaleMemberEpoch, false),
            (RDKafkaErrorCode::RebalanceInProgress, false),
            (RDKafkaErrorCode::RequestTimedOut, false),
            (RDKafkaErrorCode::CoordinatorLoadInProgress, false),
            (RDKafkaErrorCode::BrokerTransportFailure, false),
        ] {
            assert_eq!(is_refusal(&KafkaError::ConsumerCommit(code)), refused, "{code:?}");
        }
    }

    #[test]
    fn a_partition_is_owned_in_one_epoch() {
        let ownership = Ownership::default();
        ownership.grant(1, 7);
        ownership.grant(1, 8);
        assert!(ownership.owns(1, 8) && !ownership.owns(1, 7));
        assert!(ownership.withdraw([1], Duration::ZERO));
        assert!(!ownership.owns(1, 8));
    }

    fn request(partition: i32, epoch: u64) -> Request {
        Request {
            partition,
            epoch,
            offset: 0,
            metadata: String::new(),
            reply: oneshot::channel().0,
        }
    }

    #[test]
    fn a_commit_is_begun_only_for_what_is_owned_in_the_epoch_of_its_block() {
        let ownership = Ownership::default();
        ownership.grant(1, 8);
        ownership.grant(2, 8);
        let (ours, others) = ownership.begin(vec![request(1, 8), request(2, 7), request(3, 8)]);
        assert_eq!(ours.iter().map(|r| r.partition).collect::<Vec<_>>(), [1]);
        assert_eq!(others.iter().map(|r| r.partition).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_partition_is_withdrawn_once_the_commit_under_way_has_ended_or_patience_has() {
        let ownership = Ownership::default();
        ownership.grant(1, 8);
        let (ours, _) = ownership.begin(vec![request(1, 8)]);
        assert_eq!(ours.len(), 1);
        assert!(
            !ownership.withdraw([1], Duration::from_millis(5)),
            "it is still under way"
        );
        let (ours, others) = ownership.begin(Vec::new());
        assert!(ours.is_empty() && others.is_empty());
        std::thread::scope(|scope| {
            ownership.grant(1, 9);
            assert_eq!(ownership.begin(vec![request(1, 9)]).0.len(), 1);
            let withdrawn = scope.spawn(|| ownership.withdraw([1], Duration::from_mins(1)));
            ownership.end();
            assert!(withdrawn.join().unwrap());
        });
    }
}
