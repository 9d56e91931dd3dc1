-- Writes what a user's events say into the user's hash, unless the worker has changed it since it was read.
-- KEYS[1]: the hash. ARGV: 1 seconds to live, 2 prefix of the worker's hidden fields, 3 how many of them were read, then
-- each with its value, then the fields to write with their values. Visible fields that are not among these go.
-- Answers 1 if it was written.
local expected, count = {}, tonumber(ARGV[3])
for i = 4, 3 + 2 * count, 2 do
  expected[ARGV[i]] = ARGV[i + 1]
end
local found, visible = 0, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name = fields[i]
  if string.sub(name, 1, #ARGV[2]) == ARGV[2] then
    if expected[name] ~= fields[i + 1] then
      return 0
    end
    found = found + 1
  elseif string.byte(name, 1) ~= 0 then
    visible[#visible + 1] = name
  end
end
if found ~= count then
  return 0
end
for _, name in ipairs(visible) do
  redis.call('HDEL', KEYS[1], name)
end
for i = 4 + 2 * count, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
