//! What happens in a round, and after how many records: a pure function of its seed.

use std::fmt;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

use super::fault::{Fault, Sender, Trouble, Way};
use crate::harness::proxy::Cut;
use crate::harness::stack::Service;

pub(super) const PARTITIONS: i32 = 6;
/// Records between two faults, about.
const BETWEEN_FAULTS: u64 = 1_500;
/// Months over which the events spread, and so the parts of an insert.
const MONTHS: u64 = 3;

/// The moments of a block at which a worker may die: see `src/faults.rs`.
const MOMENTS: [&str; 8] = [
    "after-claim",
    "after-permit",
    "before-announce",
    "after-announce",
    "mid-insert",
    "after-insert",
    "after-reject",
    "before-advance",
];
const BROKERS: [Service; 3] = [Service::FirstBroker, Service::SecondBroker, Service::ThirdBroker];

/// How members of the group are told from the dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Classic,
    Consumer,
}

impl Protocol {
    /// `kafka.options`.
    pub(super) fn options(self) -> &'static str {
        match self {
            Self::Classic => r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#,
            Self::Consumer => r#"{"group.protocol":"consumer"}"#,
        }
    }

    /// After this a silent member is out of the group; for the new protocol the broker says so.
    pub(super) fn session(self) -> Duration {
        match self {
            Self::Classic => Duration::from_secs(2),
            Self::Consumer => Duration::from_secs(6),
        }
    }
}

/// A fault and when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// After so many records have landed in the topic.
    pub(super) after: u64,
    pub(super) fault: Fault,
}

/// A round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) protocol: Protocol,
    pub(super) workers: usize,
    /// `batch.max_age_ms`.
    pub(super) age_ms: u64,
    /// Of one token; `None` where offsets are rewound, which may judge anew.
    pub(super) limit: Option<u64>,
    pub(super) months: u64,
    /// `clickhouse.insert_deadline_seconds`. Offsets that were set back are recovered once it has passed.
    pub(super) deadline: u32,
    pub(super) faults: Vec<Planned>,
}

impl Plan {
    /// The round of `seed`: `count` faults beside each other, and perhaps one at the end that must be alone.
    pub(super) fn of(seed: u64, count: usize) -> Self {
        Self::drawn(seed, count, &[], None)
    }

    /// The same, where half of the faults are those that a guard is there for.
    pub(super) fn against(guard: &str, seed: u64, count: usize) -> Self {
        let (draws, last): (&[Draw], Option<Draw>) = match guard {
            "token" | "announcement" | "recut" => (&[held], None),
            "epoch" => (&[|_| Fault::FreezeDecided], None),
            "first-query" => (&[death], Some(|_| Fault::TokensForgotten)),
            "highest" => (&[death], Some(rewound)),
            "coordinate" => (&[killed, death], None),
            "decision" => (
                &[|_| death_at("after-permit"), |_| death_at("before-announce")],
                None,
            ),
            "watermark" => (
                &[|_| death_at("before-advance"), |_| death_at("before-advance")],
                None,
            ),
            "acknowledgement" | "completion" => (&[clickhouse_killed, clickhouse_killed], None),
            _ => (&[], None),
        };
        Self::drawn(seed, count, draws, last)
    }

    fn drawn(seed: u64, count: usize, first: &[Draw], last: Option<Draw>) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut draws: Vec<Draw> = DRAWS.to_vec();
        draws.shuffle(&mut rng);
        draws.truncate(count);
        for (draw, first) in draws.iter_mut().step_by(2).zip(first.iter().cycle()) {
            *draw = *first;
        }
        let mut faults: Vec<Planned> = draws
            .iter()
            .zip(0..)
            .map(|(draw, n)| Planned {
                after: (n + 1) * BETWEEN_FAULTS + rng.random_range(0..BETWEEN_FAULTS),
                fault: draw(&mut rng),
            })
            .collect();
        let last = last.or(match rng.random_range(0..4) {
            _ if !first.is_empty() => None,
            0 => Some(|_| Fault::TokensForgotten),
            1 => Some(rewound),
            _ => None,
        });
        faults.extend(last.map(|draw| Planned {
            after: (count as u64 + 2) * BETWEEN_FAULTS,
            fault: draw(&mut rng),
        }));
        let rewound = faults
            .iter()
            .any(|planned| matches!(planned.fault, Fault::Rewound { .. }));
        Self {
            seed,
            protocol: if seed.is_multiple_of(2) {
                Protocol::Classic
            } else {
                Protocol::Consumer
            },
            workers: rng.random_range(2..=3),
            age_ms: rng.random_range(60..300),
            limit: (!rewound).then(|| rng.random_range(300..1_500)),
            months: MONTHS,
            deadline: if rewound { 8 } else { 60 },
            faults,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {:?} protocol, {} workers, blocks of {} ms, limit {:?}, {} faults",
            self.seed,
            self.protocol,
            self.workers,
            self.age_ms,
            self.limit,
            self.faults.len()
        )
    }
}

type Draw = fn(&mut ChaCha12Rng) -> Fault;

fn ms(rng: &mut ChaCha12Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

fn killed(rng: &mut ChaCha12Rng) -> Fault {
    Fault::Kill {
        pick: rng.random_range(0..8),
    }
}

fn death(rng: &mut ChaCha12Rng) -> Fault {
    Fault::Death {
        moment: MOMENTS[rng.random_range(0..MOMENTS.len())],
        passes: rng.random_range(0..12),
    }
}

fn death_at(moment: &'static str) -> Fault {
    Fault::Death { moment, passes: 4 }
}

fn clickhouse_killed(rng: &mut ChaCha12Rng) -> Fault {
    Fault::ClickHouseKilled {
        into: ms(rng, 0..12),
        away: ms(rng, 0..2_000),
    }
}

fn held(rng: &mut ChaCha12Rng) -> Fault {
    Fault::InsertHeld {
        pick: rng.random_range(0..8),
        sender: if rng.random() {
            Sender::Dies
        } else {
            Sender::Freezes
        },
    }
}

fn rewound(rng: &mut ChaCha12Rng) -> Fault {
    Fault::Rewound {
        records: rng.random_range(200..2_000),
    }
}

fn disturbed(rng: &mut ChaCha12Rng) -> Fault {
    let way = if rng.random() { Way::ClickHouse } else { Way::Redis };
    let trouble = match rng.random_range(0..7) {
        0 => Trouble::Cut(Cut::Request(0), rng.random_range(1..4)),
        1 => Trouble::Cut(Cut::Request(rng.random_range(1..40_000)), rng.random_range(1..4)),
        2 => Trouble::Cut(Cut::Answer, rng.random_range(1..4)),
        3 => Trouble::Delayed(ms(rng, 20..400)),
        4 => Trouble::Slow,
        5 => Trouble::AnswersLost,
        _ => Trouble::AnswersHeld,
    };
    Fault::Disturbed {
        way,
        pick: rng.random_range(0..8),
        trouble,
    }
}

/// What is drawn from; what stands here more often comes more often.
const DRAWS: [Draw; 20] = [
    killed,
    killed,
    death,
    death,
    death,
    |rng| Fault::Freeze {
        pick: rng.random_range(0..8),
        past_session: rng.random_bool(0.75),
    },
    |_| Fault::FreezeDecided,
    |_| Fault::Scale,
    |_| Fault::Rolling,
    |rng| Fault::BrokerKilled {
        broker: BROKERS[rng.random_range(0..3)],
        away: ms(rng, 0..3_000),
    },
    |rng| Fault::BrokerFrozen {
        broker: BROKERS[rng.random_range(0..3)],
        away: ms(rng, 500..8_000),
    },
    |rng| Fault::LeadersMoved {
        broker: BROKERS[rng.random_range(0..3)],
    },
    clickhouse_killed,
    clickhouse_killed,
    |rng| Fault::RedisKilled {
        away: ms(rng, 0..2_000),
    },
    disturbed,
    disturbed,
    disturbed,
    held,
    held,
];

#[test]
fn a_round_is_a_function_of_its_seed() {
    for seed in 0..100 {
        assert_eq!(Plan::of(seed, 6), Plan::of(seed, 6));
        let faults = Plan::of(seed, 6).faults;
        assert!(faults.is_sorted_by_key(|planned| planned.after), "{faults:?}");
        // What must be alone comes last.
        assert!(
            faults[..6].iter().all(|planned| !planned.fault.is_alone()),
            "{faults:?}"
        );
    }
    assert_ne!(Plan::of(1, 6).faults, Plan::of(3, 6).faults);
}

#[test]
fn fifty_rounds_have_every_kind_of_worker_and_service_fault() {
    let kinds: std::collections::BTreeSet<&str> = (1..=50)
        .flat_map(|seed| Plan::of(seed, 6).faults)
        .map(|planned| planned.fault.kind())
        .collect();
    assert!(kinds.len() >= 30, "{}: {kinds:?}", kinds.len());
}
