"""A check-in service in this process, with its own database.

The seat service is a real one; the payment service and the scales are fakes.

Each file has its own instance, because all instances consume from one queue: an instance that outlives its file would
take the events of another file's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import pytest
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

from checkin_service.service import CHECKIN_SERVICE
from services import db
from services.db import Pool
from tests.callers import Callers
from tests.checkin import fakes
from tests.checkin.airport import Airport
from tests.checkin.fakes import Broker, Others, Payments, Scales
from tests.instances import database_with, running

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture(scope="package")
async def database_variables(world: World) -> dict[str, str]:
    """The environment variable with the URL of check-in's own database."""
    return await database_with(world, "checkin")


@pytest.fixture(scope="package")
async def others(world: World) -> AsyncIterator[Others]:
    """The fakes of the payment service and the scales."""
    payments, scales = Payments(), Scales()
    async with (
        fakes.serving(payments, scales) as address,
        Broker.opened(world.servers.amqp_url()) as broker,
    ):
        yield Others(payments, scales, broker, address)


@pytest.fixture(scope="package")
def variables(database_variables: dict[str, str], others: Others, callers: Callers) -> dict[str, str]:
    """The environment variables of the check-in services of these tests."""
    return database_variables | {
        "SKYHIGH_SEAT_ADDRESS": callers.address,
        "SKYHIGH_PAYMENT_ADDRESS": others.address,
        "SKYHIGH_WEIGHT_ADDRESS": others.address,
    }


@pytest.fixture(scope="module")
async def checkin(world: World, variables: dict[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Callers]:
    """Callers of a check-in service; `VARIABLES` of a file are its settings."""
    more: dict[str, str] = getattr(request.module, "VARIABLES", {})
    async with running(world, CHECKIN_SERVICE, CheckInServiceStub, **(variables | more)) as opened:
        yield opened


@pytest.fixture
async def checkin_database(
    variables: dict[str, str], checkin: Callers
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection with the check-in service's role, to inspect the database."""
    connection = await asyncpg.connect(
        variables["SKYHIGH_CHECKIN_DATABASE_URL"], server_settings={"search_path": "checkin"}
    )
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def pool(variables: dict[str, str], checkin: Callers) -> AsyncIterator[Pool]:
    """A pool like the service's own, for tests that call functions of the service."""
    opened = await db.connect(variables["SKYHIGH_CHECKIN_DATABASE_URL"], schema="checkin", size=4)
    yield opened
    await opened.close()


@pytest.fixture
async def airport(callers: Callers, checkin: Callers, others: Others, pool: Pool) -> AsyncIterator[Airport]:
    """A flight with 180 free seats, and the services that check-in works with."""
    opened = Airport(callers, checkin, others, pool)
    await opened.open()
    yield opened
    others.payments.away = others.scales.away = False
    others.scales.measured.clear()
