//! What a rebuild reads of Redis before it reads the table, and how it writes.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use ::redis::{Cmd, FromRedisValue as _, Pipeline, RedisResult, cmd};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::Again;
use crate::config::Config;
use crate::person::{FIRST_SEEN, LAST_SEEN, OFFSETS, Properties, WHOLE};
use crate::pipeline::Source;
use crate::pipeline::source::{name, registered};
use crate::redis::keys::{Keys, TIMELINE_EVENTS, USER_TTL_SECONDS};
use crate::redis::{Redis, Script, Settings};

/// Users that one round trip carries at the most.
const USERS_AT_ONCE: usize = 128;
/// Bytes of arguments after which a round trip is sent.
const BYTES_AT_ONCE: usize = 1 << 20;

/// A user as the table says.
#[derive(Debug)]
pub(super) struct Rebuilt {
    pub(super) hash: u64,
    pub(super) user: String,
    /// Times of the first and the last event.
    pub(super) first: i64,
    pub(super) last: i64,
    /// Times and members.
    pub(super) timeline: Vec<(i64, String)>,
    pub(super) properties: Properties,
    /// Hidden fields with the offset after the last change that was read.
    pub(super) applied: BTreeMap<String, u64>,
    /// Whether the table has any change of the properties.
    pub(super) changed: bool,
}

/// Below which offset of each partition the table has every row of a token.
#[derive(Debug)]
pub(super) struct Bounds {
    sources: HashMap<String, Source>,
    /// By the name of the user's hidden field.
    below: BTreeMap<String, u64>,
}

impl Bounds {
    /// The hidden field of a partition, and the bound; none where it is not known.
    pub(super) fn of(&self, topic: &str, incarnation: u32, partition: u32) -> Option<(String, u64)> {
        let source = self.sources.get(&name(topic, incarnation))?;
        let field = format!("{OFFSETS}{}", source.field(partition as i32));
        let below = *self.below.get(&field)?;
        Some((field, below))
    }
}

/// The way to Redis.
#[derive(Debug)]
pub(super) struct Writer {
    redis: Redis,
    cache: Redis,
    keys: Keys,
    restore: Script,
    pace: DefaultDirectRateLimiter,
}

/// Users that are written together.
pub(super) struct Batch<'a> {
    writer: &'a Writer,
    token: String,
    pipe: Pipeline,
    /// Of each call: the user, and whether members that the table has not are looked at again.
    users: Vec<((u64, String), bool)>,
    drop_profiles: Pipeline,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(config: &Config, redis: Redis) -> RedisResult<Self> {
        let per_second = NonZeroU32::new(config.tasks.users_per_second).unwrap_or(NonZeroU32::MIN);
        let at_once = NonZeroU32::new(per_second.get() / 10).unwrap_or(NonZeroU32::MIN);
        Ok(Self {
            redis,
            cache: Redis::open(&Settings::cache(&config.redis)?, 1)?,
            keys: Keys::new(&config.redis.key_prefix),
            restore: Script::new(include_str!("restore.lua")),
            pace: RateLimiter::direct(Quota::per_second(per_second).allow_burst(at_once)),
        })
    }

    /// What the workers have noted of a token.
    pub(super) async fn bounds(&self, token: &str) -> RedisResult<Bounds> {
        let sources = registered(&self.redis, &self.keys).await?;
        let applied: HashMap<String, u64> = self
            .redis
            .command(cmd("HGETALL").arg(self.keys.applied(token)))
            .await?;
        let below = applied
            .into_iter()
            .map(|(field, offset)| (format!("{OFFSETS}{field}"), offset))
            .collect();
        Ok(Bounds { sources, below })
    }

    pub(super) fn batch(&self, token: &str) -> Batch<'_> {
        Batch {
            writer: self,
            token: token.to_owned(),
            pipe: Pipeline::new(),
            users: Vec::new(),
            drop_profiles: Pipeline::new(),
            bytes: 0,
        }
    }

    /// Sends what has gathered. Whom a worker was faster with is read again, and so is who has members of a timeline that
    /// the table has not.
    pub(super) async fn write(&self, batch: &mut Batch<'_>, again: &mut Again) -> RedisResult<()> {
        if batch.users.is_empty() {
            return Ok(());
        }
        let answers = self.redis.scripted(&[&self.restore], &batch.pipe).await?;
        for ((user, look_again), answer) in batch.users.drain(..).zip(answers) {
            let mut answer = Vec::<::redis::Value>::from_redis_value(answer)?.into_iter();
            let written = answer.next().map_or(Ok(0), i64::from_redis_value)?;
            let not_given = answer
                .map(String::from_redis_value)
                .collect::<Result<Vec<_>, _>>()?;
            if written == 0 || look_again && !not_given.is_empty() {
                again.insert(user, if look_again { not_given } else { Vec::new() });
            }
        }
        // As the worker does: properties first, then the profiles that were made of them.
        self.cache.pipeline(&batch.drop_profiles).await?;
        batch.pipe.clear();
        batch.drop_profiles.clear();
        batch.bytes = 0;
        Ok(())
    }
}

impl Batch<'_> {
    pub(super) fn is_full(&self) -> bool {
        self.users.len() >= USERS_AT_ONCE || self.bytes >= BYTES_AT_ONCE
    }

    /// Adds a user, when it is time for one more. `seen`: whether the user was read before, and which members of the
    /// timeline the table had not then.
    pub(super) async fn add(&mut self, rebuilt: &Rebuilt, seen: (bool, &[String]), bounds: &Bounds) {
        let writer = self.writer;
        writer.pace.until_ready().await;
        let (user, profile) = (
            writer.keys.user(&self.token, &rebuilt.user),
            writer.keys.cached_user(&self.token, &rebuilt.user),
        );
        let mut call = writer.restore.call(2);
        call.arg(user)
            .arg(writer.keys.timeline(&self.token, &rebuilt.user));
        arguments(&mut call, rebuilt, seen, bounds);
        self.bytes += call.get_packed_command().len();
        self.pipe.add_command(call);
        self.drop_profiles.cmd("DEL").arg(profile);
        let (seen_before, _) = seen;
        self.users
            .push(((rebuilt.hash, rebuilt.user.clone()), !seen_before));
    }
}

fn arguments(call: &mut Cmd, rebuilt: &Rebuilt, (again, gone): (bool, &[String]), bounds: &Bounds) {
    // All bounds only where those of the user's own rows were not enough: there may be many.
    let below: Vec<(&String, u64)> = if again {
        bounds
            .below
            .iter()
            .map(|(field, below)| (field, *below))
            .collect()
    } else {
        let own = rebuilt.applied.keys();
        own.filter_map(|field| Some((field, *bounds.below.get(field)?)))
            .collect()
    };
    let members: std::collections::HashSet<&str> = rebuilt
        .timeline
        .iter()
        .map(|(_, member)| member.as_str())
        .collect();
    let gone: Vec<&String> = gone
        .iter()
        .filter(|member| !members.contains(member.as_str()))
        .collect();
    call.arg(USER_TTL_SECONDS)
        .arg(TIMELINE_EVENTS)
        .arg(OFFSETS)
        .arg(u8::from(rebuilt.changed))
        .arg(below.len())
        .arg(3 + rebuilt.applied.len() + rebuilt.properties.len())
        .arg(gone.len())
        .arg(rebuilt.timeline.len());
    for (field, below) in below {
        call.arg(field).arg(below);
    }
    call.arg(WHOLE).arg(1);
    call.arg(FIRST_SEEN).arg(rebuilt.first);
    call.arg(LAST_SEEN).arg(rebuilt.last);
    for (field, offset) in &rebuilt.applied {
        call.arg(field).arg(offset);
    }
    for (name, value) in &rebuilt.properties {
        call.arg(name).arg(value.get());
    }
    for member in gone {
        call.arg(member);
    }
    for (time, member) in &rebuilt.timeline {
        call.arg(time).arg(member);
    }
}
