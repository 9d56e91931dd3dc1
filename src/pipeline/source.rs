//! Coordinates: where a record stands, packed into 64 bits.
//!
//! The register in Redis gives each topic and incarnation a small number, once; the number, the partition and the
//! offset make the coordinate that claims, decisions and watermarks carry.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

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
if not number and ARGV[2] == '1' then
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
    known: Mutex<HashMap<(String, u32), Source>>,
}

impl Register {
    pub(super) fn new() -> Self {
        Self {
            script: Script::new(REGISTER),
            known: Mutex::default(),
        }
    }

    /// The number of `topic` in `incarnation`; entered if `enter`, else `None` where there is none.
    pub(super) async fn number(
        &self,
        redis: &Redis,
        keys: &Keys,
        (topic, incarnation): (&str, u32),
        enter: bool,
    ) -> RedisResult<Option<Source>> {
        let name = (topic.to_owned(), incarnation);
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
            .copied();
        if known.is_some() {
            return Ok(known);
        }
        let mut pipe = ::redis::pipe();
        let mut call = self.script.call(1);
        call.arg(keys.sources())
            .arg(format!("{topic}:{incarnation}"))
            .arg(u8::from(enter));
        pipe.add_command(call);
        let answer = redis
            .scripted(&[&self.script], &pipe)
            .await?
            .into_iter()
            .next()
            .unwrap_or(::redis::Value::Nil);
        let source = Option::<u8>::from_redis_value(answer)?.map(Source);
        // One that is not there may come; and any producer can name as many as it likes.
        if let Some(source) = source {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(name, source);
        }
        Ok(source)
    }

    /// The packed coordinate at which a replayed record was rejected, if its source was ever registered.
    pub(super) async fn coordinate_of(
        &self,
        redis: &Redis,
        keys: &Keys,
        origin: &Origin,
    ) -> RedisResult<Option<i64>> {
        let source = self
            .number(redis, keys, (&origin.topic, origin.incarnation), false)
            .await?;
        Ok(source.and_then(|source| source.pack(origin.partition, origin.offset)))
    }
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
