#!lua name=afterclick_exposures
-- The two steps by which each list that a user was shown, and each reaction to it, counts once.
--
-- Step 1, join_exposures, stores in the user's slot which log position first applied a list or a reaction: a replay
-- gets the first reply again. Step 2, count_exposures, adds to the counts of a partition and moves its offset.
--
-- An impression is a hash:
--   at, ms, time     position, log time and event time of the list
--   day, dims, items day and dimensions by which it counts, items (JSON)
--   reacted          position of the first positive reaction
--   r:<action>:<item>  <position>|<event time>|<log time> of a reaction; without a position while it waits for the list

-- Reactions that may wait for one list. The place of a list limits how many can join.
local MAX_WAITING = 1000
local RECORD = 8 -- arguments of a record in step 1
local DUPLICATE, UNKNOWN, FORGOTTEN = '0', '2', '5'

local function lost_lease(key, owner)
  if owner ~= '' and redis.call('GET', key) ~= owner then
    return redis.error_reply('LEASE another job may write this state')
  end
end

local function places_of(items)
  local places = {}
  for place, item in ipairs(cjson.decode(items)) do places[item] = places[item] or place - 1 end
  return places
end

local function begins_with(text, start)
  return string.sub(text, 1, #start) == start
end

local function reaction_value(position, time, ms)
  return position .. '|' .. string.format('%.0f|%.0f', time, ms)
end

-- Whether a list with this reaction counts as reacted to.
local function is_positive(limits, action)
  return string.find(limits.positive, '|' .. action .. '|', 1, true) ~= nil
end

-- A list. Returns '' and the columns of the reactions that it joined, or a code.
local function apply_list(key, forgotten, limits, position, ms, time, day, dims, items, ttl)
  local known = redis.call('HMGET', key, 'at', 'ms', 'items', 'reacted')
  local columns, reacted = {''}, false
  if known[1] == position then
    local places, all = places_of(known[3]), redis.call('HGETALL', key)
    for i = 1, #all, 2 do
      local action, item = string.match(all[i], '^r:(%a+):(.*)$')
      if action and begins_with(all[i + 1], position .. '|') then
        columns[#columns + 1] = action .. ':' .. places[item]
      end
    end
    if known[4] == position then columns[#columns + 1] = 'reacted' end
    return columns
  end
  if known[1] and ms <= tonumber(known[2]) + limits.window then return DUPLICATE end
  if forgotten and time <= forgotten then return FORGOTTEN end
  local waiting = {}
  if known[1] then redis.call('DEL', key) else waiting = redis.call('HGETALL', key) end
  local places = places_of(items)
  for i = 1, #waiting, 2 do
    local action, item = string.match(waiting[i], '^r:(%a+):(.*)$')
    local its_time, its_ms = string.match(waiting[i + 1], '^|(%-?%d+)|(%-?%d+)$')
    its_time, its_ms = tonumber(its_time), tonumber(its_ms)
    local is_forgotten = forgotten and its_time <= forgotten
    if places[item] and math.abs(its_ms - ms) <= limits.window and not is_forgotten then
      redis.call('HSET', key, waiting[i], reaction_value(position, its_time, its_ms))
      columns[#columns + 1] = action .. ':' .. places[item]
      reacted = reacted or is_positive(limits, action)
    else
      redis.call('HDEL', key, waiting[i])
    end
  end
  redis.call('HSET', key, 'at', position, 'ms', string.format('%.0f', ms), 'time', string.format('%.0f', time),
    'day', day, 'dims', dims, 'items', items)
  if reacted then
    redis.call('HSET', key, 'reacted', position)
    columns[#columns + 1] = 'reacted'
  end
  redis.call('PEXPIRE', key, ttl)
  return columns
end

-- A reaction. Returns day, dimensions and the columns that it adds to, or a code: UNKNOWN if it has to wait for the
-- list, or never joins it.
local function apply_reaction(key, forgotten, limits, position, ms, time, action, item, ttl)
  local field = 'r:' .. action .. ':' .. item
  local list = redis.call('HMGET', key, 'at', 'ms', 'time', 'day', 'dims', 'items', 'reacted', field)
  local at, known = list[1], list[8]
  if not at then
    if forgotten and time <= forgotten then return FORGOTTEN end
    local newest = known and tonumber(string.match(known, '(%-?%d+)$'))
    if known and newest >= ms then return UNKNOWN end
    if not known and redis.call('HLEN', key) >= MAX_WAITING then return UNKNOWN end
    redis.call('HSET', key, field, reaction_value('', time, ms))
    redis.call('PEXPIRE', key, ttl)
    return UNKNOWN
  end
  local place = places_of(list[6])[item]
  if known then
    if not begins_with(known, position .. '|') then return DUPLICATE end
    return {list[4], list[5], action .. ':' .. place, list[7] == position and 'reacted' or nil}
  end
  if forgotten and (time <= forgotten or tonumber(list[3]) <= forgotten) then return FORGOTTEN end
  if not place or math.abs(ms - tonumber(list[2])) > limits.window then return UNKNOWN end
  redis.call('HSET', key, field, reaction_value(position, time, ms))
  if not is_positive(limits, action) or list[7] then return {list[4], list[5], action .. ':' .. place} end
  redis.call('HSET', key, 'reacted', position)
  return {list[4], list[5], action .. ':' .. place, 'reacted'}
end

-- Step 1. keys: lease, then for each record: its impression, forgotten
-- args: the lease's owner, window (ms), positive actions ('|click|…|'), then for each record: 'list' or 'reaction',
--       position, log time ms, event time ms, time to live of the key (ms), then of a list: day, dimensions, items; of a reaction: action, item, ''
-- Returns a reply for each record: a code, a list's columns after '', or a reaction's day, dimensions and columns. An
-- error where the key is damaged.
local function join_exposures(keys, args)
  local lost = lost_lease(keys[1], args[1])
  if lost then return lost end
  local limits, replies = {window = tonumber(args[2]), positive = args[3]}, {}
  for k = 2, #keys, 2 do
    local i = 4 + (k - 2) / 2 * RECORD
    local damage = redis.pcall('HGET', keys[k], 'at')
    damage = type(damage) == 'table' and damage.err
    if damage then
      replies[#replies + 1] = 'state of the impression: ' .. damage
    else
      local forgotten = redis.call('GET', keys[k + 1])
      local apply = args[i] == 'list' and apply_list or apply_reaction
      replies[#replies + 1] = apply(keys[k], forgotten and tonumber(forgotten), limits, args[i + 1],
        tonumber(args[i + 2]), tonumber(args[i + 3]), args[i + 5], args[i + 6],
        args[i] == 'list' and args[i + 7] or args[i + 4], args[i + 4])
    end
  end
  return replies
end

-- The field to change: that of no dimensions where there are too many.
local function field_of(key, field, sizes, max_fields, other)
  if redis.call('HGET', key, field) then return field end
  sizes[key] = sizes[key] or redis.call('HLEN', key)
  if sizes[key] >= max_fields then return other .. string.match(field, '(\t.*)$') end
  sizes[key] = sizes[key] + 1
  return field
end

-- Step 2. keys: offset up to which the partition is counted, lease, then a hash for each day
-- args: the lease's owner, the offset before ('': not compared, in the control of a fault test), the offset after,
--       number of fields per day, the dimensions beyond them, then the time to live of each day (ms), then for each
--       count: number of the day (from 1), field, what to add
-- Fails with OVERTAKEN if the offset is another one: another task counts, or the server lost its newest writes.
local function count_exposures(keys, args)
  local lost = lost_lease(keys[2], args[1])
  if lost then return lost end
  local offset = redis.call('GET', keys[1]) or '-1'
  if args[2] ~= '' and offset ~= args[2] then return redis.error_reply('OVERTAKEN the offset is ' .. offset) end
  local days, sizes, max_fields = #keys - 2, {}, tonumber(args[4])
  for i = 6 + days, #args, 3 do
    local key = keys[2 + tonumber(args[i])]
    redis.call('HINCRBY', key, field_of(key, args[i + 1], sizes, max_fields, args[5]), args[i + 2])
  end
  for day = 1, days do redis.call('PEXPIRE', keys[2 + day], args[5 + day]) end
  redis.call('SET', keys[1], args[3])
  return 1
end

-- Subtract what a user added to the counts, once. keys: retractions of the partition, then a hash for each day
-- args: a token of the user's forgetting, the dimensions beyond the limit, then for each count: number of the day (from
--       1), field, what to subtract
-- Days that have expired are left out. Returns 0 if it is done already.
local function retract_exposures(keys, args)
  if redis.call('HGET', keys[1], args[1]) then return 0 end
  redis.call('HSET', keys[1], args[1], '0')
  for i = 3, #args, 3 do
    local key, field = keys[1 + tonumber(args[i])], args[i + 1]
    if redis.call('EXISTS', key) == 1 then
      if not redis.call('HGET', key, field) then
        local other = args[2] .. string.match(field, '(\t.*)$')
        if redis.call('HGET', key, other) then field = other end
      end
      if redis.call('HINCRBY', key, field, -tonumber(args[i + 2])) == 0 then redis.call('HDEL', key, field) end
    end
  end
  return 1
end

redis.register_function('afterclick_join_exposures', join_exposures)
redis.register_function('afterclick_count_exposures', count_exposures)
redis.register_function('afterclick_retract_exposures', retract_exposures)
