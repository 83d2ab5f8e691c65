"""A bounded run of the tester on a stack of its own, with faults: what its clients saw agrees with the ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.system import report
from tests.system.faults.schedule import KINDS
from tests.system.generator import Generator
from tests.system.lives import Customer, Desk, Intruder, ManifestPassenger, Operations, Reader
from tests.system.run import SETTINGS, Plan, run

# Its schedule kills the workers of the seat service and cuts commits.
SEED: Final = 146
SECONDS: Final = 15.0
LIVES: Final = {Operations: 1, ManifestPassenger: 6, Customer: 6, Desk: 1, Reader: 1, Intruder: 1}
# Faults that begin within a second, so that two of them fit into the run.
FAULTS: Final = frozenset({"a worker killed", "database sessions ended", "Redis flushed", "commits cut"})
# The system is at rest when the last of these times has passed.
SHORTER: Final = {
    "SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS": "4",
    "SKYHIGH_BOOKING_HOLD_TTL_SECONDS": "8",
    "SKYHIGH_PAYMENT_DEADLINE_SECONDS": "8",
    "SKYHIGH_PAYMENT_PATIENCE_SECONDS": "12",
}


@pytest.mark.timeout(600)
async def test_clients_of_a_whole_airline_agree_with_the_ledgers(tmp_path: Path) -> None:
    plan = Plan(
        seed=SEED,
        seconds=SECONDS,
        with_faults=True,
        kinds=[kind for kind in KINDS if kind.name in FAULTS],
        folder=tmp_path,
        settings={**SETTINGS, **SHORTER},
        generator=Generator(SEED, lives=LIVES),
        departures=False,
    )
    outcome = await run(plan)
    told = "\n".join(report.lines(outcome))
    assert outcome.good, told
    assert outcome.faults, told
    # A busy machine plays less; but without these there is nothing to check.
    assert {operation.call for operation in outcome.history if operation.ok} >= {"CreateFlight", "HoldSeat"}, told
