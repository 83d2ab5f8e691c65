"""A bounded run of the tester on a stack of its own: what its clients saw agrees with the ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.system import report
from tests.system.generator import Generator
from tests.system.lives import Customer, Desk, Intruder, ManifestPassenger, Operations, Reader
from tests.system.run import Plan, run

OPERATIONS: Final = 1200
# On a busy machine fewer operations are played.
LONGEST_SECONDS: Final = 18.0
LIVES: Final = {Operations: 1, ManifestPassenger: 6, Customer: 6, Desk: 1, Reader: 1, Intruder: 1}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [12])
async def test_clients_of_a_whole_airline_see_what_the_ledgers_say(seed: int, tmp_path: Path) -> None:
    plan = Plan(
        seed=seed,
        seconds=LONGEST_SECONDS,
        operations=OPERATIONS,
        folder=tmp_path,
        generator=Generator(seed, lives=LIVES),
        departures=False,
    )
    outcome = await run(plan)
    told = "\n".join(report.lines(outcome))
    assert outcome.good, told
    played = {operation.call for operation in outcome.history if operation.ok}
    assert played >= {"CreateFlight", "ImportManifest", "CreateSession", "CreateBooking", "HoldSeat", "GetSeatMap"}, (
        told
    )
