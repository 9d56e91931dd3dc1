//! Claim: an event's id belongs to the record that claimed it first, for as long as the window.
//!
//! A claim's value is its record's coordinate: a record that comes again finds its own claim and is no duplicate. A
//! claim is never given back or changed; only a replay takes over the one of the coordinate that it was rejected at.

mod beyond;
mod keys;
mod mark;
mod packed;

use ::redis::RedisResult;
use xxhash_rust::xxh3::Xxh3;

use self::keys::KeyPerEvent;
use self::packed::Packed;
use super::block::Block;
use super::retry::until_done;
use super::{Dropped, Outcome, Partition};
use crate::config::DedupBy;
use crate::event::{Decoded, Event};
use crate::redis::Redis;
use crate::redis::keys::Keys;
use crate::telemetry::Service;

pub use self::mark::compare as compare_marks;
pub(super) use self::mark::mark_layout;
pub use self::packed::Secret;

/// A claim to be made.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The token's place in the block's list.
    pub token: usize,
    /// What is claimed within the token.
    pub id: u128,
    /// The record that claims, packed; never negative.
    pub coordinate: i64,
    /// A replay's: where it was rejected.
    pub takes_over: Option<i64>,
}

/// Whose an event is, once it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The record's that asked: from now on, or since an earlier attempt.
    Ours,
    /// Another record's.
    Others,
}

/// How claims are kept in Redis: `dedup.layout`. Both give the same answers.
#[derive(Debug)]
pub struct Claims(Layout);

#[derive(Debug)]
enum Layout {
    Keys(KeyPerEvent),
    Packed(Packed),
}

impl Claims {
    /// Claims live for `window_seconds`; with a secret they are packed.
    pub fn new(keys: Keys, window_seconds: u64, secret: Option<&Secret>) -> Self {
        Self(match secret {
            None => Layout::Keys(KeyPerEvent::new(keys, window_seconds)),
            Some(secret) => Layout::Packed(Packed::new(keys, window_seconds, secret)),
        })
    }

    /// Claims all, the earlier before the later ones. Answers whose each is.
    ///
    /// # Errors
    /// Redis did not answer, or not for all: some may be made. Claiming again finds them.
    pub async fn claim(
        &self,
        redis: &Redis,
        tokens: &[String],
        wanted: &[Wanted],
    ) -> RedisResult<Vec<Claim>> {
        match &self.0 {
            Layout::Keys(layout) => layout.claim(redis, tokens, wanted).await,
            Layout::Packed(layout) => layout.claim(redis, tokens, wanted).await,
        }
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
                    until_done(self.waiter(), Service::Redis, "look up a source", ask).await
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
        let claims = until_done(self.waiter(), Service::Redis, "claim", claim).await;
        let mut outcomes: Vec<Outcome> = claims
            .into_iter()
            .map(|claim| match claim {
                Claim::Ours => Outcome::Pass,
                Claim::Others => Outcome::Duplicate,
            })
            .collect();
        self.look_beyond(block, decoded, &mut outcomes).await;
        Ok(outcomes)
    }
}

/// What an event is claimed by: its uuid (made from its id or its coordinate where it has none), or its content.
pub(super) fn id(by: DedupBy, decoded: &Decoded, event: &Event) -> u128 {
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
