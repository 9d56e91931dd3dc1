//! Rows and rejects that belong to no record of the topic.
//!
//! Retention takes records from the front, which is out of range, and compaction takes them anywhere. Nothing else
//! does: what is left are rows that somebody else has written, or that have outlived their topic.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use anyhow::Context as _;

use super::ledger::Position;
use super::{Auditor, notes};

impl Auditor<'_> {
    /// Counts rows at offsets where the topic has no record, and notes what is like them but no offence.
    pub(super) fn strays(&mut self) -> anyhow::Result<()> {
        self.watch.step("rows without records", None);
        self.within_the_ranges()?;
        self.beyond_the_ends()?;
        let ours = self.config.kafka.incarnation;
        let others: BTreeSet<u32> = self.highest.keys().map(|(incarnation, _)| *incarnation).collect();
        let others = others.into_iter().filter(|incarnation| *incarnation != ours);
        self.ledger.notes.extend(notes::incarnations(others));
        Ok(())
    }

    fn within_the_ranges(&mut self) -> anyhow::Result<()> {
        let topic = &self.config.kafka.topic;
        let (questions, runtime, ledger) = (&self.questions, self.runtime, &mut self.ledger);
        // Asked only if it matters: it takes a right of its own.
        let compacted = LazyCell::new(|| questions.is_compacted(runtime));
        let (mut rows_of_compacted, mut rejects) = (0, 0);
        for span in &self.scope.records {
            let Some(states) = self.states.get(&span.partition) else {
                continue;
            };
            if states.never_judged(span.start..span.end).next().is_none() {
                continue;
            }
            // What retention has taken since the range was chosen is gone like all before it.
            let (low, _) = questions.watermarks(topic, span.partition)?;
            for (offset, state) in states.never_judged(span.start.max(low)..span.end) {
                if state.rows == 0 {
                    rejects += 1;
                } else if matches!(*compacted, Ok(true)) {
                    rows_of_compacted += 1;
                } else {
                    ledger.stray(Position {
                        partition: span.partition,
                        offset,
                    });
                }
            }
        }
        let unknown = (ledger.stray_count > 0)
            .then(|| compacted.as_ref().err().map(ToString::to_string))
            .flatten();
        ledger.notes.extend(notes::compacted(rows_of_compacted));
        ledger.notes.extend(notes::policy_unknown(topic, unknown));
        ledger.notes.extend(notes::rejects_without_records(rejects));
        Ok(())
    }

    /// Rows beyond the ends, and of partitions that the topic does not have.
    fn beyond_the_ends(&mut self) -> anyhow::Result<()> {
        let range = &self.options.range;
        if range.to.is_some() {
            return Ok(());
        }
        for ((incarnation, number), highest) in &self.highest {
            // A number beyond what Kafka has may stand in a row that somebody else has written.
            let partition = i32::try_from(*number).unwrap_or(i32::MAX);
            if !(range.partitions.is_empty() || range.partitions.contains(&partition)) {
                continue;
            }
            let end = match self.scope.ahead.iter().find(|span| span.partition == partition) {
                Some(span) => span.end as u64,
                None if range.is_all() => 0,
                None => continue,
            };
            if *incarnation != self.config.kafka.incarnation || *highest < end {
                continue;
            }
            let (table, ledger) = (&self.table, &mut self.ledger);
            self.runtime
                .block_on(table.beyond(*number, end, |offset| {
                    ledger.stray(Position {
                        partition,
                        offset: i64::try_from(offset).unwrap_or(i64::MAX),
                    });
                }))
                .context("the table could not be read")?;
        }
        Ok(())
    }
}
