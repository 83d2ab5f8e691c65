"""Limits that all gateways share: the generic cell rate algorithm in Redis, one number for each source.

The number is the theoretical arrival time: when the source will have been quiet long enough to have its whole burst
again. A call moves it on by the time between two calls, and passes where it was not too far ahead. Source: ITU-T I.371
(the virtual scheduling algorithm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

# KEYS one for each limit; ARGV calls, then interval and burst of each, in microseconds and calls. Redis's clock is the
# one that all gateways have. All limits let the call pass, or none of them counts it. Returns the microseconds after
# which it could pass, and the place of the limit that says so; 0 where it passes.
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
    """What is counted: limit and source."""
    requests_per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call passes."""

    wait_seconds: float
    """0 where it passes."""
    refused_by: int | None
    """The place of the limit that refuses it."""


class SharedLimits:
    """Counts calls in Redis. Raises one of `services.cache.AWAY` while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._take = redis.register_script(_TAKE)

    async def take(self, rates: Sequence[Rate], *, calls: int = 1) -> Verdict:
        """Counts the calls by all of these limits, or by none where one of them is reached."""
        wait, by = await self._take(
            keys=[f"{_PREFIX}:{{{rate.source}}}" for rate in rates],
            args=[
                calls,
                *(number for rate in rates for number in (round(60_000_000 / rate.requests_per_minute), rate.burst)),
            ],
        )
        return Verdict(int(wait) / 1e6, int(by) - 1 if int(by) else None)
