"""The two writes of statistics, as scripts that Redis runs whole or not at all."""

from composer.stats.keys import (
    BUCKET,
    HOUR,
    HOURS_KEPT_S,
    MINUTE,
    MINUTES_KEPT_S,
    PROMPT,
    SEQUENCE_KEPT_S,
    TOTALS,
)

MAX_GROUPS = 4000
"""Groups in one span of time; what is more is counted together."""

MAX_TRIMMED = 1000
"""Decisions trimmed by one commit: a script holds up everything else."""

_ADD = f"""
local touched = {{}}
local function add(key, group, counts, expires)
  local raw = redis.call('HGET', key, group)
  if not raw and redis.call('HLEN', key) >= {MAX_GROUPS} then
    local kind = string.match(group, '^%a:')
    group = kind and kind .. '(other)' or group
    raw = redis.call('HGET', key, group)
  end
  local cell = raw and cjson.decode(raw) or {{}}
  for name, count in pairs(counts) do cell[name] = (cell[name] or 0) + count end
  redis.call('HSET', key, group, cjson.encode(cell))
  touched[key] = expires
end
local function count(minute, group, counts)
  local at = minute * {MINUTE}
  local hour = at - at % {HOUR}
  add(string.format('{BUCKET}{MINUTE}:%d', at), group, counts, at + {MINUTE + MINUTES_KEPT_S})
  add(string.format('{BUCKET}{HOUR}:%d', hour), group, counts, hour + {HOUR + HOURS_KEPT_S})
  add('{TOTALS}', group, counts, nil)
end
local function expire()
  for key, at in pairs(touched) do redis.call('EXPIREAT', key, at) end
end
"""

COMMIT = f"""
{_ADD}
local sequence, stream, index, feedback = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local number, kept, retention = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if tonumber(redis.call('GET', sequence) or '0') >= number then return 0 end
redis.call('SET', sequence, number, 'EX', {SEQUENCE_KEPT_S})
for minute, groups in pairs(cjson.decode(ARGV[4])) do
  for group, counts in pairs(groups) do count(tonumber(minute), group, counts) end
end
expire()
for i = 5, #ARGV, 3 do
  local cursor = redis.call('XADD', stream, '*', 'id', ARGV[i], 'decision', ARGV[i + 1])
  redis.call('HSET', index, ARGV[i], cursor)
  if ARGV[i + 2] ~= '' then
    redis.call('SET', '{PROMPT}' .. ARGV[i], ARGV[i + 2], 'PX', retention)
  end
end
local excess = math.min(redis.call('XLEN', stream) - kept, {MAX_TRIMMED})
if excess > 0 then
  for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', excess)) do
    local id = entry[2][2]
    redis.call('HDEL', index, id)
    redis.call('HDEL', feedback, id)
    redis.call('DEL', '{PROMPT}' .. id)
    redis.call('XDEL', stream, entry[1])
  end
end
return 1
"""
"""KEYS: the worker's sequence, decisions, index, feedback. ARGV: sequence number, decisions kept,
retention of prompts in ms, counts as {minute: {group: {name: count}}}, then for each decision its
id, its JSON and its prompt. Returns 0 if this number was committed before.

The number is written first: should the rest fail, it is lost rather than counted twice.
"""

GIVE_FEEDBACK = f"""
{_ADD}
local index, feedback = KEYS[1], KEYS[2]
local id = ARGV[1]
if redis.call('HEXISTS', index, id) == 0 then return 0 end
local before = redis.call('HGET', feedback, id)
local change = {{fn = 1, fs = tonumber(ARGV[3])}}
if before then
  change = {{fn = 0, fs = change.fs - cjson.decode(before).millionths}}
end
redis.call('HSET', feedback, id, ARGV[2])
for _, group in ipairs(cjson.decode(ARGV[5])) do count(tonumber(ARGV[4]), group, change) end
expire()
return 1
"""
"""KEYS: index, feedback. ARGV: the decision's id, the feedback as JSON, its score in millionths,
the minute of the decision, the groups it counts for. Returns 0 if the decision is not there.
"""
