"""One running system for all attacks, and the checks after each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from services import telemetry
from tests.security import system as systems
from tests.security.belongings import Belongings, acquire
from tests.security.system import System
from tests.security.truth import Truth

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture(scope="package")
async def system(world: World) -> AsyncIterator[System]:
    """Yields the six services behind one Envoy."""
    async with systems.opened(world) as opened:
        yield opened


@pytest.fixture(scope="package")
async def belongings(system: System) -> Belongings:
    """Returns an owner's resources, one of each kind."""
    return await acquire(system)


def defects() -> float:
    """Returns the number of calls that ended as INTERNAL, in all services of this process."""
    samples = (sample for metric in telemetry.CALLS.collect() for sample in metric.samples)
    total = "skyhigh_calls_total"
    return sum(each.value for each in samples if each.name == total and each.labels["code"] == "INTERNAL")


@pytest.fixture(autouse=True)
def no_defect() -> Iterator[None]:
    """Fails every attack that a service answered with INTERNAL.

    The response that the attacker received does not matter.
    """
    before = defects()
    yield
    assert defects() == before, "a service answered INTERNAL"


@pytest.fixture(scope="package")
async def truth(system: System) -> AsyncIterator[Truth]:
    """Yields a reader of everything that the services have written."""
    async with Truth.opened(system.databases) as opened:
        yield opened


@pytest.fixture
async def nothing_changed(truth: Truth, belongings: Belongings) -> AsyncIterator[None]:
    """Fails an attack that changed any table of any service."""
    before = await truth.at_rest()
    yield
    after = await truth.now()
    assert {name for name in before if before[name] != after[name]} == set()
