//! Where a partition starts, because of what is committed and of where the topic begins and ends; or why it does not.
//!
//! Pure. `start` asks Kafka for what is judged here.

use super::metadata::{Announcement, Metadata, Previous, UnknownVersion};

/// Where a partition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The offset of the first block, C.
    pub committed: i64,
    /// The offset to read from: C, or that of the record before it, to compare it.
    pub read_from: i64,
    /// The record before C, to be compared while it still exists.
    pub previous: Option<Previous>,
    /// The block that an earlier attempt announced.
    pub announced: Option<Announcement>,
    /// Records that retention took before they were read.
    pub missing: i64,
    /// Who says so.
    pub by: SetBy,
}

/// Who has set a committed offset. Only a worker says, in the metadata, what may be under way from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetBy {
    /// Nothing is committed: the group has not been here, or its offsets have expired.
    Nobody,
    /// An operator, or another program.
    Stranger,
    /// A worker.
    Worker,
}

/// Why a partition does not start, until an operator has looked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The group is ahead of the topic.
    #[error(
        "the committed offset {committed} is beyond the end {high} of the partition: was the topic made anew? \
         If so, raise kafka.incarnation (now {incarnation})"
    )]
    BeyondEnd {
        /// The committed offset, or the end of the block that was announced there.
        committed: i64,
        /// The partition's end.
        high: i64,
        /// The configured incarnation.
        incarnation: u32,
    },
    /// Another record stands where the last settled one was.
    #[error(
        "the record at offset {offset} is not the one that was settled there: was the topic made anew? If so, raise \
         kafka.incarnation (now {incarnation})"
    )]
    AnotherRecord {
        /// Where it stands.
        offset: i64,
        /// The configured incarnation.
        incarnation: u32,
    },
    /// The client gave a record where it had said that there is none.
    #[error(
        "a record came at offset {offset}, where the client had said that the partition ends: it may be passed over; \
         please report this"
    )]
    PassedOver {
        /// Where it stands.
        offset: i64,
    },
    /// A worker with a higher incarnation was here.
    #[error("kafka.incarnation is {configured}, but the group's offsets were committed under {found}")]
    OlderIncarnation {
        /// The configured incarnation.
        configured: u32,
        /// The one in the commit.
        found: u32,
    },
    /// Not ours to read.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

/// Decides where a partition starts, from its committed offset and metadata (`None`: nothing committed)
/// and its first and end offsets.
pub fn start(
    committed: Option<(i64, &str)>,
    low: i64,
    high: i64,
    incarnation: u32,
) -> Result<Start, Refusal> {
    let fresh = Start {
        committed: low,
        read_from: low,
        previous: None,
        announced: None,
        missing: 0,
        by: SetBy::Nobody,
    };
    let Some((committed, text)) = committed else {
        return Ok(fresh);
    };
    let metadata = Metadata::decode(text)?;
    if let Some(found) = metadata.map(|m| m.incarnation) {
        if found < incarnation {
            return Ok(fresh);
        }
        if found > incarnation {
            return Err(Refusal::OlderIncarnation {
                configured: incarnation,
                found,
            });
        }
    }
    let by = metadata.map_or(SetBy::Stranger, |_| SetBy::Worker);
    let metadata = metadata.unwrap_or_default();
    // Every record of an announced block was read once. Where the topic ends before it, it has lost some, and others
    // will come in their place: taken for the announced ones, they would be passed over.
    let known = metadata.announced.map_or(committed, |a| a.end.max(committed));
    if known > high {
        return Err(Refusal::BeyondEnd {
            committed: known,
            high,
            incarnation,
        });
    }
    let previous = metadata
        .previous
        .filter(|p| p.offset >= low && p.offset < committed);
    Ok(Start {
        committed,
        read_from: previous.map_or(committed.max(low), |p| p.offset),
        previous,
        announced: metadata.announced.filter(|a| a.end > committed),
        missing: (low - committed).max(0),
        by,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::metadata::tests::{ANNOUNCED, PREVIOUS};
    use super::*;

    #[test]
    fn a_partition_starts_where_its_commit_says() {
        let text = |previous, announced| {
            Metadata {
                incarnation: 1,
                previous,
                announced,
            }
            .encode()
        };
        let at = |committed, read_from| Start {
            committed,
            read_from,
            previous: None,
            announced: None,
            missing: 0,
            by: SetBy::Nobody,
        };
        assert_eq!(start(None, 7, 50, 1), Ok(at(7, 7)));
        assert_eq!(
            start(Some((42, "")), 0, 50, 1),
            Ok(Start {
                by: SetBy::Stranger,
                ..at(42, 42)
            })
        );
        assert_eq!(
            start(Some((42, &text(Some(PREVIOUS), Some(ANNOUNCED)))), 0, 100, 1),
            Ok(Start {
                previous: Some(PREVIOUS),
                announced: Some(ANNOUNCED),
                by: SetBy::Worker,
                ..at(42, 41)
            })
        );
        assert_eq!(
            start(Some((42, &text(Some(PREVIOUS), None))), 60, 100, 1),
            Ok(Start {
                missing: 18,
                by: SetBy::Worker,
                ..at(42, 60)
            }),
            "retention took the record before and more"
        );
        assert_eq!(
            start(Some((42, &text(None, None))), 3, 30, 2),
            Ok(at(3, 3)),
            "a raised incarnation starts over"
        );
        assert!(matches!(
            start(Some((42, &text(None, None))), 0, 41, 1),
            Err(Refusal::BeyondEnd { .. })
        ));
        assert!(
            matches!(
                start(Some((42, &text(None, Some(ANNOUNCED)))), 0, ANNOUNCED.end - 1, 1),
                Err(Refusal::BeyondEnd { .. })
            ),
            "the topic has lost records of the announced block"
        );
        assert!(matches!(
            start(Some((42, &text(None, None))), 0, 50, 0),
            Err(Refusal::OlderIncarnation { .. })
        ));
        assert!(matches!(
            start(Some((42, "v9;")), 0, 50, 0),
            Err(Refusal::Version(_))
        ));
    }

    proptest! {
        #[test]
        fn whatever_was_committed_a_start_is_within_the_partition(
            previous: Option<(i64, u64)>,
            end: Option<i64>,
            foreign in proptest::option::of(".{0,40}"),
            committed in 0..i64::MAX, low in 0..i64::MAX, high in 0..i64::MAX,
            before in 0_u32..3, now in 0_u32..3,
        ) {
            let ours = || Metadata {
                incarnation: before,
                previous: previous.map(|(offset, hash)| Previous { offset, hash }),
                announced: end.map(|end| Announcement { end, ..ANNOUNCED }),
            };
            let text = foreign.unwrap_or_else(|| ours().encode());
            if let Ok(start) = start(Some((committed, &text)), low, high, now) {
                prop_assert!(start.read_from >= low && start.missing >= 0, "{:?}", start);
                prop_assert!(start.announced.is_none_or(|a| a.end > start.committed), "{:?}", start);
            }
        }
    }
}
