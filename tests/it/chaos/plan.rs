//! What happens in a round, and after how many records: a pure function of its seed.

use std::fmt;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

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

/// The way to a service that is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ClickHouse,
    Redis,
}

/// How a way is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connections of so many requests are cut.
    Cut(Cut, usize),
    /// Every piece comes so much later.
    Delayed(Duration),
    Slow,
    /// Every third answer is lost, with its connection.
    AnswersLost,
    /// Answers are kept back, and let go later.
    AnswersHeld,
}

/// What a worker with a held insert does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Dies,
    Freezes,
}

/// One fault. `pick` chooses among the workers that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// `kill -9` of a worker.
    Kill {
        pick: usize,
    },
    /// A worker dies at a moment of a block, after so many passes of it.
    Death {
        moment: &'static str,
        passes: u32,
    },
    /// A worker is frozen, past its session time-out or not, and woken.
    Freeze {
        pick: usize,
        past_session: bool,
    },
    /// The same of a worker that has decided its blocks and not announced them.
    FreezeDecided,
    /// Down to one worker, up to four, down to one.
    Scale,
    /// Every worker is told to end, one after the other, and replaced.
    Rolling,
    BrokerKilled {
        broker: Service,
        away: Duration,
    },
    BrokerFrozen {
        broker: Service,
        away: Duration,
    },
    /// A broker hands over what it leads and is started again; then the leaders move back.
    LeadersMoved {
        broker: Service,
    },
    /// `kill -9` of `ClickHouse`, so long after an insert has come to it.
    ClickHouseKilled {
        into: Duration,
        away: Duration,
    },
    RedisKilled {
        away: Duration,
    },
    Disturbed {
        way: Way,
        pick: usize,
        trouble: Trouble,
    },
    /// An insert is held on its way, its sender dies or freezes, its block is recovered; then it is let go.
    InsertHeld {
        pick: usize,
        sender: Sender,
    },
    /// All workers die after an insert, `ClickHouse` forgets all deduplication tokens, others go on.
    TokensForgotten,
    /// All workers die; the group's offsets are set back by so many records, without a word on any block.
    Rewound {
        records: i64,
    },
}

impl Fault {
    /// The name under which it is counted.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "worker killed",
            Self::Death { moment, .. } => match *moment {
                "after-claim" => "death after-claim",
                "after-permit" => "death after-permit",
                "before-announce" => "death before-announce",
                "after-announce" => "death after-announce",
                "mid-insert" => "death mid-insert",
                "after-insert" => "death after-insert",
                "after-reject" => "death after-reject",
                _ => "death before-advance",
            },
            Self::Freeze {
                past_session: true, ..
            } => "worker frozen past its session",
            Self::Freeze { .. } => "worker frozen shortly",
            Self::FreezeDecided => "worker frozen before announcing",
            Self::Scale => "1 -> 4 -> 1 workers",
            Self::Rolling => "rolling restart",
            Self::BrokerKilled { .. } => "broker killed",
            Self::BrokerFrozen { .. } => "broker frozen",
            Self::LeadersMoved { .. } => "leaders moved",
            Self::ClickHouseKilled { .. } => "ClickHouse killed in mid insert",
            Self::RedisKilled { .. } => "Redis killed",
            Self::Disturbed { way, trouble, .. } => match (way, trouble) {
                (Way::ClickHouse, Trouble::Cut(Cut::Request(0), _)) => "ClickHouse cut before a request",
                (Way::ClickHouse, Trouble::Cut(Cut::Request(_), _)) => "ClickHouse cut in a request",
                (Way::ClickHouse, Trouble::Cut(Cut::Answer, _)) => "ClickHouse cut after a request",
                (Way::ClickHouse, Trouble::Delayed(_)) => "ClickHouse delayed",
                (Way::ClickHouse, Trouble::Slow) => "ClickHouse slow",
                (Way::ClickHouse, Trouble::AnswersLost) => "ClickHouse's answers lost",
                (Way::ClickHouse, Trouble::AnswersHeld) => "ClickHouse's answers held",
                (Way::Redis, Trouble::Cut(Cut::Request(0), _)) => "Redis cut before a request",
                (Way::Redis, Trouble::Cut(Cut::Request(_), _)) => "Redis cut in a request",
                (Way::Redis, Trouble::Cut(Cut::Answer, _)) => "Redis cut after a request",
                (Way::Redis, Trouble::Delayed(_)) => "Redis delayed",
                (Way::Redis, Trouble::Slow) => "Redis slow",
                (Way::Redis, Trouble::AnswersLost) => "Redis's answers lost",
                (Way::Redis, Trouble::AnswersHeld) => "Redis's answers held",
            },
            Self::InsertHeld {
                sender: Sender::Dies, ..
            } => "insert held, its worker dies",
            Self::InsertHeld { .. } => "insert held, its worker freezes",
            Self::TokensForgotten => "deduplication tokens forgotten",
            Self::Rewound { .. } => "offsets rewound",
        }
    }

    /// Whether nothing else may happen beside it.
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::TokensForgotten | Self::Rewound { .. })
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
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut draws: Vec<Draw> = DRAWS.to_vec();
        draws.shuffle(&mut rng);
        let mut faults: Vec<Planned> = draws[..count]
            .iter()
            .zip(0..)
            .map(|(draw, n)| Planned {
                after: (n + 1) * BETWEEN_FAULTS + rng.random_range(0..BETWEEN_FAULTS),
                fault: draw(&mut rng),
            })
            .collect();
        let last = match rng.random_range(0..4) {
            0 => Some(Fault::TokensForgotten),
            1 => Some(Fault::Rewound {
                records: rng.random_range(200..2_000),
            }),
            _ => None,
        };
        let rewound = matches!(last, Some(Fault::Rewound { .. }));
        faults.extend(last.map(|fault| Planned {
            after: (count as u64 + 2) * BETWEEN_FAULTS,
            fault,
        }));
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

fn death(rng: &mut ChaCha12Rng) -> Fault {
    Fault::Death {
        moment: MOMENTS[rng.random_range(0..MOMENTS.len())],
        passes: rng.random_range(0..12),
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
    |rng| Fault::Kill {
        pick: rng.random_range(0..8),
    },
    |rng| Fault::Kill {
        pick: rng.random_range(0..8),
    },
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
    |rng| Fault::ClickHouseKilled {
        into: ms(rng, 0..12),
        away: ms(rng, 0..2_000),
    },
    |rng| Fault::ClickHouseKilled {
        into: ms(rng, 0..12),
        away: ms(rng, 0..2_000),
    },
    |rng| Fault::RedisKilled {
        away: ms(rng, 0..2_000),
    },
    disturbed,
    disturbed,
    disturbed,
    |rng| Fault::InsertHeld {
        pick: rng.random_range(0..8),
        sender: Sender::Dies,
    },
    |rng| Fault::InsertHeld {
        pick: rng.random_range(0..8),
        sender: Sender::Freezes,
    },
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
