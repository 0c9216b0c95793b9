"""The Lua scripts of leadership and ballots: Redis 7.0 command set, EVALSHA, all keys in the desk's one hash slot.

Rules kept here:

- Time is the server's (``TIME``) and nobody else's.
- Whatever changes a ballot carries the leader's fencing token; an older token changes nothing (FENCED).
- A script never sees an unverified vote: there is no Ed25519 in Lua, so the caller verifies first.
- Closing freezes the set of votes in the same step that checks the deadline, so a ballot has one outcome.
"""

from __future__ import annotations

from typing import Final

_NOW: Final = """
local function now() local t = redis.call('TIME'); return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) end
local function fenced(key, token) return tonumber(redis.call('GET', key) or '0') ~= tonumber(token) end
"""

#: KEYS leader, fence; ARGV owner, ttl_ms, floor. Returns {token or 0, owner}; the token is above the floor.
ACQUIRE: Final = """
local held = redis.call('GET', KEYS[1])
if held then
  local owner, token = string.match(held, '^(.*)|(%d+)$')
  if owner ~= ARGV[1] then return {0, owner} end
  if tonumber(token) > tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return {tonumber(token), owner}
  end
end
if tonumber(redis.call('GET', KEYS[2]) or '0') < tonumber(ARGV[3]) then redis.call('SET', KEYS[2], ARGV[3]) end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. token, 'PX', ARGV[2])
return {token, ARGV[1]}
"""

#: KEYS leader; ARGV owner|token, ttl_ms. Returns 1 while it is still ours.
RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

#: KEYS leader; ARGV owner|token.
RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

#: KEYS fence, ballot, pending, out; ARGV fence, proposal_id, digest, deadline_ms, keep_ms, envelope, members,
#: then agent, vote digest, envelope, received_ms of each vote that is known already. Returns {code, now_ms}.
OPEN: Final = (
    _NOW
    + """
local t = now()
if fenced(KEYS[1], ARGV[1]) then return {'FENCED', t} end
local known = redis.call('HGET', KEYS[2], 'digest')
if known then return {known == ARGV[3] and 'EXISTS' or 'CONFLICT', t} end
local eligible, voted = 0, {}
redis.call('HSET', KEYS[2], 'state', 'open', 'digest', ARGV[3], 'deadline', ARGV[4])
for agent in string.gmatch(ARGV[7], '[^,]+') do
  redis.call('HSET', KEYS[2], 'r:' .. agent, '1'); eligible = eligible + 1
end
for i = 8, #ARGV, 4 do
  redis.call('HSET', KEYS[2], 'v:' .. ARGV[i], ARGV[i + 1], 'e:' .. ARGV[i], ARGV[i + 2], 't:' .. ARGV[i], ARGV[i + 3])
  voted[#voted + 1] = ARGV[i]
end
redis.call('HSET', KEYS[2], 'eligible', eligible, 'voted', #voted)
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 4096, '*', 't', 'opened', 'p', ARGV[2], 'd', ARGV[3], 'e', ARGV[6],
  'v', table.concat(voted, ','))
return {'OPENED', t}
"""
)

#: KEYS fence, ballot; ARGV fence, agent, proposal digest, vote digest, envelope.
#: Returns {code, now_ms, voted, eligible}.
CAST: Final = (
    _NOW
    + """
local t = now()
if fenced(KEYS[1], ARGV[1]) then return {'FENCED', t, 0, 0} end
local b = redis.call('HMGET', KEYS[2], 'state', 'digest', 'deadline', 'r:' .. ARGV[2], 'v:' .. ARGV[2], 'eligible')
if not b[1] then return {'UNKNOWN_PROPOSAL', t, 0, 0} end
if not b[4] then return {'UNREGISTERED', t, 0, 0} end
if b[2] ~= ARGV[3] then return {'DIGEST_MISMATCH', t, 0, 0} end
if b[5] then return {b[5] == ARGV[4] and 'DUPLICATE' or 'EQUIVOCATION', t, 0, 0} end
if b[1] ~= 'open' or t > tonumber(b[3]) then return {'LATE', t, 0, 0} end
redis.call('HSET', KEYS[2], 'v:' .. ARGV[2], ARGV[4], 'e:' .. ARGV[2], ARGV[5], 't:' .. ARGV[2], t)
return {'COUNTED', t, redis.call('HINCRBY', KEYS[2], 'voted', 1), tonumber(b[6])}
"""
)

#: KEYS fence, ballot; ARGV fence. Returns {code, now_ms, closed_ms or 0, voted}.
CLOSE: Final = (
    _NOW
    + """
local t = now()
local b = redis.call('HMGET', KEYS[2], 'state', 'deadline', 'voted', 'eligible', 'closed')
if not b[1] then return {'UNKNOWN_PROPOSAL', t, 0, 0} end
local voted = tonumber(b[3])
if b[1] ~= 'open' then return {'ALREADY', t, tonumber(b[5]), voted} end
if fenced(KEYS[1], ARGV[1]) then return {'FENCED', t, 0, 0} end
if t <= tonumber(b[2]) and voted < tonumber(b[4]) then return {'EARLY', t, 0, voted} end
redis.call('HSET', KEYS[2], 'state', 'closed', 'closed', t)
return {'CLOSED', t, t, voted}
"""
)

#: KEYS fence, ballot, pending, out; ARGV fence, proposal_id, decision_id, outcome, keep_ms.
#: Returns {code, decision_id}.
SETTLE: Final = (
    _NOW
    + """
if fenced(KEYS[1], ARGV[1]) then return {'FENCED', ''} end
local b = redis.call('HMGET', KEYS[2], 'state', 'decision')
redis.call('ZREM', KEYS[3], ARGV[2])
if b[1] == 'decided' then return {'ALREADY', b[2]} end
redis.call('HSET', KEYS[2], 'state', 'decided', 'decision', ARGV[3], 'outcome', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 4096, '*', 't', 'decided', 'p', ARGV[2], 'o', ARGV[4])
return {'SETTLED', ARGV[3]}
"""
)
