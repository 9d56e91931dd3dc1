//! Complete: rows whose token `ClickHouse` remembers without having them.
//!
//! The server notes a token before the part that it stands for is there. Killed in between, it comes back with the
//! token and without the rows, and skips every retry. So an acknowledgement that followed an attempt with an unknown
//! end is looked after: a table partition without a single row of the block is written again under a token of its
//! own. Under the first one nothing can land there any more, so nothing is there twice.

use std::collections::HashSet;

use super::{Outcome, Partition, Prepared};
use crate::clickhouse::schema::table_partition;
use crate::faults;
use crate::kafka::metadata::Announcement;
use crate::telemetry::metrics;

/// Tokens of one block, each lost with its rows, after which the table is taken at its word: something else (a time to
/// live, an operator) takes the rows away.
const MOST_TOKENS: u32 = 4;

impl Partition {
    /// Asks which offsets of an acknowledged block have rows, and writes what was acknowledged and is nowhere. Answers
    /// the offsets that have rows then; nothing if the announcement grew too old meanwhile.
    pub(super) async fn complete(
        &self,
        prepared: &mut Prepared,
        announcement: Announcement,
    ) -> Option<HashSet<i64>> {
        let mut present = self.present(prepared).await;
        if self.worker.table.replicated {
            // There a token stands for its part; and a replica that is behind must not pass for one that has lost rows.
            return Some(present);
        }
        for token in 1..=MOST_TOKENS {
            let lost = lost(prepared, &present);
            if lost.is_empty() || faults::without("without-completion") {
                break;
            }
            metrics().lost_rows.increment(lost.len() as u64);
            tracing::warn!(
                partition = self.number,
                start = prepared.block.start,
                rows = lost.len(),
                "ClickHouse has acknowledged rows that it does not have (was it killed?); writing them again"
            );
            let others = prepared.decoding.events.events.iter().map(|event| event.offset);
            let others: HashSet<i64> = others.filter(|offset| !lost.contains(offset)).collect();
            let written = self.write(prepared, announcement, &others, token).await;
            if !self.refuse(prepared, written).await {
                return None;
            }
            present = self.present(prepared).await;
        }
        Some(present)
    }
}

/// Offsets that passed, and have no row, as nothing of the block has in their table partition. An attempt that judged
/// otherwise, and landed, would have left some there.
fn lost(prepared: &Prepared, present: &HashSet<i64>) -> HashSet<i64> {
    let events = &prepared.decoding.events.events;
    let inhabited: HashSet<i32> = events
        .iter()
        .filter(|event| present.contains(&event.offset))
        .map(|event| table_partition(event.timestamp))
        .collect();
    events
        .iter()
        .zip(&prepared.outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::Pass)
        .map(|(event, _)| event)
        .filter(|event| !inhabited.contains(&table_partition(event.timestamp)))
        .map(|event| event.offset)
        .collect()
}
