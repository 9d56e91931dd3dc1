-- Counts a block's written events of one token, and keeps its recent actions, once for each record.
-- KEYS: applied (hash "source:partition" -> offset, exclusive), counter, recent actions.
-- ARGV: 1 field, 2 first written record, 3 written records: u32 big-endian distances from the first, 4 seconds to live,
--       5 most recent actions kept, then pairs of offset and action, oldest first.
local start, packed = tonumber(ARGV[2]), ARGV[3]
local from = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '-1')
local records = #packed / 4
local function offset(i)
  local a, b, c, d = string.byte(packed, i * 4 - 3, i * 4)
  return start + ((a * 256 + b) * 256 + c) * 256 + d
end
local low, high = 1, records + 1
while low < high do
  local middle = math.floor((low + high) / 2)
  if offset(middle) < from then low = middle + 1 else high = middle end
end
local new = records - low + 1
if new <= 0 then
  return 0
end
redis.call('INCRBY', KEYS[2], new)
redis.call('EXPIRE', KEYS[2], ARGV[4])
local pushed = false
for i = 6, #ARGV, 2 do
  if tonumber(ARGV[i]) >= from then
    redis.call('LPUSH', KEYS[3], ARGV[i + 1])
    pushed = true
  end
end
if pushed then
  redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[5]) - 1)
  redis.call('EXPIRE', KEYS[3], ARGV[4])
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', offset(records) + 1))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return new
