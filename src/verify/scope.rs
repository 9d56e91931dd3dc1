//! What is settled: of each partition a range below the group's offset; and how far the rejects reach.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::questions::{Committed, Questions, RETRY};
use super::range::{BadRange, Bound, Options, Range};
use super::records::{Reader, Span};
use crate::kafka::metadata::Metadata;
use crate::kafka::position;

/// The ranges that are read.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// What is settled.
    pub(super) records: Vec<Span>,
    /// From the group's offsets to the ends, of all partitions: an original may be anywhere.
    pub(super) ahead: Vec<Span>,
    pub(super) overflow: Vec<Span>,
    pub(super) dead_letters: Vec<Span>,
    /// Offsets of the range that the group has not come to.
    pub(super) behind: u64,
    pub(super) notes: Vec<String>,
}

/// A partition's part of the range, as far as the topic goes.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    partition: i32,
    /// Whether it is one of those that the user has chosen.
    chosen: bool,
    from: Option<i64>,
    /// Where the range ends; that of the topic at the beginning, where it ends nowhere.
    to: Option<i64>,
    /// Records below it are waited for.
    goal: i64,
}

impl Scope {
    /// Chooses the partitions, and waits for the group if that is wished. `begin` is called before the group's offsets
    /// are asked for the last time: what it asks is older than they are.
    pub(super) fn ask(
        reader: &Reader<'_>,
        questions: &Questions<'_>,
        options: &Options,
        begin: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let wanted = wanted(questions, &options.range)?;
        if let Some(patience) = options.wait {
            wait(reader, questions, &wanted, patience)?;
        }
        begin()?;
        let mut scope = Self::default();
        // The group's offsets come first: the destinations have everything below them by then.
        let committed = committed(questions, &wanted)?;
        let mut open = Vec::new();
        for (one, (_, committed)) in wanted.iter().zip(committed) {
            let committed = committed.as_ref().map(|(offset, text)| (*offset, text.as_str()));
            open.extend(scope.partition(questions, one, committed)?);
        }
        let open = reader.with_records(&questions.kafka.topic, &open)?;
        scope.behind = super::records::total(&open);
        scope.overflow = scope.rejects(questions, &questions.kafka.overflow_topic)?;
        scope.dead_letters = scope.rejects(questions, &questions.kafka.dead_letter_topic)?;
        Ok(scope)
    }

    /// Answers the offsets of the range that the group has not come to.
    fn partition(
        &mut self,
        questions: &Questions<'_>,
        wanted: &Wanted,
        committed: Option<(i64, &str)>,
    ) -> anyhow::Result<Option<Span>> {
        let kafka = questions.kafka;
        let partition = wanted.partition;
        let span = |start: i64, end: i64| Span {
            partition,
            start,
            end: end.max(start),
        };
        let (low, high) = questions.watermarks(&kafka.topic, partition)?;
        let start = position::start(committed, low, high, kafka.incarnation)
            .with_context(|| format!("partition {partition} of {}", kafka.topic))?;
        let settled = start.committed.max(low);
        self.ahead.push(span(settled, high));
        if !wanted.chosen {
            return Ok(None);
        }
        if committed.is_none() && low < high {
            self.notes.push(format!(
                "partition {partition}: the group has committed no offset"
            ));
        }
        if start.missing > 0 {
            self.notes.push(format!(
                "partition {partition}: retention has removed {} offsets before the group came to them",
                start.missing
            ));
        }
        if let Some(from) = wanted.from.filter(|from| *from < low) {
            self.notes.push(format!(
                "partition {partition} begins at {low}: retention has removed {} offsets of the range",
                low - from
            ));
        }
        let first = wanted.from.unwrap_or(low).max(low);
        self.records
            .push(span(first, wanted.to.unwrap_or(settled).min(settled)));
        Ok(Some(span(settled.max(first), wanted.goal.min(high))))
    }

    fn rejects(&mut self, questions: &Questions<'_>, topic: &str) -> anyhow::Result<Vec<Span>> {
        let Some(partitions) = questions.partitions(topic)? else {
            self.notes
                .push(format!("the topic {topic} does not exist: taken for empty"));
            return Ok(Vec::new());
        };
        let mut spans = Vec::with_capacity(partitions.len());
        let mut removed = 0;
        for partition in partitions {
            let (start, end) = questions.watermarks(topic, partition)?;
            removed += start;
            spans.push(Span {
                partition,
                start,
                end,
            });
        }
        if removed > 0 {
            self.notes.push(format!(
                "retention has removed {removed} records of {topic}: those that they were copies of count as missing"
            ));
        }
        Ok(spans)
    }
}

/// The partitions, and where the range begins and ends in each.
fn wanted(questions: &Questions<'_>, range: &Range) -> anyhow::Result<Vec<Wanted>> {
    let topic = &questions.kafka.topic;
    let Some(all) = questions.partitions(topic)? else {
        bail!("the topic {topic:?} (kafka.topic) does not exist");
    };
    if let Some(&partition) = range.partitions.iter().find(|chosen| !all.contains(chosen)) {
        let topic = topic.clone();
        return Err(BadRange::NoPartition { topic, partition }.into());
    }
    all.into_iter()
        .map(|partition| {
            let (_, high) = questions.watermarks(topic, partition)?;
            let offset = |bound: Option<Bound>| -> anyhow::Result<Option<i64>> {
                Ok(match bound {
                    None => None,
                    Some(Bound::Offset(offset)) => Some(offset),
                    Some(Bound::Time(ms)) => Some(questions.at_time(partition, ms)?.unwrap_or(high)),
                })
            };
            let to = offset(range.to)?;
            Ok(Wanted {
                partition,
                chosen: range.partitions.is_empty() || range.partitions.contains(&partition),
                from: offset(range.from)?,
                to,
                goal: to.unwrap_or(high).min(high),
            })
        })
        .collect()
}

fn committed(questions: &Questions<'_>, wanted: &[Wanted]) -> anyhow::Result<Committed> {
    let partitions: Vec<i32> = wanted.iter().map(|one| one.partition).collect();
    questions.committed(&partitions)
}

/// Waits until the group has come to what the topic held at the beginning. If it does not, the ledger says so.
fn wait(
    reader: &Reader<'_>,
    questions: &Questions<'_>,
    wanted: &[Wanted],
    patience: Duration,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let committed = committed(questions, wanted)?;
        let open: Vec<Span> = wanted
            .iter()
            .zip(committed)
            .filter(|(one, _)| one.chosen)
            .map(|(one, (partition, committed))| Span {
                partition,
                start: come_to(committed, questions.kafka.incarnation).max(one.from.unwrap_or(0)),
                end: one.goal,
            })
            .filter(|span| span.start < span.end)
            .collect();
        if reader.with_records(&questions.kafka.topic, &open)?.is_empty() || begun.elapsed() >= patience {
            return Ok(());
        }
        // Nobody tells of a commit.
        std::thread::sleep(RETRY.min(patience.saturating_sub(begun.elapsed())));
    }
}

/// How far the group has come in this incarnation of the topic.
fn come_to(committed: Option<(i64, String)>, incarnation: u32) -> i64 {
    let Some((offset, text)) = committed else {
        return 0;
    };
    // What cannot be read is told by the one who asks for the last time.
    match Metadata::decode(&text) {
        Ok(Some(found)) if found.incarnation != incarnation => 0,
        _ => offset,
    }
}
