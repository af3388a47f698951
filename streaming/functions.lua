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
local PACKED = '<ddddddd' -- event time ms, then the sums

-- One user's events of a chunk, in log order.
-- keys: history, items, ledger of this topic, forgotten, ledger of each other topic
-- args: history length, ledger length, floor, then for each event: id, place, history member, event time ms,
--       item ('' where the event is no positive action)
-- A place is (offset * 1024 + partition) * 2; the ledger keeps it with the novel flag in its lowest bit.
-- Ledger entries at or above the floor are never dropped: step 2 may not have passed them yet.
-- Returns a character per event: 0 duplicate, 1 first, 2 first and novel (the user's first positive action on
-- the item), 3 forgotten: new, and not after the moment up to which the user is forgotten. What stands in the
-- ledger came before the forgetting, which waits for it to be counted and takes it back.
local function apply_user(keys, args)
  local history, items, ledger = keys[1], keys[2], keys[3]
  local forgotten = redis.call('GET', keys[4])
  forgotten = forgotten and tonumber(forgotten)
  local answers = {}
  for i = 4, #args, 5 do
    local id, place, item = args[i], tonumber(args[i + 1]), args[i + 4]
    local answer
    local known = redis.call('ZSCORE', ledger, id)
    if known then
      known = tonumber(known)
      local novel = known % 2
      answer = known - novel == place and 1 + novel or 0
    elseif forgotten and tonumber(args[i + 3]) <= forgotten then
      answer = 3
    else
      for k = 5, #keys do
        if redis.call('ZSCORE', keys[k], id) then answer = 0 end
      end
    end
    if not answer then
      local novel = item ~= '' and redis.call('SADD', items, item) or 0
      redis.call('ZADD', ledger, string.format('%.0f', place + novel), id)
      redis.call('ZADD', history, args[i + 3], args[i + 2])
      answer = 1 + novel
    end
    answers[#answers + 1] = answer
  end
  local too_many = redis.call('ZCARD', history) - tonumber(args[1])
  if too_many > 0 then redis.call('ZREMRANGEBYRANK', history, 0, too_many - 1) end
  local excess = redis.call('ZCARD', ledger) - tonumber(args[2])
  if excess > 0 then
    local passed = redis.call('ZCOUNT', ledger, '-inf', '(' .. args[3])
    local drop = math.min(excess, passed)
    if drop > 0 then redis.call('ZREMRANGEBYRANK', ledger, 0, drop - 1) end
  end
  return table.concat(answers)
end

local function decay(elapsed_ms, half_life)
  return 2 ^ (-elapsed_ms / half_life)
end

-- Add one event to a trend, a table {time ms, sum, ...}. The same arithmetic as afterclick.trends.Trend.add.
local function add_to_trend(trend, time_ms, weight)
  local newest = math.max(trend[1], time_ms)
  for h = 1, N do
    trend[h + 1] = trend[h + 1] * decay(newest - trend[1], HALF_LIVES[h])
      + decay(newest - time_ms, HALF_LIVES[h]) * weight
  end
  trend[1] = newest
end

local function load_trend(key, item, time_ms)
  local packed = redis.call('HGET', key, item)
  if packed then
    local trend = {struct.unpack(PACKED, packed)}
    trend[N + 2] = nil -- struct.unpack also returns where it stopped
    return trend
  end
  local trend = {time_ms}
  for h = 1, N do trend[h + 1] = 0 end
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
--       each event that step 1 called first: offset, item, event time ms, weight, novel ('1' or '0')
-- Returns the position before this call. Fails with GAP where the state is older than the caller believes (the
-- server lost its newest writes): counting on would lose events.
local function apply_partition(keys, args)
  local fence, after, last = args[1] == '1', tonumber(args[2]), tonumber(args[3])
  local position = tonumber(redis.call('GET', keys[1]) or '-1')
  if fence and position < after then
    return redis.error_reply('GAP the position is ' .. string.format('%.0f', position))
  end
  local counts, uniques, trends = {}, {}, {}
  for i = 5, #args, 5 do
    if not fence or tonumber(args[i]) > position then
      local item, time_ms, weight = args[i + 1], tonumber(args[i + 2]), tonumber(args[i + 3])
      if weight > 0 then counts[item] = (counts[item] or 0) + 1 end
      if args[i + 4] == '1' then uniques[item] = (uniques[item] or 0) + 1 end
      trends[item] = trends[item] or load_trend(keys[4], item, time_ms)
      add_to_trend(trends[item], time_ms, weight)
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
-- keys: forgotten, forgetting, history, items; args: event time ms
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
-- args: a token that makes repeating harmless, then for each event: item, event time ms, weight, novel
-- Returns 1, or 0 where the token was used before.
local function take_back(keys, args)
  if redis.call('SADD', keys[4], args[1]) == 0 then return 0 end
  for i = 2, #args, 4 do
    local item, time_ms, weight = args[i], tonumber(args[i + 1]), tonumber(args[i + 2])
    if weight > 0 and redis.call('HINCRBY', keys[1], item, -1) == 0 then redis.call('HDEL', keys[1], item) end
    if args[i + 3] == '1' and redis.call('HINCRBY', keys[2], item, -1) == 0 then redis.call('HDEL', keys[2], item) end
    local trend = load_trend(keys[3], item, time_ms)
    add_to_trend(trend, time_ms, -weight)
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
