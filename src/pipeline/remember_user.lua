-- Applies a block's changes of one user's properties, in offset order, each once.
-- KEYS[1]: the user's hash. ARGV: 1 hidden field of this partition, 2 seconds to live, then for each change: offset,
-- "s" (set), "o" (set once) or "u" (unset), name, value.
local from = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '-1')
local last = -1
for i = 3, #ARGV, 4 do
  local offset, change, name, value = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if offset >= from then
    if change == 's' then
      redis.call('HSET', KEYS[1], name, value)
    elseif change == 'o' then
      redis.call('HSETNX', KEYS[1], name, value)
    else
      redis.call('HDEL', KEYS[1], name)
    end
    last = offset
  end
end
if last >= 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', last + 1))
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return last
