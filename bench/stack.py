"""The measured stack: private servers, services, gateway, and the baseline server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from bench.load import LoadClient
from bench.processes import cpu_seconds, listeners
from bench.tokens import Signer
from deploy.local.port_table import free_port_base
from deploy.local.process import LOOPBACK, Process, free_ports
from deploy.local.process_table import processes_of
from deploy.local.servers.envoy import envoy
from deploy.local.servers.postgres import provision_schemas
from deploy.local.stack import Stack
from deploy.local.supervisor import StartError, Supervisor
from gateway.guard.settings import RateLimits
from gateway.render import write
from gateway.settings import GatewaySettings

PROCESSES: Final = 2
# The number of days for which the flight service has a schedule.
HORIZON_DAYS: Final = 4
# Longer than any run, so that no hold of one measure lapses during another. P6 sets its own `expire_time`.
HOLD_TTL_SECONDS: Final = 6 * 3600
START_SECONDS: Final = 60
FOLLOW_SECONDS: Final = 2
ALWAYS: Final = ("postgres", "redis", "epmd", "rabbitmq", "seat")
FLIGHT_TABLES: Final = ("flights", "seats", "availability", "offers", "passengers", "departures")
HOLD_TABLES: Final = ("holds", "hold_seats", "seat_events", "outbox", "inbox", "idempotency")


@dataclass(frozen=True, slots=True)
class SeatServer:
    """A running seat service: its port, its database, and the pid for its CPU."""

    port: int
    database_url: str
    pid: int

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Opens a connection with the service's own role, for use outside of measurements."""
        connection = await asyncpg.connect(self.database_url, command_timeout=900)
        try:
            yield connection
        finally:
            await connection.close()

    async def empty(self) -> None:
        """Deletes all flights, holds and events."""
        await self._truncate(*FLIGHT_TABLES, *HOLD_TABLES)

    async def forget_flights(self) -> None:
        """Deletes all flights and their seats, but keeps the tables of holds at their size."""
        await self._truncate(*FLIGHT_TABLES)

    async def _truncate(self, *tables: str) -> None:
        async with self.connection() as connection:
            await connection.execute(f"TRUNCATE {', '.join(tables)}")


@dataclass(frozen=True, slots=True)
class BenchStack:
    """The stack for the measures: on loopback, with its data in `folder`, for one run."""

    folder: Path
    local: Stack
    supervisor: Supervisor
    signer: Signer
    load: LoadClient

    @property
    def seat(self) -> SeatServer:
        """The seat service."""
        return SeatServer(self.local.ports["seat"], self.local.servers.database_url("seat"), self.pid("seat"))

    @property
    def gateway_port(self) -> int:
        """The port of the gateway."""
        return self.local.ports["gateway"]

    def pid(self, name: str) -> int:
        """Returns the pid of a process of the stack."""
        pid = next(status.pid for status in self.supervisor.statuses if status.name == name)
        assert pid is not None, f"{name} does not run"
        return pid

    def cpu(self, name: str) -> float:
        """Returns the CPU seconds that a process of the stack and its descendants have used."""
        return cpu_seconds(self.pid(name))

    async def superuser(self, database: str) -> asyncpg.Connection:
        """Opens a superuser connection to a database of the private Postgres."""
        return await asyncpg.connect(
            host=LOOPBACK,
            port=self.local.ports["postgres"],
            user="postgres",
            password=self.superuser_password,
            database=database,
            command_timeout=900,
        )

    @property
    def superuser_password(self) -> str:
        """The superuser's password of the private Postgres."""
        return self.local.secrets["postgres/postgres"]

    @asynccontextmanager
    async def second_seat_server(self, database: str) -> AsyncIterator[SeatServer]:
        """Runs another seat service during the block, on a new database of this Postgres."""
        connection = await self.superuser("postgres")
        try:
            await connection.execute(f"CREATE DATABASE {database}")
        finally:
            await connection.close()
        connection = await self.superuser(database)
        try:
            await provision_schemas(connection, {"seat": self.local.secrets["postgres/seat"]})
        finally:
            await connection.close()
        first = next(process for process in processes_of(self.local) if process.name == "seat")
        # No worker and metrics ports (0), because each of its processes would need further ports.
        port = free_ports(1)[0]
        database_url = urlsplit(self.seat.database_url)._replace(path=f"/{database}").geturl()
        environment = {
            **first.environment,
            **_seat_settings(),
            "SKYHIGH_SEAT_LISTEN": f"{LOOPBACK}:{port}",
            "SKYHIGH_SEAT_DATABASE_URL": database_url,
            "SKYHIGH_SEAT_WORKER_PORT": "0",
            "SKYHIGH_SEAT_METRICS_PORT": "0",
            "SKYHIGH_REDIS_URL": urlsplit(first.environment["SKYHIGH_REDIS_URL"])._replace(path="/1").geturl(),
        }
        process = dataclasses.replace(
            first, name=database, port=port, environment=environment, ready=_all_listen(port), after=()
        )
        async with Supervisor([process], logs=self.folder / "logs", restart=False) as supervisor:
            pid = supervisor.statuses[0].pid
            assert pid is not None
            yield SeatServer(port, database_url, pid)

    async def raise_address_limits(self) -> None:
        """Raises the limits per address: the load of many callers comes from one address."""
        connection = await asyncpg.connect(self.local.servers.database_url("gateway"))
        try:
            await connection.execute(
                "UPDATE gateway.limits SET requests_per_minute = 10000000, burst = 1000000 WHERE key = 'ADDRESS'"
            )
        finally:
            await connection.close()
        # Each process polls for changed limits, so the change takes effect within this time.
        await asyncio.sleep(FOLLOW_SECONDS)

    @asynccontextmanager
    async def gateway_without_limits(self) -> AsyncIterator[Envoy]:
        """Runs another Envoy, without rate limits, for the seat service during the block."""
        port, admin_port = free_ports(2)
        settings = GatewaySettings(
            gateway_port=port,
            gateway_admin_port=admin_port,
            seat_address=tuple(f"{LOOPBACK}:{self.local.ports['seat_worker'] + index}" for index in range(PROCESSES)),
            jwks=Path(self.local.tokens["SKYHIGH_JWKS"]),
            token_issuer=self.local.tokens["SKYHIGH_TOKEN_ISSUER"],
            token_audience=self.local.tokens["SKYHIGH_TOKEN_AUDIENCE"],
            rate_limits=RateLimits.OFF,
        )
        process = envoy(write(settings, self.folder / "gateway-without-limits"), port=port)
        # It does not know the ports of the other services, and the measure does not call them. So the probe only checks
        # that it listens.
        process = dataclasses.replace(process, name="gateway-without-limits", ready=_listens(port))
        async with Supervisor([process], logs=self.folder / "logs", restart=False) as supervisor:
            pid = supervisor.statuses[0].pid
            assert pid is not None
            yield Envoy(port, pid)

    @asynccontextmanager
    async def echo_server(
        self, *, hold: bytes = b"", seat_map: bytes = b"", search: bytes = b""
    ) -> AsyncIterator[EchoServer]:
        """Runs the baseline server, which responds with these bytes, during the block."""
        port = free_ports(1)[0]
        answers = {"hold": hold, "seat_map": seat_map, "search": search}
        for name, answer in answers.items():
            (self.folder / f"{name}.bin").write_bytes(answer)
        command = [sys.executable, "-m", "bench.echo_server", "--port", str(port), "--processes", str(PROCESSES)]
        for name in answers:
            command += [f"--{name.replace('_', '-')}", str(self.folder / f"{name}.bin")]
        process = Process(name="echo", command=command, ready=_all_listen(port), port=port)
        async with Supervisor([process], logs=self.folder / "logs", restart=False) as supervisor:
            pid = supervisor.statuses[0].pid
            assert pid is not None
            yield EchoServer(port, pid)


@dataclass(frozen=True, slots=True)
class Envoy:
    """Another running gateway."""

    port: int
    pid: int


@dataclass(frozen=True, slots=True)
class EchoServer:
    """The running baseline server."""

    port: int
    pid: int


@asynccontextmanager
async def running(needed: Collection[str]) -> AsyncIterator[BenchStack]:
    """Starts the servers, the seat service and the `needed` processes in a new folder.

    Stops them and removes the folder at the end. Other processes are left out, because they would take CPU of the two
    cores. Raises SystemExit if a process does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="skyhigh-bench-"))
    signer = Signer()
    try:
        local = Stack.from_environment(
            {
                "SKYHIGH_HOME": str(folder),
                "SKYHIGH_PORT_BASE": str(free_port_base()),
                "SKYHIGH_JWKS": str(folder / "jwks.json"),
            }
        )
        local.signing_keys.ensure()
        signer.write_jwks(folder / "jwks.json", others=local.signing_keys.jwks)
        processes = [_as_measured(process) for process in processes_of(local) if process.name in {*ALWAYS, *needed}]
        load = LoadClient(folder)
        try:
            with (folder / "supervisor.log").open("w") as log, contextlib.redirect_stderr(log):
                supervisor = Supervisor(processes, logs=folder / "logs", restart=False)
                try:
                    await asyncio.wait_for(supervisor.start(), START_SECONDS)
                    yield BenchStack(folder, local, supervisor, signer, load)
                finally:
                    await supervisor.stop()
        except StartError as error:
            # The message includes the end of the log, because the folder with the log is removed below.
            raise SystemExit(f"bench: {error}\n{_end_of_log(error)}") from error
        finally:
            local.servers.remove()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_measured(process: Process) -> Process:
    if process.name in ("flight", "booking"):
        return dataclasses.replace(
            process,
            environment={**process.environment, **_settings_of(process.name)},
            ready=_after(process.ready, _all_listen(process.port)),
        )
    if process.name != "seat":
        return process
    return dataclasses.replace(
        process,
        environment={**process.environment, **_seat_settings()},
        ready=_after(process.ready, _all_listen(process.port)),
    )


def _seat_settings() -> dict[str, str]:
    return {
        "SKYHIGH_SEAT_PROCESSES": str(PROCESSES),
        "SKYHIGH_BOOKING_HOLD_TTL_SECONDS": str(HOLD_TTL_SECONDS),
        "SKYHIGH_LOG_LEVEL": "warning",
    }


def _settings_of(service: str) -> dict[str, str]:
    settings = {f"SKYHIGH_{service.upper()}_PROCESSES": str(PROCESSES), "SKYHIGH_LOG_LEVEL": "warning"}
    return settings | ({"SKYHIGH_FLIGHT_HORIZON_DAYS": str(HORIZON_DAYS)} if service == "flight" else {})


def _end_of_log(error: StartError, lines: int = 20) -> str:
    """Returns the last lines of the log whose path ends the error's message."""
    log = Path(str(error).rpartition(" ")[2])
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _all_listen(port: int) -> Callable[[], Awaitable[bool]]:
    """Returns a probe that is ready when every process of a server listens on the port.

    Before that, the first process would get all connections.
    """

    async def probe() -> bool:
        return listeners(port) >= PROCESSES

    return probe


def _listens(port: int) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return listeners(port) > 0

    return probe


def _after(*probes: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return all([await one() for one in probes])

    return probe
