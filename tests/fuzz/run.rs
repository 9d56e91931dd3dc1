//! Many cases on all cores, and what became of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use sluice::event::{Decoded, Reason};

use crate::cases::{Case, Cases};
use crate::outcome::of_block;
use crate::{compare, reference, shrink};

/// Records of one block.
const BLOCK: u64 = 64;
/// Failures of a kind that a thread makes small and tells; the others are counted.
const TOLD: usize = 2;

/// What became of the records.
#[derive(Default)]
pub(crate) struct Figures {
    records: u64,
    accepted: u64,
    rejected: BTreeMap<&'static str, u64>,
    panics: u64,
    disagreements: u64,
    /// Broken promises about outcomes, other than disagreements.
    broken: u64,
    pub(crate) failures: Vec<(Kind, String)>,
}

/// The sort of a failure, and its first words: what stays the same while an input shrinks.
type Kind = (u8, String);

impl Figures {
    /// Whether each outcome that a record can have was met: else the run has proved less than it says.
    pub(crate) fn is_varied(&self) -> bool {
        let reasons = Reason::ALL.iter().filter(|reason| **reason != Reason::Refused);
        // A megabyte of padding is rare.
        let mut wanted = reasons.filter(|reason| **reason != Reason::TooLarge || self.records >= 1_000_000);
        self.accepted > 0 && wanted.all(|reason| self.rejected.contains_key(reason.as_str()))
    }

    fn add(&mut self, other: Figures) {
        self.records += other.records;
        self.accepted += other.accepted;
        for (reason, count) in other.rejected {
            *self.rejected.entry(reason).or_default() += count;
        }
        self.panics += other.panics;
        self.disagreements += other.disagreements;
        self.broken += other.broken;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, failure) in &self.failures {
            writeln!(f, "{failure}\n")?;
        }
        let rejected: u64 = self.rejected.values().sum();
        writeln!(f, "records {}", self.records)?;
        writeln!(f, "accepted {}", self.accepted)?;
        writeln!(f, "rejected {rejected}")?;
        for (reason, count) in &self.rejected {
            writeln!(f, "  {reason} {count}")?;
        }
        writeln!(f, "panics {}", self.panics)?;
        writeln!(f, "disagreements {}", self.disagreements)?;
        write!(f, "broken promises {}", self.broken)
    }
}

enum Failure {
    Panic(String),
    Disagreement(String),
    Broken(String),
}

impl Failure {
    fn text(&self) -> &str {
        match self {
            Failure::Panic(text) | Failure::Disagreement(text) | Failure::Broken(text) => text,
        }
    }

    fn kind(&self) -> Kind {
        let words = |text: &str| {
            text.split([':', '\n', '{', '['])
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        match self {
            Failure::Panic(text) => (0, words(text)),
            Failure::Disagreement(text) => (1, words(text)),
            Failure::Broken(text) => (2, words(text)),
        }
    }
}

/// Runs the first so many cases of a seed.
pub(crate) fn run(seed: u64, records: u64) -> Figures {
    quiet_panics();
    let cases = Cases::new(seed);
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let work = || {
            let mut figures = Figures::default();
            let mut out = Decoded::default();
            loop {
                let first = next.fetch_add(BLOCK, Ordering::Relaxed);
                if first >= records {
                    return figures;
                }
                if first % 1_000_000 < BLOCK && first > 0 {
                    eprintln!("{first} of {records} records, {} s", started.elapsed().as_secs());
                }
                let block: Vec<Case> = (first..(first + BLOCK).min(records))
                    .map(|n| cases.case(n))
                    .collect();
                figures.block(seed, first, &block, &mut out);
            }
        };
        // Deep JSON is read by recursion here, unlike in the decoder.
        let spawn = |_| {
            let builder = thread::Builder::new().stack_size(64 << 20);
            builder.spawn_scoped(scope, work).expect("a thread")
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        let mut all = Figures::default();
        for worker in workers {
            all.add(worker.join().expect("the fuzzer itself does not panic"));
        }
        all
    })
}

impl Figures {
    fn block(&mut self, seed: u64, first: u64, cases: &[Case], out: &mut Decoded) {
        self.records += cases.len() as u64;
        match caught(|| of_block(cases, out)) {
            Ok(Ok(outcomes)) => {
                for ((index, case), outcome) in (first..).zip(cases).zip(outcomes) {
                    match &outcome {
                        Ok(_) => self.accepted += 1,
                        Err(reason) => *self.rejected.entry(reason.as_str()).or_default() += 1,
                    }
                    if let Some(difference) = compare::difference(&outcome, &reference::read(case)) {
                        self.fail(seed, index, case, Failure::Disagreement(difference));
                    }
                }
            }
            Ok(Err((n, message))) => self.fail(seed, first + n as u64, &cases[n], Failure::Broken(message)),
            Err(message) => {
                // What was in the block's buffers is of no use any more.
                *out = Decoded::default();
                let alone = cases
                    .iter()
                    .zip(first..)
                    .find_map(|(case, index)| failure(case).map(|failure| (index, case, failure)));
                let (index, case, failure) = alone.unwrap_or((
                    first,
                    &cases[0],
                    Failure::Panic(format!("in this block alone: {message}")),
                ));
                self.fail(seed, index, case, failure);
            }
        }
    }

    fn fail(&mut self, seed: u64, index: u64, case: &Case, failed: Failure) {
        match failed {
            Failure::Panic(_) => self.panics += 1,
            Failure::Disagreement(_) => self.disagreements += 1,
            Failure::Broken(_) => self.broken += 1,
        }
        let kind = failed.kind();
        if self.failures.iter().filter(|(told, _)| *told == kind).count() >= TOLD {
            return;
        }
        let smallest = shrink::shrink(case.clone(), |case| {
            failure(case).is_some_and(|failure| failure.kind() == kind)
        });
        let last = failure(&smallest).unwrap_or(failed);
        let text = format!("seed {seed} index {index}: {}\n{smallest:?}", last.text());
        self.failures.push((kind, text));
    }
}

/// How a record fails by itself.
fn failure(case: &Case) -> Option<Failure> {
    let mut out = Decoded::default();
    match caught(|| of_block(std::slice::from_ref(case), &mut out)) {
        Err(message) => Some(Failure::Panic(message)),
        Ok(Err((_, message))) => Some(Failure::Broken(message)),
        Ok(Ok(outcomes)) => {
            compare::difference(&outcomes[0], &reference::read(case)).map(Failure::Disagreement)
        }
    }
}

thread_local! {
    static CAUGHT: Cell<Option<String>> = const { Cell::new(None) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics within [`caught`] are kept instead of told: shrinking makes hundreds.
fn quiet_panics() {
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if QUIET.get() {
            CAUGHT.set(Some(format!("panic {info}")));
        } else {
            told(info);
        }
    }));
}

fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    QUIET.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    done.map_err(|_| CAUGHT.take().unwrap_or_default())
}
