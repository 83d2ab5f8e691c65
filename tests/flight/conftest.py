"""A flight service in this process, with its own database and the session's seats.

Each file has its own instance, because all instances consume from one queue: an instance that outlives its file would
take the events of another file's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from flight_service.service import FLIGHT_SERVICE
from services import db
from tests.callers import Callers
from tests.flight.airline import Airline
from tests.instances import Database, database_with, running

if TYPE_CHECKING:
    from tests.conftest import World

# A search reads from one day before its date to six days after it, so the days of most tests are ten days apart.
# CreateFlight refuses days more than two years ahead, so the tests of these files, which read one day only, have
# adjacent days.
_ONE_DAY_FILES: Final = frozenset({"test_create_flight.py", "test_schema.py"})
_DAYS: Final = iter(range(20, 660, 10))
_DAYS_SIDE_BY_SIDE: Final = iter(range(662, 729))


@pytest.fixture(scope="package")
async def variables(world: World, callers: Callers) -> dict[str, str]:
    """The variables of the flight services; only tests add flights to the schedule."""
    return {
        **await database_with(world, "flight"),
        "SKYHIGH_SEAT_ADDRESS": callers.address,
        "SKYHIGH_FLIGHT_HORIZON_DAYS": "0",
    }


@pytest.fixture(scope="module")
async def airline(world: World, callers: Callers, variables: dict[str, str]) -> AsyncIterator[Airline]:
    """The flight service of a file."""
    url = variables["SKYHIGH_FLIGHT_DATABASE_URL"]
    async with running(world, FLIGHT_SERVICE, FlightServiceStub, **variables) as opened:
        pool = await db.connect(url, schema="flight", size=4)
        yield Airline(opened, pool, callers)
        await pool.close()


@pytest.fixture
async def flight_database(airline: Airline, variables: dict[str, str]) -> AsyncIterator[Database]:
    """A connection with the flight service's role, to inspect the database."""
    url = variables["SKYHIGH_FLIGHT_DATABASE_URL"]
    database = await asyncpg.connect(url, server_settings={"search_path": "flight"})
    yield database
    await database.close()


@pytest.fixture
def day(request: pytest.FixtureRequest) -> date:
    """A future day that no other test uses."""
    days = _DAYS_SIDE_BY_SIDE if request.path.name in _ONE_DAY_FILES else _DAYS
    return datetime.now(UTC).date() + timedelta(days=next(days))
