"""Two waitlist processes are killed in turn while seats are released (WL-4).

The waitlist stays in order.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb_checkin
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb
from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceStub

from checkin_service.service import CHECKIN_SERVICE
from deploy.local.process import LOOPBACK, Process, free_ports, serves_grpc
from deploy.local.supervisor import Supervisor
from operations.invariants.waitlists import WAITLIST_INVARIANTS
from seat_service.service import SEAT_SERVICE
from services import app
from tests.booking.agency import patiently
from tests.callers import Caller, Callers, a_few_at_once
from tests.checkin.airport import facts
from tests.conftest import World, opened
from tests.dates import new_flight_id
from tests.instances import running, serves
from tests.waiting import eventually, pause

SERVICE = "skyhigh.waitlist.v1.WaitlistService"
FLIGHTS = 2
LAYOUT = "AT72-70Y"
SEATS_PER_FLIGHT = 70
WAITING_PER_FLIGHT = 120
KILL_EVERY_SECONDS = 1
# Processes that die while seats are released: one before the second third of the seats, one before the last.
KILLS = 2
# Sufficient for a busy machine.
REST_SECONDS = 120
# The longest start of a process on a busy machine.
START_SECONDS = 30
# Each locator once. Of a thousand random ones, two are equal in one run of a thousand, and then a passenger would wait
# already.
PNRS = map("".join, itertools.product("ABCDEFGHJKMNPQRSTUVWXYZ", repeat=6))


class Pair:
    """Two waitlist services with one worker each, on one database and one queue."""

    def __init__(self, supervisor: Supervisor, callers: list[Callers]) -> None:
        self._supervisor = supervisor
        self.callers = callers
        self.killed = 0

    @asynccontextmanager
    async def dying(self) -> AsyncIterator[None]:
        """Kills workers for as long as the block lasts."""
        killing = asyncio.create_task(self._kill_now_and_then())
        try:
            yield
        finally:
            killing.cancel()
            with suppress(asyncio.CancelledError):
                await killing

    async def _kill_now_and_then(self) -> None:
        """Kills one worker after the other, never both at once.

        Its parent starts a new one.
        """
        await pause(KILL_EVERY_SECONDS)
        while True:
            status = self._supervisor.statuses[self.killed % 2]
            assert status.pid is not None
            with suppress(ProcessLookupError):
                for child in children_of(status.pid):
                    os.kill(child, signal.SIGKILL)
            self.killed += 1
            back = eventually(partial(serves, status.port, SERVICE), within_seconds=START_SECONDS)
            await asyncio.gather(pause(KILL_EVERY_SECONDS), back)


def children_of(pid: int) -> list[int]:
    """Returns the pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Yields servers for this module alone.

    A waitlist service of other tests would ask its own manifests, and end these entries.
    """
    async with opened(tmp_path_factory.mktemp("waitlist")) as world:
        yield world


@pytest.fixture(scope="module")
async def callers(world: World) -> AsyncIterator[Callers]:
    """Yields the callers of the seat service, which is not killed."""
    async with app.serving(SEAT_SERVICE, world.settings(), [f"{LOOPBACK}:0"]) as (port,):
        callers = Callers(f"{LOOPBACK}:{port}", world.keys)
        yield callers
        await callers.close()


@pytest.fixture
async def checkin(world: World, callers: Callers) -> AsyncIterator[Callers]:
    """Yields the callers of the check-in service, which is not killed."""
    async with running(world, CHECKIN_SERVICE, CheckInServiceStub, SKYHIGH_SEAT_ADDRESS=callers.address) as served:
        yield served


@pytest.fixture
async def pair(world: World, callers: Callers, checkin: Callers) -> AsyncIterator[Pair]:
    """Yields both waitlist services, ready."""
    ports = free_ports(2)
    processes = [
        Process(
            name=f"waitlist-{port}",
            command=[sys.executable, "-m", "waitlist_service"],
            ready=serves_grpc(port, SERVICE),
            port=port,
            environment=world.environment(
                SKYHIGH_WAITLIST_LISTEN=f"{LOOPBACK}:{port}",
                SKYHIGH_WAITLIST_PROCESSES="1",
                SKYHIGH_SEAT_ADDRESS=callers.address,
                SKYHIGH_CHECKIN_ADDRESS=checkin.address,
                SKYHIGH_LOG_LEVEL="error",
            ),
        )
        for port in ports
    ]
    async with Supervisor(processes, logs=world.folder / "logs", restart=False) as supervisor:
        both = [Callers(f"{LOOPBACK}:{port}", world.keys, WaitlistServiceStub) for port in ports]
        yield Pair(supervisor, both)
        for each in both:
            await each.close()


async def full_flight(callers: Callers) -> tuple[str, dict[str, seats.Hold]]:
    """Returns a flight with all seats confirmed, and their holds."""
    flight_id = new_flight_id("KW")
    await callers.operations().provision(flight_id, LAYOUT)
    agent = callers.agent("full")
    numbers = sorted(await agent.states(flight_id))
    holds = await a_few_at_once(agent.hold(flight_id, number, f"X-{number}") for number in numbers)
    return flight_id, dict(zip(numbers, await a_few_at_once(map(agent.confirm, holds)), strict=True))


async def book(checkin: Callers, flight_id: str) -> list[str]:
    """Adds passengers to a flight's manifest, each with a locator of its own.

    Returns the locators.
    """
    pnrs = [next(PNRS) for _ in range(WAITING_PER_FLIGHT)]
    await checkin.operations().ImportManifest(
        pb_checkin.ImportManifestRequest(
            flight_id=flight_id,
            flight=facts(),
            passengers=[
                pb_checkin.ManifestPassenger(passenger_id=f"{pnr}-1", pnr=pnr, given_name="Ada", last_name="Byron")
                for pnr in pnrs
            ],
        )
    )
    return pnrs


async def join(waitlist: Callers, flight_id: str, pnr: str) -> str:
    """Joins a passenger to the waitlist for any seat; returns the entry's id."""
    passenger: Caller = waitlist.passenger(pnr=pnr)
    request = pb.JoinWaitlistRequest(flight_id=flight_id, passenger_id=f"{pnr}-1", request_id=str(uuid4()))
    entry: pb.WaitlistEntry = await patiently(lambda: passenger.JoinWaitlist(request))
    return entry.entry_id


@pytest.mark.timeout(900)
async def test_the_waitlist_order_holds_while_processes_are_killed(
    world: World, callers: Callers, checkin: Callers, pair: Pair
) -> None:
    flights = dict([await full_flight(callers) for _ in range(FLIGHTS)])
    booked = {flight_id: iter(await book(checkin, flight_id)) for flight_id in flights}
    for _ in range(WAITING_PER_FLIGHT // 20):
        await asyncio.gather(
            *(join(pair.callers[n % 2], flight_id, next(booked[flight_id])) for flight_id in flights for n in range(20))
        )

    owner = await asyncpg.connect(world.servers.database_url())

    async def at_rest() -> bool:
        left: int = await owner.fetchval(
            """
            SELECT (SELECT count(*) FROM seat.seats WHERE flight_id = ANY($1) AND state <> 'CONFIRMED')
                 + (SELECT count(*) FROM waitlist.entries
                    WHERE flight_id = ANY($1) AND state = 'WAITING' AND claim_id IS NOT NULL)
            """,
            list(flights),
        )
        return left == 0

    try:
        async with pair.dying():
            agent = callers.agent("full")
            for freed, number in enumerate(next(iter(flights.values()))):
                deaths = freed * (KILLS + 1) // SEATS_PER_FLIGHT

                async def killed(deaths: int = deaths) -> bool:
                    return pair.killed >= deaths

                await eventually(killed)
                await asyncio.gather(*(agent.cancel(holds[number]) for holds in flights.values()))
                await pause(0.02)
        # The kills have ended. On a slow machine no process would otherwise live long enough to finish its claims.
        await eventually(at_rest, within_seconds=REST_SECONDS)
        for invariant in WAITLIST_INVARIANTS:
            if not invariant.needs_service:
                assert await owner.fetch(invariant.offenders) == [], invariant.name
        rows = await owner.fetch(
            """
            SELECT flight_id, state::text, count(*) AS entries, count(DISTINCT seat_number) AS seats,
                   min(number) AS first, max(number) AS last
            FROM waitlist.entries WHERE flight_id = ANY($1) GROUP BY flight_id, state
            """,
            list(flights),
        )
    finally:
        await owner.close()
    for flight_id in flights:
        (assigned,) = [row for row in rows if row["flight_id"] == flight_id and row["state"] == "ASSIGNED"]
        assert assigned["entries"] == assigned["seats"] == SEATS_PER_FLIGHT
        assert (assigned["first"], assigned["last"]) == (1, SEATS_PER_FLIGHT)
