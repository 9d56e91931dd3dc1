//! Remember: timelines, user properties, recent actions and counters of what is written, after it is acknowledged.
//!
//! Each of these changes once for each record though its block comes again: scripts compare a watermark for each
//! record in the same step; adding to a timeline is idempotent by itself.

use ::redis::{FromRedisValue as _, Pipeline};
use uuid::Uuid;

use super::permit::distances;
use super::retry::until_done;
use super::{Outcome, Partition, Prepared};
use crate::event::{Decoded, Event};
use crate::faults;
use crate::person::{HIDDEN, Members, OFFSETS, fits, timeline_member};
use crate::redis::COMMANDS_AT_ONCE;
use crate::redis::keys::{
    COUNTER_TTL_SECONDS, RECENT_ACTIONS, TIMELINE_ADDED, TIMELINE_EVENTS, USER_FIELDS, USER_TTL_SECONDS,
};
use crate::telemetry::{Service, metrics};

impl Partition {
    /// Brings Redis up to date with the block's written events.
    pub(super) async fn remember(&self, prepared: &Prepared) {
        let decoded = &prepared.decoding.events;
        let written: Vec<&Event> = decoded
            .events
            .iter()
            .zip(&prepared.outcomes)
            .filter(|(_, outcome)| **outcome == Outcome::Pass)
            .map(|(event, _)| event)
            .collect();
        if written.is_empty() {
            return;
        }
        let mut batch = Batch::default();
        let mut profiles = Vec::new();
        self.tokens(&mut batch, decoded, &written).await;
        for user in Users::of(decoded, &written).each() {
            self.properties(&mut batch, &mut profiles, &user);
            self.timeline(&mut batch.pipe, &user);
            if batch.pipe.len() >= COMMANDS_AT_ONCE {
                self.flush(&mut batch).await;
            }
        }
        self.flush(&mut batch).await;
        self.worker.profiles.drop(profiles).await;
    }

    /// Sends what has gathered, and begins anew.
    async fn flush(&self, batch: &mut Batch) {
        let worker = &self.worker;
        if !batch.pipe.is_empty() {
            let scripts = [&worker.scripts.remember_token, &worker.scripts.remember_user];
            let send = async || worker.redis.scripted(&scripts, &batch.pipe).await;
            let mut answers = until_done(self.waiter(), Service::Redis, "remember", send).await;
            let cut = batch.users.iter().filter_map(|&i| {
                let answer = answers.get_mut(i).map(std::mem::take)?;
                u64::from_redis_value(answer).ok()
            });
            metrics().user_properties_cut.increment(cut.sum());
            batch.pipe.clear();
            batch.users.clear();
        }
    }

    /// Counters and recent actions, a call for each token.
    async fn tokens(&self, batch: &mut Batch, decoded: &Decoded, written: &[&Event]) {
        let worker = &self.worker;
        let mut by_token: Vec<Vec<&Event>> = vec![Vec::new(); decoded.tokens.len()];
        for &event in written {
            by_token[event.token as usize].push(event);
        }
        let field = if faults::without("without-watermark") {
            Uuid::now_v7().to_string()
        } else {
            worker.source.field(self.number)
        };
        for (token, events) in decoded.tokens.iter().zip(by_token) {
            if events.is_empty() {
                continue;
            }
            let (first, distances) = distances(events.iter().map(|event| event.offset));
            let mut call = worker.scripts.remember_token.call(3);
            call.arg(worker.keys.applied(token))
                .arg(worker.keys.events_counter(token))
                .arg(worker.keys.recent_actions(token));
            call.arg(&field)
                .arg(first)
                .arg(distances)
                .arg(COUNTER_TTL_SECONDS)
                .arg(RECENT_ACTIONS);
            for event in &events[events.len().saturating_sub(RECENT_ACTIONS)..] {
                call.arg(event.offset).arg(action(decoded, event));
            }
            batch.pipe.add_command(call);
            if batch.pipe.len() >= COMMANDS_AT_ONCE {
                self.flush(batch).await;
            }
        }
    }

    /// A user's properties, one call if there are changes, and the key of the cached profile, to be dropped.
    fn properties(&self, batch: &mut Batch, profiles: &mut Vec<String>, user: &User<'_>) {
        let worker = &self.worker;
        let mut changes = Vec::new();
        for event in user.events {
            changes_of(user.decoded, event, &mut changes);
        }
        let all = changes.len();
        changes.retain(Change::fits);
        metrics()
            .user_properties_cut
            .increment((all - changes.len()) as u64);
        if changes.is_empty() {
            return;
        }
        let field = format!("{OFFSETS}{}", worker.source.field(self.number));
        let mut call = worker.scripts.remember_user.call(1);
        call.arg(worker.keys.user(user.token, user.distinct_id))
            .arg(&field)
            .arg(USER_TTL_SECONDS)
            .arg(USER_FIELDS);
        for change in &changes {
            call.arg(change.offset)
                .arg(change.kind)
                .arg(&change.name)
                .arg(change.value);
        }
        batch.users.push(batch.pipe.len());
        batch.pipe.add_command(call);
        profiles.push(worker.keys.cached_user(user.token, user.distinct_id));
    }

    /// A user's timeline: added to, trimmed and given its time to live in the same round trip.
    fn timeline(&self, pipe: &mut Pipeline, user: &User<'_>) {
        let key = self.worker.keys.timeline(user.token, user.distinct_id);
        let mut entries: Vec<(i64, String)> = user
            .events
            .iter()
            .map(|event| {
                let uuid = Uuid::from_u128(event.uuid);
                (
                    event.timestamp,
                    timeline_member(uuid, user.decoded.str(event.event)),
                )
            })
            .collect();
        if entries.len() > TIMELINE_EVENTS {
            // The newest, in the order that Redis itself keeps: what is left does not depend on the cut of blocks.
            entries.sort_unstable();
            entries.drain(..entries.len() - TIMELINE_EVENTS);
        }
        for some in entries.chunks(TIMELINE_ADDED) {
            pipe.cmd("ZADD").arg(&key);
            for (time, member) in some {
                pipe.arg(time).arg(member);
            }
            pipe.cmd("ZREMRANGEBYRANK")
                .arg(&key)
                .arg(0)
                .arg(-1 - TIMELINE_EVENTS as i64);
        }
        pipe.cmd("EXPIRE").arg(&key).arg(USER_TTL_SECONDS);
    }
}

/// What gathers until it is sent.
#[derive(Default)]
struct Batch {
    pipe: Pipeline,
    /// Which of the commands change a user's properties.
    users: Vec<usize>,
}

/// A block's written events by user.
struct Users<'a> {
    decoded: &'a Decoded,
    /// By user, and in offset order within each.
    sorted: Vec<&'a Event>,
}

/// One user's events of a block, in offset order.
struct User<'a> {
    decoded: &'a Decoded,
    token: &'a str,
    distinct_id: &'a str,
    events: &'a [&'a Event],
}

impl<'a> Users<'a> {
    fn of(decoded: &'a Decoded, written: &[&'a Event]) -> Self {
        let mut sorted = written.to_vec();
        sorted.sort_by(|a, b| {
            let user = |event: &Event| (event.token, decoded.bytes(event.distinct_id));
            user(a).cmp(&user(b))
        });
        Self { decoded, sorted }
    }

    fn each(&self) -> impl Iterator<Item = User<'_>> {
        let decoded = self.decoded;
        let same = move |a: &&Event, b: &&Event| {
            a.token == b.token && decoded.bytes(a.distinct_id) == decoded.bytes(b.distinct_id)
        };
        self.sorted.chunk_by(same).map(move |events| User {
            decoded,
            token: &decoded.tokens[events[0].token as usize],
            distinct_id: decoded.str(events[0].distinct_id),
            events,
        })
    }
}

/// A recent action as JSON.
fn action(decoded: &Decoded, event: &Event) -> String {
    serde_json::json!({
        "uuid": Uuid::from_u128(event.uuid).hyphenated().to_string(),
        "event": decoded.str(event.event),
        "distinct_id": decoded.str(event.distinct_id),
        "timestamp": event.timestamp,
    })
    .to_string()
}

/// One change of a user's properties.
#[derive(Debug, PartialEq, Eq)]
struct Change<'a> {
    offset: i64,
    kind: &'static str,
    name: String,
    value: &'a str,
}

impl Change<'_> {
    /// Whether a user's hash keeps it; what is long stays with its event alone.
    fn fits(&self) -> bool {
        fits(&self.name, self.value)
    }
}

/// The changes of one event, `$set` first, then `$set_once`, then `$unset`. Values stay the JSON text that came.
fn changes_of<'a>(decoded: &'a Decoded, event: &Event, out: &mut Vec<Change<'a>>) {
    for (span, kind) in [(event.set, "s"), (event.set_once, "o")] {
        let Some(span) = span else { continue };
        // A name that is no text (a lone surrogate) spoils the object; its event keeps it, the user does not.
        let Ok(pairs) = serde_json::from_slice::<Members<'a>>(decoded.bytes(span)) else {
            continue;
        };
        let pairs = pairs.0.into_iter().filter(|(name, _)| !name.starts_with(HIDDEN));
        out.extend(pairs.map(|(name, value)| Change {
            offset: event.offset,
            kind,
            name,
            value: value.get(),
        }));
    }
    if let Some(span) = event.unset {
        let names = serde_json::from_slice::<Vec<String>>(decoded.bytes(span)).unwrap_or_default();
        let names = names.into_iter().filter(|name| !name.starts_with(HIDDEN));
        out.extend(names.map(|name| Change {
            offset: event.offset,
            kind: "u",
            name,
            value: "",
        }));
    }
}
