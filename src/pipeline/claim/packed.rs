//! Layout `packed`: events share strings of some 64 records. With all that Redis adds, 30 bytes an event in the first
//! window, and 37 from then on.
//!
//! A keyed hash of token and id gives 112 bits: the first eight name one of [`SHARDS`], the rest is the record's. Its key
//! is a secret that the first worker leaves in Redis, so nobody who sends events chooses what they meet. Claims of a
//! shard are one call of `packed.lua`, which searches, claims and forgets in one step by Redis's own clock; how its
//! buckets are laid out and grow is told there.

use std::hash::Hasher as _;

use ::redis::{FromRedisValue as _, Pipeline, RedisError, RedisResult, Value};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::{Claim, Wanted};
use crate::faults;
use crate::redis::keys::Keys;
use crate::redis::{Redis, Script};

/// What the ids of one call share; also how many slots of a Cluster the claims spread over.
const SHARDS: usize = 256;
/// Bytes of an id beside its shard.
const ID_BYTES: usize = 13;
/// Claims of one call: bounds how long the server is busy with it, some milliseconds, whatever ids a producer chose.
const CLAIMS_A_CALL: usize = 512;
/// Claims of one round trip.
const CLAIMS_AT_ONCE: usize = 16_384;
/// Says that a record is no replay; no coordinate is negative.
const NO_REPLAY: i64 = -1;

/// The secret that ids are hashed with.
pub type Secret = [u8; 16];

#[derive(Debug)]
pub(super) struct Packed {
    keys: Keys,
    window_seconds: u64,
    hasher: SipHasher24,
    script: Script,
}

/// An id, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Id {
    shard: u8,
    rest: [u8; ID_BYTES],
}

impl Packed {
    pub(super) fn new(keys: Keys, window_seconds: u64, secret: &Secret) -> Self {
        Self {
            keys,
            window_seconds,
            hasher: SipHasher24::new_with_key(secret),
            script: Script::new(include_str!("packed.lua")),
        }
    }

    fn id(&self, token: &str, id: u128) -> Id {
        let mut hasher = self.hasher;
        hasher.write(&id.to_be_bytes());
        hasher.write(token.as_bytes());
        let hash = hasher.finish128().as_bytes();
        let mut rest = [0; ID_BYTES];
        rest.copy_from_slice(&hash[1..=ID_BYTES]);
        Id { shard: hash[0], rest }
    }

    pub(super) async fn claim(
        &self,
        redis: &Redis,
        tokens: &[String],
        wanted: &[Wanted],
    ) -> RedisResult<Vec<Claim>> {
        let mut claims = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(CLAIMS_AT_ONCE) {
            // In order within a shard: the first of two records of one event has it.
            let mut shards: Vec<Vec<usize>> = vec![Vec::new(); SHARDS];
            let ids: Vec<Id> = wanted
                .iter()
                .map(|want| self.id(&tokens[want.token], want.id))
                .collect();
            for (i, id) in ids.iter().enumerate() {
                shards[usize::from(id.shard)].push(i);
            }
            let first = claims.len();
            claims.resize(first + wanted.len(), Claim::Others);
            let mut parts: Vec<_> = shards.iter().map(|shard| shard.chunks(CLAIMS_A_CALL)).collect();
            // One call a shard and round trip: a Cluster may refuse a call and do the next one.
            loop {
                let calls: Vec<(usize, &[usize])> = parts
                    .iter_mut()
                    .enumerate()
                    .filter_map(|(shard, parts)| Some((shard, parts.next()?)))
                    .collect();
                if calls.is_empty() {
                    break;
                }
                let mut pipe = Pipeline::with_capacity(calls.len());
                for (shard, part) in &calls {
                    pipe.add_command(self.call(*shard, part, &ids, wanted));
                }
                let answers = redis.scripted(&[&self.script], &pipe).await?;
                for (answer, (_, part)) in answers.into_iter().zip(&calls) {
                    for (claim, &i) in answered(answer, part.len())?.zip(*part) {
                        claims[first + i] = claim;
                    }
                }
            }
        }
        Ok(claims)
    }

    fn call(&self, shard: usize, part: &[usize], ids: &[Id], wanted: &[Wanted]) -> ::redis::Cmd {
        let replays = part.iter().any(|&i| wanted[i].takes_over.is_some());
        let mut bytes = Vec::with_capacity(part.len() * (ID_BYTES + 16));
        for &i in part {
            bytes.extend_from_slice(&ids[i].rest);
            bytes.extend_from_slice(&wanted[i].coordinate.to_be_bytes());
            if replays {
                let rejected = wanted[i].takes_over.unwrap_or(NO_REPLAY);
                bytes.extend_from_slice(&rejected.to_be_bytes());
            }
        }
        let mut call = self.script.call(1);
        call.arg(self.keys.claims_of_shard(shard))
            .arg(self.window_seconds)
            .arg(u8::from(replays))
            .arg(bytes);
        call
    }
}

/// Reads the answer to `claims` claims.
fn answered(answer: Value, claims: usize) -> RedisResult<impl Iterator<Item = Claim>> {
    let answer: Vec<u8> = Vec::from_redis_value(answer)?;
    if answer.len() != claims {
        return Err(RedisError::from((
            ::redis::ErrorKind::UnexpectedReturnType,
            "a script answered for more or fewer claims than it was asked for",
        )));
    }
    Ok(answer.into_iter().map(|answer| match answer {
        b'1' => Claim::Ours,
        // A claim that does not tell its owner is anybody else's.
        b'2' if !faults::without("without-coordinate") => Claim::Ours,
        _ => Claim::Others,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_token_id_and_secret() {
        let packed = |secret| Packed::new(Keys::new(""), 60, &[secret; 16]);
        let id = packed(1).id("t", 7);
        assert_eq!(id, packed(1).id("t", 7));
        for other in [packed(1).id("u", 7), packed(1).id("t", 8), packed(2).id("t", 7)] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn an_answer_is_for_all_claims_or_an_error() {
        let answer = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let claims: Vec<Claim> = answered(answer("102"), 3).unwrap().collect();
        assert_eq!(claims, [Claim::Ours, Claim::Others, Claim::Ours]);
        assert!(answered(answer("10"), 3).is_err());
        assert!(answered(Value::Nil, 3).is_err());
    }
}
