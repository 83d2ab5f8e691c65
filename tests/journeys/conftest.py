"""The whole local stack as `make up` starts it, in a home of its own.

It has servers, services, mocks and gateway.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from deploy.local.port_table import PORT_SPAN
from deploy.local.process import port_is_free
from deploy.local.process_table import processes_of
from deploy.local.stack import Stack
from deploy.local.supervisor import Supervisor
from operations import schedule
from operations.commands.stack import JOURNEY_DAYS as DAYS
from operations.commands.stack import SCHEDULE_SECONDS
from operations.demo import loading


@dataclass(frozen=True, slots=True)
class Airline:
    """A running stack with the demo airline loaded, and the schedule of today and tomorrow."""

    stack: Stack
    supervisor: Supervisor

    @property
    def gateway_url(self) -> str:
        """The gateway's URL for clients."""
        return self.stack.addresses["SKYHIGH_GATEWAY_URL"]


@pytest.fixture(scope="package")
async def airline(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Airline]:
    """Yields the airline. The `skyhigh` commands find it by environment variables."""
    home = tmp_path_factory.mktemp("airline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKYHIGH_HOME", str(home))
        patch.setenv("SKYHIGH_PORT_BASE", str(free_port_base()))
        patch.setenv("SKYHIGH_FLIGHT_HORIZON_DAYS", str(DAYS))
        # These tests check the check-in service's own limit on guesses. The gateway would block the address first.
        patch.setenv("SKYHIGH_GATEWAY_FAILED_LOGINS", "1000000")
        patch.setenv("SKYHIGH_DRAIN_NOTICE_SECONDS", "0")
        stack = Stack.from_environment()
        stack.signing_keys.ensure()
        async with Supervisor(processes_of(stack), logs=home / "logs") as supervisor:
            for name, value in stack.addresses.items():
                patch.setenv(name, value)
            await loading.load_all()
            await schedule.wait_for_schedule(DAYS, within_seconds=SCHEDULE_SECONDS)
            yield Airline(stack, supervisor)
        stack.servers.remove()


def free_port_base() -> int:
    """Returns a base from which all ports of a stack are free, below those that the kernel assigns."""
    for _ in range(50):
        base = random.randrange(20_000, 32_000 - PORT_SPAN)
        if all(map(port_is_free, Stack.from_environment({"SKYHIGH_PORT_BASE": str(base)}).ports.values())):
            return base
    raise AssertionError("no free ports between 20000 and 32000")
