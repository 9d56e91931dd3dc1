-- Claims of one shard, layout `packed`. Its buckets are strings: the second at which the key expires (3 bytes), then
-- records of one length in the order in which they were claimed, then zeros. A record is the id's part (13 bytes), the
-- second of the claim (3 bytes; all seconds modulo 2^24) and the coordinate (8 bytes).
--
-- Linear hashing (W. Litwin, VLDB 1980): of n buckets, with 2^l <= n < 2^(l+1), the one numbered n - 2^l is split
-- whenever one is too full. So buckets stay of one size while the shard grows, and a claim is looked for in one place.
--
-- KEYS[1] the shard: "n:second at which it expires"; its buckets are KEYS[1] .. ':' .. number, of the same slot.
-- ARGV: the window in seconds; '1' where wants have a third part; the wants: the id's part (13), the coordinate (8) and
-- the one at which the record was rejected (8; all ones for none). Answers a character a want: 1 claimed now, 2 claimed
-- by this coordinate before, 0 another's.

local call, byte, char, find, sub = redis.call, string.byte, string.char, string.find, string.sub
local HEAD, ID, TIME, RECORD = 3, 13, 3, 24
local MODULUS, AHEAD = 16777216, 8388608
-- The shard is split when a bucket has more live claims than this.
local FULL = 64
-- How many records fit the allocator's size classes, with what Redis puts around a string.
local SIZES = {5, 10, 15, 20, 25, 31, 36, 42, 52, 63, 74, 84, 106, 127, 148, 170, 212, 255, 298, 340, 425, 511, 596, 682}
-- The least and the most room for further records in a new string.
local LEAST, MOST = 6, 100
local EMPTY = string.rep('\255', RECORD)

local window = tonumber(ARGV[1])
local clock = tonumber(call('TIME')[1]) % MODULUS
local lives = 2 * window + 60

local function text(number)
  return char(math.floor(number / 65536), math.floor(number / 256) % 256, number % 256)
end

local function second(bucket, at)
  local a, b, c = byte(bucket, at, at + 2)
  return a * 65536 + b * 256 + c
end

-- What the clock says of a later second; 0 if it is past.
local function left(at)
  local seconds = (at - clock) % MODULUS
  return seconds < AHEAD and seconds or 0
end

-- A claim that seems to be of the future, by a window at the most, is live: the clock was set back. No record is kept for
-- longer than three windows and a minute, so none comes to look like that by its age (45 days is the longest window).
local function is_live(bucket, at)
  local age = (clock - second(bucket, at + ID)) % MODULUS
  return age <= window or age >= MODULUS - window
end

local stamp, expires = text(clock), text((clock + lives) % MODULUS)

local function write(key, records, count)
  if count == 0 then
    call('DEL', key)
    return
  end
  local size = count + LEAST
  for _, fits in ipairs(SIZES) do
    if fits >= size then
      size = fits
      break
    end
  end
  call('SET', key, expires .. records .. string.rep('\255', (size - count) * RECORD), 'EX', lives)
end

-- Where a bucket's records end: the position after the last.
local function tail(bucket)
  local from = math.max(HEAD + 1, #bucket + 1 - MOST * RECORD)
  local at = find(bucket, EMPTY, from, true)
  if not at then
    return #bucket + 1
  end
  return at + (HEAD + 1 - at) % RECORD
end

-- A bucket's live records, without the one at a position.
local function live(bucket, without)
  local records = {}
  for at = HEAD + 1, tail(bucket) - 1, RECORD do
    if at ~= without and is_live(bucket, at) then
      records[#records + 1] = sub(bucket, at, at + RECORD - 1)
    end
  end
  return records
end

local function hash(id)
  local a, b, c, d = byte(id, 1, 4)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local n, until_second = 1, clock
local known = call('GET', KEYS[1])
if known then
  local buckets, expiry = string.match(known, '(%d+):(%d+)')
  n, until_second = tonumber(buckets), tonumber(expiry)
end
local level = 1
while level * 2 <= n do level = level * 2 end
local grown = not known or left(until_second) < window + 30

local function key_of(id)
  local number = hash(id) % (2 * level)
  if number >= n then number = number - level end
  return KEYS[1] .. string.format(':%d', number)
end

local function keep_number()
  call('SET', KEYS[1], n .. ':' .. (clock + lives) % MODULUS, 'EX', lives)
end

local function split()
  local from, to = n - level, n
  local bucket = call('GET', KEYS[1] .. ':' .. from)
  local stay, go = {}, {}
  for _, record in ipairs(bucket and live(bucket) or {}) do
    local part = hash(record) % (2 * level) == from and stay or go
    part[#part + 1] = record
  end
  -- Each write may be the last one: a Cluster's node refuses the next, if its key is on its way to another node. So first
  -- to where they go, then `n`, by which they are looked for there, and only then away from where they were: what stays
  -- there by mistake is found by nobody.
  write(KEYS[1] .. ':' .. to, table.concat(go), #go)
  n = n + 1
  keep_number()
  grown = false
  write(KEYS[1] .. ':' .. from, table.concat(stay), #stay)
  if n == 2 * level then level = n end
end

local function append(key, bucket, id, coordinate)
  local record = id .. stamp .. coordinate
  local at = bucket and tail(bucket)
  -- A bucket that must live on is written anew, so that what has expired in it does not.
  if at and at <= #bucket and left(second(bucket, 1)) >= window + 30 then
    call('SETRANGE', key, string.format('%d', at - 1), record)
    return
  end
  local from = HEAD + 1
  while bucket and from < at and not is_live(bucket, from) do from = from + RECORD end
  local records = (bucket and sub(bucket, from, at - 1) or '') .. record
  local count = #records / RECORD
  write(key, records, count)
  if count > FULL then split() end
end

local third = ARGV[2] == '1'
local wants, width = ARGV[3], third and ID + 16 or ID + 8
local answers = {}
for want = 1, #wants, width do
  local id = sub(wants, want, want + ID - 1)
  local coordinate = sub(wants, want + ID, want + ID + 7)
  local key = key_of(id)
  local bucket = call('GET', key)
  local at = bucket and find(bucket, id, HEAD + 1, true)
  while at and (at - HEAD - 1) % RECORD ~= 0 do
    at = find(bucket, id, at + 1, true)
  end
  local answer = '1'
  if not at then
    append(key, bucket, id, coordinate)
  else
    local owner = sub(bucket, at + ID + TIME, at + RECORD - 1)
    local is_free = not is_live(bucket, at)
      or third and owner == sub(wants, want + ID + 8, want + ID + 15)
    if is_free then
      local records = live(bucket, at)
      records[#records + 1] = id .. stamp .. coordinate
      write(key, table.concat(records), #records)
    elseif owner == coordinate then
      answer = '2'
    else
      answer = '0'
    end
  end
  answers[#answers + 1] = answer
end

if grown then
  keep_number()
end
return table.concat(answers)
