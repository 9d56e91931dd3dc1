//! Coordinates: where a record stands, packed into 64 bits.
//!
//! The register in Redis gives each topic and incarnation a small number, once; the number, the partition and the
//! offset make the coordinate that claims, decisions and watermarks carry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::redis::{FromRedisValue as _, RedisResult};

use crate::event::Origin;
use crate::redis::keys::Keys;
use crate::redis::{Redis, Script};

const OFFSET_BITS: u32 = 40;
const PARTITION_BITS: u32 = 16;
/// 63 bits are used, so that Redis keeps a coordinate as an integer and it stays positive.
const SOURCE_BITS: u32 = 63 - OFFSET_BITS - PARTITION_BITS;

const REGISTER: &str = r"
local number = redis.call('HGET', KEYS[1], ARGV[1])
if not number then
  number = redis.call('HLEN', KEYS[1])
  redis.call('HSET', KEYS[1], ARGV[1], number)
end
return number
";

/// The small number of a topic and incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(pub u8);

impl Source {
    /// The coordinate of a record, where it fits: 65,536 partitions, 2^40 offsets.
    pub fn pack(self, partition: i32, offset: i64) -> Option<i64> {
        let partition = i64::from(u16::try_from(partition).ok()?);
        if !(0..1 << OFFSET_BITS).contains(&offset) || i64::from(self.0) >= 1 << SOURCE_BITS {
            return None;
        }
        Some((i64::from(self.0) << (OFFSET_BITS + PARTITION_BITS)) | (partition << OFFSET_BITS) | offset)
    }

    /// The name under which decisions and watermarks are kept for a partition.
    pub fn field(self, partition: i32) -> String {
        format!("{}:{partition}", self.0)
    }
}

/// The register of sources, and what was read of it.
#[derive(Debug)]
pub(super) struct Register {
    script: Script,
    /// Blocks whose sources are looked up, or were.
    blocks: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sources: HashMap<String, Source>,
    /// How many blocks there were before the whole register was read.
    read_at: Option<u64>,
}

impl Register {
    pub(super) fn new() -> Self {
        Self {
            script: Script::new(REGISTER),
            blocks: AtomicU64::new(0),
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of `topic` in `incarnation`, entered if it has none.
    pub(super) async fn enter(
        &self,
        redis: &Redis,
        keys: &Keys,
        (topic, incarnation): (&str, u32),
    ) -> RedisResult<Option<Source>> {
        let mut pipe = ::redis::pipe();
        let mut call = self.script.call(1);
        call.arg(keys.sources()).arg(name(topic, incarnation));
        pipe.add_command(call);
        let answer = redis
            .scripted(&[&self.script], &pipe)
            .await?
            .into_iter()
            .next()
            .unwrap_or(::redis::Value::Nil);
        Ok(Option::<u8>::from_redis_value(answer)?.map(Source))
    }

    /// A block comes whose records were read before now. Any producer can name as many sources as it likes that do not
    /// exist: the register is read once for all of them. Not less often, for one that another worker entered since may
    /// be that of a record that was rejected there and has come back.
    pub(super) fn begin_block(&self) {
        self.blocks.fetch_add(1, Ordering::SeqCst);
    }

    /// The packed coordinate at which a replayed record was rejected, if its source was ever registered.
    pub(super) async fn coordinate_of(
        &self,
        redis: &Redis,
        keys: &Keys,
        origin: &Origin,
    ) -> RedisResult<Option<i64>> {
        let name = name(&origin.topic, origin.incarnation);
        let pack = |source: Option<Source>| source?.pack(origin.partition, origin.offset);
        // Before it is read: a block that comes meanwhile has it read once more.
        let blocks = self.blocks.load(Ordering::SeqCst);
        {
            let known = self.known();
            let source = known.sources.get(&name).copied();
            if source.is_some() || known.read_at == Some(blocks) {
                return Ok(pack(source));
            }
        }
        let entries = registered(redis, keys).await?;
        let mut known = self.known();
        known.sources.extend(entries);
        known.read_at = Some(blocks);
        Ok(pack(known.sources.get(&name).copied()))
    }
}

/// Every source that was ever registered, by its name.
pub(crate) async fn registered(redis: &Redis, keys: &Keys) -> RedisResult<HashMap<String, Source>> {
    let mut command = ::redis::cmd("HGETALL");
    command.arg(keys.sources());
    let entries: HashMap<String, String> = redis.command(&command).await?;
    Ok(entries
        .into_iter()
        .filter_map(|(name, number)| Some((name, Source(number.parse().ok()?))))
        .collect())
}

/// How the register names a source. No topic has a colon in its name.
pub(crate) fn name(topic: &str, incarnation: u32) -> String {
    format!("{topic}:{incarnation}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_differ_wherever_records_do_and_stay_positive() {
        let mut seen = std::collections::HashSet::new();
        for source in [0, 1, 127] {
            for partition in [0, 1, 65_535] {
                for offset in [0, 1, (1 << 40) - 1] {
                    let packed = Source(source).pack(partition, offset).unwrap();
                    assert!(packed >= 0 && seen.insert(packed));
                }
            }
        }
        assert_eq!(Source(0).pack(65_536, 0), None);
        assert_eq!(Source(0).pack(-1, 0), None);
        assert_eq!(Source(0).pack(0, 1 << 40), None);
        assert_eq!(Source(128).pack(0, 0), None);
    }
}
