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
local DELTA = 7 -- arguments of a delta in step 2

-- A user's votes on an item, as text: for each action its code (a capital if positive), the vote's event time and,
-- after a comma, how much later its trusted time is. That time decides whether the vote is of an established user.
-- The codes of reviews with 1 to 5 stars are V to Z, of one without stars A; a user has one of them on an item.
-- A '+' before the votes: the user had a positive vote, which a review that is not positive has replaced.
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

-- The stars of a review by its code, 0 without stars; nil: no review
local STARS = {A = 0, a = 0, V = 1, v = 1, W = 2, w = 2, X = 3, x = 3, Y = 4, y = 4, Z = 5, z = 5}

-- The code and the vote that a vote replaces if it is newer: the user's review of the item, or the vote of the action
local function same_kind(votes, code)
  if STARS[code] then
    for other, vote in pairs(votes) do
      if STARS[other] then return other, vote end
    end
  end
  return code, votes[code]
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

-- Of reviews with the same times, the one with most stars is the newest.
local function is_newer(vote, code, other, other_code)
  if vote[1] ~= other[1] then return vote[1] > other[1] end
  if vote[2] ~= other[2] then return vote[2] > other[2] end
  return (STARS[code] or 0) > (STARS[other_code] or 0)
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
-- of the two: only the newest counts, in whatever order they arrive. Reviews with and without stars are one action. A
-- vote on one more item than a user can vote on is retracted at once. An event older than the user's first makes
-- earlier votes established only while the user has few: the work of one event is bounded.
-- Returns first_user_item (1 or 0), established (1 or 0), and compensations: {item, code, event time ms, votes,
-- established votes, and 1 if a review with stars is no longer in effect}.
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
  local before_code, before = code, vote
  if not too_many then before_code, before = same_kind(votes, code) end
  local newer = not before or is_newer(vote, code, before, before_code)
  if before then
    local older, older_code = vote, code
    if newer then older, older_code = before, before_code end
    local established_vote = older[2] - first >= age and -1 or 0
    local counted = counts_for_new(older_code) and -1 or established_vote
    local is_rated = (STARS[older_code] or 0) > 0
    if counted ~= 0 or is_rated then
      local retraction = {item, older_code, string.format('%.0f', older[1]), counted, established_vote}
      if is_rated then retraction[6] = 1 end
      compensations[#compensations + 1] = retraction
    end
  end
  local positive = not too_many and counts_for_new(code)
  local was_positive = text and string.find(text, '[%u+]')
  local first_user_item = positive and not was_positive and 1 or 0
  local times = string.format('%.0f,%.0f', first, math.max(last or log_time, log_time))
  if code ~= '' and (newer or first_user_item == 1) then
    if newer then
      votes[before_code] = nil
      votes[code] = vote
    end
    local now = text_of(votes)
    if (was_positive or positive) and not string.find(now, '%u') then now = '+' .. now end
    redis.call('HSET', key, '', times, item, now)
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

-- Add the stars of reviews in effect to an item's counts {ratings, sum of stars, positive ratings, interactions that are
-- not positive}. sign: -1 retracts; stars: negative for a review no longer in effect; weight, count: as in a delta.
local function add_stars(key, counted, item, sign, stars, weight, count)
  local counts = counted[item]
  if not counts then
    local text = redis.call('HGET', key, item)
    counts = {0, 0, 0, 0}
    if text then
      local n = 0
      for number in string.gmatch(text, '-?%d+') do
        n = n + 1
        counts[n] = tonumber(number)
      end
    end
    counted[item] = counts
  end
  local reviews = stars > 0 and sign or -sign
  counts[1], counts[2] = counts[1] + reviews, counts[2] + sign * stars
  if stars * weight > 0 then
    counts[3] = counts[3] + reviews
  elseif count ~= '0' then
    counts[4] = counts[4] + sign
  end
end

-- A number may be negative: another partition counted the review that one of this partition has replaced.
local function store_stars(key, counted)
  for item, counts in pairs(counted) do
    local text = string.format('%.0f %.0f %.0f %.0f', unpack(counts))
    if text == '0 0 0 0' then redis.call('HDEL', key, item) else redis.call('HSET', key, item, text) end
  end
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
-- keys: applied offset, counts, uniques, trends, published offset, lease, ratings
-- args: fence ('1', or '0' in the control of a fault test), the offset before the chunk, the last offset of the
--       chunk, the published offset (−1: unknown), the lease's owner, then for each delta (of an event that step 1 called first):
--       offset, item, event time ms, weight, its part from established users, a count code: '0' counts
--       nothing, '1' an interaction, '2' an interaction and a user; and the stars of a review that takes effect,
--       negative if it is no longer in effect, 0 for other deltas
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
  local counts, uniques, trends, stars = {}, {}, {}, {}
  for i = 6, #args, DELTA do
    if not fence or tonumber(args[i]) > applied then
      local item, time_ms, count = args[i + 1], tonumber(args[i + 2]), args[i + 5]
      if count ~= '0' then counts[item] = (counts[item] or 0) + 1 end
      if count == '2' then uniques[item] = (uniques[item] or 0) + 1 end
      local weight = tonumber(args[i + 3])
      trends[item] = trends[item] or load_trend(keys[4], item, time_ms)
      add_to_trend(trends[item], time_ms, weight, tonumber(args[i + 4]))
      if args[i + 6] ~= '0' then add_stars(keys[7], stars, item, 1, tonumber(args[i + 6]), weight, count) end
    end
  end
  for item, count in pairs(counts) do redis.call('HINCRBY', keys[2], item, count) end
  for item, count in pairs(uniques) do redis.call('HINCRBY', keys[3], item, count) end
  for item, trend in pairs(trends) do
    redis.call('HSET', keys[4], item, struct.pack(PACKED, unpack(trend)))
  end
  store_stars(keys[7], stars)
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

-- Retract what a partition counted of some of a user's events. keys: counts, uniques, trends, retractions, ratings
-- args: a token of the user's forgetting, then for each delta, in offset order: the arguments of apply_partition
-- Events up to the offset that the token has reached are retracted already. Returns that offset after the call.
local function retract(keys, args)
  local reached = tonumber(redis.call('HGET', keys[4], args[1]) or '-1')
  local last, stars = reached, {}
  for i = 2, #args, DELTA do
    local offset, item, time_ms, count = tonumber(args[i]), args[i + 1], tonumber(args[i + 2]), args[i + 5]
    if offset > reached then
      if count ~= '0' and redis.call('HINCRBY', keys[1], item, -1) <= 0 then redis.call('HDEL', keys[1], item) end
      if count == '2' and redis.call('HINCRBY', keys[2], item, -1) <= 0 then redis.call('HDEL', keys[2], item) end
      local trend, weight = load_trend(keys[3], item, time_ms), tonumber(args[i + 3])
      add_to_trend(trend, time_ms, -weight, -tonumber(args[i + 4]))
      redis.call('HSET', keys[3], item, struct.pack(PACKED, unpack(trend)))
      if args[i + 6] ~= '0' then add_stars(keys[5], stars, item, -1, tonumber(args[i + 6]), weight, count) end
      last = offset
    end
  end
  store_stars(keys[5], stars)
  if last > reached then redis.call('HSET', keys[4], args[1], string.format('%.0f', last)) end
  return last
end

-- Remove items from a partition unless an event has changed them since they were read.
-- keys: counts, uniques, trends, lease, ratings; args: the lease's owner, then for each item: item, its trend as it was
--       read
-- Returns the number of removed items.
local function remove_items(keys, args)
  local lost = lost_lease(keys[4], args[1])
  if lost then return lost end
  local removed = 0
  for i = 2, #args, 2 do
    if redis.call('HGET', keys[3], args[i]) == args[i + 1] then
      for _, key in ipairs({keys[1], keys[2], keys[3], keys[5]}) do redis.call('HDEL', key, args[i]) end
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
