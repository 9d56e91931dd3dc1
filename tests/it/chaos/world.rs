//! What a round's faults have in common: the workers, the services, and the sight of what is in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::acts::PATIENCE;
use super::plan::{PARTITIONS, Plan};
use crate::harness::Scene;
use crate::harness::events::Load;
use crate::harness::kafka::Record;
use crate::harness::proxy::Proxy;
use crate::harness::stack::PrivateStack;
use crate::harness::wait::eventually;
use crate::harness::worker::Worker;

/// How often the group's offsets are read.
const LOOK: Duration = Duration::from_millis(40);
/// An older reading says nothing of now.
const FRESH: Duration = Duration::from_secs(2);
/// Records at a time, and the pause between: some 1,000 a second.
const BATCH: u64 = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// Beyond so many unsettled records the load waits: a round must end.
const MOST_UNSETTLED: u64 = 20_000;
/// How long a fault waits for its victim to have something in flight.
const BUSY_WITHIN: Duration = Duration::from_secs(20);
/// SIGTERM's thirty seconds, and as much again for a machine that is busy with other things.
pub(super) const TERM_WITHIN: Duration = Duration::from_mins(1);

/// A worker with ways of its own to `ClickHouse` and Redis.
pub(super) struct Member {
    pub(super) worker: Worker,
    pub(super) clickhouse: Arc<Proxy>,
    pub(super) redis: Arc<Proxy>,
}

impl Member {
    /// Bytes that it has read and not settled.
    pub(super) fn holds(&self) -> f64 {
        self.worker.metric("sluice_in_flight_bytes").unwrap_or_default()
    }

    /// Ends it by SIGTERM; it must end well, unless it had not come to its first line of log.
    pub(super) fn terminate(self) {
        let log = self.worker.log.clone();
        let had_begun = std::fs::metadata(&log).is_ok_and(|log| log.len() > 0);
        let status = self.worker.terminate_within(TERM_WITHIN);
        assert!(
            status.code() == Some(0) || !had_begun,
            "SIGTERM ends a worker with 0, not with {status}: {}",
            log.display()
        );
    }
}

/// A fault as it came to pass.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub(super) kind: &'static str,
    pub(super) what: String,
    pub(super) met: Met,
}

/// What a fault met: when, and how many events in flight (`None` if there were none, or if nobody could tell).
#[derive(Clone, Debug)]
pub(super) struct Met {
    pub(super) at: Duration,
    pub(super) landed: u64,
    pub(super) in_flight: Option<u64>,
    pub(super) note: String,
}

impl Met {
    /// Only what came to pass counts.
    pub(super) fn if_only(mut self, came_to_pass: bool) -> Self {
        self.in_flight = self.in_flight.filter(|_| came_to_pass);
        self
    }

    pub(super) fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Of a fault in several steps: the first one's time, and the fewest events in flight.
    pub(super) fn and(mut self, next: &Self) -> Self {
        self.in_flight = self.in_flight.min(next.in_flight);
        self
    }
}

pub(super) struct World<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stack: &'a PrivateStack,
    pub(super) scene: Scene,
    /// Guards of the protocol that are taken out, in the language of `FAILPOINTS`.
    without: &'a str,
    members: Mutex<Vec<Member>>,
    pub(super) began: Instant,
    landed: AtomicU64,
    /// The group's offsets together, and when they were read.
    settled: Mutex<(u64, Instant)>,
    /// Faults that are not over.
    pub(super) open: AtomicUsize,
    over: AtomicBool,
    /// One fault of a service at a time.
    pub(super) turns: Turns,
    pub(super) hits: Mutex<Vec<Hit>>,
}

/// One fault of a service at a time.
#[derive(Default)]
pub(super) struct Turns {
    pub(super) kafka: Mutex<()>,
    pub(super) redis: Mutex<()>,
    pub(super) clickhouse: Mutex<()>,
}

/// A lock whose holder panicked is taken all the same: its panic is told when the round ends.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a Plan, stack: &'a PrivateStack, scene: Scene, without: &'a str) -> Self {
        Self {
            plan,
            stack,
            scene,
            without,
            members: Mutex::default(),
            began: Instant::now(),
            landed: AtomicU64::new(0),
            settled: Mutex::new((0, Instant::now())),
            open: AtomicUsize::new(plan.faults.len()),
            over: AtomicBool::new(false),
            turns: Turns::default(),
            hits: Mutex::default(),
        }
    }

    /// Starts a worker with `faults` of its own. It is nobody's victim before it has entered.
    pub(super) fn start(&self, faults: &str) -> Member {
        let redis = Arc::new(Proxy::to(self.scene.redis_url()));
        let clickhouse = Arc::new(Proxy::to(self.scene.clickhouse.url()));
        let both = [self.without, faults].join(";");
        let settings = [("clickhouse.url", clickhouse.url()), ("redis.url", redis.url())];
        Member {
            worker: self.scene.start_failing(both.trim_matches(';'), &settings),
            clickhouse,
            redis,
        }
    }

    /// From here on others may pick it.
    pub(super) fn enter(&self, member: Member) {
        lock(&self.members).push(member);
    }

    /// Takes a worker out. Somebody must go on: if it was the last one, another is started.
    pub(super) fn take(&self, pick: usize) -> Member {
        let mut members = lock(&self.members);
        if members.len() <= 1 {
            members.push(self.start(""));
        }
        // The one that was started just now has nothing in flight.
        let eligible = members.len() - usize::from(members.len() == 2);
        members.remove(pick % eligible.max(1))
    }

    /// Takes all workers out.
    pub(super) fn take_all(&self) -> Vec<Member> {
        std::mem::take(&mut *lock(&self.members))
    }

    pub(super) fn fill(&self) {
        let mut members = lock(&self.members);
        while members.len() < self.plan.workers {
            members.push(self.start(""));
        }
    }

    /// The ways of a worker, to `ClickHouse` and to Redis.
    pub(super) fn ways(&self, pick: usize) -> (Arc<Proxy>, Arc<Proxy>) {
        let members = lock(&self.members);
        let member = &members[pick % members.len()];
        (Arc::clone(&member.clickhouse), Arc::clone(&member.redis))
    }

    /// Inserts that are on their way to `ClickHouse` just now.
    pub(super) fn inserts_under_way(&self) -> usize {
        lock(&self.members).iter().map(|m| m.clickhouse.under_way()).sum()
    }

    /// Records that have landed in the topic.
    pub(super) fn landed(&self) -> u64 {
        self.landed.load(Ordering::Relaxed)
    }

    /// The group's offsets together, as they were read last.
    pub(super) fn settled(&self) -> u64 {
        lock(&self.settled).0
    }

    /// Records in the topic that the group has not settled, if anybody could tell lately.
    fn unsettled(&self) -> Option<u64> {
        let (settled, at) = *lock(&self.settled);
        (at.elapsed() < FRESH).then(|| self.landed().saturating_sub(settled))
    }

    /// Waits until there are events in flight, and at the victim if there is one. Counts nothing if the wait was in vain.
    pub(super) fn busy(&self, victim: Option<&Member>) -> Met {
        let until = Instant::now() + BUSY_WITHIN;
        while Instant::now() < until {
            let working = match victim {
                Some(member) => member.holds() > 0.0,
                None => lock(&self.members).iter().any(|member| member.holds() > 0.0),
            };
            if working && self.unsettled() > Some(0) {
                return self.now();
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        self.now().if_only(false)
    }

    /// How many events are in flight just now, without a wait.
    pub(super) fn now(&self) -> Met {
        Met {
            at: self.began.elapsed(),
            landed: self.landed(),
            in_flight: self.unsettled().filter(|n| *n > 0),
            note: String::new(),
        }
    }

    /// Waits until the group has come some way, but not for ever: a service may be gone.
    pub(super) fn progress(&self) {
        let (before, until) = (self.settled(), Instant::now() + Duration::from_secs(15));
        while self.settled() < before + 200 && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }

    /// Sends records until the round is over; returns them with their places.
    pub(super) fn produce(&self) -> Vec<Record> {
        let mut load = Load::new(PARTITIONS).over_months(self.plan.months);
        let mut stream = self.scene.kafka.stream(&self.scene.topic);
        while !self.over.load(Ordering::Relaxed) {
            if self.landed().saturating_sub(self.settled()) < MOST_UNSETTLED {
                stream.send(load.take(BATCH));
            }
            std::thread::sleep(PAUSE);
            self.landed.store(stream.landed(), Ordering::Relaxed);
        }
        stream.finish()
    }

    /// Reads the group's offsets until the round is over.
    pub(super) fn watch(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let scene = &self.scene;
            if let Ok(committed) = scene.kafka.committed(&scene.group, &scene.topic, PARTITIONS) {
                let sum: i64 = committed.iter().flatten().map(|(offset, _)| offset).sum();
                *lock(&self.settled) = (sum as u64, Instant::now());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the load.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// How many records each partition's group offset has come to.
    pub(super) fn committed(&self) -> HashMap<i32, i64> {
        let scene = &self.scene;
        // A coordinator that has just moved does not answer at once.
        let committed = eventually("the group's offsets", PATIENCE, || {
            scene.kafka.committed(&scene.group, &scene.topic, PARTITIONS)
        });
        (0..)
            .zip(committed)
            .map(|(partition, committed)| (partition, committed.map_or(0, |(offset, _)| offset)))
            .collect()
    }
}
