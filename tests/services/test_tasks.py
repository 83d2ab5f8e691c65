"""Background tasks end, even if a driver swallows the cancellation."""

from __future__ import annotations

import asyncio

from services import tasks
from tests.waiting import eventually


async def test_a_task_that_loses_its_first_cancellation_ends() -> None:
    lost = 0

    async def loses_one() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # `asyncio.wait_for` of Python 3.11 does this if the result arrives at the same moment.
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.create_task(loses_one())

    async def waits() -> bool:
        return not task.done() and task.get_coro().cr_await is not None  # type: ignore[union-attr]

    await eventually(waits)
    await tasks.end([task])
    assert task.cancelled()
    assert lost == 2


async def test_a_failed_task_is_removed_with_its_error() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    async def lasts() -> None:
        await asyncio.Event().wait()

    both = [asyncio.create_task(fails()), asyncio.create_task(lasts())]
    await tasks.end(both)
    assert [task.done() for task in both] == [True, True]
