//! Limits: how many events of a token pass in a window, and which tokens are known at all.
//!
//! Owns what is read of `config:rate_limit:{token}` and `config:tokens`, and for how long it is used. Decides about no
//! event: that is `permit`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{FromRedisValue as _, Value};

use super::Worker;
use super::retry::until_done;
use crate::config::RateLimit;
use crate::health::Waiter;
use crate::redis::COMMANDS_AT_ONCE;
use crate::telemetry::{Service, WaitsFor, metrics};

/// How long a token's own limit is used before it is read again.
const REFRESH: Duration = Duration::from_secs(2);
/// What `rate_limit.window_seconds` may be at most holds for a token's own window too: Redis and the script reckon in
/// milliseconds.
const LONGEST_WINDOW: u64 = 2_592_000;
/// Characters of a limit that is none in the log, and in what `check` tells.
const SHOWN_CHARS: usize = 100;
/// Said where `config:tokens` has nobody.
const NO_LIST: &str = "config:tokens is empty, so no token at all may send events (rate_limit.allow_list)";
/// Said where it holds something else.
const NO_SET: &str = "config:tokens is no set, so the allow-list is ignored";
/// How often an empty list is looked at.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// Wrong values that are kept in mind, to be told once.
const MOST_WRONG: usize = 1_000;
/// Tokens whose limits are kept.
const MOST_KNOWN: usize = 100_000;

/// How many events pass in how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Events a window; `None` is unlimited, 0 is blocked.
    pub events: Option<u64>,
    /// The window.
    pub window_seconds: u64,
    /// Whether its token may send at all.
    pub listed: bool,
}

impl Limit {
    /// That of every token without one of its own.
    pub fn configured(config: &RateLimit) -> Self {
        Self {
            events: Some(config.limit),
            window_seconds: config.window_seconds,
            listed: true,
        }
    }

    /// What a token's own limit in Redis says; this one where there is none.
    ///
    /// # Errors
    /// It says nothing that can be used: its text, or what it is instead, shortened.
    pub fn overridden(self, value: Value) -> Result<Self, String> {
        // What is no string, or no text, is no limit either.
        let text = value
            .extract_error()
            .and_then(|value| Ok(Option::<String>::from_redis_value(value)?));
        match text {
            Ok(None) => Ok(self),
            Ok(Some(text)) => {
                parse(&text, self.window_seconds).ok_or_else(|| text.chars().take(SHOWN_CHARS).collect())
            }
            Err(_) => Err("no text at all".to_owned()),
        }
    }

    /// Whether a permit comes in time. For a token that is blocked or not listed it would be waited for ever, with all that
    /// stands behind it in its partition.
    pub(super) fn can_be_waited_for(self) -> bool {
        self.listed && self.events != Some(0)
    }
}

/// Limits by token: the configured one, or the token's own from Redis.
#[derive(Debug)]
pub struct Limits {
    default: Limit,
    /// Whether a token that is not on the allow-list has limit 0.
    listed_only: bool,
    known: Mutex<HashMap<String, (Limit, Instant)>>,
    /// Values that cannot be used, by token, as they were told last.
    wrong: Mutex<HashMap<String, String>>,
}

impl Limits {
    /// As configured: every token has the same limit, until told otherwise.
    pub fn new(config: &RateLimit) -> Self {
        Self {
            default: Limit::configured(config),
            listed_only: config.allow_list,
            known: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// The limit of each token. Those not read lately are read now.
    pub(super) async fn of(&self, worker: &Worker, waiter: Waiter<'_>, tokens: &[String]) -> Vec<Limit> {
        let now = Instant::now();
        let mut limits = self.look_up(tokens, now);
        let unknown: Vec<usize> = (0..tokens.len()).filter(|&i| !limits[i].1).collect();
        for unknown in unknown.chunks(COMMANDS_AT_ONCE) {
            let mut pipe = ::redis::pipe();
            if self.listed_only {
                pipe.cmd("SCARD").arg(worker.keys.allow_list());
            }
            for &i in unknown {
                pipe.cmd("GET").arg(worker.keys.rate_limit_override(&tokens[i]));
                if self.listed_only {
                    pipe.cmd("SISMEMBER")
                        .arg(worker.keys.allow_list())
                        .arg(&tokens[i]);
                }
            }
            let mut wait = None;
            let mut read = loop {
                let ask = async || worker.redis.look_up(&pipe).await;
                let mut read = until_done(waiter, Service::Redis, "read limits", ask)
                    .await
                    .into_iter();
                // Nobody is on the list: that is what a Redis says that has lost its data, and what no operator would
                // want. Events are waited with, rather than sent to overflow, all of them.
                if !self.listed_only || read.next() != Some(Value::Int(0)) {
                    break read;
                }
                if waiter.tells(WaitsFor::AllowList, NO_LIST) {
                    tracing::warn!("{NO_LIST}; waiting for its first");
                }
                wait.get_or_insert_with(|| waiter.waits_for(WaitsFor::AllowList, NO_LIST.to_owned()));
                tokio::time::sleep(LIST_EVERY).await;
            };
            for &i in unknown {
                let own = read.next().unwrap_or_default();
                let listed = self.listed_only.then(|| read.next().unwrap_or_default());
                limits[i].0 = if listed.is_none_or(|member| is_listed(waiter, member)) {
                    self.own(&tokens[i], own, limits[i].0)
                } else {
                    self.unlisted()
                };
            }
            self.keep(unknown.iter().map(|&i| (&tokens[i], limits[i].0)), now);
        }
        limits.into_iter().map(|(limit, _)| limit).collect()
    }

    /// The limit of each token as far as it is known; Redis is not asked. Of whom nothing is known, nothing passes where
    /// only listed tokens may send.
    pub(super) fn known(&self, tokens: &[String]) -> Vec<Limit> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let otherwise = if self.listed_only {
            self.unlisted()
        } else {
            self.default
        };
        let limit = |token| known.get(token).map_or(otherwise, |(limit, _)| *limit);
        tokens.iter().map(limit).collect()
    }

    fn unlisted(&self) -> Limit {
        Limit {
            events: Some(0),
            listed: false,
            ..self.default
        }
    }

    /// What a token's own limit in Redis says; the one `before` where it says nothing that can be used.
    fn own(&self, token: &str, value: Value, before: Limit) -> Limit {
        match self.default.overridden(value) {
            Ok(limit) => {
                self.wrong().remove(token);
                limit
            }
            Err(shown) => {
                metrics().bad_overrides.increment(1);
                self.tell_wrong(token, shown);
                // That it was not on the list is no limit of its own.
                if before.listed { before } else { self.default }
            }
        }
    }

    /// Tells of a value that cannot be used, once: it is read again every few seconds.
    fn tell_wrong(&self, token: &str, shown: String) {
        let mut wrong = self.wrong();
        if wrong.get(token) == Some(&shown) {
            return;
        }
        tracing::warn!(
            token,
            value = shown,
            "a token's own limit is not LIMIT, LIMIT/SECONDS or `unlimited`, and is ignored"
        );
        if wrong.len() >= MOST_WRONG {
            wrong.clear();
        }
        wrong.insert(token.to_owned(), shown);
    }

    fn wrong(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of each token the limit as far as it is known, and whether it was read lately. Taken at once: what others
    /// forget meanwhile must not turn a token's own limit into the default.
    fn look_up(&self, tokens: &[String], now: Instant) -> Vec<(Limit, bool)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .iter()
            .map(|token| match known.get(token) {
                Some((limit, at)) => (*limit, now.saturating_duration_since(*at) <= REFRESH),
                None => (self.default, false),
            })
            .collect()
    }

    fn keep<'a>(&self, read: impl Iterator<Item = (&'a String, Limit)>, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > MOST_KNOWN {
            // Anybody can send any number of tokens: that must not make us forget whom an operator has blocked.
            known.retain(|_, (limit, _)| limit.listed && *limit != self.default);
        }
        if known.len() > MOST_KNOWN {
            known.clear();
        }
        known.extend(read.map(|(token, limit)| (token.clone(), (limit, now))));
    }
}

/// Whether a token is on the allow-list, as far as that can be used.
fn is_listed(waiter: Waiter<'_>, member: Value) -> bool {
    bool::from_redis_value(member).unwrap_or_else(|_| {
        if waiter.tells(WaitsFor::AllowList, NO_SET) {
            tracing::warn!("{NO_SET}");
        }
        metrics().bad_overrides.increment(1);
        true
    })
}

/// A token's own limit: `LIMIT`, `LIMIT/SECONDS` or `unlimited`.
fn parse(text: &str, window_seconds: u64) -> Option<Limit> {
    let text = text.trim();
    if text == "unlimited" {
        return Some(Limit {
            events: None,
            window_seconds,
            listed: true,
        });
    }
    let (events, window_seconds) = match text.split_once('/') {
        None => (text, window_seconds),
        Some((events, window)) => {
            let window = window.trim().parse().ok();
            (events, window.filter(|w| (1..=LONGEST_WINDOW).contains(w))?)
        }
    };
    Some(Limit {
        events: Some(events.trim().parse().ok()?),
        window_seconds,
        listed: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_limit_outlives_that_others_forget_it() {
        let limits = Limits::new(&RateLimit::default());
        let blocked = Limit {
            events: Some(0),
            window_seconds: 60,
            listed: true,
        };
        let (now, token) = (Instant::now(), "t".to_owned());
        let tokens = std::slice::from_ref(&token);
        assert_eq!(limits.look_up(tokens, now), [(limits.default, false)]);
        limits.keep([(&token, blocked)].into_iter(), now);
        let block = limits.look_up(tokens, now);
        let others: Vec<String> = (0..=MOST_KNOWN).map(|n| n.to_string()).collect();
        limits.keep(others.iter().map(|other| (other, limits.default)), now);
        limits.keep(others.iter().take(1).map(|other| (other, limits.default)), now);
        assert_eq!(block, [(blocked, true)]);
        assert_eq!(
            limits.known(tokens),
            [blocked],
            "made-up tokens are forgotten first"
        );
        assert_eq!(limits.look_up(&others[1..2], now), [(limits.default, false)]);
        let own = others.iter().map(|other| (other, blocked));
        limits.keep(own, now);
        limits.keep(others.iter().take(1).map(|other| (other, blocked)), now);
        assert_eq!(
            limits.look_up(tokens, now),
            [(limits.default, false)],
            "bounded all the same"
        );
        limits.keep([(&token, blocked)].into_iter(), now);
        let later = now + REFRESH + Duration::from_millis(1);
        assert_eq!(
            limits.look_up(tokens, later),
            [(blocked, false)],
            "kept where the new one is bad"
        );
    }

    #[test]
    fn a_wrong_value_leaves_the_limit_that_was_before_but_not_that_of_the_unlisted() {
        let limits = Limits::new(&RateLimit::default());
        let own = |before| limits.own("t", Value::BulkString(b"1,000".to_vec()), before);
        let before = Limit {
            events: Some(7),
            ..limits.default
        };
        assert_eq!(own(before), before);
        assert_eq!(own(limits.unlisted()), limits.default);
    }

    #[test]
    fn of_whom_nothing_is_known_nothing_passes_where_only_listed_tokens_may_send() {
        let config = |allow_list| RateLimit {
            allow_list,
            ..RateLimit::default()
        };
        let of_stranger = |allow_list| Limits::new(&config(allow_list)).known(&["t".to_owned()])[0].events;
        assert_eq!(of_stranger(true), Some(0));
        assert_eq!(of_stranger(false), Some(RateLimit::default().limit));
    }

    #[test]
    fn a_tokens_own_limit_is_read_or_refused() {
        let limit = |events, window_seconds| {
            Some(Limit {
                events,
                window_seconds,
                listed: true,
            })
        };
        assert_eq!(parse("50", 60), limit(Some(50), 60));
        assert_eq!(parse(" 50/10 ", 60), limit(Some(50), 10));
        assert_eq!(parse("0", 60), limit(Some(0), 60));
        assert_eq!(parse("unlimited", 60), limit(None, 60));
        assert_eq!(parse("5/2592000", 60), limit(Some(5), LONGEST_WINDOW));
        for wrong in [
            "",
            "-1",
            "many",
            "5/0",
            "5/x",
            "1.5",
            "5/2592001",
            "5/18446744073709551615",
        ] {
            assert_eq!(parse(wrong, 60), None, "{wrong}");
        }
    }
}
