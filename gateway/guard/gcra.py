"""Limits that all gateways share: the generic cell rate algorithm in Redis.

Redis has one number for each limit and source.

The number is the theoretical arrival time: the time from which the source, if it makes no calls, has its whole burst
again. A call moves it forward by the interval between two calls of the rate; the call passes if the number is then at
most the burst ahead of the clock. Reference: ITU-T I.371 (the virtual scheduling algorithm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

# KEYS has one key for each limit. ARGV has the number of calls, then for each limit the interval in microseconds and
# the burst in calls. The clock is that of Redis, because all gateways share it. If one limit refuses, none counts the
# call. Returns the microseconds after which the call could pass, and the position of the limit with that wait; 0 if it
# passes.
_TAKE: Final = """
local time = redis.call('TIME')
local now, calls = time[1] * 1000000 + time[2], tonumber(ARGV[1])
local wait, by, ends = 0, 0, {}
for i = 1, #KEYS do
  local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local arrival = math.max(tonumber(redis.call('GET', KEYS[i]) or '0'), now) + calls * interval
  local early = arrival - burst * interval - now
  if early > wait then wait, by = early, i end
  ends[i] = arrival
end
if wait == 0 then
  for i = 1, #KEYS do
    redis.call('SET', KEYS[i], string.format('%.0f', ends[i]), 'PX', math.ceil((ends[i] - now) / 1000))
  end
end
return {string.format('%.0f', wait), by}
"""
_PREFIX: Final = "limit"


@dataclass(frozen=True, slots=True)
class Rate:
    """One limit of one source."""

    source: str
    """The key of the counter: limit id and source."""
    requests_per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call passes."""

    wait_seconds: float
    """Seconds until the call could pass; 0 if it passes."""
    refused_by: int | None
    """Index of the limit that refuses the call; None if it passes."""


class SharedLimits:
    """Counters of calls in Redis.

    Raises one of `services.cache.UNREACHABLE` if Redis is unavailable.
    """

    def __init__(self, redis: Redis) -> None:
        self._take = redis.register_script(_TAKE)

    async def take(self, rates: Sequence[Rate], *, calls: int = 1) -> Verdict:
        """Counts the calls for all of these limits; if one of them refuses, for none."""
        wait, by = await self._take(
            keys=[f"{_PREFIX}:{{{rate.source}}}" for rate in rates],
            args=[
                calls,
                *(number for rate in rates for number in (round(60_000_000 / rate.requests_per_minute), rate.burst)),
            ],
        )
        return Verdict(int(wait) / 1e6, int(by) - 1 if int(by) else None)
