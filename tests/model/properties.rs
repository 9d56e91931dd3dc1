//! What must hold in every state. Each property is a promise of the README or of the design, stated for one record or
//! event at a time.

use stateright::Property;

use crate::scenario::{Fault, Record, Scenario};
use crate::state::{Remembered, State};
use crate::steps::{Step, progress};

pub(crate) const NO_RECORD_TWICE: &str = "no record has two rows";
pub(crate) const NO_EVENT_TWICE: &str = "no accepted event has two rows";
pub(crate) const NOTHING_LOST: &str = "no record below the committed offset is without an outcome";
pub(crate) const ONE_OUTCOME: &str = "no record is in two destinations";
pub(crate) const LIMIT: &str = "no more rows than the limit";
pub(crate) const CHARGED_ONCE: &str = "no record is charged to the limit twice";
pub(crate) const COUNTED_ONCE: &str = "only rows are counted, each once, and all once settled";
pub(crate) const SETTLES: &str = "where nothing is left to do, all is settled";

/// The properties, each with what excuses it: what Redis forgets, it cannot keep apart, and after a rewind a record that
/// was over the limit may pass.
pub(crate) fn all() -> Vec<Property<Scenario>> {
    use Fault::{Expire, ForgetClaims, ForgetPermits, ForgetWatermarks, Rewind, SwitchLimits};
    vec![
        Property::always(NO_RECORD_TWICE, |_: &Scenario, state: &State| {
            state.table.rows.iter().all(|&rows| rows <= 1)
        }),
        Property::always(NO_EVENT_TWICE, |s: &Scenario, state: &State| {
            s.excused(&[ForgetClaims]) || no_event_twice(s, state)
        }),
        Property::always(NOTHING_LOST, nothing_lost),
        Property::always(ONE_OUTCOME, |s: &Scenario, state: &State| {
            s.excused(&[ForgetClaims, ForgetPermits, Rewind, Expire]) || one_outcome(s, state)
        }),
        Property::always(LIMIT, |s: &Scenario, state: &State| {
            s.excused(&[ForgetPermits, SwitchLimits]) || within_limit(s, state)
        }),
        Property::always(CHARGED_ONCE, |s: &Scenario, state: &State| {
            s.excused(&[ForgetPermits, Rewind, Expire]) || charged_once(s, state)
        }),
        Property::always(COUNTED_ONCE, |s: &Scenario, state: &State| {
            s.excused(&[ForgetWatermarks, ForgetClaims, ForgetPermits]) || counted_once(s, state)
        }),
        Property::always(SETTLES, settles),
    ]
}

fn below_committed(s: &Scenario, state: &State, record: usize) -> bool {
    s.records[record].offset < Scenario::committed(state, s.records[record].partition)
}

fn has_outcome(state: &State, record: usize) -> bool {
    state.table.rows[record] > 0 || (state.overflow | state.dead_letters).contains(record)
}

fn no_event_twice(s: &Scenario, state: &State) -> bool {
    let rows_of = |id| {
        let of_it = s
            .records
            .iter()
            .zip(state.table.rows)
            .filter(|(record, _)| record.id == id);
        of_it.map(|(_, rows)| rows).sum::<u8>()
    };
    s.records.iter().all(|record| rows_of(record.id) <= 1)
}

/// A duplicate has its outcome with another record of its id, or will have it: not with the rejected one that it is
/// the replay of, unless that has a row after all.
fn nothing_lost(s: &Scenario, state: &State) -> bool {
    let settled_elsewhere = |record: usize| {
        (0..s.records.len())
            .filter(|&other| other != record)
            .any(|other| {
                let pending = exists(s, state, other)
                    && !below_committed(s, state, other)
                    && !state.taken.contains(other);
                let settled = if s.records[record].replays == Some(other) {
                    state.table.rows[other] > 0
                } else {
                    has_outcome(state, other) || pending
                };
                s.records[other].id == s.records[record].id && settled
            })
    };
    (0..s.records.len())
        .filter(|&record| exists(s, state, record))
        .all(|record| {
            !below_committed(s, state, record)
                || has_outcome(state, record)
                || state.taken.contains(record)
                || is_taken_for_written(s, state, record)
                || settled_elsewhere(record)
        })
}

/// Whether the topic has, or had, the record.
fn exists(s: &Scenario, state: &State, record: usize) -> bool {
    let Record {
        partition, offset, ..
    } = s.records[record];
    offset < state.topic[partition].high && s.at(state, partition, offset) == Some(record)
}

/// A record in the place of one that a broker lost, whose row had landed: the row is taken for its own, because offsets
/// alone say what is written. A limit of the protocol, which assumes that Kafka keeps what it has acknowledged.
fn is_taken_for_written(s: &Scenario, state: &State, record: usize) -> bool {
    let Record {
        partition,
        offset,
        renewed,
        ..
    } = s.records[record];
    let is_lost = |lost: &Record| (lost.partition, lost.offset, lost.renewed) == (partition, offset, false);
    let has_row = |(lost, &rows): (&Record, &u8)| is_lost(lost) && rows > 0;
    renewed && !s.no_excuse && s.records.iter().zip(&state.table.rows).any(has_row)
}

fn one_outcome(s: &Scenario, state: &State) -> bool {
    (0..s.records.len()).all(|record| {
        let places = [
            state.table.rows[record] > 0,
            state.overflow.contains(record),
            state.dead_letters.contains(record),
        ];
        places.into_iter().filter(|is_there| *is_there).count() <= 1
    })
}

/// Each time that the window has passed, there is a new limit.
fn within_limit(s: &Scenario, state: &State) -> bool {
    let slides = s.faults[Fault::Slide as usize] - state.faults_left[Fault::Slide as usize];
    let rows = state.table.rows.iter().sum::<u8>();
    s.limit.is_none_or(|limit| s.used + rows <= limit * (slides + 1))
}

fn charged_once(s: &Scenario, state: &State) -> bool {
    let records = (0..s.records.len()).filter(|&record| exists(s, state, record));
    usize::from(state.redis.used) <= usize::from(s.used) + records.count()
}

/// The row of a record that was taken may land without being counted: nobody reads the record any more. And a record may
/// be counted before its row is there, as long as the group has not gone past it: see `is_awaited`.
fn counted_once(s: &Scenario, state: &State) -> bool {
    let settled = is_settled(s, state);
    (0..s.records.len()).all(|record| {
        let (counted, row) = (state.counted[record], state.table.rows[record].min(1));
        if is_taken_for_written(s, state, record) {
            // Counted as such, unless the lost one was.
            return counted <= 1;
        }
        let excused = state.taken.contains(record) || state.group[s.records[record].partition].stopped;
        let early = counted == 1 && is_awaited(s, state, record);
        (counted <= row || early) && (!settled || counted == row || excused)
    })
}

/// A server that dies with a token noted, and without the rows, acknowledges an insert under it for the token alone. Who
/// took the block over asks, and completes it; but the one that was thrown out, and sends its first insert only then,
/// cannot know, and counts what is not there yet. Asking after every insert would be the price of more.
fn is_awaited(s: &Scenario, state: &State, record: usize) -> bool {
    let is_noted =
        |known: &Remembered| known.token.digest.contains(record) && known.month == s.records[record].month;
    let died = state.faults_left[Fault::TokenOnly as usize] < s.faults[Fault::TokenOnly as usize];
    !s.no_excuse && died && !below_committed(s, state, record) && state.table.window.iter().any(is_noted)
}

/// Everything in the topic is committed, and nobody has anything on hand.
fn is_settled(s: &Scenario, state: &State) -> bool {
    let idle = state.workers.iter().all(|worker| {
        let lanes = worker.lanes.iter().flatten();
        let mut busy = lanes.filter(|lane| lane.settling.is_some() || lane.preparing.is_some());
        !worker.expelled && busy.next().is_none()
    });
    let done = |p: usize| {
        let (group, topic) = (state.group[p], state.topic[p]);
        group.stopped || group.committed.map_or(topic.low, |commit| commit.offset) >= topic.high
    };
    idle && (0..s.partitions()).all(done)
}

/// Together with the absence of circles (see `check`), this says that from every state every run without further
/// faults ends, and ends settled.
fn settles(s: &Scenario, state: &State) -> bool {
    let mut steps: Vec<Step> = Vec::new();
    progress(s, state, &mut steps);
    !steps.is_empty() || is_settled(s, state)
}
