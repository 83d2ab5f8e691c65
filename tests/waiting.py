"""The only module of the tests that sleeps (tests/contract/test_honest_tests.py).

A test waits for a condition or for a point in time, never for a duration that should be long enough. The limits below
only end a test that hangs: they are far above what a busy machine needs, and no test measures speed with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02


async def eventually(holds: Callable[[], Awaitable[Any]], *, within_seconds: float = PATIENCE_SECONDS) -> None:
    """Waits until the condition is true. Fails if it is still false after the limit."""
    deadline = time.monotonic() + within_seconds
    while not await holds():
        assert time.monotonic() < deadline, f"not within {within_seconds} s"
        await asyncio.sleep(_LOOK_SECONDS)


async def until(moment: Timestamp, *, seconds_before: float = 0, seconds_after: float = 0) -> None:
    """Waits until the clock of this machine, which is the database's, passes a moment.

    Returns at once if the moment has passed. `seconds_before` and `seconds_after` move the moment.
    """
    target_nanoseconds = moment.ToNanoseconds() + round((seconds_after - seconds_before) * 1e9)

    async def reached() -> bool:
        return time.time_ns() > target_nanoseconds

    left_seconds = (target_nanoseconds - time.time_ns()) / 1e9
    await asyncio.sleep(max(0.0, left_seconds))
    # A timer of the event loop may fire a little before the clock that the database reads.
    await eventually(reached)


async def stays(holds: Callable[[], Awaitable[Any]], *, seconds: float) -> None:
    """Fails if the condition becomes false within this time.

    For things that must not happen. A machine that is too slow may hide a failure, but never causes one.
    """
    deadline = time.monotonic() + seconds
    while True:
        assert await holds()
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def pause(seconds: float) -> None:
    """Spreads the actions of a test over time: load, kills, races.

    No assertion may depend on what happens during the pause.
    """
    await asyncio.sleep(seconds)
