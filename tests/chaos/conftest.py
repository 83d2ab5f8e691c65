"""The seat service as real processes that tests kill, and servers that they stop and start."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy.local.process import LOOPBACK, Process, free_ports, serves_grpc
from deploy.local.supervisor import Supervisor
from tests.callers import Callers
from tests.conftest import World
from tests.dates import new_flight_id
from tests.instances import serves

SERVICE: Final = "skyhigh.seat.v1.SeatService"


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running seat service: one parent, two workers."""

    supervisor: Supervisor
    callers: Callers

    def workers(self) -> list[int]:
        """Returns the pids of the workers that are alive now."""
        (status,) = self.supervisor.statuses
        children = Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    async def serves(self) -> bool:
        """Returns whether any worker serves now."""
        (status,) = self.supervisor.statuses
        return await serves(status.port, SERVICE)


@pytest.fixture
async def fleet(world: World) -> AsyncIterator[Fleet]:
    """Yields a separate seat service for each test."""
    (port,) = free_ports(1)
    process = Process(
        name="seat",
        command=[sys.executable, "-m", "seat_service"],
        ready=serves_grpc(port, SERVICE),
        port=port,
        environment=world.environment(
            SKYHIGH_SEAT_LISTEN=f"{LOOPBACK}:{port}",
            SKYHIGH_SEAT_PROCESSES="2",
            SKYHIGH_LOG_LEVEL="warning",
            # On a busy machine no hold lapses during a test.
            SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS="3600",
        ),
    )
    async with Supervisor([process], logs=world.folder / "logs", restart=False) as supervisor:
        callers = Callers(f"{LOOPBACK}:{port}", world.keys)
        yield Fleet(supervisor, callers)
        await callers.close()


@pytest.fixture
async def chaotic_flight(fleet: Fleet) -> str:
    """Returns a flight that this fleet has provisioned."""
    flight_id = new_flight_id("CH")
    await fleet.callers.operations().provision(flight_id)
    return flight_id
