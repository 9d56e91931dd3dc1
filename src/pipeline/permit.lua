-- Decides, once, which of a token's candidates in a block get a permit, so that over any window of time no more
-- than `limit` of the token's events pass, whatever the number of workers. The clock is Redis's own.
--
-- KEYS: the sliding window (hash "width:bucket" -> permits), the decisions (hash "source:partition" -> segments).
-- ARGV: 1 field of this partition, 2 last acknowledged commit, 3 first candidate, 4 block's end, 5 limit (-1: none),
--       6 window in ms, 7 width of a bucket in ms, 8 seconds that decisions live, 9 "1": the offsets were rewound,
--       10 "1": record only what passes (the rest waits), 11 candidates: u32 big-endian distances from the first.
-- A partition's decisions read "commit;to:passed;to:passed;…": offsets below `to` (and not below the segment before)
-- passed if they are at or below `passed`.
-- Answers "stale:commit", or the segments.
local field, committed, start = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local stored, segments = -1, {}
local raw = redis.call('HGET', KEYS[2], field)
if raw then
  local split = string.find(raw, ';', 1, true)
  stored = tonumber(string.sub(raw, 1, split - 1))
  for to, passed in string.gmatch(string.sub(raw, split + 1), '(%d+):(-?%d+);') do
    segments[#segments + 1] = { tonumber(to), tonumber(passed) }
  end
end
if committed < stored then
  if ARGV[9] ~= '1' then
    return string.format('stale:%.0f', stored)
  end
  segments = {}
end

local kept = {}
for _, segment in ipairs(segments) do
  if segment[1] > committed then
    kept[#kept + 1] = segment
  end
end
local decided = committed
if #kept > 0 then
  decided = kept[#kept][1]
end

local packed = ARGV[11]
local candidates = #packed / 4
local function offset(i)
  local a, b, c, d = string.byte(packed, i * 4 - 3, i * 4)
  return start + ((a * 256 + b) * 256 + c) * 256 + d
end
local low, high = 1, candidates + 1
while low < high do
  local middle = math.floor((low + high) / 2)
  if offset(middle) < decided then low = middle + 1 else high = middle end
end
local new = candidates - low + 1

if new > 0 then
  local limit, window, width = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
  local permits = new
  if limit >= 0 then
    local time = redis.call('TIME')
    local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    local used, gone = 0, {}
    local buckets = redis.call('HGETALL', KEYS[1])
    for i = 1, #buckets, 2 do
      -- A bucket counts until its last moment has left the window; each carries its own width, so that a limit
      -- whose window was changed still counts what has passed.
      local w, b = string.match(buckets[i], '^(%d+):(%d+)$')
      if (tonumber(b) + 1) * tonumber(w) > now - window then
        used = used + tonumber(buckets[i + 1])
      else
        gone[#gone + 1] = buckets[i]
      end
    end
    if #gone > 0 then
      redis.call('HDEL', KEYS[1], unpack(gone))
    end
    permits = math.max(0, math.min(new, limit - used))
    if permits > 0 then
      local bucket = string.format('%.0f:%.0f', width, math.floor(now / width))
      redis.call('HINCRBY', KEYS[1], bucket, permits)
      redis.call('PEXPIRE', KEYS[1], window + 2 * width)
    end
  end

  local to, passed = tonumber(ARGV[4]), -1
  if permits == new then
    passed = to - 1
  elseif permits > 0 then
    passed = offset(low + permits - 1)
  end
  if ARGV[10] == '1' and permits < new then
    to = passed + 1
  end
  if to > decided then
    local last = kept[#kept]
    if last and last[2] == last[1] - 1 then
      -- All of the segment before passed: one segment says both.
      kept[#kept] = { to, math.max(passed, last[2]) }
    else
      kept[#kept + 1] = { to, passed }
    end
  end
end

local text = {}
for i, segment in ipairs(kept) do
  text[i] = string.format('%.0f:%.0f;', segment[1], segment[2])
end
local segments_text = table.concat(text)
if new > 0 then
  redis.call('HSET', KEYS[2], field, string.format('%.0f;', committed) .. segments_text)
  redis.call('EXPIRE', KEYS[2], ARGV[8])
end
return segments_text
