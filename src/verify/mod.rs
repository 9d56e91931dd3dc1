//! The ledger: what became of every record, asked from the destinations themselves.
//!
//! Owns the judgement. Reads only: it joins no group, commits nothing, writes nothing but a temporary file. Each pass
//! is a stream:
//! 1. the table and the topics of rejects say at which offsets they have something (`states`: four bits an offset);
//! 2. the topic says which offsets are records; those without a state are decoded, and what they are deduplicated by
//!    (`key`) is looked up in the table, in batches (`claims`);
//! 3. what the table does not have is looked for in the topics of rejects, then among the records themselves: an
//!    original may be one that the group has not come to. A replay is not settled by what it replays (`replays`);
//! 4. the table's rows are sorted by event, on disk: none may have rows of two records (`repeated`).
//!
//! What is asked first may only grow meanwhile: the group's offsets come before the destinations, which have
//! everything below them. Memory: half a byte an offset, and some tens of megabytes whatever became of the records.

mod claims;
mod key;
mod ledger;
mod notes;
mod pace;
mod questions;
mod range;
mod records;
mod rejects;
mod repeated;
mod replays;
mod scope;
mod sorter;
mod states;
mod strays;
mod table;

use std::collections::HashMap;

use anyhow::Context as _;
use tokio::runtime::Handle;

use self::claims::Claims;
use self::key::KeyReader;
use self::pace::Pace;
use self::questions::Questions;
use self::records::{More, Reader};
use self::rejects::Passed;
use self::replays::Place;
use self::scope::Scope;
use self::states::States;
use self::table::{Highest, Table};
use crate::config::Config;
use crate::event::{Origin, Record};

pub use self::ledger::{Ledger, Offenders, Position};
pub use self::range::{BadRange, Bound, Options, Range};
pub use self::records::Span;

const TEMPORARY: &str = "the temporary file failed (TMPDIR says where it is)";

/// Is told how far it is.
pub trait Watch {
    /// A step begins, of so many parts where that is known.
    fn step(&mut self, name: &'static str, total: Option<u64>);
    /// So many of them are done.
    fn done(&mut self, parts: u64);
}

/// Settles every record in the range. Blocks; the runtime's other threads speak with the table.
///
/// # Errors
/// A [`BadRange`], or what a service or the temporary file failed with.
pub fn verify(
    config: &Config,
    options: &Options,
    runtime: &Handle,
    watch: &mut dyn Watch,
) -> anyhow::Result<Ledger> {
    options.range.check()?;
    let mut auditor = Auditor::new(config, options, runtime, watch)?;
    auditor.rows()?;
    auditor.rejects()?;
    auditor.records()?;
    auditor.rejected_keys()?;
    auditor.originals()?;
    auditor.strays()?;
    auditor.repeated()?;
    auditor.finish()
}

struct Auditor<'a> {
    config: &'a Config,
    options: &'a Options,
    runtime: &'a Handle,
    watch: &'a mut dyn Watch,
    reader: Reader<'a>,
    questions: Questions<'a>,
    table: Table<'a>,
    /// What the table had when the topic's ends were not asked yet.
    highest: Highest,
    scope: Scope,
    /// When the first and the last of the rows were written (ms since 1970).
    written: Option<(i64, i64)>,
    states: HashMap<i32, States>,
    claims: Claims,
    ledger: Ledger,
}

impl<'a> Auditor<'a> {
    fn new(
        config: &'a Config,
        options: &'a Options,
        runtime: &'a Handle,
        watch: &'a mut dyn Watch,
    ) -> anyhow::Result<Self> {
        let reader = Reader::new(&config.kafka, Pace::new(options.max_per_second));
        let questions = Questions {
            kafka: &config.kafka,
            consumer: reader.consumer()?,
        };
        let table = Table::new(config, options.max_per_second);
        watch.step("offsets", None);
        let mut highest = Highest::new();
        let scope = Scope::ask(&reader, &questions, options, || {
            highest = runtime
                .block_on(table.highest())
                .context("the table could not be read")?;
            Ok(())
        })?;
        let ledger = Ledger {
            behind: scope.behind,
            ranges: scope.records.clone(),
            notes: scope.notes.clone(),
            ..Ledger::default()
        };
        let states = scope
            .records
            .iter()
            .map(|span| (span.partition, States::new(span.start, span.end)))
            .collect();
        Ok(Self {
            config,
            options,
            runtime,
            watch,
            reader,
            questions,
            table,
            highest,
            scope,
            written: None,
            states,
            claims: Claims::default(),
            ledger,
        })
    }

    /// Which offsets have rows, and how many; and when they were written.
    fn rows(&mut self) -> anyhow::Result<()> {
        self.watch.step("rows", Some(records::total(&self.scope.records)));
        let mut done = 0;
        let (states, written, watch) = (&mut self.states, &mut self.written, &mut self.watch);
        self.runtime
            .block_on(
                self.table
                    .offsets(&self.scope.records, |partition, offset, time_ms| {
                        let (first, last) = written.unwrap_or((time_ms, time_ms));
                        *written = Some((first.min(time_ms), last.max(time_ms)));
                        if let Some(states) = states.get_mut(&partition) {
                            states.add_row(offset);
                        }
                        done += 1;
                        watch.done(done);
                    }),
            )
            .context("the table could not be read")
    }

    /// Which offsets have an overflow copy or a dead letter. A copy that was sent twice is the same one.
    fn rejects(&mut self) -> anyhow::Result<()> {
        let kafka = &self.config.kafka;
        let topics = [
            (&kafka.overflow_topic, &self.scope.overflow, false),
            (&kafka.dead_letter_topic, &self.scope.dead_letters, true),
        ];
        for (topic, spans, dead) in topics {
            let step = if dead { "dead letters" } else { "overflow" };
            self.watch.step(step, Some(records::total(spans)));
            let (states, ledger, watch) = (&mut self.states, &mut self.ledger, &mut self.watch);
            let mut passed = Passed::default();
            self.reader
                .each(topic, spans, &mut |done| watch.done(done), |record, _| {
                    let Some((partition, offset)) = passed.origin(record, kafka) else {
                        return Ok(More::Wanted);
                    };
                    let Some(states) = states.get_mut(&partition) else {
                        return Ok(More::Wanted);
                    };
                    if !dead {
                        states.mark_overflow(offset);
                    } else if states.mark_dead(offset) {
                        let reason = rejects::reason(record).to_owned();
                        *ledger.reasons.entry(reason).or_default() += 1;
                    }
                    Ok(More::Wanted)
                })?;
            self.ledger.notes.extend(passed.notes(topic));
        }
        Ok(())
    }

    /// Judges every record of the range; those that no destination names wait for the look-up of their keys.
    fn records(&mut self) -> anyhow::Result<()> {
        let all = records::total(&self.scope.records);
        self.watch.step("records", Some(all));
        let (states, claims, ledger) = (&mut self.states, &mut self.claims, &mut self.ledger);
        let (table, runtime, watch) = (&self.table, self.runtime, &mut self.watch);
        let kafka = &self.config.kafka;
        let mut keys = KeyReader::new(self.config, &kafka.topic);
        let settle = |claims: &mut Claims, ledger: &mut Ledger| {
            runtime
                .block_on(claims.settle(table, ledger))
                .context("ids could not be looked up in the table")
        };
        self.reader.each(
            &kafka.topic,
            &self.scope.records,
            &mut |done| watch.done(done),
            |record, partition| {
                let at = Position {
                    partition,
                    offset: record.offset,
                };
                let state = states.get_mut(&partition).map(|states| states.judge(at.offset));
                let state = state.unwrap_or_default();
                let is_settled = ledger.judge(at, state);
                // Of a reject only what it replays matters, to a replay of its own.
                if state.rows > 0 || is_settled && Origin::of(record.headers).is_none() {
                    return Ok(More::Wanted);
                }
                match keys.read(record, partition) {
                    Some(event) => {
                        if let Some(of) = event.origin.and_then(|origin| replays::place(origin, kafka)) {
                            claims.replay(event.key, at, &of).context(TEMPORARY)?;
                        }
                        if !is_settled {
                            claims.push(event.key, event.time_ms, at);
                        }
                    }
                    None if is_settled => {}
                    // No event, and yet no dead letter.
                    None => ledger.missing(at),
                }
                if claims.is_full() {
                    settle(claims, ledger)?;
                }
                Ok(More::Wanted)
            },
        )?;
        settle(claims, ledger)?;
        self.ledger.notes.extend(notes::gaps(all - self.ledger.records));
        Ok(())
    }

    /// Looks for the keys that the table does not have in the topics of rejects.
    fn rejected_keys(&mut self) -> anyhow::Result<()> {
        let kafka = &self.config.kafka;
        let topics = [
            (&kafka.overflow_topic, self.scope.overflow.clone(), false),
            (&kafka.dead_letter_topic, self.scope.dead_letters.clone(), true),
        ];
        for (topic, spans, dead) in topics {
            let step = if dead { "dead-letter ids" } else { "overflow ids" };
            self.look_among(step, topic, &spans, |record, _| {
                rejects::claimed_at(record, dead, kafka)
            })?;
        }
        self.ledger.duplicates += self.claims.join().context(TEMPORARY)?;
        Ok(())
    }

    /// Looks for what is left among the records that the group has not come to.
    fn originals(&mut self) -> anyhow::Result<()> {
        let topic = &self.config.kafka.topic;
        let ahead = self.scope.ahead.clone();
        self.look_among("unsettled originals", topic, &ahead, |record, partition| {
            let at = Position {
                partition,
                offset: record.offset,
            };
            Some(at.to_bytes().to_vec())
        })?;
        self.ledger.unsettled_duplicates = self.claims.join().context(TEMPORARY)?;
        self.ledger.duplicates += self.ledger.unsettled_duplicates;
        Ok(())
    }

    /// Takes down the keys of those records that count as originals, with the places where they count so, if anything is
    /// left to be looked for.
    fn look_among(
        &mut self,
        step: &'static str,
        topic: &str,
        spans: &[Span],
        counts_at: impl Fn(&Record<'_>, i32) -> Option<Place>,
    ) -> anyhow::Result<()> {
        if self.claims.left() == 0 {
            return Ok(());
        }
        self.watch.step(step, Some(records::total(spans)));
        let (claims, watch) = (&mut self.claims, &mut self.watch);
        let mut keys = KeyReader::new(self.config, topic);
        self.reader
            .each(topic, spans, &mut |done| watch.done(done), |record, partition| {
                if let Some(place) = counts_at(record, partition)
                    && let Some(event) = keys.read(record, partition)
                {
                    claims.other(event.key, &place).context(TEMPORARY)?;
                }
                Ok(More::Wanted)
            })
    }

    fn finish(mut self) -> anyhow::Result<Ledger> {
        self.claims.finish(&mut self.ledger).context(TEMPORARY)?;
        let ledger = &mut self.ledger;
        let told = [
            notes::nothing(ledger),
            notes::unsettled_duplicates(ledger.unsettled_duplicates),
        ];
        ledger.notes.extend(told.into_iter().flatten());
        Ok(self.ledger)
    }
}
