-- Takes a task out of a processing list and puts it where it belongs: one step, so that it is in one place at any time,
-- and never in two; and what is told of it changes with it, so that nobody waits for a word that was lost. Who no longer
-- has it moves nothing.
-- KEYS: 1 processing list, 2 leases, 3 queue, 4 tasks that are due later, 5 parked tasks, 6 the task's status.
-- ARGV: 1 "" if it is moved by its own worker, else the worker that must be dead: one whose lease has ended by Redis's
--       clock; 2 the task as it stands in the list; 3 where to: "done" (nowhere), "next", "later" or "parked"; 4 what is
--       put there; 5 ms until it is due, for "later"; 6 most parked tasks, 7 seconds they live;
--       8 what is told of the task from now on, or "", 9 seconds for which that is kept.
-- Answers -1 if it was not there, else how many parked tasks had to go for it.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[1] ~= '' then
  local deadline = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if deadline and tonumber(deadline) > now then
    return -1
  end
end
if redis.call('LREM', KEYS[1], 1, ARGV[2]) == 0 then
  return -1
end
if ARGV[8] ~= '' then
  redis.call('SET', KEYS[6], ARGV[8], 'EX', ARGV[9])
end
if ARGV[3] == 'next' then
  redis.call('RPUSH', KEYS[3], ARGV[4])
elseif ARGV[3] == 'later' then
  redis.call('ZADD', KEYS[4], string.format('%.0f', now + tonumber(ARGV[5])), ARGV[4])
elseif ARGV[3] == 'parked' then
  local over = redis.call('LPUSH', KEYS[5], ARGV[4]) - tonumber(ARGV[6])
  redis.call('EXPIRE', KEYS[5], ARGV[7])
  if over > 0 then
    redis.call('LTRIM', KEYS[5], 0, tonumber(ARGV[6]) - 1)
    return over
  end
end
return 0
