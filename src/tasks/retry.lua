-- Takes a task that nobody runs out of where it waits or is parked; begins it anew if it is to be.
-- KEYS: 1 queue, 2 tasks that are due later, 3 parked tasks, 4 refreshes that wait (sorted set of ids), 5 its status.
-- ARGV: 1 "queue", "later" or "parked": where it is, 2 as it stands there, 3 what is put into the queue, or "" to drop it,
-- 4 most tasks that may wait, 5 its id, or "", 6 what is told of it from now on, or "", 7 seconds for which that is kept.
-- Answers 1, 0 if it was not there, or -1 if the queue is full.
if ARGV[3] ~= '' then
  local count = redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
  if ARGV[1] == 'parked' and count >= tonumber(ARGV[4]) then
    return -1
  end
end
local found
if ARGV[1] == 'later' then
  found = redis.call('ZREM', KEYS[2], ARGV[2])
else
  found = redis.call('LREM', ARGV[1] == 'queue' and KEYS[1] or KEYS[3], 1, ARGV[2])
end
if found == 1 and ARGV[3] ~= '' then
  redis.call('LPUSH', KEYS[1], ARGV[3])
elseif found == 1 then
  redis.call('ZREM', KEYS[4], ARGV[5])
end
if found == 1 and ARGV[6] ~= '' then
  redis.call('SET', KEYS[5], ARGV[6], 'EX', ARGV[7])
end
return found
