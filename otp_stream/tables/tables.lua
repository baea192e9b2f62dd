-- The tables in Redis: a list of operations, done one after another and answered with one word each.
--
-- KEYS[1]  any key with the hash tag: all keys of a deployment lie in one slot
-- ARGV     prefix, worker, now (ms since 1970; '' is this server's clock), number of limits,
--          for each limit its name, count and slice in ms, then the operations with their arguments:
--   admit    job made_ms ttl_ms counted recipient purpose code key-for-each-limit…   ('' where there is none)
--   mark     job ttl_ms
--   release  job ttl_ms            (0 forgets it)
--   beat     lease_ms marks whole about   (late where the lease had run out; `marks` is taken if it had not, and is `whole`)
--   seen                            [[ms since it was heard of, what it told about itself], …]
--   resume                          how many marks of this worker are here
--   keep     content id ttl_ms              recall  content
--   count    name by
--   top      number                 what was over a limit most often
--   reserve  relay number ceiling slowed     (rate; ceiling in mails per second)
--
-- job:<hash>        s | c:<worker>:<arrival>:<made_ms> | r::<arrival>:<made_ms>    sent, claimed, or seen and released
-- newest:<hash>     hash of purposes: made_ms:arrival:until_ms:code
-- limit:<name>:<slice>:<hash>   hash of slices of the window with their counts; `at` and `sum` of the last look
-- worker:<id>       what it tells about itself, while that worker lives     log:<id>  how many of its marks are here     workers  by last sight, once they had brought all
-- made:<hash>       the id made for a job that has nothing but its content
-- throttled         what was over a limit most often, in a day       stats  what was asked
-- rate:<relay>      the schedule of a relay: next (us), base (per second), since (ms)

local P, me = ARGV[1], ARGV[2]
local SLICES, DAY = 100, 86400000
local now_us, at = nil, 5
local limits = {}
for i = 1, tonumber(ARGV[4]) do
  limits[i] = { name = ARGV[at], count = tonumber(ARGV[at + 1]), slice = tonumber(ARGV[at + 2]) }
  at = at + 3
end

local function clock_us()
  if not now_us then
    if ARGV[3] ~= '' then
      now_us = tonumber(ARGV[3]) * 1000
    else
      local time = redis.call('TIME')
      now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
    end
  end
  return now_us
end

local function now_ms()
  return math.floor(clock_us() / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

local function next_arg()
  at = at + 1
  return ARGV[at - 1]
end

-- Forget what has left the window; returns how many it holds. Only the first look in a slice reads them all.
local function held(key, slice)
  local found = redis.call('HMGET', key, 'at', 'sum')
  if tonumber(found[1]) == slice then return tonumber(found[2]) end
  local all, sum, gone = redis.call('HGETALL', key), 0, {}
  for i = 1, #all, 2 do
    local place = tonumber(all[i])
    if place then
      if place < slice - SLICES then gone[#gone + 1] = all[i] else sum = sum + tonumber(all[i + 1]) end
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if #all > 0 then redis.call('HSET', key, 'at', whole(slice), 'sum', sum) end
  return sum
end

-- When one of the earliest has left, so that there is room.
local function allowed(key, limit)
  local all, places = redis.call('HGETALL', key), {}
  local counts, over = {}, 1 - limit.count
  for i = 1, #all, 2 do
    local place = tonumber(all[i])
    if place then
      places[#places + 1] = place
      counts[place] = tonumber(all[i + 1])
      over = over + counts[place]
    end
  end
  table.sort(places)
  for _, place in ipairs(places) do
    over = over - counts[place]
    if over <= 0 then return (place + SLICES + 1) * limit.slice end
  end
end

-- Count the job in every window, or in none: returns the full one in which there is room last.
local function over_limit(keys)
  local now = now_ms()
  local sums, full, from = {}, nil, 0
  for i, limit in ipairs(limits) do
    if keys[i] then
      sums[i] = held(keys[i], math.floor(now / limit.slice))
      local room = sums[i] >= limit.count and allowed(keys[i], limit) or 0
      if room > from then full, from = i, room end
    end
  end
  if full then
    local who = limits[full].name .. ':' .. string.match(keys[full], '[^:]*$')
    redis.call('ZINCRBY', P .. 'throttled', 1, who)
    redis.call('ZREMRANGEBYRANK', P .. 'throttled', 0, -1001)
    if redis.call('PTTL', P .. 'throttled') < 0 then redis.call('PEXPIRE', P .. 'throttled', DAY) end
    return 'over:' .. full .. ':' .. whole(from)
  end
  local counted = {} -- several limits for one period look at the same window
  for i, limit in ipairs(limits) do
    if keys[i] and not counted[keys[i]] then
      counted[keys[i]] = true
      local slice = math.floor(now / limit.slice)
      redis.call('HINCRBY', keys[i], whole(slice), 1)
      redis.call('HSET', keys[i], 'at', whole(slice), 'sum', sums[i] + 1)
      redis.call('PEXPIRE', keys[i], (SLICES + 1) * limit.slice)
    end
  end
end

-- Forget codes that live no more: looked for as a recipient's purposes grow, so that this costs each job little.
local function sweep(newest)
  if redis.call('HLEN', newest) % 50 ~= 0 then return end
  local all = redis.call('HGETALL', newest)
  for i = 1, #all, 2 do
    if tonumber(string.match(all[i + 1], '^%d+:%d+:(%d+):')) <= now_ms() then redis.call('HDEL', newest, all[i]) end
  end
end

local function admit()
  local job, made, ttl, counted = P .. 'job:' .. next_arg(), tonumber(next_arg()), next_arg(), next_arg() == '1'
  local recipient, purpose, code = next_arg(), next_arg(), next_arg()
  local keys = {}
  for i, limit in ipairs(limits) do
    local key = next_arg()
    if key ~= '' then keys[i] = P .. 'limit:' .. limit.name .. ':' .. limit.slice .. ':' .. key end
  end

  local known, holder, arrival, number, first_made = redis.call('GET', job), nil, nil, nil, nil
  if known == 's' then return 'sent' end
  if known then
    holder, number, first_made = string.match(known, '^%a:([^:]*):(%d+):(%d+)$')
    if holder ~= '' and holder ~= me and redis.call('EXISTS', P .. 'worker:' .. holder) == 1 then return 'busy' end
    arrival, made = tonumber(number), math.min(made, tonumber(first_made))
  end

  local newest, newer = P .. 'newest:' .. recipient, true
  if recipient ~= '' then
    arrival = arrival or redis.call('INCR', P .. 'arrivals')
    local entry = redis.call('HGET', newest, purpose)
    if entry then
      local its_made, its_arrival, until_ms, its_code = string.match(entry, '^(%d+):(%d+):(%d+):(.*)$')
      its_made, its_arrival = tonumber(its_made), tonumber(its_arrival)
      newer = tonumber(until_ms) <= now_ms() or made > its_made or (made == its_made and arrival >= its_arrival)
      if not newer and its_code ~= code then
        -- a mail of ours may be on its way: until we release it, no copy may be sent
        local state = holder == me and 'c:' .. me or 'r:'
        redis.call('SET', job, state .. ':' .. whole(arrival) .. ':' .. whole(made), 'PX', ttl)
        return 'old'
      end
    end
  end
  if not known and not counted and #limits > 0 then
    local over = over_limit(keys)
    if over then return over end
  end
  if recipient ~= '' and newer then
    local entry = table.concat({ whole(made), whole(arrival), whole(now_ms() + tonumber(ttl)), code }, ':')
    if redis.call('HSET', newest, purpose, entry) == 1 then sweep(newest) end
    if redis.call('PTTL', newest) < tonumber(ttl) then redis.call('PEXPIRE', newest, ttl) end
  end
  arrival = whole(arrival or 0)
  redis.call('SET', job, 'c:' .. me .. ':' .. arrival .. ':' .. whole(made), 'PX', ttl)
  return 'ok:' .. arrival
end

local function mark()
  local job = P .. 'job:' .. next_arg()
  redis.call('SET', job, 's', 'PX', next_arg())
  return 'ok'
end

local function release()
  local job, ttl = P .. 'job:' .. next_arg(), next_arg()
  local known = redis.call('GET', job)
  local holder, order = string.match(known or '', '^c:([^:]*):(%d+:%d+)$')
  if holder ~= me then return 'ok' end
  if ttl == '0' then
    redis.call('DEL', job)
  else
    redis.call('SET', job, 'r::' .. order, 'PX', ttl)
  end
  return 'ok'
end

local function beat()
  local lease, marks, whole_log, about = next_arg(), next_arg(), next_arg() == '1', next_arg()
  local now = clock_us() / 1000
  local lived = redis.call('EXISTS', P .. 'worker:' .. me) == 1
  redis.call('SET', P .. 'worker:' .. me, about, 'PX', lease)
  if whole_log then
    if lived then redis.call('SET', P .. 'log:' .. me, marks, 'PX', DAY + 3600000) end
    redis.call('ZADD', P .. 'workers', whole(now), me)
  end
  redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', whole(now - tonumber(lease)))
  return (lived and 'ok:' or 'late:') .. redis.call('ZCARD', P .. 'workers')
end

local function seen()
  local found, told, now = redis.call('ZRANGE', P .. 'workers', 0, -1, 'WITHSCORES'), {}, now_ms()
  for i = 1, #found, 2 do
    local about = redis.pcall('GET', P .. 'worker:' .. found[i])
    -- an answer is one word: no space may be in it, whoever wrote it
    if type(about) == 'string' then told[#told + 1] = { math.max(now - tonumber(found[i + 1]), 0), (string.gsub(about, '%s', '_')) } end
  end
  return 'ok:' .. (#told == 0 and '[]' or cjson.encode(told))
end

local function resume()
  return 'ok:' .. (redis.call('GET', P .. 'log:' .. me) or '0')
end

local function keep()
  local content, id = P .. 'made:' .. next_arg(), next_arg()
  redis.call('SET', content, id, 'PX', next_arg())
  return 'ok'
end

local function recall()
  return 'ok:' .. (redis.call('GET', P .. 'made:' .. next_arg()) or '')
end

local function count()
  local name, by = next_arg(), next_arg()
  redis.call('HINCRBY', P .. 'stats', name, by)
  return 'ok'
end

local function top()
  local found, told = redis.call('ZREVRANGE', P .. 'throttled', 0, tonumber(next_arg()) - 1, 'WITHSCORES'), {}
  for i = 1, #found, 2 do told[#told + 1] = found[i] .. '=' .. found[i + 1] end
  return 'ok:' .. table.concat(told, ',')
end

-- Evenly spaced slots for all workers, by the rule of core/rate.py.
local function reserve()
  local key = P .. 'rate:' .. next_arg()
  local number, ceiling, slowed = tonumber(next_arg()), tonumber(next_arg()), next_arg() == '1'
  local now = clock_us()
  local found = redis.call('HMGET', key, 'next', 'base', 'since')
  local rate, since = ceiling, tonumber(found[3])
  if since then rate = math.min(ceiling, tonumber(found[2]) + ceiling / 40 * (now / 1000 - since) / 1000) end
  if slowed and (not since or now / 1000 - since >= 1000) then
    rate = math.max(math.min(math.max(ceiling / 100, 0.1), ceiling), rate / 2)
    redis.call('HSET', key, 'base', string.format('%.6f', rate), 'since', whole(now / 1000))
  end
  local every = 1000000 / rate
  local first = math.max(tonumber(found[1]) or 0, now)
  local next = first + number * every
  redis.call('HSET', key, 'next', whole(next))
  redis.call('PEXPIRE', key, whole(600000 + (next - now) / 1000))
  return 'ok:' .. whole(first - now) .. ':' .. whole(every) .. ':' .. string.format('%.6f', rate)
end

local operations = {
  admit = admit, mark = mark, release = release, beat = beat, seen = seen, resume = resume, keep = keep, recall = recall,
  count = count, top = top, reserve = reserve,
}
local answers = {}
while at <= #ARGV do
  answers[#answers + 1] = operations[next_arg()]()
end
return table.concat(answers, ' ')
