-- Puts what is due into the queue, and forgets workers that are long dead and have nothing left.
-- KEYS: 1 queue, 2 tasks that are due later, 3 leases, then the processing list of each worker of ARGV from 2 on.
-- ARGV: 1 ms after its lease's end at which a worker is forgotten, then workers.
-- Answers Redis's time in ms.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, 100)
for _, task in ipairs(due) do
  redis.call('ZREM', KEYS[2], task)
  redis.call('LPUSH', KEYS[1], task)
end
for i = 2, #ARGV do
  local deadline = redis.call('ZSCORE', KEYS[3], ARGV[i])
  if deadline and tonumber(deadline) + tonumber(ARGV[1]) < now and redis.call('LLEN', KEYS[2 + i]) == 0 then
    redis.call('ZREM', KEYS[3], ARGV[i])
  end
end
return string.format('%.0f', now)
