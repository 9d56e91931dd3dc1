-- Lets one task at a time do what it asks for, or goes on to: who holds this does it.
-- KEYS: 1 who does it (string, task/worker); no other, so that it goes where that is while its slot moves.
-- ARGV: 1 task/worker that wants to, 2 ms for which it holds, 3 one that holds it and has ended, or "".
-- Answers "" if it may, else who does it.
local does = redis.call('GET', KEYS[1])
if does and does ~= ARGV[1] and does ~= ARGV[3] then
  return does
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''
