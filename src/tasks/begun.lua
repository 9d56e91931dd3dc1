-- A key that names a task names it no longer: one that has begun stands for no others of the same kind and arguments, one
-- that has ended holds up none.
-- KEYS: 1 the key; no other, so that it goes where that is while its slot moves. ARGV: 1 what it named.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
