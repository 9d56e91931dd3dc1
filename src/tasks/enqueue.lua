-- Puts a task into the queue, unless the same one waits already, the queue is full, or nobody is there to do it. Sent
-- again because its answer was lost, it changes nothing.
-- KEYS: 1 queue, 2 tasks that are due later, 3 what waits (string, the task's id), 4 leases, 5 refreshes that wait (sorted
--       set of ids), 6 the task's status.
-- It looks into the processing lists, too, which have the slot of the queue.
-- ARGV: 1 the task, 2 its id, 3 most tasks that may wait, 4 seconds for which it stands for others of the same kind and
--       arguments at the most, 5 "1": only if a tasks worker is alive, 6 most refreshes that may wait, or "" if it is none, 7 what is
--       told of it, or "", 8 for how many seconds.
-- Answers "queued", "waiting:<id of the other>", "full:<how many wait>" or "nobody".
if ARGV[7] ~= '' and redis.call('GET', KEYS[6]) then
  return 'queued'
end

-- Whether nobody has begun with it: what one that runs has read already, a new one must read again. One that was lost, or
-- taken away by hand, stands for nobody.
local function still_waits(id)
  local own = '"id":"' .. id .. '"'
  local function has(texts)
    for _, text in ipairs(texts) do
      if string.find(text, own, 1, true) then
        return text
      end
    end
  end
  if has(redis.call('LRANGE', KEYS[1], 0, -1)) or has(redis.call('ZRANGE', KEYS[2], 0, -1)) then
    return true
  end
  for _, worker in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local taken = has(redis.call('LRANGE', KEYS[1] .. ':processing:' .. worker, 0, -1))
    if taken then
      return not string.find(taken, '"worker":"', 1, true)
    end
  end
  return false
end

local waiting = redis.call('GET', KEYS[3])
-- A refresh is asked for too often to look, and stands for others for minutes alone.
if waiting and (ARGV[6] ~= '' or still_waits(waiting)) then
  return 'waiting:' .. waiting
end
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
if ARGV[5] == '1' and redis.call('ZCOUNT', KEYS[4], now, '+inf') == 0 then
  return 'nobody'
end
local queued = redis.call('LLEN', KEYS[1])
local count = queued + redis.call('ZCARD', KEYS[2])
if count >= tonumber(ARGV[3]) then
  return string.format('full:%.0f', count)
end
if ARGV[6] ~= '' then
  if queued == 0 then
    -- Whatever became of those, none of them waits.
    redis.call('DEL', KEYS[5])
  end
  -- Whoever has waited for so long has been taken, by somebody who died before he could say so.
  local oldest = string.format('%.0f', tonumber(now) - tonumber(ARGV[4]) * 1000)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', oldest, 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[5], id)
  end
  if redis.call('ZCARD', KEYS[5]) >= tonumber(ARGV[6]) then
    return string.format('full:%.0f', count)
  end
  redis.call('ZADD', KEYS[5], now, ARGV[2])
  redis.call('EXPIRE', KEYS[5], ARGV[8])
end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[4])
if ARGV[7] ~= '' then
  redis.call('SET', KEYS[6], ARGV[7], 'EX', ARGV[8])
end
return 'queued'
