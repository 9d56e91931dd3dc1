//! What the faults of services do, and those of the ways to them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::acts::PATIENCE;
use super::fault::{Trouble, Way};
use super::world::{Met, World, lock};
use crate::harness::proxy::{Cut, Manner};
use crate::harness::raw_kafka::elect_preferred_leaders;
use crate::harness::stack::Service;
use crate::harness::wait::eventually;

/// How long a way is disturbed.
const DISTURBED: Duration = Duration::from_millis(2_500);

impl World<'_> {
    /// `kill -9`, where `into` is given that long into an insert; then started again.
    pub(super) fn service_killed(&self, service: Service, into: Option<Duration>, away: Duration) -> Met {
        let _turn = lock(self.turn(service));
        let pid = self.stack.pid(service);
        let mut met = self.busy(None);
        let mut note = String::new();
        if let Some(into) = into {
            let until = Instant::now() + Duration::from_secs(8);
            let mut under_way = 0;
            while under_way == 0 && Instant::now() < until {
                under_way = self.inserts_under_way();
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(into);
            note = format!("{under_way} inserts under way");
            met = self.now().if_only(under_way > 0);
        }
        kill(pid, Signal::SIGKILL).unwrap();
        std::thread::sleep(away);
        self.stack.start(service);
        self.is_whole(service);
        met.noting(note)
    }

    pub(super) fn broker_frozen(&self, broker: Service, away: Duration) -> Met {
        let _turn = lock(&self.turns.kafka);
        let pid = self.stack.pid(broker);
        let met = self.busy(None);
        kill(pid, Signal::SIGSTOP).unwrap();
        std::thread::sleep(away);
        self.stack.resume(broker);
        self.is_whole(broker);
        met
    }

    pub(super) fn leaders_moved(&self, broker: Service) -> Met {
        let _turn = lock(&self.turns.kafka);
        let met = self.busy(None);
        self.stack.stop(broker);
        self.stack.start(broker);
        self.is_whole(broker);
        let moved = elect_preferred_leaders(self.scene.kafka.brokers());
        met.noting(format!("{moved} leaders moved back"))
    }

    fn turn(&self, service: Service) -> &Mutex<()> {
        match service {
            Service::Redis => &self.turns.redis,
            Service::ClickHouse => &self.turns.clickhouse,
            _ => &self.turns.kafka,
        }
    }

    /// A second broker may go only when the first is in sync again.
    fn is_whole(&self, service: Service) {
        if !matches!(service, Service::Redis | Service::ClickHouse) {
            eventually("all replicas are in sync", PATIENCE, || {
                self.scene.kafka.is_whole()
            });
        }
    }

    pub(super) fn disturbed(&self, way: Way, pick: usize, trouble: Trouble) -> Met {
        let met = self.busy(None);
        let (clickhouse, redis) = self.ways(pick);
        let proxy = match way {
            Way::ClickHouse => clickhouse,
            Way::Redis => redis,
        };
        let manner = match trouble {
            Trouble::Cut(cut, times) => {
                // A block's commands to Redis are smaller than its rows.
                let cut = match cut {
                    Cut::Request(bytes) if way == Way::Redis => Cut::Request(bytes / 20),
                    cut => cut,
                };
                proxy.cut(cut, way == Way::ClickHouse, times);
                let until = Instant::now() + Duration::from_secs(15);
                while proxy.cuts_left() > 0 && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
                let cut = times - proxy.cuts_left();
                return met.if_only(cut > 0).noting(format!("{cut} connections cut"));
            }
            Trouble::Delayed(later) => Manner::Delays(later),
            Trouble::Slow => Manner::Trickles,
            Trouble::AnswersLost => Manner::LosesAnswers,
            Trouble::AnswersHeld => Manner::HoldsAnswers,
        };
        proxy.set(manner);
        std::thread::sleep(DISTURBED);
        proxy.set(Manner::Open);
        met
    }
}
