//! The ledger: what became of every record, asked from the destinations themselves.
//!
//! Owns the judgement. Reads only: it joins no group, commits nothing, writes nothing. Three passes, each a stream,
//! so that memory follows the number of unclear records and not of all:
//! 1. the table and the topics of rejects say at which offsets they have something (`states`: four bits an offset);
//! 2. the topic says which offsets are records; those without a state are decoded, and their ids looked up in the
//!    table, in batches (`claims`);
//! 3. ids that the table does not have are looked for in the topics of rejects, if any are left.
//!
//! What is asked first may only grow meanwhile: the group's offsets come before the destinations, which have
//! everything below them.

mod claims;
mod ledger;
mod records;
mod scope;
mod states;
mod table;

use std::collections::HashMap;

use anyhow::Context as _;
use tokio::runtime::Handle;

use self::claims::{Claim, Claims};
use self::records::Reader;
use self::scope::Scope;
use self::states::{State, States};
use self::table::Table;
use crate::config::{Config, DedupBy};
use crate::event::{Decoded, Origin, Place, Record, decode};
use crate::kafka::producer::REASON;

pub use self::ledger::{Ledger, Offenders, Position};

/// Unclear records that are held before the table is asked about them: 48 bytes each.
const CLAIMS_AT_ONCE: usize = 1 << 19;

/// Is told how far it is.
pub trait Watch {
    /// A step begins, of so many parts where that is known.
    fn step(&mut self, name: &'static str, total: Option<u64>);
    /// So many of them are done.
    fn done(&mut self, parts: u64);
}

/// Settles every record of the topic, from its first to the group's committed offsets. Blocks; the runtime's other
/// threads speak with the table.
pub fn verify(config: &Config, runtime: &Handle, watch: &mut dyn Watch) -> anyhow::Result<Ledger> {
    let mut auditor = Auditor::new(config, runtime)?;
    auditor.rows(watch)?;
    auditor.rejects(watch)?;
    auditor.records(watch)?;
    auditor.rejected_ids(watch)?;
    Ok(auditor.ledger)
}

struct Auditor<'a> {
    config: &'a Config,
    runtime: &'a Handle,
    reader: Reader<'a>,
    table: Table<'a>,
    scope: Scope,
    states: HashMap<i32, States>,
    claims: Claims,
    ledger: Ledger,
}

impl<'a> Auditor<'a> {
    fn new(config: &'a Config, runtime: &'a Handle) -> anyhow::Result<Self> {
        let reader = Reader::new(&config.kafka)?;
        let scope = Scope::ask(&reader, &config.kafka)?;
        let ledger = Ledger {
            behind: scope.behind,
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
            runtime,
            reader,
            table: Table::new(config),
            scope,
            states,
            claims: Claims::default(),
            ledger,
        })
    }

    /// Which offsets have rows, and how many.
    fn rows(&mut self, watch: &mut dyn Watch) -> anyhow::Result<()> {
        watch.step("rows", None);
        let mut done = 0;
        let states = &mut self.states;
        self.runtime
            .block_on(self.table.offsets(&self.scope.records, |partition, offset| {
                if let Some(states) = states.get_mut(&partition) {
                    states.add_row(offset);
                }
                done += 1;
                watch.done(done);
            }))
            .context("the table could not be read")
    }

    /// Which offsets have an overflow copy or a dead letter. A copy that was sent twice is the same one.
    fn rejects(&mut self, watch: &mut dyn Watch) -> anyhow::Result<()> {
        let kafka = &self.config.kafka;
        let topics = [
            (&kafka.overflow_topic, &self.scope.overflow, false),
            (&kafka.dead_letter_topic, &self.scope.dead_letters, true),
        ];
        for (topic, spans, dead) in topics {
            watch.step(
                if dead { "dead letters" } else { "overflow" },
                Some(records::total(spans)),
            );
            let (states, reasons) = (&mut self.states, &mut self.ledger.reasons);
            self.reader.each(topic, spans, watch, |record, _| {
                let Some(at) = Origin::of(record.headers) else {
                    return Ok(());
                };
                if at.topic != kafka.topic || at.incarnation != kafka.incarnation {
                    return Ok(());
                }
                let Some(states) = states.get_mut(&at.partition) else {
                    return Ok(());
                };
                if !dead {
                    states.mark_overflow(at.offset);
                } else if states.mark_dead(at.offset) {
                    let reason = record.headers.get(REASON.as_bytes()).unwrap_or_default();
                    let reason = String::from_utf8_lossy(reason).into_owned();
                    *reasons.entry(reason).or_default() += 1;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Judges every record of the topic; those that no destination names wait for the look-up of their ids.
    fn records(&mut self, watch: &mut dyn Watch) -> anyhow::Result<()> {
        watch.step("records", Some(records::total(&self.scope.records)));
        let kafka = &self.config.kafka;
        let by = self.config.dedup.by;
        let (states, claims, ledger) = (&self.states, &mut self.claims, &mut self.ledger);
        let (table, runtime) = (&self.table, self.runtime);
        let mut decoded = Decoded::default();
        self.reader
            .each(&kafka.topic, &self.scope.records, watch, |record, partition| {
                let at = Position {
                    partition,
                    offset: record.offset,
                };
                let state = states
                    .get(&partition)
                    .map_or(State::default(), |states| states.get(record.offset));
                if ledger.judge(at, state) {
                    return Ok(());
                }
                let place = Place {
                    topic: &kafka.topic,
                    incarnation: kafka.incarnation,
                    partition,
                };
                match claim(by, &place, record, &mut decoded) {
                    Some((token, claim)) => claims.push(&token, claim),
                    // No event, and yet no dead letter.
                    None => ledger.missing(at),
                }
                if claims.waiting() >= CLAIMS_AT_ONCE {
                    settle(runtime, table, claims, ledger)?;
                }
                Ok(())
            })?;
        settle(runtime, table, claims, ledger)
    }

    /// Looks for the ids that the table does not have in the topics of rejects. What is left then is missing.
    fn rejected_ids(&mut self, watch: &mut dyn Watch) -> anyhow::Result<()> {
        let kafka = &self.config.kafka;
        let topics = [
            (&kafka.overflow_topic, &self.scope.overflow, "overflow ids"),
            (
                &kafka.dead_letter_topic,
                &self.scope.dead_letters,
                "dead-letter ids",
            ),
        ];
        for (topic, spans, step) in topics {
            if self.claims.is_empty() {
                return Ok(());
            }
            watch.step(step, Some(records::total(spans)));
            let by = self.config.dedup.by;
            let claims = &mut self.claims;
            let mut decoded = Decoded::default();
            self.reader.each(topic, spans, watch, |record, partition| {
                let place = Place {
                    topic,
                    incarnation: kafka.incarnation,
                    partition,
                };
                if let Some((token, claim)) = claim(by, &place, record, &mut decoded) {
                    claims.found_rejected(&token, claim.id);
                }
                Ok(())
            })?;
        }
        self.claims.finish(&mut self.ledger);
        Ok(())
    }
}

fn settle(
    runtime: &Handle,
    table: &Table<'_>,
    claims: &mut Claims,
    ledger: &mut Ledger,
) -> anyhow::Result<()> {
    runtime
        .block_on(claims.settle(table, ledger))
        .context("ids could not be looked up in the table")
}

/// What a record is deduplicated by, and its token; nothing if it is no event.
fn claim(
    by: DedupBy,
    place: &Place<'_>,
    record: &Record<'_>,
    decoded: &mut Decoded,
) -> Option<(String, Claim)> {
    decoded.clear();
    decode(place, 0, record, decoded);
    let event = decoded.events.first()?;
    let id = match by {
        DedupBy::Id => event.uuid,
        DedupBy::Content => table::content(
            decoded.str(event.distinct_id),
            decoded.str(event.event),
            event.timestamp,
        ),
    };
    Some((
        decoded.tokens[event.token as usize].clone(),
        Claim {
            id,
            time_ms: event.timestamp,
            at: Position {
                partition: place.partition,
                offset: record.offset,
            },
        },
    ))
}
