//! Layout `keys`: a string for each event, which Redis expires by itself. Simple, and an operator can read it; it takes
//! several times the memory of `packed`.

use ::redis::{FromRedisValue as _, Pipeline, RedisResult, Value};
use uuid::Uuid;

use super::{Claim, Wanted};
use crate::faults;
use crate::redis::keys::Keys;
use crate::redis::{COMMANDS_AT_ONCE, Redis, Script};

#[derive(Debug)]
pub(super) struct KeyPerEvent {
    keys: Keys,
    window_seconds: u64,
    takeover: Script,
}

impl KeyPerEvent {
    pub(super) fn new(keys: Keys, window_seconds: u64) -> Self {
        Self {
            keys,
            window_seconds,
            takeover: Script::new(include_str!("takeover.lua")),
        }
    }

    pub(super) async fn claim(
        &self,
        redis: &Redis,
        tokens: &[String],
        wanted: &[Wanted],
    ) -> RedisResult<Vec<Claim>> {
        let prefixes: Vec<String> = tokens.iter().map(|token| self.keys.claims_of(token)).collect();
        let mut claims = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(COMMANDS_AT_ONCE) {
            let answers = redis
                .scripted(&[&self.takeover], &self.commands(&prefixes, wanted))
                .await?;
            for (answer, want) in answers.into_iter().zip(wanted) {
                claims.push(match answer {
                    Value::Nil => Claim::Ours,
                    // A claim that does not tell its owner is anybody else's.
                    _ if faults::without("without-coordinate") => Claim::Others,
                    owner => match i64::from_redis_value(owner)? {
                        owner if owner == want.coordinate => Claim::Ours,
                        _ => Claim::Others,
                    },
                });
            }
        }
        Ok(claims)
    }

    fn commands(&self, prefixes: &[String], wanted: &[Wanted]) -> Pipeline {
        let mut pipe = Pipeline::with_capacity(wanted.len());
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
                    pipe.arg("NX").arg("GET").arg("EX").arg(self.window_seconds);
                }
                Some(rejected) => {
                    let mut call = self.takeover.call(1);
                    call.arg(&key)
                        .arg(want.coordinate)
                        .arg(rejected)
                        .arg(self.window_seconds);
                    pipe.add_command(call);
                }
            }
        }
        pipe
    }
}
