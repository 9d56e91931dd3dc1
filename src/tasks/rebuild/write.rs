//! What a rebuild reads before it reads the table, of Redis and of the group's offsets, and how it writes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;

use ::redis::{Cmd, FromRedisValue as _, Pipeline, RedisResult, cmd};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::table::Change;
use super::{Again, Left};
use crate::config::Config;
use crate::kafka::settled::Below;
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
    /// What the workers have noted of a token, and what the group has settled: both hold.
    fn new(
        sources: HashMap<String, Source>,
        noted: HashMap<String, u64>,
        topic: &str,
        settled: &[Below],
    ) -> Self {
        let mut below: BTreeMap<String, u64> = noted
            .into_iter()
            .map(|(field, offset)| (format!("{OFFSETS}{field}"), offset))
            .collect();
        for settled in settled {
            if let Some(source) = sources.get(&name(topic, settled.incarnation)) {
                let field = format!("{OFFSETS}{}", source.field(settled.partition));
                let bound = below.entry(field).or_default();
                *bound = settled.offset.max(*bound);
            }
        }
        Self { sources, below }
    }

    /// The hidden field of a partition, and the bound; none where it is not known.
    pub(super) fn of(&self, change: &Change, left: Option<&Left>) -> Option<(String, u64)> {
        let source = self.sources.get(&name(&change.topic, change.incarnation))?;
        let field = format!("{OFFSETS}{}", source.field(change.partition as i32));
        let below = self.below(&field, left)?;
        Some((field, below))
    }

    /// The bound by the name of a hidden field. What an earlier reading found there was remembered before this one began,
    /// and so the table has every row below it, too.
    fn below(&self, field: &str, left: Option<&Left>) -> Option<u64> {
        let found = left.and_then(|left| left.applied.get(field));
        found.max(self.below.get(field)).copied()
    }
}

/// The way to Redis.
#[derive(Debug)]
pub(super) struct Writer {
    redis: Redis,
    cache: Redis,
    keys: Keys,
    topic: String,
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
            topic: config.kafka.topic.clone(),
            restore: Script::new(include_str!("restore.lua")),
            pace: RateLimiter::direct(Quota::per_second(per_second).allow_burst(at_once)),
        })
    }

    /// Below which offsets the table has every row of a token, from now on.
    pub(super) async fn bounds(&self, token: &str, settled: &[Below]) -> RedisResult<Bounds> {
        let sources = registered(&self.redis, &self.keys).await?;
        let noted = self
            .redis
            .command(cmd("HGETALL").arg(self.keys.applied(token)))
            .await?;
        Ok(Bounds::new(sources, noted, &self.topic, settled))
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
            let (written, members, applied) =
                <(i64, Vec<String>, Vec<(String, u64)>)>::from_redis_value(answer)?;
            if written == 0 || look_again && !members.is_empty() {
                let members = if look_again { members } else { Vec::new() };
                let applied = applied.into_iter().collect();
                again.insert(user, Left { members, applied });
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

    /// Adds a user, when it is time for one more. `left`: what an earlier reading left, if there was one.
    pub(super) async fn add(&mut self, rebuilt: &Rebuilt, left: Option<&Left>, bounds: &Bounds) {
        let writer = self.writer;
        writer.pace.until_ready().await;
        let (user, profile) = (
            writer.keys.user(&self.token, &rebuilt.user),
            writer.keys.cached_user(&self.token, &rebuilt.user),
        );
        let mut call = writer.restore.call(2);
        call.arg(user)
            .arg(writer.keys.timeline(&self.token, &rebuilt.user));
        arguments(&mut call, rebuilt, left, bounds);
        self.bytes += call.get_packed_command().len();
        self.pipe.add_command(call);
        self.drop_profiles.cmd("DEL").arg(profile);
        self.users
            .push(((rebuilt.hash, rebuilt.user.clone()), left.is_none()));
    }
}

fn arguments(call: &mut Cmd, rebuilt: &Rebuilt, left: Option<&Left>, bounds: &Bounds) {
    // Not all bounds: there may be many. What else the hash has, the script tells, and it is among those the next time.
    let found = left.into_iter().flat_map(|left| left.applied.keys());
    let fields: BTreeSet<&String> = rebuilt.applied.keys().chain(found).collect();
    let below: Vec<(&String, u64)> = fields
        .into_iter()
        .filter_map(|field| Some((field, bounds.below(field, left)?)))
        .collect();
    let members: HashSet<&str> = rebuilt
        .timeline
        .iter()
        .map(|(_, member)| member.as_str())
        .collect();
    let gone = left.into_iter().flat_map(|left| &left.members);
    let gone: Vec<&String> = gone.filter(|member| !members.contains(member.as_str())).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_highest_of_what_is_known_to_be_in_the_table() {
        let sources = HashMap::from([("t:0".to_owned(), Source(0)), ("t:1".to_owned(), Source(4))]);
        let noted = HashMap::from([("4:0".to_owned(), 10), ("4:1".to_owned(), 30)]);
        let settled = |partition, offset| Below {
            incarnation: 1,
            partition,
            offset,
        };
        let bounds = Bounds::new(
            sources,
            noted,
            "t",
            &[settled(0, 20), settled(1, 20), settled(2, 5)],
        );
        let left = Left {
            members: Vec::new(),
            applied: BTreeMap::from([("\0offset:4:0".to_owned(), 25), ("\0offset:4:1".to_owned(), 25)]),
        };
        let of = |field: &str, left| bounds.below(&format!("{OFFSETS}{field}"), left);
        assert_eq!([of("4:0", None), of("4:0", Some(&left))], [Some(20), Some(25)]);
        assert_eq!([of("4:1", None), of("4:1", Some(&left))], [Some(30), Some(30)]);
        assert_eq!(
            [of("4:2", None), of("4:3", None), of("0:0", None)],
            [Some(5), None, None]
        );
        // Offsets of a topic that has no number yet are those of no field.
        let none = Bounds::new(HashMap::new(), HashMap::new(), "t", &[settled(0, 20)]);
        assert!(none.below.is_empty());
    }
}
