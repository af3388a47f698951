#!lua name=afterclick
-- The two steps that make each event take effect once. Each call touches one hash slot.
--
-- Step 1, apply_user, remembers which position first applied an event id. Step 2, apply_partition, counts
-- behind the position and moves it. Step 1 always comes before step 2: a crash between them replays the
-- event, step 1 answers as it did the first time, and step 2 counts once.

-- The half-lives of afterclick.trends, in milliseconds, in the same order.
local DAY = 86400000
local HALF_LIVES = {DAY / 24, DAY, 3 * DAY, 7 * DAY, 30 * DAY, 90 * DAY}
local N = #HALF_LIVES
local PACKED = '<ddddddddddddd' -- event time ms, then the sums of all votes, then those of established users

-- The votes of a user on an item, as text: for each action its code (capital where it is positive) and the event
-- time of its vote.
local function votes_of(text)
  local votes = {}
  for code, time in string.gmatch(text or '', '(%a)(-?%d+)') do votes[code] = tonumber(time) end
  return votes
end

local function text_of(votes)
  local parts = {}
  for code, time in pairs(votes) do parts[#parts + 1] = code .. string.format('%.0f', time) end
  return table.concat(parts)
end

-- The votes that become established where a user turns out to have been here since `first`, not since `known`: what
-- has to be added to their trends, as corrections.
local function aged(key, known, first, age)
  local corrections, all = {}, redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    for code, time in pairs(all[i] == '' and {} or votes_of(all[i + 1])) do
      if time - first >= age and time - known < age then
        corrections[#corrections + 1] = {all[i], code, string.format('%.0f', time), 0, 1}
      end
    end
  end
  return corrections
end

-- Put one event's vote among its user's. keys: votes; args: see apply_user.
-- An event counts as one vote. Where the user has voted so on this item before, corrections take the older of the
-- two back, so that the newest alone stands, in whatever order they come.
-- Returns novel (1 or 0), established (1 or 0), corrections: {item, code, event time ms, votes, established votes}.
local function vote(key, item, code, time, age)
  local since, text = unpack(redis.call('HMGET', key, '', item))
  local known = tonumber(since or time)
  local first, corrections = math.min(known, time), {}
  if first < known then corrections = aged(key, known, first, age) end
  local established = time - first >= age and 1 or 0
  local votes = votes_of(text)
  local before = votes[code]
  if before then
    local older = math.min(before, time)
    corrections[#corrections + 1] = {item, code, string.format('%.0f', older), -1, older - first >= age and -1 or 0}
  end
  local novel = string.find(code, '%u') and not string.find(text or '', '%u') and 1 or 0
  local changed = {}
  if not since or first < known then changed = {'', string.format('%.0f', first)} end
  if code ~= '' and (not before or before < time) then
    votes[code] = time
    changed[#changed + 1] = item
    changed[#changed + 1] = text_of(votes)
  end
  if #changed > 0 then redis.call('HSET', key, unpack(changed)) end
  return novel, established, corrections
end

-- One user's events of a chunk, in log order.
-- keys: history, votes, ledger of this topic, corrections, forgotten, ledger of each other topic
-- args: history length, ledger length, floor, age (ms) from which a user is established, then for each event: id,
--       place, history member, event time ms, item, code of the action ('' where it has no weight, and no vote)
-- A place is (offset * 1024 + partition) * 4; the ledger keeps it with novel in its lowest bit, established in the next.
-- Ledger entries at or above the floor are never dropped: step 2 may not have passed them yet.
-- Returns a list: first a character per event: 0 duplicate, 1 to 4 first (1 + novel + 2 * established; novel is the
-- user's first positive action on the item), 5 forgotten: new, and not after the moment up to which the user is
-- forgotten. What stands in the ledger came before the forgetting, which waits for it to be counted and takes it back.
-- Then for each event with corrections: its number (from 0), and they as JSON.
local function apply_user(keys, args)
  local history, votes, ledger = keys[1], keys[2], keys[3]
  local age = tonumber(args[4])
  local forgotten = redis.call('GET', keys[5])
  forgotten = forgotten and tonumber(forgotten)
  local answers, found = {}, {''}
  for i = 5, #args, 6 do
    local id, place, time = args[i], tonumber(args[i + 1]), tonumber(args[i + 3])
    local answer, corrections
    local known = redis.call('ZSCORE', ledger, id)
    if known then
      known = tonumber(known)
      local flags = known % 4
      answer = known - flags == place and 1 + flags or 0
      corrections = answer > 0 and redis.call('HGET', keys[4], id)
    elseif forgotten and time <= forgotten then
      answer = 5
    else
      for k = 6, #keys do
        if redis.call('ZSCORE', keys[k], id) then answer = 0 end
      end
    end
    if not answer then
      local novel, established, list = vote(votes, args[i + 4], args[i + 5], time, age)
      local flags = novel + 2 * established
      if #list > 0 then
        corrections = cjson.encode(list)
        redis.call('HSET', keys[4], id, corrections)
      end
      redis.call('ZADD', ledger, string.format('%.0f', place + flags), id)
      redis.call('ZADD', history, args[i + 3], args[i + 2])
      answer = 1 + flags
    end
    if corrections then
      found[#found + 1] = #answers
      found[#found + 1] = corrections
    end
    answers[#answers + 1] = answer
  end
  local too_many = redis.call('ZCARD', history) - tonumber(args[1])
  if too_many > 0 then redis.call('ZREMRANGEBYRANK', history, 0, too_many - 1) end
  local excess = redis.call('ZCARD', ledger) - tonumber(args[2])
  if excess > 0 then
    local passed = redis.call('ZCOUNT', ledger, '-inf', '(' .. args[3])
    local drop = math.min(excess, passed)
    if drop > 0 then
      for _, id in ipairs(redis.call('ZRANGE', ledger, 0, drop - 1)) do redis.call('HDEL', keys[4], id) end
      redis.call('ZREMRANGEBYRANK', ledger, 0, drop - 1)
    end
  end
  found[1] = table.concat(answers)
  return found
end

local function decay(elapsed_ms, half_life)
  return 2 ^ (-elapsed_ms / half_life)
end

-- Add to a trend, a table {time ms, sum, ...}, a weight and what of it is established. The same arithmetic as
-- afterclick.trends.TrendTable.add.
local function add_to_trend(trend, time_ms, weight, established)
  local newest = math.max(trend[1], time_ms)
  for h = 1, N do
    local old, new = decay(newest - trend[1], HALF_LIVES[h]), decay(newest - time_ms, HALF_LIVES[h])
    trend[h + 1] = trend[h + 1] * old + new * weight
    trend[h + N + 1] = trend[h + N + 1] * old + new * established
  end
  trend[1] = newest
end

local function load_trend(key, item, time_ms)
  local packed = redis.call('HGET', key, item)
  if packed then
    local trend = {struct.unpack(PACKED, packed)}
    trend[2 * N + 2] = nil -- struct.unpack also returns where it stopped
    return trend
  end
  local trend = {time_ms}
  for h = 1, 2 * N do trend[h + 1] = 0 end
  return trend
end

-- Set a number that only ever grows. keys: it; args: the number.
local function raise_to(keys, args)
  local number, known = tonumber(args[1]), redis.call('GET', keys[1])
  if not known or number > tonumber(known) then
    redis.call('SET', keys[1], string.format('%.0f', number))
  end
  return number
end

-- One partition's events of a chunk, in offset order.
-- keys: position, counts, uniques, trends, announced
-- args: fence ('1', or '0' in the control of a fault test), the position the caller has come from, the last
--       offset of the chunk, the offset up to which state-changes has the changes (−1: nothing new to say), then for
--       each event that step 1 called first, and each correction of it: offset, item, event time ms, weight, what of
--       it is established, and what it counts: '0' nothing, '1' an interaction, '2' a user, too
-- Returns the position before this call. Fails with GAP where the state is older than the caller believes (the
-- server lost its newest writes): counting on would lose events.
local function apply_partition(keys, args)
  local fence, after, last = args[1] == '1', tonumber(args[2]), tonumber(args[3])
  local position = tonumber(redis.call('GET', keys[1]) or '-1')
  if fence and position < after then
    return redis.error_reply('GAP the position is ' .. string.format('%.0f', position))
  end
  local counts, uniques, trends = {}, {}, {}
  for i = 5, #args, 6 do
    if not fence or tonumber(args[i]) > position then
      local item, time_ms, count = args[i + 1], tonumber(args[i + 2]), args[i + 5]
      if count ~= '0' then counts[item] = (counts[item] or 0) + 1 end
      if count == '2' then uniques[item] = (uniques[item] or 0) + 1 end
      trends[item] = trends[item] or load_trend(keys[4], item, time_ms)
      add_to_trend(trends[item], time_ms, tonumber(args[i + 3]), tonumber(args[i + 4]))
    end
  end
  for item, count in pairs(counts) do redis.call('HINCRBY', keys[2], item, count) end
  for item, count in pairs(uniques) do redis.call('HINCRBY', keys[3], item, count) end
  for item, trend in pairs(trends) do
    redis.call('HSET', keys[4], item, struct.pack(PACKED, unpack(trend)))
  end
  if last > position then redis.call('SET', keys[1], string.format('%.0f', last)) end
  if tonumber(args[4]) >= 0 then raise_to({keys[5]}, {args[4]}) end
  return position
end

-- Refuse a user's events up to a moment from now on, and drop the history. What was counted of them stays in the
-- ledgers until it is taken back; a forgetting that was not finished comes first.
-- keys: forgotten, forgetting, history, votes; args: event time ms
-- Returns the moment that is being forgotten up to, as text.
local function forget_user(keys, args)
  local unfinished = redis.call('GET', keys[2])
  if unfinished then return unfinished end
  raise_to({keys[1]}, args)
  redis.call('SET', keys[2], args[1])
  redis.call('DEL', keys[3], keys[4])
  return args[1]
end

-- Take back what a partition counted of events. keys: counts, uniques, trends, taken
-- args: a token that makes repeating harmless, then for each event and correction what apply_partition was given, without
--       the offset
-- Returns 1, or 0 where the token was used before.
local function take_back(keys, args)
  if redis.call('SADD', keys[4], args[1]) == 0 then return 0 end
  for i = 2, #args, 5 do
    local item, time_ms, count = args[i], tonumber(args[i + 1]), args[i + 4]
    if count ~= '0' and redis.call('HINCRBY', keys[1], item, -1) == 0 then redis.call('HDEL', keys[1], item) end
    if count == '2' and redis.call('HINCRBY', keys[2], item, -1) == 0 then redis.call('HDEL', keys[2], item) end
    local trend = load_trend(keys[3], item, time_ms)
    add_to_trend(trend, time_ms, -tonumber(args[i + 2]), -tonumber(args[i + 3]))
    redis.call('HSET', keys[3], item, struct.pack(PACKED, unpack(trend)))
  end
  return 1
end

-- Take, keep or give up the lease that lets one stream job at a time write this state.
-- keys: lease; args: owner, milliseconds to hold it (0 gives it up), '1' to take it from whoever has it
-- Returns the owner after the call, or '' where there is none.
local function lease(keys, args)
  local owner = redis.call('GET', keys[1])
  if owner and owner ~= args[1] and args[3] ~= '1' then return owner end
  if args[2] == '0' then
    redis.call('DEL', keys[1])
    return ''
  end
  redis.call('SET', keys[1], args[1], 'PX', args[2])
  return args[1]
end

redis.register_function('afterclick_apply_user', apply_user)
redis.register_function('afterclick_apply_partition', apply_partition)
redis.register_function('afterclick_raise_to', raise_to)
redis.register_function('afterclick_forget_user', forget_user)
redis.register_function('afterclick_take_back', take_back)
redis.register_function('afterclick_lease', lease)
