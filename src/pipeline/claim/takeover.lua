-- A replayed record takes over the claim of exactly the coordinate that it was rejected at.
-- KEYS[1] the claim; ARGV: own coordinate, the rejected record's, seconds to live. Answers the claim's owner.
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
  return ARGV[1]
end
return owner
