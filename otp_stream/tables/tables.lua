-- The tables in Redis: executes a list of operations in order, and replies with one word for each.
--
-- KEYS[1]  any key with the hash tag: all keys of a deployment are in one slot
-- ARGV     prefix, worker, now (ms since 1970; '' is this server's clock), number of limits,
--          for each limit its name, count and slice in ms, then the operations with their arguments:
--   admit    old-key made_ms ttl_ms counted number, then `number` times: job recipient purpose code
--            key-for-each-limit… ('' if there is none). The first are the keys under the current hash key; the others
--            are those under the old hash keys, which are read, never written.
--   mark     job ttl_ms             write a sent record
--   release  job ttl_ms            (0 deletes it)
--   beat     lease_ms records complete about names broker     renews the lease; `late` if it had expired. `records` is
--            how many sent records of this worker are here: stored if the lease had not expired and they are `complete`.
--            Replies with the number of live workers and this server's time (ms since 1970)
--   others   lease_ms names         [broker, …] of other live deployments with these names
--   seen                            [[ms since its last renewal, facts about it], …] of the live workers
--   resume                          how many sent records of this worker are here
--   keep     content id ttl_ms              recall  content old-key
--   put_ranked  name value ttl_ms replaces     replies with the previous value. A value begins with its rank, a digit:
--            it replaces one of a lower rank, and with `replaces` one of an equal rank
--   get_ranked  name
--   count    name by
--   top      number                 the keys over a limit most often
--   reserve  relay number ceiling slowed     (ceiling and rate are e-mails per second)
--   flag     name ttl_ms                    flagged  name    (1 if it is set)
--
-- An old-key is what earlier versions wrote, by the id alone and under another prefix: it is read, never written.
--
-- job:<hash>        s | c:<worker>:<arrival>:<made_ms> | r::<arrival>:<made_ms>    sent, claimed, or seen and released
-- newest:<hash>     hash of purposes: made_ms:arrival:until_ms:code
-- limit:<name>:<slice>:<hash>   hash of slices of the window with their counts; `at` and `sum` of the last read
-- worker:<id>       facts about the worker, until its lease expires     log:<id>  how many of its sent records are here
-- workers           workers that have restored everything, by last renewal
-- <names>deployments  prefixes of the deployments with these names, by last renewal     <names>brokers  their RabbitMQ, by prefix
-- made:<hash>       the id generated for a job without one, by its content
-- ranked:<hash>     the status of a job, or the request that used an idempotency key, after its rank
-- throttled         keys over a limit most often, for a day       stats  counts of answers to jobs
-- rate:<relay>      the schedule of a relay: next (us), base (per second), since (ms), at (us): its last reservation
-- flag:<name>       what all workers know for a while: a session that ended, a relay that accepts mail again

local P, me = ARGV[1], ARGV[2]
local SLICES, DAY = 100, 86400000
local TOLERANCE = 5000 -- how much the clocks of workers and this server may differ, as in core/job.py
local TEXT, FACTS = 500, 4000 -- bytes of a name, and of the facts about a worker, in a reply
local NAMED, WORKERS = 6, 1000 -- deployments and workers in a reply
local KEEP = 60000 -- how much longer than its code is valid a job stays here, as in tables/keys.py
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

-- Drop the slices that have left the window; returns its number of jobs. Only the first call in a slice reads all. If
-- the clock was set back, later slices count in this one; otherwise they would count until the clock catches up.
local function jobs_in(key, slice)
  local found = redis.call('HMGET', key, 'at', 'sum')
  if tonumber(found[1]) == slice then return tonumber(found[2]) end
  local all, sum, later, gone = redis.call('HGETALL', key), 0, 0, {}
  for i = 1, #all, 2 do
    local place, jobs = tonumber(all[i]), tonumber(all[i + 1])
    if place then
      if place < slice - SLICES or place > slice then gone[#gone + 1] = all[i] end
      if place > slice then later = later + jobs end
      if place >= slice - SLICES then sum = sum + jobs end
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if later > 0 then redis.call('HINCRBY', key, whole(slice), later) end
  if #all > 0 then redis.call('HSET', key, 'at', whole(slice), 'sum', sum) end
  return sum
end

-- When enough of the earliest jobs have left that there is room for one more.
local function allowed_at(keys, limit)
  local places, counts, over = {}, {}, 1 - limit.count
  for _, key in ipairs(keys) do
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
      local place = tonumber(all[i])
      if place then
        if not counts[place] then places[#places + 1] = place end
        counts[place] = (counts[place] or 0) + tonumber(all[i + 1])
        over = over + tonumber(all[i + 1])
      end
    end
  end
  table.sort(places)
  for _, place in ipairs(places) do
    over = over - counts[place]
    if over <= 0 then return (place + SLICES + 1) * limit.slice end
  end
end

-- Count the job in every window, or in none: returns the full window that has room last. `windows` has the keys of each
-- limit, under the current hash key and the old ones.
local function over_limit(windows)
  local now = now_ms()
  local sums, full, from = {}, nil, 0
  for i, limit in ipairs(limits) do
    local keys = windows[i]
    if keys then
      local slice = math.floor(now / limit.slice)
      sums[i] = jobs_in(keys[1], slice)
      local sum = sums[i]
      for k = 2, #keys do sum = sum + jobs_in(keys[k], slice) end
      local room = sum >= limit.count and allowed_at(keys, limit) or 0
      if room > from then full, from = i, room end
    end
  end
  if full then
    local who = limits[full].name .. ':' .. string.match(windows[full][1], '[^:]*$')
    redis.call('ZINCRBY', P .. 'throttled', 1, who)
    redis.call('ZREMRANGEBYRANK', P .. 'throttled', 0, -1001)
    if redis.call('PTTL', P .. 'throttled') < 0 then redis.call('PEXPIRE', P .. 'throttled', DAY) end
    return 'over:' .. full .. ':' .. whole(from)
  end
  local counted = {} -- several limits for one period share a window
  for i, limit in ipairs(limits) do
    local key = windows[i] and windows[i][1]
    if key and not counted[key] then
      counted[key] = true
      local slice = math.floor(now / limit.slice)
      redis.call('HINCRBY', key, whole(slice), 1)
      redis.call('HSET', key, 'at', whole(slice), 'sum', sums[i] + 1)
      redis.call('PEXPIRE', key, (SLICES + 1) * limit.slice)
    end
  end
end

-- Bound a recipient's purposes: beyond 64, all but the 32 that expire last are dropped, so that no call takes long. A
-- code that was dropped supersedes no older one any more.
local function sweep(newest)
  local size = redis.call('HLEN', newest)
  if size <= 64 and size % 50 ~= 0 then return end
  local all, entries = redis.call('HGETALL', newest), {}
  for i = 1, #all, 2 do
    local until_ms = tonumber(string.match(all[i + 1], '^%d+:%d+:(%d+):'))
    if until_ms <= now_ms() then
      redis.call('HDEL', newest, all[i])
    else
      entries[#entries + 1] = { all[i], until_ms }
    end
  end
  if #entries <= 64 then return end
  table.sort(entries, function(one, other) return one[2] < other[2] end)
  for i = 1, #entries - 32 do redis.call('HDEL', newest, entries[i][1]) end
end

-- The keys of a job, its recipient and its limits, under each hash key.
local function read_keys()
  local jobs, newests, windows = {}, {}, {}
  for n = 1, tonumber(next_arg()) do
    jobs[n] = P .. 'job:' .. next_arg()
    local recipient, purpose, code = next_arg(), next_arg(), next_arg()
    if recipient ~= '' then newests[n] = { key = P .. 'newest:' .. recipient, purpose = purpose, code = code } end
    for i, limit in ipairs(limits) do
      local key = next_arg()
      if key ~= '' then
        windows[i] = windows[i] or {}
        table.insert(windows[i], P .. 'limit:' .. limit.name .. ':' .. limit.slice .. ':' .. key)
      end
    end
  end
  return jobs, newests, windows
end

-- What is known of a job under any of its keys: 'sent', 'busy' or its first record, and its earliest timestamp.
local function look_up(jobs, old_key, made)
  local known, holder, arrival
  for n = 1, #jobs + 1 do
    local found = redis.call('GET', jobs[n] or old_key)
    if found == 's' then return 'sent' end
    if found then
      local its_holder, number, first_made = string.match(found, '^%a:([^:]*):(%d+):(%d+)$')
      if its_holder ~= '' and its_holder ~= me and redis.call('EXISTS', P .. 'worker:' .. its_holder) == 1 then
        known = 'busy'
      elseif not known then
        known, holder, arrival = 'seen', its_holder, tonumber(number)
      end
      made = math.min(made, tonumber(first_made))
    end
  end
  return known, holder, arrival, made
end

-- Whether one code is older than another. A code that was made later than now shows that a clock was set back: the
-- order of arrival counts then, so that codes made since are not taken for older ones.
local function is_before(made, arrival, its_made, its_arrival)
  if made ~= its_made and math.max(made, its_made) <= now_ms() + TOLERANCE then return made < its_made end
  return arrival < its_arrival
end

local function admit()
  local old_key, made, ttl, counted = next_arg(), tonumber(next_arg()), next_arg(), next_arg() == '1'
  local jobs, newests, windows = read_keys()
  local job, newest = jobs[1], newests[1]
  local known, holder, arrival
  known, holder, arrival, made = look_up(jobs, old_key, made)
  if known == 'sent' or known == 'busy' then return known end

  local newer = true
  if newest then
    arrival = arrival or redis.call('INCR', P .. 'arrivals')
    for _, it in ipairs(newests) do
      local entry = redis.call('HGET', it.key, it.purpose)
      if entry then
        local its_made, its_arrival, until_ms, its_code = string.match(entry, '^(%d+):(%d+):(%d+):(.*)$')
        its_made, its_arrival = tonumber(its_made), tonumber(its_arrival)
        -- a newer code that expires long before this one may never be sent: it supersedes only what it outlives
        local older = tonumber(until_ms) >= now_ms() + tonumber(ttl) - KEEP
          and is_before(made, arrival, its_made, its_arrival)
        if older and its_code ~= it.code then
          -- this worker may be sending it: until it releases the claim, no copy may be sent
          local state = holder == me and 'c:' .. me or 'r:'
          redis.call('SET', job, state .. ':' .. whole(arrival) .. ':' .. whole(made), 'PX', ttl)
          return 'old'
        end
        newer = newer and not older
      end
    end
  end
  if not known and not counted and #limits > 0 then
    local over = over_limit(windows)
    if over then return over end
  end
  if newest and newer then
    local entry = table.concat({ whole(made), whole(arrival), whole(now_ms() + tonumber(ttl)), newest.code }, ':')
    if redis.call('HSET', newest.key, newest.purpose, entry) == 1 then sweep(newest.key) end
    if redis.call('PTTL', newest.key) < tonumber(ttl) then redis.call('PEXPIRE', newest.key, ttl) end
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
  local lease, records, complete, about = next_arg(), next_arg(), next_arg() == '1', next_arg()
  local names, broker = next_arg(), next_arg()
  local now = clock_us() / 1000
  local lived = redis.call('EXISTS', P .. 'worker:' .. me) == 1
  redis.call('SET', P .. 'worker:' .. me, about, 'PX', lease)
  if complete then
    if lived then redis.call('SET', P .. 'log:' .. me, records, 'PX', DAY + 3600000) end
    redis.call('ZADD', P .. 'workers', whole(now), me)
  end
  if names ~= P then
    redis.call('ZADD', names .. 'deployments', whole(now), P)
    redis.call('PEXPIRE', names .. 'deployments', DAY)
    redis.call('HSET', names .. 'brokers', P, broker)
    redis.call('PEXPIRE', names .. 'brokers', DAY)
  end
  redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', whole(now - tonumber(lease)))
  local time = redis.call('TIME')
  local time_ms = whole(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
  return (lived and 'ok:' or 'late:') .. redis.call('ZCARD', P .. 'workers') .. ':' .. time_ms
end

-- A reply is one word, and short, whatever another program wrote.
local function one_word(text, size)
  return (string.gsub(string.sub(text, 1, size), '%s', '_'))
end

local function others()
  local since, names, found = now_ms() - tonumber(next_arg()), next_arg(), {}
  local prefixes = redis.call('ZRANGEBYSCORE', names .. 'deployments', '(' .. whole(since), '+inf', 'LIMIT', 0, NAMED)
  for _, prefix in ipairs(prefixes) do
    if prefix ~= P then found[#found + 1] = one_word(redis.call('HGET', names .. 'brokers', prefix) or '?', TEXT) end
  end
  return 'ok:' .. (#found == 0 and '[]' or cjson.encode(found))
end

local function seen()
  local found, reply, now = redis.call('ZRANGE', P .. 'workers', 0, WORKERS - 1, 'WITHSCORES'), {}, now_ms()
  for i = 1, #found, 2 do
    local about = redis.pcall('GET', P .. 'worker:' .. found[i])
    if type(about) == 'string' then reply[#reply + 1] = { math.max(now - tonumber(found[i + 1]), 0), one_word(about, FACTS) } end
  end
  return 'ok:' .. (#reply == 0 and '[]' or cjson.encode(reply))
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
  local made, old_key = redis.call('GET', P .. 'made:' .. next_arg()), next_arg()
  return 'ok:' .. (made or redis.call('GET', old_key) or '')
end

local function put_ranked()
  local key, value, ttl, replaces = P .. 'ranked:' .. next_arg(), next_arg(), next_arg(), next_arg() == '1'
  local known = redis.call('GET', key)
  local rank, before = string.byte(value), known and string.byte(known) or 0
  if rank > before or (replaces and rank == before) then redis.call('SET', key, value, 'PX', ttl) end
  return 'ok:' .. (known or '')
end

local function get_ranked()
  return 'ok:' .. (redis.call('GET', P .. 'ranked:' .. next_arg()) or '')
end

local function count()
  local name, by = next_arg(), next_arg()
  redis.call('HINCRBY', P .. 'stats', name, by)
  return 'ok'
end

local function top()
  local found, reply = redis.call('ZREVRANGE', P .. 'throttled', 0, tonumber(next_arg()) - 1, 'WITHSCORES'), {}
  for i = 1, #found, 2 do reply[#reply + 1] = one_word(found[i], TEXT) .. '=' .. found[i + 1] end
  return 'ok:' .. table.concat(reply, ',')
end

-- Evenly spaced slots for all workers, by the rule of core/rate.py.
local function reserve()
  local key = P .. 'rate:' .. next_arg()
  local number, ceiling, slowed = tonumber(next_arg()), tonumber(next_arg()), next_arg() == '1'
  local now = clock_us()
  local found = redis.call('HMGET', key, 'next', 'base', 'since', 'at')
  -- if the clock was set back, the schedule is, too; otherwise mails would wait until the clock catches up
  local back = math.max((tonumber(found[4]) or now) - now, 0)
  local rate, since = ceiling, tonumber(found[3])
  if since and back > 0 then
    since = since - back / 1000
    redis.call('HSET', key, 'since', whole(since))
  end
  if since then rate = math.min(ceiling, tonumber(found[2]) + ceiling / 40 * (now / 1000 - since) / 1000) end
  if slowed and (not since or now / 1000 - since >= 1000) then
    rate = math.max(math.min(math.max(ceiling / 100, 0.1), ceiling), rate / 2)
    redis.call('HSET', key, 'base', string.format('%.6f', rate), 'since', whole(now / 1000))
  end
  local every = 1000000 / rate
  local first = math.max((tonumber(found[1]) or 0) - back, now)
  local next = first + number * every
  redis.call('HSET', key, 'next', whole(next), 'at', whole(now))
  redis.call('PEXPIRE', key, whole(600000 + (next - now) / 1000))
  return 'ok:' .. whole(first - now) .. ':' .. whole(every) .. ':' .. string.format('%.6f', rate)
end

local function flag()
  local name = next_arg()
  redis.call('SET', P .. 'flag:' .. name, '1', 'PX', next_arg())
  return 'ok'
end

local function flagged()
  return 'ok:' .. redis.call('EXISTS', P .. 'flag:' .. next_arg())
end

local operations = {
  admit = admit, mark = mark, release = release, beat = beat, others = others, seen = seen, resume = resume, keep = keep,
  recall = recall, put_ranked = put_ranked, get_ranked = get_ranked, count = count, top = top, reserve = reserve,
  flag = flag, flagged = flagged,
}
local answers = {}
while at <= #ARGV do
  answers[#answers + 1] = operations[next_arg()]()
end
return table.concat(answers, ' ')
