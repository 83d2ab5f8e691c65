"""`make test DAYS=…`: every process sees the moved date, and every wait keeps its length."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.moved_clock.clocks import SECONDS

RUN: Final = Path(__file__).with_name("run")
REPOSITORY: Final = RUN.parents[2]
DAY_SECONDS: Final = 86400


async def moved(days: int) -> dict[str, Any]:
    """Returns what tests/moved_clock/clocks.py prints with the clock moved by this many days."""
    process = await asyncio.create_subprocess_exec(
        RUN, str(days), sys.executable, "-m", "tests.moved_clock.clocks", stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(output)
    return seen


async def test_all_processes_see_the_moved_date_and_waits_keep_their_length() -> None:
    days = 40
    begun = time.time()
    seen = await moved(days)
    ended = time.time()
    for process, clock in seen["clocks"].items():
        assert begun <= clock - days * DAY_SECONDS <= ended, process
    for wait, seconds in seen["waits"].items():
        # If a wait used the moved clock, it would end at once or run into the test's timeout.
        assert seconds > SECONDS * 0.98, wait


def test_the_exit_code_is_the_commands() -> None:
    assert subprocess.run([RUN, "1", "sh", "-c", "exit 7"], check=False).returncode == 7


def test_a_number_of_days_that_is_none_is_refused() -> None:
    refused = subprocess.run([RUN, "soon", "true"], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "'soon', not a whole number" in refused.stderr
