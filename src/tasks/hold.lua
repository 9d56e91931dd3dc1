-- Takes or renews a tasks worker's lease by the clock of the server that has the leases.
-- KEYS: 1 leases (sorted set: worker -> deadline in ms); no other, so that it goes where they are while their slot moves.
-- ARGV: 1 worker, 2 lease in ms.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
return 1
