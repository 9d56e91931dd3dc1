//! Claim: an event's id belongs to the record that claimed it first, for as long as the window.
//!
//! A claim's value is its record's coordinate: a record that comes again finds its own claim and is no duplicate. A
//! claim is never given back or changed; only a replay takes over the one of the coordinate that it was rejected at.

use ::redis::{FromRedisValue as _, RedisResult, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::block::Block;
use super::retry::until_done;
use super::{Dropped, Outcome, Partition};
use crate::config::DedupBy;
use crate::event::{Decoded, Event};
use crate::faults;
use crate::redis::keys::Keys;
use crate::redis::{COMMANDS_AT_ONCE, Redis, Script};
use crate::telemetry::Service;

/// One event's claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The token's place in the block's list.
    token: usize,
    /// What is claimed within the token.
    id: u128,
    /// The record that claims.
    coordinate: i64,
    /// A replay's: where it was rejected.
    takes_over: Option<i64>,
}

/// How claims are kept in Redis.
pub(super) trait Layout {
    /// Claims all, in order. Answers the coordinate that owns each claim afterwards.
    fn claim(
        &self,
        redis: &Redis,
        tokens: &[String],
        wanted: &[Wanted],
    ) -> impl Future<Output = RedisResult<Vec<i64>>> + Send;
}

/// Layout `keys`: a string for each event, exact expiry.
#[derive(Debug)]
pub(super) struct KeyPerEvent {
    keys: Keys,
    ttl_seconds: u64,
    takeover: Script,
}

impl KeyPerEvent {
    pub(super) fn new(keys: Keys, ttl_seconds: u64) -> Self {
        Self {
            keys,
            ttl_seconds,
            takeover: Script::new(include_str!("claim_takeover.lua")),
        }
    }
}

impl KeyPerEvent {
    async fn claim_some(
        &self,
        redis: &Redis,
        prefixes: &[String],
        wanted: &[Wanted],
    ) -> RedisResult<Vec<Value>> {
        let mut pipe = ::redis::Pipeline::with_capacity(wanted.len());
        let mut key = String::new();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        for want in wanted {
            key.clear();
            key.push_str(&prefixes[want.token]);
            key.push_str(Uuid::from_u128(want.id).hyphenated().encode_lower(&mut text));
            key.push('}');
            match want.takes_over {
                None => {
                    pipe.cmd("SET").arg(&key).arg(want.coordinate);
                    pipe.arg("NX").arg("GET").arg("EX").arg(self.ttl_seconds);
                }
                Some(rejected) => {
                    let mut call = self.takeover.call(1);
                    call.arg(&key)
                        .arg(want.coordinate)
                        .arg(rejected)
                        .arg(self.ttl_seconds);
                    pipe.add_command(call);
                }
            }
        }
        redis.scripted(&[&self.takeover], &pipe).await
    }
}

impl Layout for KeyPerEvent {
    async fn claim(&self, redis: &Redis, tokens: &[String], wanted: &[Wanted]) -> RedisResult<Vec<i64>> {
        let prefixes: Vec<String> = tokens.iter().map(|token| self.keys.claims_of(token)).collect();
        let mut owners = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(COMMANDS_AT_ONCE) {
            for (answer, want) in self
                .claim_some(redis, &prefixes, wanted)
                .await?
                .into_iter()
                .zip(wanted)
            {
                owners.push(match answer {
                    Value::Nil => want.coordinate,
                    // A claim that does not tell its owner is anybody else's.
                    _ if faults::without("without-coordinate") => -1,
                    owner => i64::from_redis_value(owner)?,
                });
            }
        }
        Ok(owners)
    }
}

impl Partition {
    /// Claims every event of the block. Another's claim makes an event a duplicate; the rest pass so far.
    pub(super) async fn claim(&self, block: &Block, decoded: &Decoded) -> Result<Vec<Outcome>, Dropped> {
        if decoded.events.is_empty() {
            return Ok(Vec::new());
        }
        let worker = &self.worker;
        let by = worker.config.dedup.by;
        let mut wanted = Vec::with_capacity(decoded.events.len());
        for event in &decoded.events {
            let coordinate = worker
                .source
                .pack(self.number, event.offset)
                .ok_or(Dropped::Coordinate(event.offset))?;
            let takes_over = match &event.origin {
                None => None,
                Some(origin) => {
                    let ask = async || {
                        worker
                            .register
                            .coordinate_of(&worker.redis, &worker.keys, origin)
                            .await
                    };
                    until_done(Service::Redis, "look up a source", ask).await
                }
            };
            wanted.push(Wanted {
                token: event.token as usize,
                id: id(by, decoded, event),
                coordinate,
                takes_over,
            });
        }
        debug_assert!(wanted.len() <= block.len());
        let claim = async || worker.claims.claim(&worker.redis, &decoded.tokens, &wanted).await;
        let owners = until_done(Service::Redis, "claim", claim).await;
        Ok(owners
            .iter()
            .zip(&wanted)
            .map(|(owner, want)| {
                if *owner == want.coordinate {
                    Outcome::Pass
                } else {
                    Outcome::Duplicate
                }
            })
            .collect())
    }
}

/// What an event is claimed by: its uuid (made from its id or its coordinate where it has none), or its content.
fn id(by: DedupBy, decoded: &Decoded, event: &Event) -> u128 {
    match by {
        DedupBy::Id => event.uuid,
        DedupBy::Content => {
            let mut hash = Xxh3::new();
            for part in [
                decoded.tokens[event.token as usize].as_bytes(),
                decoded.bytes(event.distinct_id),
                decoded.bytes(event.event),
                &event.timestamp.to_le_bytes(),
            ] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            hash.digest128()
        }
    }
}
