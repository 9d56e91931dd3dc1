//! What each fault of a worker does (those of services and ways are in `services`). Waits for events in flight first, and notes how many there were.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fault::{Fault, Sender};
use super::plan::Planned;
use super::world::{Hit, Member, Met, World, lock};
use crate::harness::proxy::Manner;
use crate::harness::stack::Service;
use crate::harness::wait::{eventually, seen};

/// What must come to pass on a machine that is busy with other things.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);
/// How long an armed worker may take to come to its moment.
const DIES_WITHIN: Duration = Duration::from_secs(30);
/// Waits for the fault's moment, lets it happen, and notes it.
pub(super) fn act(world: &World<'_>, planned: &Planned) {
    let open = OnDrop(|| {
        world.open.fetch_sub(1, Ordering::Relaxed);
    });
    while world.landed() < planned.after
        || (planned.fault.is_alone() && world.open.load(Ordering::Relaxed) > 1)
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let met = world.happen(&planned.fault);
    lock(&world.hits).push(Hit {
        kind: planned.fault.kind(),
        what: format!("{:?}", planned.fault),
        met,
    });
    drop(open);
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl World<'_> {
    fn happen(&self, fault: &Fault) -> Met {
        match *fault {
            Fault::Kill { pick } => self.kill(pick),
            Fault::Death { moment, passes } => self.death(moment, passes),
            Fault::Freeze { pick, past_session } => self.freeze(pick, past_session),
            Fault::FreezeDecided => self.freeze_decided(),
            Fault::Scale => self.scale(),
            Fault::Rolling => self.rolling(),
            Fault::BrokerKilled { broker, away } => self.service_killed(broker, None, away),
            Fault::ClickHouseKilled { into, away } => {
                self.service_killed(Service::ClickHouse, Some(into), away)
            }
            Fault::RedisKilled { away } => self.service_killed(Service::Redis, None, away),
            Fault::BrokerFrozen { broker, away } => self.broker_frozen(broker, away),
            Fault::LeadersMoved { broker } => self.leaders_moved(broker),
            Fault::Disturbed { way, pick, trouble } => self.disturbed(way, pick, trouble),
            Fault::InsertHeld { pick, sender } => self.insert_held(pick, sender),
            Fault::TokensForgotten => self.tokens_forgotten(),
            Fault::Rewound { records } => self.rewound(records),
        }
    }

    fn kill(&self, pick: usize) -> Met {
        let member = self.take(pick);
        let met = self.busy(Some(&member));
        member.worker.kill();
        self.fill();
        met
    }

    fn death(&self, moment: &str, passes: u32) -> Met {
        let member = self.start(&armed(moment, passes));
        match self.dies(member) {
            Ok(met) => met,
            Err(member) => {
                // It may still die of its fault on the way out.
                member.worker.terminate_within(super::world::TERM_WITHIN);
                self.now().if_only(false).noting("it did not come to its moment")
            }
        }
    }

    /// Waits for a worker's death. Gives it back if it lives on.
    fn dies(&self, mut member: Member) -> Result<Met, Member> {
        let until = Instant::now() + DIES_WITHIN;
        let mut last = self.now();
        while Instant::now() < until {
            if member.worker.ended().is_some() {
                return Ok(last);
            }
            last = self.now();
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(member)
    }

    fn freeze(&self, pick: usize, past_session: bool) -> Met {
        let member = self.take(pick);
        let met = self.busy(Some(&member));
        self.frozen(&member, past_session);
        self.enter(member);
        met
    }

    fn frozen(&self, member: &Member, past_session: bool) {
        let session = self.plan.protocol.session();
        member.worker.signal(Signal::SIGSTOP);
        // No event tells that the group has given up on it, as a member that is frozen must not know either.
        std::thread::sleep(if past_session {
            session + Duration::from_secs(2)
        } else {
            session / 3
        });
        member.worker.signal(Signal::SIGCONT);
    }

    fn freeze_decided(&self) -> Met {
        // Wakes in the middle of a block when it has joined anew.
        let linger = self.plan.protocol.session() + Duration::from_secs(5);
        let member = self.start(&format!("before-announce=3*return({})", linger.as_millis()));
        let met = self.busy(Some(&member));
        // From a record that was read to a block that is decided.
        std::thread::sleep(Duration::from_millis(self.plan.age_ms + 150));
        self.frozen(&member, true);
        self.enter(member);
        met
    }

    fn scale(&self) -> Met {
        let met = self.busy(None);
        let mut rest = self.take_all();
        self.enter(rest.pop().unwrap_or_else(|| self.start("")));
        for member in rest {
            member.terminate();
        }
        self.progress();
        let three = [(); 3].map(|()| self.start(""));
        self.progress();
        for member in three {
            member.terminate();
        }
        self.progress();
        self.fill();
        met
    }

    fn rolling(&self) -> Met {
        let mut met: Option<Met> = None;
        for _ in 0..self.plan.workers {
            let member = self.take(0);
            let now = self.busy(Some(&member));
            met = Some(met.map_or(now.clone(), |met| met.and(&now)));
            member.terminate();
            self.fill();
        }
        met.unwrap_or_else(|| self.now())
    }

    fn insert_held(&self, pick: usize, sender: Sender) -> Met {
        // A server that is killed meanwhile has nothing that could land late.
        let _turn = lock(&self.turns.clickhouse);
        let member = self.take(pick);
        let met = self.busy(Some(&member));
        if met.in_flight.is_none() {
            self.enter(member);
            return met.noting("it had nothing in flight");
        }
        let way = std::sync::Arc::clone(&member.clickhouse);
        way.set(Manner::HoldsInserts);
        let until = Instant::now() + Duration::from_secs(15);
        while way.held() == 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let met = self.now().if_only(way.held() > 0);
        let recovered = self.scene.logged("a block was recovered");
        let asleep = match sender {
            Sender::Dies => {
                member.worker.kill();
                self.fill();
                None
            }
            Sender::Freezes => {
                member.worker.signal(Signal::SIGSTOP);
                Some(member)
            }
        };
        // Another has its block by then, or a service is gone and it never will.
        let until = Instant::now() + self.plan.protocol.session() + Duration::from_secs(15);
        while self.scene.logged("a block was recovered") == recovered && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        let by_others = self.scene.logged("a block was recovered") - recovered;
        way.set(Manner::Open);
        let answers = eventually("held inserts have their answers", PATIENCE, || {
            let landed = way.landed();
            seen(
                landed.len() >= way.held(),
                format_args!("{landed:?} of {}", way.held()),
            )
            .map(|()| landed)
        });
        if let Some(member) = asleep {
            member.worker.signal(Signal::SIGCONT);
            self.enter(member);
        }
        met.noting(format!(
            "{by_others} blocks recovered meanwhile; answers {answers:?}"
        ))
    }

    fn tokens_forgotten(&self) -> Met {
        for member in self.take_all() {
            member.terminate();
        }
        let armed: Vec<Member> = (0..self.plan.workers)
            .map(|n| self.start(&armed("after-insert", n as u32 * 3 + 2)))
            .collect();
        let mut met: Option<Met> = None;
        for member in armed {
            match self.dies(member) {
                Ok(now) => met = Some(met.map_or(now.clone(), |met| met.and(&now))),
                Err(member) => member.worker.kill(),
            }
        }
        self.no_insert_runs();
        for table in ["events", "copies"] {
            for window in [0, 100_000] {
                self.scene.clickhouse.run(&format!(
                    "ALTER TABLE {}.{table} MODIFY SETTING non_replicated_deduplication_window = {window}",
                    self.scene.database
                ));
            }
        }
        self.fill();
        met.unwrap_or_else(|| self.now().if_only(false))
    }

    fn rewound(&self, records: i64) -> Met {
        let met = self.busy(None);
        for member in self.take_all() {
            member.worker.kill();
        }
        self.no_insert_runs();
        let back: Vec<(i32, i64)> = self
            .committed()
            .into_iter()
            .map(|(partition, offset)| (partition, (offset - records / 6).max(0)))
            .collect();
        self.scene
            .kafka
            .commit(&self.scene.group, &self.scene.topic, &back);
        self.fill();
        met
    }

    /// Waits until the server works on no insert any more.
    pub(super) fn no_insert_runs(&self) {
        eventually("no insert runs", PATIENCE, || {
            let running = self
                .scene
                .clickhouse
                .try_run("SELECT count() FROM system.processes WHERE query_kind = 'Insert' FORMAT TSV")?;
            seen(running.trim() == "0", running)
        });
    }
}

/// A worker that dies at a moment, after so many passes of it.
fn armed(moment: &str, passes: u32) -> String {
    match passes {
        0 => format!("{moment}=1*return"),
        passes => format!("{moment}={passes}*off->1*return"),
    }
}
