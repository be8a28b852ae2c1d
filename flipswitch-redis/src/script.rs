//! The scripts that run in Redis. Each script is atomic and takes one round trip. A value of a different type counts as missing.
//! A permission that the Redis user lacks is an error.
//!
//! Times are eight bytes in big-endian order. They are compared as numbers, because Lua compares strings by the locale.

use std::sync::LazyLock;

use redis::Cmd;

/// `ARGV`: the largest length of a value. Returns seconds, microseconds, and the value or nil.
pub(crate) static GET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local now = redis.call('TIME')
local length = redis.pcall('STRLEN', KEYS[1])
if type(length) == 'table' then
  if length.err:sub(1, 9) ~= 'WRONGTYPE' then return length end
  length = 0
end
if length < 8 or length > tonumber(ARGV[1]) then return {now[1], now[2], false} end
return {now[1], now[2], redis.call('GET', KEYS[1])}
",
    )
});

/// `ARGV`: the time, the content, the time to live in milliseconds. Returns 1, or 0 if an entry that was sent later is kept.
pub(crate) static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local function micros(bytes)
  local sum = 0
  for i = 1, 8 do sum = sum * 256 + bytes:byte(i) end
  return sum
end
local now = redis.call('TIME')
local known = redis.pcall('GETRANGE', KEYS[1], 0, 7)
if type(known) == 'table' then
  if known.err:sub(1, 9) ~= 'WRONGTYPE' then return known end
elseif #known == 8 then
  local sent = micros(known)
  if sent > micros(ARGV[1]) and sent <= now[1] * 1000000 + now[2] + 1000000 then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
return 1
",
    )
});

/// `ARGV`: the token, the time to live in milliseconds. Returns seconds, microseconds, and whether the lease is granted. A
/// value that does not expire is not a lease, and is replaced.
pub(crate) static LEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local now = redis.call('TIME')
local granted = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if not granted and redis.call('PTTL', KEYS[1]) == -1 then
  granted = redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {now[1], now[2], granted and 1 or 0}
",
    )
});

/// `ARGV`: the token. Returns the number of leases that ended.
pub(crate) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local token = redis.pcall('GET', KEYS[1])
if token == ARGV[1] then return redis.call('DEL', KEYS[1]) end
if type(token) == 'table' and token.err:sub(1, 9) ~= 'WRONGTYPE' then return token end
return 0
",
    )
});

/// A script and its name in Redis.
pub(crate) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// Returns the command that runs the script if Redis knows it.
    pub(crate) fn by_hash(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        command("EVALSHA", &self.hash, key, arguments)
    }

    /// Returns the command that sends the script to Redis, which may have lost it, and runs it.
    pub(crate) fn by_code(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        command("EVAL", self.code, key, arguments)
    }
}

fn command(name: &str, script: &str, key: &str, arguments: &[&[u8]]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(1).arg(key).arg(arguments);
    command
}
