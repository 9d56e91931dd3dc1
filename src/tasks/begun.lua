-- A task that has begun stands no longer for others of the same kind and arguments.
-- KEYS: 1 what waits (string, a task's id); no other, so that it goes where that is while its slot moves. ARGV: 1 its id.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
