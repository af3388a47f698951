#!lua name=afterclick
-- The two steps by which each event takes effect once.
--
-- Step 1, apply_users, stores which log position first applied an event id. Step 2, apply_partition, counts
-- the events after the partition's applied offset and advances it. Step 1 always precedes step 2: after a
-- crash between them the event is replayed, step 1 returns the same result, and step 2 counts it once.

-- The half-lives of afterclick.trends, in milliseconds, in the same order.
local HOUR, DAY = 3600000, 86400000
local HALF_LIVES = {DAY / 24, DAY, 3 * DAY, 7 * DAY, 30 * DAY, 90 * DAY}
local N = #HALF_LIVES
local PACKED = '<ddddddddddddd' -- event time ms, then the sums of all votes, then those of established users
local EVENT = 8 -- arguments of an event in step 1

-- A user's votes on an item, as text: for each action its code (a capital if positive), the vote's event time and,
-- after a comma, how much later its trusted time is. That time decides whether the vote is of an established user.
local function votes_of(text)
  local votes = {}
  for code, time, delay in string.gmatch(text, '(%a)(-?%d+),?(-?%d*)') do
    votes[code] = {tonumber(time), tonumber(time) + (tonumber(delay) or 0)}
  end
  return votes
end

local function text_of(votes)
  local parts = {}
  for code, vote in pairs(votes) do
    local delay = vote[2] ~= vote[1] and string.format(',%.0f', vote[2] - vote[1]) or ''
    parts[#parts + 1] = code .. string.format('%.0f', vote[1]) .. delay
  end
  return table.concat(parts)
end

-- Whether a vote of a new account counts: a negative one does not, so that new accounts cannot lower a trend.
local function counts_for_new(code)
  return string.find(code, '%u') ~= nil
end

-- The votes that become established when an event moves a user's first activity from `known` back to `first`, as
-- compensations of their trends.
local function newly_established(key, known, first, age)
  local compensations, all = {}, redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    for code, vote in pairs(all[i] == '' and {} or votes_of(all[i + 1])) do
      if vote[2] - first >= age and vote[2] - known < age then
        local added = counts_for_new(code) and 0 or 1
        compensations[#compensations + 1] = {all[i], code, string.format('%.0f', vote[1]), added, 1}
      end
    end
  end
  return compensations
end

local function is_newer(vote, other)
  return vote[1] > other[1] or (vote[1] == other[1] and vote[2] > other[2])
end

-- The field '' of a user's votes: trusted time of the first event and, after a comma, when the newest reached the log.
local function activity_of(text)
  local first, last = string.match(text, '^(-?%d+),?(-?%d*)')
  return tonumber(first), tonumber(last)
end

-- Add one event's vote to its user's votes. limits: age, voted items, late items, time to live; the rest: see apply_users.
-- Without an event for the time to live, measured in the log, the user's history and votes are deleted before: a state
-- computed later from the log is the same. The ledgers stay until they expire.
-- An event counts as one vote. If the user has a vote of this action on the item, a compensation retracts the older
-- of the two: only the newest counts, in whatever order they arrive. A vote on one more item than a user can vote on
-- is retracted at once. An event older than the user's first makes earlier votes established only while the user has
-- few: the work of one event is bounded.
-- Returns first_user_item (1 or 0), established (1 or 0), and compensations: {item, code, event time ms, votes,
-- established votes}.
local function cast_vote(history, key, limits, item, code, vote, log_time)
  local age, ttl = limits.age, limits.ttl
  local found = redis.call('HMGET', key, '', item)
  local activity, text, since, last = found[1], found[2], nil, nil
  if activity then
    since, last = activity_of(activity)
    if last and log_time - last > ttl then
      redis.call('UNLINK', history, key)
      activity, text, since, last = nil, nil, nil, nil
    end
  end
  local known, compensations = since or vote[2], {}
  local first, late = math.min(known, vote[2]), vote[2] < known
  local new_item = code ~= '' and not text
  local items = activity and (late or new_item) and redis.call('HLEN', key) - 1 or 0
  if late then
    if items <= limits.late_items then
      compensations = newly_established(key, known, first, age)
    else
      first = known
    end
  end
  local established = vote[2] - first >= age and 1 or 0
  local votes = text and votes_of(text) or {}
  local too_many = new_item and items >= limits.voted_items
  local before = too_many and vote or votes[code]
  local newer = not before or is_newer(vote, before)
  if before then
    local older = newer and before or vote
    local established_vote = older[2] - first >= age and -1 or 0
    local counted = counts_for_new(code) and -1 or established_vote
    if counted ~= 0 then
      compensations[#compensations + 1] = {item, code, string.format('%.0f', older[1]), counted, established_vote}
    end
  end
  local positive = not too_many and counts_for_new(code)
  local first_user_item = positive and not (text and counts_for_new(text)) and 1 or 0
  local times = string.format('%.0f,%.0f', first, math.max(last or log_time, log_time))
  if code ~= '' and newer then
    votes[code] = vote
    redis.call('HSET', key, '', times, item, text_of(votes))
  else
    redis.call('HSET', key, '', times)
  end
  return first_user_item, established, compensations
end

-- An error if the writer no longer holds the lease: it expired, or another job took it. '' holds none (tests).
local function lost_lease(key, owner)
  if owner ~= '' and redis.call('GET', key) ~= owner then
    return redis.error_reply('LEASE another job may write this state')
  end
end

-- Keep a user's keys, all but `forgotten`, for a day after the time to live: a stream that was down for less than a day
-- does not find fewer than the log says. They expire at one moment. To save writes, it is moved only if it is too early,
-- by an hour more than needed; keys that this call may have created get it in any case.
local function renew(votes, ttl, keys, created)
  local left = redis.call('PTTL', votes)
  if left < ttl + DAY then left, created = ttl + DAY + HOUR, keys end
  local expiry = string.format('%.0f', left)
  for k = 1, #created do redis.call('PEXPIRE', created[k], expiry) end
end

-- Step 1 for one user. user: its keys, at places from `base` on; args: at places from `first` to `last`, its events
local function apply_user(keys, base, others_end, limits, args, first, last)
  local history, votes, ledger, corrections = unpack(keys, base, base + 3)
  local forgotten = redis.call('GET', keys[base + 4])
  forgotten = forgotten and tonumber(forgotten)
  local before, added, others = redis.call('ZCARD', ledger), 0, {}
  local kept, created = {votes, history, ledger}, {}
  if before > 0 then kept[#kept + 1] = corrections end
  for k = base + 5, others_end, 2 do
    if redis.call('ZCARD', keys[k]) > 0 then
      others[#others + 1] = keys[k]
      kept[#kept + 1], kept[#kept + 2] = keys[k], keys[k + 1]
    end
  end
  local codes, result = {}, {''}
  for i = first, last, EVENT do
    local id, position, time = args[i], tonumber(args[i + 1]), tonumber(args[i + 3])
    local code, compensations
    local known = before + added > 0 and redis.call('ZSCORE', ledger, id)
    if known then
      known = tonumber(known)
      local flags = known % 4
      code = known - flags == position and 1 + flags or 0
      compensations = code > 0 and redis.call('HGET', corrections, id)
    elseif forgotten and time <= forgotten then
      code = 5
    else
      for k = 1, #others do
        if redis.call('ZSCORE', others[k], id) then code = 0 end
      end
    end
    if not code then
      local vote, log_time = {time, tonumber(args[i + 6])}, tonumber(args[i + 7])
      local first_user_item, established, list =
        cast_vote(history, votes, limits, args[i + 4], args[i + 5], vote, log_time)
      local flags = first_user_item + 2 * established
      if #list > 0 then
        compensations = cjson.encode(list)
        redis.call('HSET', corrections, id, compensations)
        created[1] = corrections
      end
      redis.call('ZADD', ledger, string.format('%.0f', position + flags), id)
      redis.call('ZADD', history, args[i + 3], args[i + 2])
      added = added + 1
      code = 1 + flags
    end
    if compensations then
      result[#result + 1] = #codes
      result[#result + 1] = compensations
    end
    codes[#codes + 1] = code
  end
  if before == 0 and created[1] then kept[#kept + 1] = corrections end
  if before == 0 and added > 0 then created[#created + 1] = ledger end
  local entries = redis.call('ZCARD', history)
  if entries == added then created[#created + 1] = history end
  if entries > limits.history then redis.call('ZREMRANGEBYRANK', history, 0, entries - limits.history - 1) end
  local excess = before + added - limits.ledger
  if excess > 0 then
    local counted = redis.call('ZCOUNT', ledger, '-inf', '(' .. limits.floor)
    local drop = math.min(excess, counted)
    if drop > 0 then
      for _, id in ipairs(redis.call('ZRANGE', ledger, 0, drop - 1)) do redis.call('HDEL', corrections, id) end
      redis.call('ZREMRANGEBYRANK', ledger, 0, drop - 1)
    end
  end
  renew(votes, limits.ttl, kept, created)
  result[1] = table.concat(codes)
  return result
end

-- Step 1: the events of several users in a chunk, those of a user together and in log order.
-- keys: lease, then for each user: history, votes, ledger of this topic, compensations, forgotten, then of each other
--       topic: ledger, compensations
-- args: the lease's owner, history length, ledger length, floor, age (ms) from which a user is established, items that
--       a user can vote on, items up to which an event may precede the first, number of keys of a user, then for each
--       user: time to live (ms) of a user without events, number of events, then for each event: id, position, history
--       member, event time ms, item, code of the action ('' for weight 0: no vote), trusted time ms, time ms at which
--       it reached the log
-- A position is (offset * 1024 + partition) * 4; the ledger adds first_user_item in bit 0 and established in bit 1.
-- Ledger entries at or above the floor are never trimmed: step 2 may not have counted them yet.
-- Returns a list for each user. First a string with one character per event: 0 duplicate; 1 to 4 first position of the
-- id (1 + first_user_item + 2 * established; first_user_item: the user's first positive action on the item); 5
-- forgotten: a new id with an event time up to the user's forgetting. (An id in the ledger precedes the forgetting,
-- which waits until it is counted and retracts it.) Then for each event with compensations: its number (from 0), and
-- the compensations as JSON.
-- If it fails for a user, the users before are complete: the same call again gets the same answers for them.
local function apply_users(keys, args)
  local lost = lost_lease(keys[1], args[1])
  if lost then return lost end
  local limits = {
    history = tonumber(args[2]), ledger = tonumber(args[3]), floor = args[4], age = tonumber(args[5]),
    voted_items = tonumber(args[6]), late_items = tonumber(args[7])
  }
  local results, base, i, size = {}, 2, 9, tonumber(args[8])
  while i < #args do
    limits.ttl = tonumber(args[i])
    local first = i + 2
    i = first + EVENT * tonumber(args[i + 1])
    results[#results + 1] = apply_user(keys, base, base + size - 1, limits, args, first, i - 1)
    base = base + size
  end
  return results
end

local function decay(elapsed_ms, half_life)
  return 2 ^ (-elapsed_ms / half_life)
end

-- Add a weight, and its part from established users, to a trend {time ms, sum, ...}. The same arithmetic as
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
    trend[2 * N + 2] = nil -- struct.unpack also returns its end position
    return trend
  end
  local trend = {time_ms}
  for h = 1, 2 * N do trend[h + 1] = 0 end
  return trend
end

-- Raise a number to at least a value. keys: the number; args: the value.
local function set_max(keys, args)
  local number, known = tonumber(args[1]), redis.call('GET', keys[1])
  if not known or number > tonumber(known) then
    redis.call('SET', keys[1], string.format('%.0f', number))
  end
  return number
end

-- Step 2: one partition's events of a chunk, in offset order.
-- keys: applied offset, counts, uniques, trends, published offset, lease
-- args: fence ('1', or '0' in the control of a fault test), the offset before the chunk, the last offset of the
--       chunk, the published offset (−1: unknown), the lease's owner, then for each delta (of an event that step 1 called first):
--       offset, item, event time ms, weight, its part from established users, and a count code: '0' counts
--       nothing, '1' an interaction, '2' an interaction and a user
-- Returns the applied offset before this call. Fails with GAP if the applied offset is before the chunk (the
-- server lost its newest writes): counting on would lose events.
local function apply_partition(keys, args)
  local lost = lost_lease(keys[6], args[5])
  if lost then return lost end
  local fence, before, last = args[1] == '1', tonumber(args[2]), tonumber(args[3])
  local applied = tonumber(redis.call('GET', keys[1]) or '-1')
  if fence and applied < before then
    return redis.error_reply('GAP the applied offset is ' .. string.format('%.0f', applied))
  end
  local counts, uniques, trends = {}, {}, {}
  for i = 6, #args, 6 do
    if not fence or tonumber(args[i]) > applied then
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
  if last > applied then redis.call('SET', keys[1], string.format('%.0f', last)) end
  if tonumber(args[4]) >= 0 then set_max({keys[5]}, {args[4]}) end
  return applied
end

-- Reject a user's events up to an event time from now on, and delete the history. The ledgers keep what was counted
-- until it is retracted; an unfinished forgetting is completed first. Later events that are applied already are
-- forgotten too: their votes may have replaced earlier ones.
-- keys: forgotten, forgetting, history, votes; args: event time ms, what the archive has (JSON)
-- Returns the event time (ms) and what the archive has, of the forgetting to complete, separated by a space.
local function forget_user(keys, args)
  local unfinished = redis.call('GET', keys[2])
  if unfinished then return unfinished end
  local newest = redis.call('ZREVRANGE', keys[3], 0, 0, 'WITHSCORES')[2] or args[1]
  local time = string.format('%.0f', math.max(tonumber(args[1]), tonumber(newest)))
  set_max({keys[1]}, {time})
  local begun = time .. ' ' .. args[2]
  redis.call('SET', keys[2], begun)
  redis.call('UNLINK', keys[3], keys[4])
  return begun
end

-- Retract what a partition counted of some of a user's events. keys: counts, uniques, trends, retractions
-- args: a token of the user's forgetting, then for each delta, in offset order: the arguments of apply_partition
-- Events up to the offset that the token has reached are retracted already. Returns that offset after the call.
local function retract(keys, args)
  local reached = tonumber(redis.call('HGET', keys[4], args[1]) or '-1')
  local last = reached
  for i = 2, #args, 6 do
    local offset, item, time_ms, count = tonumber(args[i]), args[i + 1], tonumber(args[i + 2]), args[i + 5]
    if offset > reached then
      if count ~= '0' and redis.call('HINCRBY', keys[1], item, -1) <= 0 then redis.call('HDEL', keys[1], item) end
      if count == '2' and redis.call('HINCRBY', keys[2], item, -1) <= 0 then redis.call('HDEL', keys[2], item) end
      local trend = load_trend(keys[3], item, time_ms)
      add_to_trend(trend, time_ms, -tonumber(args[i + 3]), -tonumber(args[i + 4]))
      redis.call('HSET', keys[3], item, struct.pack(PACKED, unpack(trend)))
      last = offset
    end
  end
  if last > reached then redis.call('HSET', keys[4], args[1], string.format('%.0f', last)) end
  return last
end

-- Remove items from a partition unless an event has changed them since they were read.
-- keys: counts, uniques, trends, lease; args: the lease's owner, then for each item: item, its trend as it was read
-- Returns the number of removed items.
local function remove_items(keys, args)
  local lost = lost_lease(keys[4], args[1])
  if lost then return lost end
  local removed = 0
  for i = 2, #args, 2 do
    if redis.call('HGET', keys[3], args[i]) == args[i + 1] then
      for k = 1, 3 do redis.call('HDEL', keys[k], args[i]) end
      removed = removed + 1
    end
  end
  return removed
end

-- Acquire, renew or release the lease by which one stream job at a time writes this state.
-- keys: lease; args: owner, milliseconds to hold it (0 releases it), '1' to replace another owner
-- Returns the owner after the call, or '' if there is none.
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

-- Rename or delete keys, all or none. keys: lease, then the keys
-- args: the lease's owner, then the new name of each key, or '' to delete it
local function move(keys, args)
  local lost = lost_lease(keys[1], args[1])
  if lost then return lost end
  for i = 2, #keys do
    if args[i] == '' then redis.call('UNLINK', keys[i]) else redis.call('RENAME', keys[i], args[i]) end
  end
  return #keys - 1
end

redis.register_function('afterclick_apply_users', apply_users)
redis.register_function('afterclick_apply_partition', apply_partition)
redis.register_function('afterclick_remove_items', remove_items)
redis.register_function('afterclick_raise_to', set_max)
redis.register_function('afterclick_forget_user', forget_user)
redis.register_function('afterclick_take_back', retract)
redis.register_function('afterclick_lease', lease)
redis.register_function('afterclick_move', move)
