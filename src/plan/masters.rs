//! How many masters the state's Redis takes, by memory and by CPU, and which of the two decides.
//!
//! Pure. Reckons with a Cluster whose masters have equal shares of the slots, as `redis-cli --cluster create` makes it.
//! Users, and claims of the layout `keys`, spread over them; packed claims are few shards, each in a slot of its own, so
//! what counts is the master that has most of them.

use serde::Serialize;

use super::{BUSY, FULL, whole};
use crate::redis::keys::Keys;
use crate::redis::{Topology, slot_of_key};

/// Shards of packed claims (`pipeline/claim/packed.rs`).
const SHARDS: usize = 256;
/// The most masters that Redis's own documentation advises a Cluster to have.
const MOST: u64 = 1_000;

/// The masters of the state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Masters {
    /// How many there must be.
    pub masters: u64,
    /// How many their memory takes.
    pub by_memory: u64,
    /// How many their one thread takes.
    pub by_cpu: u64,
    /// Which of the two decides.
    pub decided_by: DecidedBy,
    /// Whether `redis.mode = "cluster"` is needed.
    pub needs_cluster: bool,
    /// `maxmemory` of each, by the fullest of them.
    pub maxmemory_bytes_each: f64,
    /// Not even the largest Cluster keeps each below the bound.
    pub too_much: bool,
}

/// What there must be several masters for; neither, where one is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "names say it")]
pub enum DecidedBy {
    Neither,
    Memory,
    Cpu,
}

/// What is to be shared out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Claims in the layout `packed`, bytes.
    pub(super) packed_bytes: f64,
    /// All else, bytes.
    pub(super) other_bytes: f64,
    /// Cores that are busy.
    pub(super) cores: f64,
    /// The largest `maxmemory` of one master.
    pub(super) most_bytes: f64,
}

impl Masters {
    pub(super) fn of(load: Load) -> Self {
        let slots = slots_of_shards();
        let maxmemory = |masters| load.on_fullest(masters, &slots) / FULL;
        let fitting = |least: u64| (least..=MOST).find(|&masters| maxmemory(masters) <= load.most_bytes);
        let by_cpu = whole(load.cores / BUSY);
        let by_memory = fitting(1);
        // With more of them one may be fuller than before: slots are not shared out by shards.
        let masters = fitting(by_cpu);
        let decided_by = match by_memory {
            Some(1) if by_cpu == 1 => DecidedBy::Neither,
            Some(by_memory) if by_memory <= by_cpu && masters == Some(by_cpu) => DecidedBy::Cpu,
            _ => DecidedBy::Memory,
        };
        let at_least = whole((load.packed_bytes + load.other_bytes) / FULL / load.most_bytes);
        let masters = masters.unwrap_or(at_least.max(by_cpu).max(MOST));
        Self {
            masters,
            by_memory: by_memory.unwrap_or(at_least.max(MOST)),
            by_cpu,
            decided_by,
            needs_cluster: masters > 1,
            maxmemory_bytes_each: maxmemory(masters),
            too_much: masters > MOST || maxmemory(masters) > load.most_bytes,
        }
    }
}

impl Load {
    /// What the fullest of so many masters holds, bytes.
    fn on_fullest(&self, masters: u64, slots: &[u16]) -> f64 {
        let share = most_on_one(masters, slots) as f64 / slots.len() as f64;
        self.packed_bytes * share + self.other_bytes / masters as f64
    }
}

fn slots_of_shards() -> Vec<u16> {
    let keys = Keys::new("");
    (0..SHARDS)
        .map(|shard| slot_of_key(keys.claims_of_shard(shard).as_bytes()))
        .collect()
}

/// How many of these slots the master has that has most of them.
fn most_on_one(masters: u64, slots: &[u16]) -> usize {
    let master = |slot: u16| u64::from(slot) * masters / Topology::SLOTS as u64;
    let mut on: Vec<u64> = slots.iter().map(|&slot| master(slot)).collect();
    on.sort_unstable();
    on.chunk_by(|one, next| one == next)
        .map(<[u64]>::len)
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = (1_u64 << 30) as f64;

    fn masters(packed_gib: f64, other_gib: f64, cores: f64) -> Masters {
        Masters::of(Load {
            packed_bytes: packed_gib * GIB,
            other_bytes: other_gib * GIB,
            cores,
            most_bytes: 25.0 * GIB,
        })
    }

    #[test]
    fn shards_are_as_many_as_the_workers_have() {
        let code = include_str!("../pipeline/claim/packed.rs");
        assert!(code.contains(&format!("const SHARDS: usize = {SHARDS};")));
    }

    #[test]
    fn one_master_does_until_memory_or_its_thread_is_not_enough() {
        let one = masters(10.0, 10.0, 0.5);
        assert_eq!(
            (one.masters, one.decided_by, one.needs_cluster),
            (1, DecidedBy::Neither, false)
        );
        let by_cpu = masters(1.0, 1.0, 1.3);
        assert_eq!((by_cpu.masters, by_cpu.by_memory), (3, 1));
        assert_eq!(by_cpu.decided_by, DecidedBy::Cpu);
        let by_memory = masters(0.0, 376.0, 1.3);
        assert_eq!(
            (by_memory.masters, by_memory.by_memory, by_memory.by_cpu),
            (19, 19, 3)
        );
        assert_eq!(by_memory.decided_by, DecidedBy::Memory);
        assert!(by_memory.needs_cluster && !by_memory.too_much);
    }

    #[test]
    fn the_fullest_master_counts_where_shards_are_uneven() {
        let slots = slots_of_shards();
        assert_eq!(most_on_one(1, &slots), SHARDS);
        assert!(most_on_one(2, &slots) >= SHARDS / 2);
        let even = masters(0.0, 376.0, 0.1);
        let packed = masters(376.0, 0.0, 0.1);
        assert!(packed.masters > even.masters * 3 / 2, "{packed:?}");
        for of in [even, packed] {
            assert!(of.maxmemory_bytes_each <= 25.0 * GIB, "{of:?}");
            assert!(
                of.maxmemory_bytes_each * of.masters as f64 >= 376.0 * GIB / FULL * 0.999,
                "{of:?}"
            );
        }
    }

    #[test]
    fn what_no_cluster_holds_is_told() {
        let of = masters(1e6, 0.0, 0.1);
        assert!(of.too_much && of.masters >= MOST, "{of:?}");
        assert!(of.maxmemory_bytes_each.is_finite());
    }
}
