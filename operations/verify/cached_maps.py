"""Compares the cached seat maps with the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from operations.verify.finding import SAMPLES, Offender, Offenders

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from seat_service.maps.seat_map import Snapshot
    from services.db import Conn

KEYS_PER_SCAN: Final = 500
# How late a cached map may be (SEAT-12).
CACHE_GRACE_SECONDS: Final = 1.0


async def stale_maps(connection: Conn, redis: Redis | None) -> Offenders:
    """Compares every cached map with the database, and those that differ once more.

    The second comparison follows after CACHE_GRACE_SECONDS, because the cache may get a change that late.
    Raises OSError without `redis`.
    """
    from seat_service.maps.seat_map import CACHE_PREFIX
    from services.cache import prefix_in

    if redis is None:
        raise OSError("no cache is configured")
    suspects: dict[bytes, Snapshot | None] = {}
    keys: list[bytes] = []
    # The pattern ends with the brace, because the keys of the generation counters continue after it. It has the current
    # epoch, because no service returns a map of an earlier one (docs/decisions/0029).
    prefix = prefix_in(CACHE_PREFIX, await connection.fetchval("SELECT epoch FROM seat.map_cache"))
    async for key in redis.scan_iter(match=f"{prefix}:{{*}}", count=KEYS_PER_SCAN):
        keys.append(key)
        if len(keys) == KEYS_PER_SCAN:
            suspects |= await _differing(connection, redis, keys)
            keys = []
    suspects |= await _differing(connection, redis, keys)
    if not suspects:
        return 0, []
    await asyncio.sleep(CACHE_GRACE_SECONDS)
    stale: list[Offender] = []
    suspected = sorted(suspects)
    for first in range(0, len(suspected), KEYS_PER_SCAN):
        cached, truth = await _maps(connection, redis, suspected[first : first + KEYS_PER_SCAN])
        stale += [
            {
                "key": key.decode(errors="replace"),
                "cached_version": _version(value),
                "true_version": now.version if now is not None else None,
            }
            for key, value, now in zip(suspected[first:], cached, truth, strict=False)
            if value is not None and value != _as_cached(now) and not _moved_on(value, since=suspects[key], until=now)
        ]
    return len(stale), stale[:SAMPLES]


async def _differing(connection: Conn, redis: Redis, keys: Sequence[bytes]) -> dict[bytes, Snapshot | None]:
    cached, truth = await _maps(connection, redis, keys)
    return {
        key: now
        for key, value, now in zip(keys, cached, truth, strict=True)
        if value is not None and value != _as_cached(now)
    }


async def _maps(
    connection: Conn, redis: Redis, keys: Sequence[bytes]
) -> tuple[list[bytes | None], list[Snapshot | None]]:
    """Reads the cached map of each key, then its map in the database."""
    from seat_service.maps.seat_map import load

    if not keys:
        return [], []
    cached = cast("list[bytes | None]", await redis.mget(list(keys)))
    flight_ids = [key.partition(b":{")[2][:-1].decode(errors="replace") for key in keys]
    async with connection.transaction(readonly=True):
        await connection.execute("SET LOCAL search_path = seat")
        truth = {snapshot.flight_id: snapshot for snapshot in await load(connection, flight_ids)}
    return cached, [truth.get(flight_id) for flight_id in flight_ids]


def _as_cached(truth: Snapshot | None) -> bytes | None:
    if truth is None:
        return None
    value = truth.compact()
    return b"%d %b" % (value.version, value.body)


def _version(value: bytes) -> int | None:
    text = value.partition(b" ")[0]
    return int(text) if text.isdigit() else None


def _moved_on(value: bytes, *, since: Snapshot | None, until: Snapshot | None) -> bool:
    """Returns True if the cached map was current at the first comparison.

    `since` is the map in the database then, and `until` is the map now, which must be newer than the cached one.
    """
    version = _version(value)
    return since is not None and until is not None and version is not None and since.version <= version < until.version
