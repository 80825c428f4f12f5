"""A rate limiter's backend in Redis, for lanes on many machines, with the same rules as `MemoryBackend`.

Each call is one script. Redis runs scripts atomically and its clock is the only one.
A pause is stored with the time at which it was set, and each reader limits it by its own settings, so that one process
cannot block the others forever.
If Redis loses its data, the requests that still count are unknown: the first call that finds no state creates one that
grants no lease until every earlier request has left the server's window.
"""

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from ....configs.errors import RateLimiterLostError
from .memory_backend import (
    BURST_S,
    CUT,
    CUT_EVERY_S,
    LOWEST_FACTOR,
    MARGIN_S,
    RECOVERY_A_MINUTE,
    WEIGHTS,
    Answer,
    RateLimiterSettings,
)
from .spending import SpendingLimit, Totals, Verdict

_FORGET_S = 86_400
_COMMON = """
local state, ending, held = KEYS[1], KEYS[2], KEYS[3]
local settings = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local function get(name, default) return tonumber(redis.call('HGET', state, name) or default) end
local function set(name, value) redis.call('HSET', state, name, string.format('%.6f', value)) end
if redis.call('EXISTS', state) == 0 then
  redis.call('DEL', ending, held)
  set('factor', 1)
  set('factor_at', now)
  if ARGV[2] ~= 'create' then
    set('pause_until', now + settings.hold_s + settings.window_s + settings.margin_s)
    set('paused_at', now)
  end
end
local function paused_until()
  local paused_at = get('paused_at', now + 1)
  if paused_at > now then
    paused_at = now
    set('paused_at', now)
  end
  return math.min(get('pause_until', 0), paused_at + settings.longest_pause_s)
end
local function recovered()
  local minutes = (now - get('factor_at', now)) / settings.window_s
  return math.min(1, get('factor', 1) + minutes * settings.recovery)
end
local function limit_of(name) return settings.limits[name] or get('learned_' .. name, 0) end
local function share_of(weights)
  local share = 0
  for _, name in ipairs(settings.weights) do
    local limit = limit_of(name)
    if limit > 0 then share = math.max(share, math.min(weights[name] or 0, limit) / limit) end
  end
  return share
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, settings.forget_s) end
"""
_ACQUIRE = (
    _COMMON
    + """
local weights = cjson.decode(ARGV[3])
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', ending, '-inf', string.format('%.6f', now))) do
  for name, weight in pairs(cjson.decode(redis.call('HGET', held, lease) or '{}')) do
    set('used_' .. name, get('used_' .. name, 0) - weight)
  end
  redis.call('ZREM', ending, lease)
  redis.call('HDEL', held, lease)
end
local wait = math.max(paused_until() - now, 0)
local share = share_of(weights)
for _, name in ipairs(settings.weights) do
  local limit = limit_of(name)
  if limit > 0 then
    if get('used_' .. name, 0) + math.min(weights[name] or 0, limit) > limit then
      local first = redis.call('ZRANGE', ending, 0, 0, 'WITHSCORES')
      wait = math.max(wait, tonumber(first[2]) - now)
    end
  end
end
if share > 0 then wait = math.max(wait, get('next_at', 0) - now) end
if wait > 0 then return {'', string.format('%.6f', wait)} end
for name, weight in pairs(weights) do set('used_' .. name, get('used_' .. name, 0) + weight) end
redis.call('ZADD', ending, string.format('%.6f', now + settings.hold_s + settings.window_s), ARGV[4])
redis.call('HSET', held, ARGV[4], ARGV[3])
set('next_at', math.max(get('next_at', 0), now - settings.burst_s) + share * settings.window_s / recovered())
return {ARGV[4], '0'}
"""
)
_ANSWERED = (
    _COMMON
    + """
local kept = redis.call('HGET', held, ARGV[3])
if ARGV[4] ~= '' and kept then
  local weights = cjson.decode(kept)
  local before, tokens = share_of(weights), tonumber(ARGV[4])
  set('used_tokens', get('used_tokens', 0) + tokens - (weights.tokens or 0))
  weights.tokens = tokens
  redis.call('HSET', held, ARGV[3], cjson.encode(weights))
  set('next_at', get('next_at', 0) + (share_of(weights) - before) * settings.window_s / recovered())
end
redis.call('ZADD', ending, 'XX', string.format('%.6f', now + settings.window_s + settings.margin_s), ARGV[3])
return {'', '0'}
"""
)
_SLOW_DOWN = (
    _COMMON
    + """
local till = now + math.min(tonumber(ARGV[3]), settings.longest_pause_s)
if till > paused_until() then
  set('pause_until', till)
  set('paused_at', now)
end
if now - get('cut_at', 0) >= math.min(settings.cut_every_s, settings.window_s) then
  set('factor', math.max(settings.lowest, recovered() * settings.cut))
  set('cut_at', now)
  set('factor_at', now)
end
return {'', '0'}
"""
)
_LEARN = (
    _COMMON
    + """
for name, limit in pairs(cjson.decode(ARGV[3])) do set('learned_' .. name, limit) end
return {'', '0'}
"""
)
_SPEND = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local user, limit, after, request = ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
redis.call('EXPIRE', KEYS[1], limit.forget_s)
local function store(totals)
  local at = string.format('%.6f', now)
  redis.call('HSET', KEYS[1], user, cjson.encode({totals[1], totals[2], totals[3], totals[4], at}))
end
local all, on_the_way = {after[1], after[2], after[3]}, after[4] - request[4]
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if fields[i] ~= user then
    local totals = cjson.decode(fields[i + 1])
    for j = 1, 3 do all[j] = all[j] + totals[j] end
    if now - tonumber(totals[5]) <= limit.hold_s then on_the_way = on_the_way + totals[4] end
  end
end
local cost = all[1] * limit.price_of_request + all[2] * limit.price_of_item + all[3] * limit.price_of_token
local is_within = all[1] <= limit.max_requests or limit.max_requests < 0
if limit.max_cost >= 0 and cost > limit.max_cost * (1 + 1e-9) then is_within = false end
if is_within then
  store(after)
  return {'yes', '0'}
end
store({after[1] - request[1], after[2] - request[2], after[3] - request[3], after[4] - request[4]})
if on_the_way > 0 and limit.max_cost >= 0 then return {'wait', '0'} end
return {'no', '0'}
"""
"""As `Purse.reserve`. A request of nothing only stores what a user has spent."""


class RedisBackend:
    """A backend shared by all processes that use the same Redis and the same `name`. Picklable; connects lazily.

    Args:
        url: `redis://HOST:PORT/DB` or `rediss://…`, without a password.
        name: Name of the rate limiter: one per API key, for all jobs that use the key.
        settings: Limits; the same in all processes that share the backend.
        password: Password of Redis.
    """

    is_remote = True

    def __init__(self, url: str, name: str, settings: RateLimiterSettings, *, password: str | None = None) -> None:
        self._url = url
        self._name = name
        self._password = password
        self._keys = [f"epithre-beam:{{{name}}}:{part}" for part in ("state", "ending", "held")]
        self._known = dict(settings.limits)
        self._hold_s = settings.hold_s
        self._settings = orjson.dumps(
            {
                "limits": dict(settings.limits),
                "window_s": settings.window_s,
                "hold_s": settings.hold_s,
                "longest_pause_s": settings.longest_pause_s,
                "margin_s": MARGIN_S,
                "burst_s": BURST_S,
                "cut": CUT,
                "cut_every_s": CUT_EVERY_S,
                "lowest": LOWEST_FACTOR,
                "recovery": RECOVERY_A_MINUTE,
                "weights": WEIGHTS,
                "forget_s": _FORGET_S,
            }
        )
        self._scripts: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"RedisBackend({self._url!r}, {self._name!r})"  # never the password

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scripts": {}}  # connections cannot be pickled

    def create(self, spent: int = 0) -> None:
        """Create the state if there is none; called once at the start of a run, before any worker sends requests.

        Args:
            spent: Number of requests sent just before, without a lease.

        Raises:
            RateLimiterLostError: If Redis cannot be reached.
        """
        self._call(_LEARN, "create", b"{}")
        for _ in range(spent):
            lease = self._new_lease()
            self._call(_ACQUIRE, "create", orjson.dumps({"requests": 1.0}), lease)
            self._call(_ANSWERED, "create", lease, "")

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        lease, wait = self._call(_ACQUIRE, "", orjson.dumps(dict(weights)), self._new_lease())
        return Answer(lease or None, float(wait))

    def answered(self, lease: str, tokens: float | None = None) -> None:
        self._call(_ANSWERED, "", lease, "" if tokens is None else str(tokens))

    def slow_down(self, retry_after_s: float | None) -> None:
        self._call(_SLOW_DOWN, "", str(max(retry_after_s or 0.0, 0.0)))

    def learn(self, limits: Mapping[str, float]) -> None:
        new = {name: limit for name, limit in limits.items() if name in WEIGHTS and name not in self._known}
        self._call(_LEARN, "", orjson.dumps(new))

    def reserve(self, scope: str, limit: SpendingLimit, user: str, after: Totals, request: Totals) -> Verdict:
        known = {
            **asdict(limit),
            "max_requests": -1 if limit.max_requests is None else limit.max_requests,
            "max_cost": -1.0 if limit.max_cost is None else limit.max_cost,
            "hold_s": self._hold_s,
            "forget_s": _FORGET_S,
        }
        spent = f"epithre-beam:{{{self._name}}}:spent:{scope}"
        arguments: list[str | bytes] = [
            user,
            orjson.dumps(known),
            orjson.dumps(list(after)),
            orjson.dumps(list(request)),
        ]
        return Verdict(self._run(_SPEND, [spent], arguments)[0])

    def report(self, scope: str, user: str, totals: Totals) -> None:
        self.reserve(scope, SpendingLimit(), user, totals, Totals())

    def _new_lease(self) -> str:
        return secrets.token_hex(8)

    def _call(self, script: str, mode: str, *arguments: str | bytes) -> tuple[str, str]:
        return self._run(script, self._keys, [self._settings, mode, *arguments])

    def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes]) -> tuple[str, str]:
        import redis

        try:
            if script not in self._scripts:
                # The Redis client must not retry: a script whose answer was lost may have taken a lease, and a second
                # lease is safe but wasteful. The rate limiter calls again later.
                client = redis.Redis.from_url(
                    self._url,
                    password=self._password,
                    socket_timeout=5.0,
                    socket_connect_timeout=5.0,
                    decode_responses=True,
                )
                self._scripts[script] = client.register_script(script)
            first, second = self._scripts[script](keys=keys, args=arguments)
            return str(first), str(second)
        except redis.RedisError as error:
            with contextlib.suppress(KeyError):
                del self._scripts[script]
            words = type(error).__name__
            raise RateLimiterLostError(f"{self._url}: the rate limiter cannot be reached ({words}).") from None
