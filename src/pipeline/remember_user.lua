-- Applies a block's changes of one user's properties, in offset order, each once.
-- KEYS[1]: the user's hash. ARGV: 1 hidden field of this partition, 2 seconds to live, 3 the most fields, then for each
-- change: offset, "s" (set), "o" (set once) or "u" (unset), name, value. Answers how many new fields had no room.
local from = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '-1')
local most = tonumber(ARGV[3])
local last, cut = -1, 0
for i = 4, #ARGV, 4 do
  local offset, change, name, value = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if offset >= from then
    if change == 'u' then
      redis.call('HDEL', KEYS[1], name)
    elseif redis.call(change == 's' and 'HSET' or 'HSETNX', KEYS[1], name, value) == 1
      and redis.call('HLEN', KEYS[1]) > most then
      redis.call('HDEL', KEYS[1], name)
      cut = cut + 1
    end
    last = offset
  end
end
if last >= 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', last + 1))
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return cut
