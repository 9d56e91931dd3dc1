//! Steps and states in words, for whoever reads a counterexample.

use std::fmt::{self, Display, Formatter, Write as _};

use stateright::Path;

use crate::lane::At;
use crate::scenario::{Fault, Scenario};
use crate::state::{Insert, State, Token};
use crate::steps::Step;

impl Display for At {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} on partition {}", self.worker, self.partition)
    }
}

impl Display for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            partition,
            start,
            end,
            digest,
            number,
            salt,
        } = self;
        write!(f, "p{partition}[{start},{end}){digest:?}")?;
        if *number > 0 {
            write!(f, "/{number}")?;
        }
        if *salt > 0 { write!(f, "#{salt}") } else { Ok(()) }
    }
}

impl Display for Insert {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            token,
            time,
            rows,
            waits,
        } = self;
        write!(f, "the insert of rows {rows:?} under {token} with t={time}")?;
        match waits {
            Some((worker, _)) => write!(f, " (worker {worker} waits for it)"),
            None => write!(f, " (nobody waits for it)"),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assign(at) => write!(f, "{at}: starts where the group's commit says"),
            Self::Claim(at, end) => write!(f, "{at}: cuts a block that ends at {end}, decodes and claims it"),
            Self::Permit(at) => write!(f, "{at}: asks for permits"),
            Self::Announce(at) => write!(f, "{at}: announces the block (a fresh one is sent to the table)"),
            Self::Ask(at) => write!(f, "{at}: asks what the table has, and sends what is missing"),
            Self::AskAgain(at) => write!(f, "{at}: asks the table again"),
            Self::Reject(at) => write!(f, "{at}: sends rejects"),
            Self::Remember(at) => write!(f, "{at}: remembers what is written; the block is settled"),
            Self::Advance(at) => write!(f, "{at}: commits what is settled"),
            Self::Deliver(at) => write!(f, "{at}: the commit that stood still goes on"),
            Self::Land(insert) => write!(f, "the table ends {insert}"),
            Self::Rejoin(worker) => write!(f, "worker {worker} joins the group again"),
            Self::Tick => write!(f, "a moment passes"),
            Self::Forget(known) => write!(f, "the table forgets {} in month {}", known.token, known.month),
            Self::Produce(partition) => write!(f, "a record is produced to partition {partition}"),
            Self::Crash(worker) => write!(f, "FAULT worker {worker} dies and is started anew"),
            Self::Expel(worker) => write!(f, "FAULT the group drops worker {worker}, which goes on"),
            Self::TimeOut(insert) => write!(f, "FAULT the client gives up and repeats {insert}"),
            Self::PartLands(insert, month) => write!(f, "FAULT only month {month} lands of {insert}"),
            Self::TokenOnly(insert, month) => {
                write!(
                    f,
                    "FAULT the table dies with the token of month {month} noted, and without the rows, of {insert}"
                )
            }
            Self::Rewind(partition, to) => write!(f, "FAULT partition {partition} is set to {to} by hand"),
            Self::Expire(partition) => write!(
                f,
                "FAULT the committed offset of partition {partition} is forgotten"
            ),
            Self::Hang(at, Fault::HangAfterGuard) => {
                write!(
                    f,
                    "FAULT {at}: announces, and the commit hangs after the look at the epoch"
                )
            }
            Self::Hang(at, _) => write!(
                f,
                "FAULT {at}: announces, and the commit hangs before the look at the epoch"
            ),
            Self::Retention(partition) => write!(
                f,
                "FAULT retention takes the first record of partition {partition}"
            ),
            Self::Truncate(partition) => {
                write!(f, "FAULT a broker loses the last record of partition {partition}")
            }
            Self::ForgetClaim(id) => write!(f, "FAULT Redis forgets the claim of id {id}"),
            Self::ForgetPermits => write!(f, "FAULT Redis forgets what was decided and charged"),
            Self::ForgetWatermarks => write!(f, "FAULT Redis forgets the watermarks"),
            Self::DropConstraint => write!(f, "FAULT the constraint that refuses rows is dropped"),
            Self::Slide => write!(f, "the window of the rate limit has passed"),
            Self::SwitchLimits => write!(f, "FAULT limits are switched on or off"),
        }
    }
}

/// A path as text: a step a line, and what stands where in the end.
pub(crate) fn story(s: &Scenario, path: Path<State, Step>) -> String {
    let last = path.last_state().clone();
    let mut text = String::new();
    let steps = path.into_actions();
    for (n, step) in steps.iter().enumerate() {
        writeln!(text, "{:>4}  {step}", n + 1).expect("a text");
    }
    let State {
        table,
        overflow,
        dead_letters,
        ..
    } = &last;
    let records = s.records.len();
    writeln!(
        text,
        "      => rows of each record {:?}, counted {:?}, overflow {overflow:?}, dead letters {dead_letters:?}, committed {:?}",
        &table.rows[..records],
        &last.counted[..records],
        (0..s.partitions()).map(|p| last.group[p].committed.map(|c| c.offset)).collect::<Vec<_>>(),
    )
    .expect("a text");
    text
}
