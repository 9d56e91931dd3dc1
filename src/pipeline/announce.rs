//! Announce and advance: the two commits of the protocol. An announcement commits the block's first offset with
//! metadata that names its end, digest and time; the next block's announcement carries this one's advance.

use super::block::Block;
use super::retry::until_done;
use super::{Dropped, Partition};
use crate::faults;
use crate::kafka::committer::CommitError;
use crate::kafka::metadata::{Announcement, Metadata, Previous};
use crate::telemetry::{Service, metrics};

impl Partition {
    /// Announces `block`; afterwards its start, end and digest are fixed for whoever comes next.
    pub(super) async fn announce(&self, block: &Block, announcement: Announcement) -> Result<(), Dropped> {
        faults::moment("before-announce").await;
        let announced = Some(announcement).filter(|_| !faults::without("without-announcement"));
        self.commit(block.start, block.before, announced).await?;
        faults::moment("after-announce").await;
        Ok(())
    }

    /// Commits the frontier, where no announcement did.
    pub(super) async fn advance(&self) -> Result<(), Dropped> {
        match self.frontier.behind() {
            Some((offset, previous)) => self.commit(offset, previous, None).await,
            None => Ok(()),
        }
    }

    /// Whether something is settled that Kafka does not know of.
    pub(super) fn is_behind(&self) -> bool {
        self.frontier.behind().is_some()
    }

    async fn commit(
        &self,
        offset: i64,
        previous: Option<Previous>,
        announced: Option<Announcement>,
    ) -> Result<(), Dropped> {
        let incarnation = self.worker.config.kafka.incarnation;
        let metadata = Metadata {
            incarnation,
            previous,
            announced,
        }
        .encode();
        self.frontier.sent(offset);
        let committed = until_done(self.waiter(), Service::Kafka, "commit", async || {
            match self
                .committer
                .commit(self.number, self.epoch, offset, metadata.clone())
                .await
            {
                Ok(()) => Ok(true),
                Err(CommitError::Refused) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await;
        if !committed {
            metrics().commits_refused.increment(1);
            return Err(Dropped::NotOwned);
        }
        metrics().commits.increment(1);
        self.frontier.committed(offset);
        Ok(())
    }
}
