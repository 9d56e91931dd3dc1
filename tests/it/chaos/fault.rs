//! The faults that there are, and the names under which they are counted.

use std::time::Duration;

use crate::harness::proxy::Cut;
use crate::harness::stack::Service;

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
