"""A Redis cache of versioned values. Redis may be lost at any time.

The cache never decides anything; Postgres is the source of truth. A writer replaces a cached value only by a newer
version. It fills an empty key only if the key was not invalidated since the writer began to read Postgres. A writer
that comes too late for that still returns its value to its caller, and stores the version under `:shown`; then no
writer can store an older version than a client has seen. So neither a slow reader nor an old dump can bring back a
stale value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.asyncio import Connection, Redis, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

# A Redis that does not respond in this time is treated as unavailable: reading Postgres is hardly slower.
TIMEOUT_SECONDS: Final = 0.5
VALUE_SECONDS: Final = 600
# Longer than any read of Postgres takes.
GENERATION_SECONDS: Final = 120

UNREACHABLE: Final = (RedisError, OSError, TimeoutError)

# KEYS: value, generation, shown version. ARGV: generation that the writer read, version, body, seconds to keep the
# value, seconds to keep the shown version. A value is stored as `<version> <body>`. An existing value was set after the
# last invalidation, and every change that it lacks will still cause an invalidation; so a newer value may replace it
# whatever the generation is.
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


class _ClosedIsLost:
    """A connection that reports a write to a closed transport as a lost connection.

    uvloop raises RuntimeError there, which the client would neither retry nor recognise as an outage.
    """

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise RedisConnectionError(str(error)) from error


class _Connection(_ClosedIsLost, Connection):
    """A connection without TLS."""


class _TlsConnection(_ClosedIsLost, SSLConnection):
    """A connection with TLS."""


def connect(url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Redis:
    """Returns a client of Redis, whose calls raise an error of UNREACHABLE if Redis does not respond in time."""
    redis: Redis = Redis.from_url(
        url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, protocol=3
    )
    pool = redis.connection_pool
    pool.connection_class = _TlsConnection if issubclass(pool.connection_class, SSLConnection) else _Connection
    return redis


class VersionedCache:
    """Cached values under one key prefix.

    Every method that calls Redis raises an error of UNREACHABLE if Redis is unavailable.
    """

    def __init__(self, url: str, *, prefix: str) -> None:
        self._redis = connect(url)
        self._prefix = prefix
        # Part of every key. A new epoch makes all values that were cached before unreadable at once.
        self.epoch = 0
        self._set_if_newer = self._redis.register_script(_SET_IF_NEWER)
        self._invalidate = self._redis.register_script(_INVALIDATE)

    async def get(self, names: Sequence[str]) -> list[Versioned | None]:
        """Returns the cached value of each name, or None."""
        values = await self._redis.mget([self._key(name, self.epoch) for name in names])
        return [None if value is None else _parse(cast("bytes", value)) for value in values]

    async def generations(self, names: Sequence[str]) -> list[str]:
        """Returns the generation of each name, for a later call of `set_if_newer`.

        Call it before the read of Postgres, so that an invalidation during the read is detected.
        """
        epoch = self.epoch
        values = await self._redis.mget([_generation_key(self._key(name, epoch)) for name in names])
        return [f"{epoch} {(cast('bytes | None', value) or b'0').decode()}" for value in values]

    def first_generation(self) -> str:
        """Returns the generation of the values of a cache that is never invalidated."""
        return f"{self.epoch} 0"

    async def set_if_newer(self, name: str, value: Versioned, *, generation: str) -> bool:
        """Caches the value if it is newer than the cached one.

        Returns False if the cache has the same or a newer version, or if the name was invalidated since `generation`
        was read. In either case the caller may return its value to its client: no writer caches an older one
        afterwards.
        """
        # The write goes to the epoch of the generation, even if the cache has moved to another epoch since.
        epoch, _, seen = generation.partition(" ")
        key = self._key(name, int(epoch))
        return bool(
            await self._set_if_newer(
                keys=[key, _generation_key(key), f"{key}:shown"],
                args=[seen, value.version, value.body, VALUE_SECONDS, GENERATION_SECONDS],
            )
        )

    async def invalidate(self, names: Sequence[str]) -> None:
        """Deletes the values, and rejects the later writes of readers that began before."""
        values = [self._key(name, self.epoch) for name in names]
        keys = [key for value in values for key in (value, _generation_key(value))]
        await self._invalidate(keys=keys, args=[GENERATION_SECONDS])

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    def _key(self, name: str, epoch: int) -> str:
        return f"{prefix_in(self._prefix, epoch)}:{{{name}}}"


def prefix_in(prefix: str, epoch: int) -> str:
    """Returns the key prefix of an epoch; the first epoch is 0."""
    return f"{prefix}.{epoch}" if epoch else prefix


def _generation_key(value_key: str) -> str:
    return f"{value_key}:generation"


def _parse(value: bytes) -> Versioned:
    version, _, body = value.partition(b" ")
    return Versioned(int(version), body)
