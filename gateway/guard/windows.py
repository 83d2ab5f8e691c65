"""Recent observations of each source, counted in Redis for all gateways together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

EVIDENCE: Final = 10

# KEYS has one source's window. ARGV has its length in seconds, the threshold, then time and member of each observation.
# A member that is observed again counts once, at its newest time. Above the threshold the script deletes the window, so
# that it reports the abuse once. It deletes observations older than the window, so that no source can fill the memory.
_OBSERVE: Final = """
for i = 3, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'GT', ARGV[i], ARGV[i + 1]) end
local latest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.6f', latest[2] - ARGV[1]))
local count = redis.call('ZCARD', KEYS[1])
if count > tonumber(ARGV[2]) then
  local evidence = redis.call('ZRANGE', KEYS[1], -EVIDENCE, -1)
  redis.call('DEL', KEYS[1])
  return {count, evidence}
end
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] * 1000))
return {count}
""".replace("EVIDENCE", str(EVIDENCE))
_PREFIX: Final = "abuse"


@dataclass(frozen=True, slots=True)
class Window:
    """A rule for abuse by one source.

    More than `threshold` different members within `seconds` are abuse.
    """

    kind: str
    source: str
    seconds: int
    threshold: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation: its time in seconds since 1970, and the member that is counted."""

    time: float
    member: str


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A window that exceeded its threshold."""

    window: Window
    count: int
    evidence: tuple[str, ...]
    """The last members, at most `EVIDENCE`."""


class Windows:
    """Windows of observations in Redis.

    Raises one of `services.cache.UNREACHABLE` if Redis is unavailable.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._observe = redis.register_script(_OBSERVE)

    async def observe(self, observations: Sequence[tuple[Window, Sequence[Seen]]]) -> list[Exceeded]:
        """Adds observations, in one round trip.

        Returns the windows that exceeded their thresholds.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for window, seen in observations:
                await self._observe(
                    keys=[_key(window.kind, window.source)],
                    args=[
                        window.seconds,
                        window.threshold,
                        *(part for each in seen for part in (f"{each.time:.6f}", each.member)),
                    ],
                    client=pipeline,
                )
            answers = await pipeline.execute()
        return [
            Exceeded(window, int(answer[0]), tuple(member.decode() for member in answer[1]))
            for (window, _), answer in zip(observations, answers, strict=True)
            if len(answer) > 1
        ]


def _key(kind: str, source: str) -> str:
    return f"{_PREFIX}:{{{source}}}:{kind}"
