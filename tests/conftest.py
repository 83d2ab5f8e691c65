"""Real servers for the tests, and a seat service in the process of the tests.

Each test process starts its own Postgres, Redis and RabbitMQ once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import asyncpg
import hypothesis
import pytest

# isort: split
# This import comes before that of any service, because a service reads the variable when it is imported.
import tests.patience  # noqa: F401

# isort: split

from deploy.local.secrets import Secrets, SigningKeys
from deploy.local.servers.postgres import DATABASE
from deploy.local.servers.private import ServerPorts, Servers
from deploy.local.supervisor import Supervisor
from seat_service.service import SEAT_SERVICE
from seat_service.settings import SeatSettings
from services import app, migrate, telemetry
from services.settings import ServiceSettings, load
from tests.callers import AUDIENCE, ISSUER, Caller, Callers
from tests.dates import new_flight_id
from tests.instances import MAINTENANCE_DATABASE, TEMPLATE_DATABASE
from tests.measuring import pytest_runtest_protocol
from tests.scheduling import pytest_collection_modifyitems, pytest_xdist_make_scheduler

# pytest looks for its hooks in this module.
__all__ = ["pytest_collection_modifyitems", "pytest_runtest_protocol", "pytest_xdist_make_scheduler"]

SERVICES: Final = ("seat", "checkin", "waitlist", "payment", "flight", "booking", "gateway")
PACKAGES: Final = {"gateway": "gateway.guard"}
AnySettings = TypeVar("AnySettings", bound=ServiceSettings)

# The duration of a Hypothesis example depends on the machine more than on the code, so examples have no deadline.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


class World:
    """The running servers, their addresses and their keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers = Servers(
            folder=folder,
            ports=ServerPorts.free(),
            secrets=Secrets(folder / "secrets.json"),
            services=SERVICES,
            durable=False,
        )
        self.keys = SigningKeys(folder / "keys")
        self.keys.ensure()
        self.token_files = {
            service: self.keys.write_service_token(service, issuer=ISSUER, audience=AUDIENCE) for service in SERVICES
        }
        self.supervisor = Supervisor(self.servers.processes(), logs=folder / "logs", restart=False)

    async def migrate(self) -> None:
        """Migrates the schemas of all services as soon as Postgres runs.

        Then copies the database; the copy is the template of the databases of single tests.
        """
        await self.supervisor.start("postgres")
        for service in SERVICES:
            package = PACKAGES.get(service, f"{service}_service")
            await migrate.migrate(self.servers.database_url(service), schema=service, package=package)
        url = self.servers.database_url()
        owner = await asyncpg.connect(f"{url.rpartition('/')[0]}/{MAINTENANCE_DATABASE}")
        await owner.execute(f"CREATE DATABASE {TEMPLATE_DATABASE} TEMPLATE {DATABASE}")
        await owner.close()

    def environment(self, **more: str) -> dict[str, str]:
        """Returns the environment variables of the services; `more` override them."""
        own = {
            f"SKYHIGH_{service.upper()}_{name}": value
            for service in SERVICES
            for name, value in {
                "DATABASE_URL": self.servers.database_url(service),
                "AMQP_URL": self.servers.amqp_url(service),
                "TOKEN_FILE": str(self.token_files[service]),
            }.items()
        }
        return own | {
            "SKYHIGH_REDIS_URL": self.servers.redis_url,
            "SKYHIGH_JWKS": str(self.keys.jwks),
            "SKYHIGH_SESSION_KEY": str(self.keys.session_key),
            "SKYHIGH_TOKEN_ISSUER": ISSUER,
            "SKYHIGH_PAGE_TOKEN_KEY": "k" * 32,
            "SKYHIGH_DRAIN_NOTICE_SECONDS": "0",
            # Tests share callers, and their holds lapse during a slow run. Without these limits the seat service would
            # cool the callers down.
            "SKYHIGH_SEAT_LAPSES_ALLOWED": "1000000",
            "SKYHIGH_SEAT_LAPSES_ALLOWED_PER_ADDRESS": "1000000",
            # No server listens at this address. A test that needs the flight service sets its own address.
            "SKYHIGH_FLIGHT_ADDRESS": "127.0.0.1:9",
            **more,
        }

    def settings(self, **more: str) -> SeatSettings:
        """Returns the settings of the seat service; `more` are environment variables."""
        return self.settings_of(SeatSettings, **more)

    def settings_of(self, settings: type[AnySettings], **more: str) -> AnySettings:
        """Returns the settings of a service; `more` are environment variables."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(**more).items():
                patch.setenv(name, value)
            return load(settings)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[World]:
    """Starts private servers for the duration of the block."""
    world = World(folder)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(world.supervisor.stop)
        # RabbitMQ takes longest to start, so the databases are migrated in the meantime.
        await asyncio.gather(world.supervisor.start(), world.migrate())
        yield world


@pytest.fixture(scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The servers of the whole test session."""
    telemetry.configure_logging("seat", "error")
    async with opened(tmp_path_factory.mktemp("world")) as world:
        yield world
    world.servers.remove()


@pytest.fixture(scope="session")
async def callers(world: World) -> AsyncIterator[Callers]:
    """Callers of a seat service that runs in this process."""
    async with app.serving(SEAT_SERVICE, world.settings(), ["127.0.0.1:0"]) as (port,):
        callers = Callers(f"127.0.0.1:{port}", world.keys)
        yield callers
        await callers.close()


@pytest.fixture
def agent(callers: Callers) -> Caller:
    """An airport agent, a new one for each test."""
    return callers.agent(f"agent-{secrets.token_hex(4)}")


@pytest.fixture
def service(callers: Callers) -> Caller:
    """The waitlist service as a caller."""
    return callers.service("waitlist")


@pytest.fixture
def operations(callers: Callers) -> Caller:
    """A caller with the role operations."""
    return callers.operations("ops")


@pytest.fixture
async def flight(operations: Caller) -> str:
    """A new flight with 180 free seats, rows 1 to 30."""
    flight_id = new_flight_id()
    await operations.provision(flight_id)
    return flight_id


@pytest.fixture
async def database(world: World) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection with the seat service's role, to inspect the database."""
    connection = await asyncpg.connect(world.servers.database_url("seat"), server_settings={"search_path": "seat"})
    yield connection
    await connection.close()


@pytest.fixture
def request_id() -> str:
    """A new idempotency key."""
    return str(uuid4())
