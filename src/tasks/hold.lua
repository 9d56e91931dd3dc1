-- Takes or renews a tasks worker's lease by Redis's clock, and says whether its task is still its own.
-- KEYS: 1 leases (sorted set: worker -> deadline in ms), 2 the worker's processing list, 3 what waits (string),
--       4 refreshes that wait (sorted set of ids).
-- ARGV: 1 worker, 2 lease in ms, 3 its task as it stands in the list, or "", 4 the task's id: it waits no longer.
-- Answers 1, or 0 if the task was given to somebody else.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
if ARGV[3] == '' then
  return 1
end
for _, task in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  if task == ARGV[3] then
    if redis.call('GET', KEYS[3]) == ARGV[4] then
      redis.call('DEL', KEYS[3])
    end
    redis.call('ZREM', KEYS[4], ARGV[4])
    return 1
  end
end
return 0
