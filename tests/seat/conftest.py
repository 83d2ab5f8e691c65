"""Further seat services: a second, one with brief holds, an unswept, a strict one.

An instance with its own database belongs to one file: all instances consume from one queue, so an instance that
outlives its file would take the events of another file's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from tests.callers import Callers
from tests.dates import new_flight_id
from tests.instances import Instance, instance, own_database

if TYPE_CHECKING:
    from tests.conftest import World

NEVER = "3600"


@pytest.fixture(scope="package")
async def second(world: World) -> AsyncIterator[Callers]:
    """Callers of a second instance with the same database and cache."""
    async with instance(world) as other:
        yield other.callers


@pytest.fixture(scope="package")
async def brief(world: World) -> AsyncIterator[Callers]:
    """Callers whose check-in holds expire after 0.4 s by the real clock."""
    async with instance(world, SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS="0.4") as other:
        yield other.callers


@pytest.fixture(scope="module")
async def unswept(world: World) -> AsyncIterator[Instance]:
    """A service whose sweeper sleeps, so that a lapsed hold is not changed.

    It has its own database.
    """
    async with instance(
        world,
        database_url=await own_database(world),
        SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS=NEVER,
        SKYHIGH_SEAT_LAPSES_ALLOWED="1000",
    ) as alone:
        yield alone


@pytest.fixture
async def unswept_flight(unswept: Instance) -> str:
    """A flight of the service whose sweeper sleeps."""
    flight_id = new_flight_id()
    await unswept.callers.operations().provision(flight_id)
    return flight_id


@pytest.fixture(scope="module")
async def strict(world: World) -> AsyncIterator[Instance]:
    """A service that cools a principal down after two lapses: 60 s, then 120 s.

    It has its own database.
    """
    async with instance(
        world,
        database_url=await own_database(world),
        SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS="0.02",
        SKYHIGH_SEAT_LAPSES_ALLOWED="2",
    ) as other:
        yield other


@pytest.fixture
async def strict_flight(strict: Instance) -> str:
    """A flight of the strict service."""
    flight_id = new_flight_id()
    await strict.callers.operations().provision(flight_id)
    return flight_id


@pytest.fixture(scope="module")
async def brief_offers(world: World) -> AsyncIterator[Instance]:
    """A service whose waitlist has 0.3 s to claim a seat. It has its own database."""
    async with instance(world, database_url=await own_database(world), SKYHIGH_OFFER_WINDOW_SECONDS="0.3") as alone:
        yield alone
