//! What the reader of a ledger should know beside the counts, in words.

use super::Ledger;

/// Offsets of the ranges that hold no record.
pub(super) fn gaps(count: u64) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "{count} offsets of the range hold no record (transactions, compaction, or retention meanwhile)"
        )
    })
}

/// Nothing was settled, and so nothing was found.
pub(super) fn nothing(ledger: &Ledger) -> Option<String> {
    (ledger.records == 0).then(|| "no record of the range is settled: there was nothing to judge".to_owned())
}

/// Duplicates whose originals lie ahead of the group.
pub(super) fn unsettled_duplicates(count: u64) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "{count} of the duplicates repeat records that the group has not come to: what becomes of those is not \
             known yet"
        )
    })
}

/// Events that came again when their claims had expired.
pub(super) fn late_repeats(count: u64, window_seconds: u64) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "{count} records repeat an event that was written {window_seconds} s or more before \
             (dedup.window_seconds): such are written again, by design"
        )
    })
}

/// Rows whose records compaction may have taken.
pub(super) fn compacted(count: u64) -> Option<String> {
    (count > 0).then(|| {
        format!("{count} rows are at offsets where the topic, which is compacted, has no record (any more)")
    })
}

/// Whether the topic is compacted could not be asked.
pub(super) fn policy_unknown(topic: &str, error: Option<String>) -> Option<String> {
    error.map(|error| format!("Kafka does not tell whether {topic} is compacted; stray rows count: {error}"))
}

/// Rejects that name offsets without a record.
pub(super) fn rejects_without_records(count: u64) -> Option<String> {
    (count > 0).then(|| format!("{count} rejects name offsets of the range that hold no record: not counted"))
}

/// Rows of other incarnations of the topic.
pub(super) fn incarnations(others: impl Iterator<Item = u32>) -> Option<String> {
    let others: Vec<String> = others.map(|other| other.to_string()).collect();
    (!others.is_empty()).then(|| {
        format!(
            "the table also has rows of incarnation {} of the topic: no part of this",
            others.join(", ")
        )
    })
}
