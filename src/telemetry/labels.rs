//! The values of labels that are known beforehand, under the names that metrics and logs give them.

/// Declares a label's values; each is one series of a [`Family`].
macro_rules! label {
    ($(#[$doc:meta])* $name:ident = $key:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value as it stands in metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl Label for $name {
            const KEY: &'static str = $key;
            const VALUES: &'static [Self] = Self::ALL;

            fn index(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                self.name()
            }
        }
    };
}

label! {
    /// What became of a record. Each ends in exactly one.
    Outcome = "outcome" {
        /// A row in the table.
        Written = "written",
        /// A claim of another record was there.
        Duplicate = "duplicate",
        /// Over its token's limit: the overflow topic.
        Limited = "limited",
        /// No event: the dead-letter topic.
        DeadLetter = "dead_letter",
    }
}

label! {
    /// How a block came about.
    BlockKind = "kind" {
        /// Cut from what was polled.
        Fresh = "fresh",
        /// Begun by an earlier attempt, and possibly written.
        Recovery = "recovery",
    }
}

label! {
    /// A stage of the data path.
    Stage = "stage" {
        /// Records become events.
        Decode = "decode",
        /// Duplicates are found.
        Claim = "claim",
        /// Limits are kept.
        Permit = "permit",
        /// The block is made recoverable.
        Announce = "announce",
        /// The insert, with its retries.
        Write = "write",
        /// Dead letters and overflow.
        Reject = "reject",
        /// Timelines, properties, counters.
        Remember = "remember",
        /// The block's end is committed.
        Advance = "advance",
    }
}

label! {
    /// What a rebalance did to a partition.
    Rebalance = "event" {
        /// It came to this worker.
        Assigned = "assigned",
        /// It was given back in good order.
        Revoked = "revoked",
        /// It was gone before anything could be settled.
        Lost = "lost",
    }
}

label! {
    /// A service that the program needs.
    Service = "service" {
        /// Records, rejects and offsets.
        Kafka = "kafka",
        /// Claims, limits, timelines, caches.
        Redis = "redis",
        /// The events table.
        ClickHouse = "clickhouse",
    }
}

label! {
    /// What a partition, or a worker that starts, waits for.
    WaitsFor = "why" {
        /// Kafka, which fails at what it is asked.
        Kafka = "kafka",
        /// Redis, which fails at what it is asked: it is down, full, or refuses writes.
        Redis = "redis",
        /// `ClickHouse`, which fails at what it is asked.
        ClickHouse = "clickhouse",
        /// The first token on the allow-list.
        AllowList = "allow_list",
        /// Permits of a token that is over its limit.
        Permits = "permits",
        /// Redis, to reject the events of a token that is blocked.
        BlockedToken = "blocked_token",
    }
}

impl From<Service> for WaitsFor {
    fn from(service: Service) -> Self {
        match service {
            Service::Kafka => Self::Kafka,
            Service::Redis => Self::Redis,
            Service::ClickHouse => Self::ClickHouse,
        }
    }
}

label! {
    /// Whether a cache had an answer.
    CacheLookup = "result" {
        /// It had.
        Hit = "hit",
        /// The answer was made anew.
        Miss = "miss",
    }
}

label! {
    /// Which Redis.
    RedisServer = "server" {
        /// Claims, limits, timelines, sessions; where there is one server for all, that.
        State = "state",
        /// What can be made again.
        Cache = "cache",
    }
}

label! {
    /// What a key of Redis is for.
    RedisKind = "kind" {
        /// Whose an event is.
        Claims = "claims",
        /// Permits of the window.
        Rate = "rate",
        /// What was decided, and not to be decided again.
        Decided = "decided",
        /// How far counters and recent actions went.
        Applied = "applied",
        /// Events and calls of a token.
        Counters = "counters",
        /// A token's newest events.
        RecentActions = "recent_actions",
        /// A user's newest events.
        Timelines = "timelines",
        /// A user's properties.
        Users = "users",
        /// Profiles put together.
        CachedUsers = "cached_users",
        /// Answers of queries.
        QueryResults = "query_results",
        /// Who may read.
        Sessions = "sessions",
        /// The register of sources, the layout, tokens' limits.
        Config = "config",
        /// Work to be done later.
        Tasks = "tasks",
        /// Not of this deployment.
        Other = "other",
    }
}

label! {
    /// How an attempt at a task ended.
    TaskOutcome = "outcome" {
        /// It did what it was to do.
        Done = "done",
        /// It failed, and is tried again later.
        Retried = "retried",
        /// It failed for good, or too often.
        Parked = "parked",
        /// It failed, and nobody waits for it: it is not tried again.
        Dropped = "dropped",
        /// Its process ended in good order before it was done.
        GivenBack = "given_back",
        /// Its process died; another takes it over.
        Redelivered = "redelivered",
    }
}

/// The values of a label, known beforehand.
pub(super) trait Label: Copy + 'static {
    const KEY: &'static str;
    const VALUES: &'static [Self];

    fn index(self) -> usize;
    fn text(self) -> &'static str;
}
