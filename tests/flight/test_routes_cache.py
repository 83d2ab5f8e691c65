"""FLT-3: routes are cached, responses are not; a change is visible at once.

Cached and computed routes give the same response.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from flight_service import itineraries, routes_cache, timetable
from flight_service.flights import NewFlight
from flight_service.service import FLIGHT_SERVICE
from tests.flight.airline import SHORTEST, Airline, after, flight, ids
from tests.instances import running

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
async def way(airline: Airline, day: date) -> tuple[NewFlight, NewFlight]:
    """Two connecting flights."""
    first = flight("LHR", "CDG", datetime.combine(day, time(7)))
    second = after(first, "BOM", SHORTEST)
    await airline.add(first, second)
    return first, second


@pytest.fixture
async def looks(monkeypatch: pytest.MonkeyPatch) -> list[itineraries.Market]:
    """The markets whose routes are computed from now on."""
    looked: list[itineraries.Market] = []
    real = itineraries.routes

    def routes(timetable: Any, market: itineraries.Market, connections: Any) -> list[itineraries.Route]:
        looked.append(market)
        return real(timetable, market, connections)

    monkeypatch.setattr(itineraries, "routes", routes)
    return looked


@asynccontextmanager
async def another(world: World, airline: Airline, variables: dict[str, str], **more: str) -> AsyncIterator[Airline]:
    """Runs another instance of the service, with its own memory."""
    async with running(world, FLIGHT_SERVICE, FlightServiceStub, **(variables | more)) as callers:
        yield replace(airline, callers=callers)


@pytest.fixture(scope="module")
async def second(world: World, airline: Airline, variables: dict[str, str]) -> AsyncIterator[Airline]:
    """A second instance."""
    async with another(world, airline, variables) as opened:
        yield opened


@pytest.fixture(scope="module")
async def alone(world: World, airline: Airline, variables: dict[str, str]) -> AsyncIterator[Airline]:
    """An instance whose Redis does not respond."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        async with another(world, airline, variables, SKYHIGH_REDIS_URL=url) as opened:
            yield opened


async def remembered(redis: Redis, day: date) -> tuple[str, int, str]:
    """Returns what Redis has for the tests' market: key, version and body."""
    (key,) = [key async for key in redis.scan_iter(f"routes:{{LHR-BOM-{day}-*}}")]
    value = await redis.get(key)
    assert isinstance(value, bytes)
    version, _, body = value.decode().partition(" ")
    return key.decode(), int(version), body


async def test_processes_with_and_without_redis_respond_alike(
    airline: Airline, second: Airline, alone: Airline, day: date, looks: list[itineraries.Market]
) -> None:
    flights = [flight("LHR", hub, datetime.combine(day, time(7))) for hub in ("CDG", "FRA", "VIE")]
    flights += [after(each, "BOM", SHORTEST) for each in flights] + [after(flights[0], "VIE", SHORTEST)]
    flights.append(after(flights[-1], "BOM", SHORTEST))
    await airline.add(*flights)
    computed = await airline.search("LHR", "BOM", day)
    assert len(computed.itineraries) == 5
    assert len(looks) == 1
    assert await airline.search("LHR", "BOM", day) == computed
    assert await second.search("LHR", "BOM", day) == computed
    assert len(looks) == 1, "the second one has it from Redis"
    assert await alone.search("LHR", "BOM", day) == computed
    assert len(looks) == 2
    assert await alone.search("LHR", "BOM", day) == computed
    assert len(looks) == 2, "it has a memory of its own"


async def test_only_routes_are_cached_and_no_seats(
    world: World, airline: Airline, way: tuple[NewFlight, NewFlight], day: date
) -> None:
    await airline.found("LHR", "BOM", day)
    async with Redis.from_url(world.servers.redis_url) as redis:
        key, _, body = await remembered(redis, day)
        assert 0 < await redis.ttl(key) <= 600
    assert json.loads(body) == [[each.flight_id for each in way], [[0, 1]]]


async def test_a_new_flight_is_found_at_once_everywhere(
    airline: Airline, second: Airline, alone: Airline, way: tuple[NewFlight, NewFlight], day: date
) -> None:
    everybody = (airline, second, alone)
    for each in everybody:
        assert await each.found("LHR", "BOM", day) == ids([way])
    # Two days later: the last flight of an itinerary may depart long after the first one.
    late = after(way[0], "SIN", timedelta(hours=8), 24 * 60)
    onward = after(late, "BOM", timedelta(hours=8), 300)
    await airline.add(onward)
    await airline.add(late)
    for each in everybody:
        assert await each.found("LHR", "BOM", day) == ids([way, (way[0], late, onward)])


async def test_a_cancelled_flight_disappears_at_once_everywhere(
    airline: Airline, second: Airline, alone: Airline, way: tuple[NewFlight, NewFlight], day: date
) -> None:
    everybody = (airline, second, alone)
    for each in everybody:
        assert await each.found("LHR", "BOM", day) == ids([way])
    await second.cancel(way[1].flight_id)
    for each in everybody:
        assert await each.found("LHR", "BOM", day) == set()


@pytest.mark.parametrize("left", ["older", "newer", "of flights that are gone"])
async def test_an_outdated_redis_entry_is_not_used(  # noqa: PLR0917
    world: World, airline: Airline, second: Airline, way: tuple[NewFlight, NewFlight], day: date, left: str
) -> None:
    await airline.found("LHR", "BOM", day)
    async with Redis.from_url(world.servers.redis_url) as redis:
        key, version, body = await remembered(redis, day)
        await redis.set(
            key,
            {
                "older": f"{version - 1} [[],[]]",
                "newer": f"{version + 1} [[],[]]",
                "of flights that are gone": f"{version} {body.replace(way[0].flight_id, 'GONE')}",
            }[left],
        )
    assert await second.found("LHR", "BOM", day) == ids([way])


async def test_concurrent_equal_searches_share_one_computation(
    airline: Airline, way: tuple[NewFlight, NewFlight], day: date, looks: list[itineraries.Market]
) -> None:
    answers = await asyncio.gather(*(airline.search("LHR", "BOM", day, seats=1 + n % 3) for n in range(60)))
    assert all(len(each.itineraries) == 1 for each in answers)
    assert len(looks) == 1


async def test_the_cache_has_a_size_limit(
    airline: Airline, day: date, looks: list[itineraries.Market], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_cache, "ROUTES_KEPT", 10)
    monkeypatch.setattr(timetable, "DAYS_KEPT", 2)
    flights = [flight("LHR", "CDG", datetime.combine(day + timedelta(days=n), time(7))) for n in range(9)]
    await airline.add(*flights)
    for _ in range(2):
        for each in flights:
            assert await airline.found("LHR", "CDG", each.departure_date) == ids([(each,)])
    assert len(looks) == 9, "what one process forgot, Redis had"


async def test_changes_are_found_at_once_during_concurrent_searches(
    airline: Airline, second: Airline, alone: Airline, way: tuple[NewFlight, NewFlight], day: date
) -> None:
    """A search that began before a change may end after it.

    It must not cache its routes for searches that begin after the change.
    """
    everybody = (airline, second, alone)
    stop = asyncio.Event()

    async def ask(one: Airline) -> None:
        while not stop.is_set():
            await one.search("LHR", "BOM", day)

    expected = ids([way])
    async with asyncio.TaskGroup() as asking:
        for one in everybody:
            asking.create_task(ask(one))
        for n in range(9):
            onward = after(way[0], "BOM", SHORTEST + timedelta(minutes=n))
            await airline.add(onward)
            expected |= ids([(way[0], onward)])
            assert [await one.found("LHR", "BOM", day) for one in everybody] == [expected] * 3
            if n % 3 == 0:
                await second.cancel(onward.flight_id)
                expected -= ids([(way[0], onward)])
                assert [await one.found("LHR", "BOM", day) for one in everybody] == [expected] * 3
        stop.set()
