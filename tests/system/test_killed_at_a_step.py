"""A process is killed at some of its steps; planted bugs are found so. `python -m tests.system.kill_points` plays all.

`SKYHIGH_TEST_SEED` chooses the steps; the log names the seed. As many of them are played as fit into half a minute.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest
import pytest_asyncio

from tests.system.kill_points import planted
from tests.system.kill_points.lane import Lane, lane
from tests.system.kill_points.run import Outcome, calm_run, killed_run
from tests.system.kill_points.scenarios import SCENARIOS, Scenario
from tests.system.kill_points.steps import Nth, Side, points_of

BUDGET_SECONDS: Final = 30.0
_log = logging.getLogger(__name__)


@pytest_asyncio.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lane]:
    """Provides the servers and services of this file."""
    async with lane(tmp_path_factory.mktemp("lane")) as opened:
        yield opened


def _rounds(chosen: random.Random) -> Iterator[list[tuple[Scenario, Nth]]]:
    """Yields rounds of one run of each scenario, without end."""
    while True:
        scenarios = chosen.sample(list(SCENARIOS.values()), len(SCENARIOS))
        yield [(each, Nth(chosen.randint(1, each.ios), chosen.choice(list(Side)))) for each in scenarios]


@pytest.mark.timeout(600)
async def test_a_process_killed_at_a_step_leaves_nothing_wrong(on: Lane) -> None:
    seed = os.environ.get("SKYHIGH_TEST_SEED") or secrets.token_hex(4)
    _log.info("SKYHIGH_TEST_SEED=%s", seed)
    outcomes: list[Outcome] = []
    end = time.monotonic() + BUDGET_SECONDS
    for runs in _rounds(random.Random(seed)):
        for scenario, nth in runs:
            if time.monotonic() < end:
                outcomes.append(await killed_run(on, scenario, nth))
        if time.monotonic() >= end:
            break
    violations = await on.violations()
    assert [str(outcome) for outcome in outcomes if outcome.violations] + violations == [], f"seed {seed}"
    # Not each: an I/O that depends on what is cached, or on what runs beside it, is not always there.
    assert sum(outcome.died for outcome in outcomes) > len(outcomes) / 2, f"seed {seed}"


@pytest.mark.timeout(600)
async def test_a_planted_bug_is_found_at_its_step(on: Lane) -> None:
    bugs = {
        "the answer is not stored": ("hold", "after call: postgres COMMIT; #1 in seat_service/inventory"),
    }
    seat = on.workers["seat"]
    for bug, (name, text) in bugs.items():
        calm, ios = await calm_run(on, SCENARIOS[name])
        assert calm.violations == []
        points = [each for each in points_of(ios) if str(each).startswith(text)]
        assert points, [str(each) for each in points_of(ios)]
        right, seat.variables = seat.variables, {**seat.variables, planted.VARIABLE: bug}
        await seat.stop()
        await on.restart("seat")
        outcome = await killed_run(on, SCENARIOS[name], points[0])
        assert outcome.violations, bug
        seat.variables = right
        await seat.stop()
        await on.restart("seat")
