-- Gives a task another text where it stands.
-- KEYS: 1 the worker's processing list; no other, so that it goes where that is while its slot moves.
-- ARGV: 1 the task as it stands in the list, 2 the new text.
-- Answers 0, or -1 if it was not there.
for _, task in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  if task == ARGV[1] then
    -- The new text first: where its slot is on the way to another node, a list that was empty for a moment could not be
    -- filled again.
    redis.call('LPUSH', KEYS[1], ARGV[2])
    redis.call('LREM', KEYS[1], -1, ARGV[1])
    return 0
  end
end
return -1
