-- Puts a task into the queue, unless the same one waits already, the queue is full, or nobody is there to do it.
-- KEYS: 1 queue, 2 tasks that are due later, 3 what waits (string, the task's id), 4 leases.
-- ARGV: 1 the task, 2 its id, 3 most tasks that may wait, 4 seconds for which it stands for others of the same kind and
--       arguments, 5 "1": only if a tasks worker is alive.
-- Answers "queued", "waiting:<id of the other>", "full:<how many wait>" or "nobody".
local waiting = redis.call('GET', KEYS[3])
if waiting then
  return 'waiting:' .. waiting
end
if ARGV[5] == '1' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  if redis.call('ZCOUNT', KEYS[4], string.format('%.0f', now), '+inf') == 0 then
    return 'nobody'
  end
end
local count = redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if count >= tonumber(ARGV[3]) then
  return string.format('full:%.0f', count)
end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[4])
return 'queued'
