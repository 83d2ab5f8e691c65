"""Caches routes: in this process, and in Redis for all processes (FLT-3).

A cached value carries the version of the schedule in which it was found, and is used only for that version (decision
23). While Redis is down, routes are computed, which is hardly slower. Concurrent requests for the same routes share one
computation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from flight_service import itineraries
from flight_service.itineraries import Connections, Market, Route
from flight_service.ranking import Ranked, Sort, rank
from flight_service.timetable import Timetable
from services import cache, telemetry
from services.cache import Versioned, VersionedCache

CACHE_PREFIX: Final = "routes"
# Minimum time between two calls of a Redis that is unavailable.
CACHE_RETRY_SECONDS: Final = 1.0
# Routes of all markets together. A route has about half a kilobyte, and a third of one in each of the up to twelve
# orders (four cabins, three sorts) that were requested.
ROUTES_KEPT: Final = 20_000

_log = telemetry.log("routes_cache")


@dataclass(frozen=True, slots=True)
class Routes:
    """All routes of a market, and the orders in which they were requested."""

    version: int
    found: Sequence[Route]
    _ranked: dict[tuple[str, Sort], Sequence[Ranked]] = field(default_factory=dict)

    def ranked(self, *, cabin: str, sort: Sort) -> Sequence[Ranked]:
        """Returns the routes that have the cabin, in sort order."""
        known = self._ranked.get((cabin, sort))
        if known is None:
            known = self._ranked[(cabin, sort)] = rank(self.found, cabin=cabin, sort=sort)
        return known

    @property
    def weight(self) -> int:
        """Its share of ROUTES_KEPT, at least one.

        A market without routes counts too, because that result is also cached.
        """
        return len(self.found) + 1


class RoutesCache:
    """Returns the routes of a market, cached or computed."""

    def __init__(self, versioned_cache: VersionedCache, connections: Connections) -> None:
        self._cache = versioned_cache
        self._cache_away_until = 0.0
        self._connections = connections
        self._kept: OrderedDict[Market, Routes] = OrderedDict()
        self._weight = 0
        self._looking: dict[tuple[Market, int], asyncio.Task[Routes]] = {}

    async def of(self, market: Market, timetable: Timetable) -> Routes:
        """Returns the market's routes in this timetable."""
        kept = self._kept.get(market)
        if kept is not None and kept.version == timetable.version:
            self._kept.move_to_end(market)
            return kept
        key = (market, timetable.version)
        looking = self._looking.get(key)
        if looking is None:
            looking = self._looking[key] = asyncio.create_task(self._look(market, timetable))
            looking.add_done_callback(lambda _: self._looking.pop(key))
        # The first caller may be cancelled, and the other callers still need the result.
        return await asyncio.shield(looking)

    async def _look(self, market: Market, timetable: Timetable) -> Routes:
        if not (timetable.serves(market.source) and timetable.serves(market.destination)):
            # There are many more airports than the airline serves, and their markets would fill the cache.
            return Routes(timetable.version, ())
        found = await self._remembered(market, timetable)
        if found is None:
            found = itineraries.routes(timetable, market, self._connections)
            await self._remember(market, timetable, found)
        routes = Routes(timetable.version, found)
        self._keep(market, routes)
        return routes

    def _keep(self, market: Market, routes: Routes) -> None:
        before = self._kept.pop(market, None)
        self._kept[market] = routes
        self._weight += routes.weight - (before.weight if before else 0)
        while self._weight > ROUTES_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._weight -= oldest.weight

    async def _remembered(self, market: Market, timetable: Timetable) -> list[Route] | None:
        if time.monotonic() < self._cache_away_until:
            return None
        try:
            (value,) = await self._cache.get([self._name(market)])
        except cache.UNREACHABLE as error:
            _log.warning("cache unavailable", error=repr(error))
            self._cache_away_until = time.monotonic() + CACHE_RETRY_SECONDS
            return None
        if value is None or value.version != timetable.version:
            return None
        return _read(value.body, timetable)

    async def _remember(self, market: Market, timetable: Timetable, found: Sequence[Route]) -> None:
        if time.monotonic() < self._cache_away_until:
            return
        with contextlib.suppress(*cache.UNREACHABLE):
            name = self._name(market)
            # No writer invalidates; the version of the schedule decides what is stale.
            value = Versioned(timetable.version, _write(found))
            await self._cache.set_if_newer(name, value, generation=self._cache.first_generation())

    def _name(self, market: Market) -> str:
        limits = f"{self._connections.shortest}-{self._connections.longest}"
        return f"{market.source}-{market.destination}-{market.day}-{limits}"


def _write(found: Sequence[Route]) -> bytes:
    """Serializes routes.

    Each flight id is written once, because most flights are in many routes.
    """
    numbers: dict[str, int] = {}
    numbered = [[numbers.setdefault(flight.flight_id, len(numbers)) for flight in route] for route in found]
    return json.dumps([list(numbers), numbered], separators=(",", ":")).encode()


def _read(body: bytes, timetable: Timetable) -> list[Route] | None:
    """Returns the routes, or None if a flight is no longer in the timetable.

    A flight that was cancelled since is no longer in it.
    """
    flight_ids, numbered = json.loads(body)
    flights = [flight for flight_id in flight_ids if (flight := timetable.flight(flight_id)) is not None]
    if len(flights) < len(flight_ids):
        return None
    return [tuple(flights[number] for number in route) for route in numbered]
