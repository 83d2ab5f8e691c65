"""A process is killed at some of its steps; planted bugs are found so. `python -m tests.system.kill_points` plays all.

`SKYHIGH_TEST_SEED` chooses the steps; the log names the seed.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.system.kill_points import planted
from tests.system.kill_points.lane import lane
from tests.system.kill_points.run import calm_run, killed_run, play
from tests.system.kill_points.scenarios import SCENARIOS
from tests.system.kill_points.steps import Point, points_of

POINTS_PER_SCENARIO: Final = 2
_log = logging.getLogger(__name__)


@pytest.mark.timeout(1200)
async def test_a_process_killed_at_a_step_leaves_nothing_wrong(tmp_path: Path) -> None:
    seed = os.environ.get("SKYHIGH_TEST_SEED", secrets.token_hex(4))
    _log.info("SKYHIGH_TEST_SEED=%s", seed)
    chosen = random.Random(seed)

    def choose(points: Sequence[Point]) -> Sequence[Point]:
        return chosen.sample(points, POINTS_PER_SCENARIO)

    results = await play(tmp_path, SCENARIOS, lanes=1, choose=choose, tell=_log.info, last_look=False)
    assert results.wrong == []
    assert any(outcome.died for outcome in results.outcomes)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("bug", "scenario", "point"),
    [
        ("the relay marks before it publishes", "relay", "before relay: amqp publish seat.released.v1 #1"),
        ("the answer is not stored", "hold", "after call: postgres COMMIT; #1 in seat_service/inventory"),
    ],
)
async def test_a_planted_bug_is_found(tmp_path: Path, bug: str, scenario: str, point: str) -> None:
    async with lane(tmp_path, **{planted.VARIABLE: bug}) as on:
        _, ios = await calm_run(on, SCENARIOS[scenario])
        (chosen,) = [each for each in points_of(ios) if str(each).startswith(point)]
        outcome = await killed_run(on, SCENARIOS[scenario], chosen)
    assert outcome.died
    assert outcome.violations
