//! What a user of Redis must be allowed to do: the commands that Sluice sends, and how that is tried.

use ::redis::{FromRedisValue as _, RedisResult, Value};

use super::{Redis, Script};

/// The commands of the stages, the read API and the tasks, by themselves or in scripts. Beside them: EVALSHA and SCRIPT LOAD, which
/// trying these needs, too, and for a connection what Redis asks for.
const COMMANDS: [&str; 38] = [
    "blmove",
    "client|id",
    "client|unblock",
    "del",
    "expire",
    "get",
    "getex",
    "hdel",
    "hget",
    "hgetall",
    "hincrby",
    "hlen",
    "hset",
    "hsetnx",
    "incr",
    "incrby",
    "llen",
    "lpush",
    "lrange",
    "lrem",
    "ltrim",
    "pexpire",
    "rpush",
    "scard",
    "set",
    "setrange",
    "sismember",
    "time",
    "ttl",
    "zadd",
    "zcard",
    "zcount",
    "zrange",
    "zrangebyscore",
    "zrem",
    "zremrangebyrank",
    "zrevrange",
    "zscore",
];

/// Asks for each command whether it is allowed with a key, and does none. `ARGV`: the commands.
const REFUSED: &str = "
local refused = {}
for _, name in ipairs(ARGV) do
  local command, sub = string.match(name, '^(%a+)|?(%a*)$')
  local allowed
  if name == 'time' then
    allowed = redis.acl_check_cmd(name)
  elseif sub ~= '' then
    allowed = redis.acl_check_cmd(command, sub)
  else
    -- Whatever a command takes for a key is one of ours.
    allowed = redis.acl_check_cmd(name, KEYS[1], KEYS[1], KEYS[1])
  end
  if not allowed then
    refused[#refused + 1] = name
  end
end
return refused
";

/// The commands that our user may not send with keys like `key`. Changes nothing.
pub async fn refused(redis: &Redis, key: &str) -> RedisResult<Vec<String>> {
    let script = Script::new(REFUSED);
    let mut call = script.call(1);
    call.arg(key).arg(&COMMANDS);
    let mut pipe = ::redis::pipe();
    pipe.add_command(call);
    let answers = redis.scripted(&[&script], &pipe).await?;
    let answer = answers.into_iter().next().unwrap_or(Value::Nil);
    Ok(Vec::from_redis_value(answer)?)
}
