//! Bad input: records that nearly are events, each a pure function of a seed and its index.
//!
//! Read in this order: `seeds` (what real clients send), `structure` (what is done to the JSON as such, on a `tree`),
//! `bytes` (what is done to its bytes), `envelope` (headers, and the time that Kafka has).

mod bytes;
mod envelope;
mod seeds;
mod structure;
mod tree;

use std::fmt;

use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt as _};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

/// Header names and values; a null has none.
pub(crate) type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A Kafka record.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) headers: Headers,
    pub(crate) key: Option<Vec<u8>>,
    /// What Kafka has, ms since 1970; -1 for none.
    pub(crate) timestamp: i64,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| bytes.escape_ascii().to_string());
        write!(f, "timestamp {}", self.timestamp)?;
        for (name, value) in &self.headers {
            write!(f, "\n  header {}: {:?}", name.escape_ascii(), text(value))?;
        }
        match &self.payload {
            None => f.write_str("\n  no payload"),
            Some(payload) => write!(f, "\n  payload {}", payload.escape_ascii()),
        }
    }
}

/// A source of cases.
#[derive(Debug)]
pub(crate) struct Cases {
    seed: u64,
    seeds: Vec<Case>,
}

impl Cases {
    /// Of events as clients send them.
    pub(crate) fn new(seed: u64) -> Self {
        Self::of(seed, seeds::all(seed))
    }

    /// Of records to begin with, at least one.
    pub(crate) fn of(seed: u64, seeds: Vec<Case>) -> Self {
        Self { seed, seeds }
    }

    /// The case of an index: a seed with up to six changes, one in thirty with none.
    pub(crate) fn case(&self, index: u64) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index);
        let rng = &mut rng;
        let mut case = self.seed(rng).clone();
        if rng.random_ratio(1, 30) {
            return case;
        }
        envelope::vary(&mut case, rng);
        // Half of all cases get one change: what has many is refused for the first of them.
        let changes = if rng.random_ratio(1, 2) {
            1
        } else {
            rng.random_range(1..=6)
        };
        for _ in 0..changes {
            match rng.random_range(0..20) {
                0..12 => structure::change(&mut case, rng),
                12..17 => {
                    let other = self.seed(rng);
                    bytes::change(&mut case, other, rng);
                }
                _ => envelope::change(&mut case, rng),
            }
        }
        case
    }

    fn seed(&self, rng: &mut impl Rng) -> &Case {
        self.seeds.choose(rng).expect("there are seeds")
    }
}

/// One of a list that is not empty.
fn pick<T: Copy>(all: &[T], rng: &mut impl Rng) -> T {
    *all.choose(rng).expect("nothing to choose from")
}
