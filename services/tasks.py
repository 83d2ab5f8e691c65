"""Ends background tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

CANCEL_AGAIN_SECONDS: Final = 1


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks until all have ended; drops their results and errors.

    Up to Python 3.11 `asyncio.wait_for`, which the drivers use, loses a cancellation that arrives together with its
    result (python/cpython#86296). After a single `cancel` the task could go on, and this function would wait without
    end.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)
        for task in ended:
            # asyncio logs an error that no code retrieves.
            _ = task.cancelled() or task.exception()
