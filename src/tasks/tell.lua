-- Tells how far a task has come, unless what became of it has been told: who was frozen meanwhile knows less.
-- KEYS: 1 the task's status; no other, so that it goes where that is while its slot moves. ARGV: 1 what is told, 2 seconds for
-- which that is kept.
local told = redis.call('GET', KEYS[1]) or ''
for _, last in ipairs({'done', 'parked', 'dropped'}) do
  if string.find(told, '"state":"' .. last .. '"', 1, true) then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
