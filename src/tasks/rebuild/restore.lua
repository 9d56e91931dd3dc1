-- Writes what the events table says of a user into the user's timeline and hash; see rebuild/mod.rs for why this neither
-- loses nor doubles what the workers write meanwhile.
-- KEYS: 1 the user's hash, 2 the timeline.
-- ARGV: 1 seconds to live, 2 most events of a timeline, 3 prefix of the workers' hidden fields, 4 "1" if the table has
--       changes of the user's properties, then four counts: 5 of hidden fields with the offset below which the table was
--       read, 6 of fields to write with their values, 7 of members of the timeline that the table has not, 8 of events
--       with their time and member; then all of these in that order.
-- Answers 1, or 0 if a worker may have changed the hash since the table was read (then it is left as it is); the members of
-- the timeline that were not given; and, after 0, the workers' hidden fields with their offsets.
local at = 9
local function following(count, width)
  local first = at
  at = at + count * width
  return first, at - 1
end

local bounds = {}
local from, to = following(tonumber(ARGV[5]), 2)
for i = from, to, 2 do
  bounds[ARGV[i]] = tonumber(ARGV[i + 1])
end
local fields, fields_end = following(tonumber(ARGV[6]), 2)
local gone, gone_end = following(tonumber(ARGV[7]), 1)
local events, events_end = following(tonumber(ARGV[8]), 2)

for i = gone, gone_end do
  redis.call('ZREM', KEYS[2], ARGV[i])
end
local given = {}
for i = events, events_end, 2 do
  redis.call('ZADD', KEYS[2], ARGV[i], ARGV[i + 1])
  -- At once, for a set that was too long for a listpack once never becomes one again.
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
  given[ARGV[i + 1]] = true
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
local others = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if not given[member] then
    others[#others + 1] = member
  end
end

local found = redis.call('HGETALL', KEYS[1])
if #found == 0 and ARGV[4] ~= '1' then
  return { 1, others, {} }
end
local applied, visible, ahead, offsets = {}, {}, false, {}
for i = 1, #found, 2 do
  local name = found[i]
  if string.sub(name, 1, #ARGV[3]) == ARGV[3] then
    local offset = tonumber(found[i + 1]) or 0
    ahead = ahead or offset > (bounds[name] or 0)
    applied[name] = offset
    offsets[#offsets + 1] = name
    offsets[#offsets + 1] = string.format('%.0f', offset)
  elseif string.byte(name, 1) ~= 0 then
    visible[#visible + 1] = name
  end
end
if ahead then
  return { 0, others, offsets }
end
for _, name in ipairs(visible) do
  redis.call('HDEL', KEYS[1], name)
end
for i = fields, fields_end, 2 do
  -- A watermark never falls.
  if not applied[ARGV[i]] or applied[ARGV[i]] < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return { 1, others, {} }
