"""Redis as a cache of versioned values: it may vanish at any moment, and it never decides.

A value is set only over an older one, or into an empty place that nobody invalidated since the setter began to read
the truth. A setter that comes too late shows its value all the same, and leaves its version behind: nobody may set less
than what somebody has seen. So neither a slow reader nor an old dump can bring back yesterday's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

# A cache that doesn't answer within this is treated as away: the truth is hardly slower.
TIMEOUT_SECONDS: Final = 0.5
VALUE_SECONDS: Final = 600
# Longer than any reader of the truth takes.
GENERATION_SECONDS: Final = 120

AWAY: Final = (RedisError, OSError, TimeoutError)

# KEYS value, generation, version shown; ARGV generation seen, version, body, seconds for value and for the rest. The
# version leads the value: `<version> <body>`. A value that is there was set after the last invalidation, so that every
# change it lacks is still to be invalidated: a newer one may take its place whatever the generation.
_SET_IF_NEWER: Final = """
local version = tonumber(ARGV[2])
local shown = tonumber(redis.call('GET', KEYS[3]) or '0')
if version < shown then return 0 end
local known = redis.call('GET', KEYS[1])
if known then
  if tonumber(string.match(known, '^%d+')) >= version then return 0 end
elseif (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then
  redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[5])
  return 0
end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[3], 'EX', ARGV[4])
return 1
"""
_INVALIDATE: Final = """
for i = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[i])
  redis.call('INCR', KEYS[i + 1])
  redis.call('EXPIRE', KEYS[i + 1], ARGV[1])
end
"""


@dataclass(frozen=True, slots=True)
class Versioned:
    """A cached value and its version."""

    version: int
    body: bytes


class VersionedCache:
    """Values under one prefix. Every method raises one of AWAY while Redis is away."""

    def __init__(self, url: str, *, prefix: str) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, protocol=3
        )
        self._prefix = prefix
        # Values of one epoch are not seen in another: a new one makes all that was cached before void at once.
        self.epoch = 0
        self._set_if_newer = self._redis.register_script(_SET_IF_NEWER)
        self._invalidate = self._redis.register_script(_INVALIDATE)

    async def get(self, names: Sequence[str]) -> list[Versioned | None]:
        """Returns each value, or None."""
        values = await self._redis.mget([self._key(name, self.epoch) for name in names])
        return [None if value is None else _parse(cast("bytes", value)) for value in values]

    async def generations(self, names: Sequence[str]) -> list[str]:
        """Returns what `set_if_newer` wants to see unchanged. To be asked before the truth is read."""
        epoch = self.epoch
        values = await self._redis.mget([_generation_key(self._key(name, epoch)) for name in names])
        return [f"{epoch} {(cast('bytes | None', value) or b'0').decode()}" for value in values]

    def first_generation(self) -> str:
        """Returns what `generations` returns for each value of a cache that is never invalidated."""
        return f"{self.epoch} 0"

    async def set_if_newer(self, name: str, value: Versioned, *, generation: str) -> bool:
        """Sets the value over an older one. False where there is a newer one, or the key was invalidated since.

        Either way the caller may show its value: nobody will set an older one.
        """
        # In the epoch whose generation was seen, whatever the epoch is by now.
        epoch, _, seen = generation.partition(" ")
        key = self._key(name, int(epoch))
        return bool(
            await self._set_if_newer(
                keys=[key, _generation_key(key), f"{key}:shown"],
                args=[seen, value.version, value.body, VALUE_SECONDS, GENERATION_SECONDS],
            )
        )

    async def invalidate(self, names: Sequence[str]) -> None:
        """Drops the values, and whatever a reader that began before may still want to set."""
        values = [self._key(name, self.epoch) for name in names]
        keys = [key for value in values for key in (value, _generation_key(value))]
        await self._invalidate(keys=keys, args=[GENERATION_SECONDS])

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    def _key(self, name: str, epoch: int) -> str:
        return f"{prefix_in(self._prefix, epoch)}:{{{name}}}"


def prefix_in(prefix: str, epoch: int) -> str:
    """Returns what the keys of an epoch begin with; the first epoch is 0."""
    return f"{prefix}.{epoch}" if epoch else prefix


def _generation_key(value_key: str) -> str:
    return f"{value_key}:generation"


def _parse(value: bytes) -> Versioned:
    version, _, body = value.partition(b" ")
    return Versioned(int(version), body)
