"""Background tasks: how they are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

CANCEL_AGAIN_SECONDS: Final = 1


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks until all have ended; their results and errors are dropped.

    Up to Python 3.11 `asyncio.wait_for`, which the drivers use, loses a cancellation that comes together with its
    answer (python/cpython#86296). So one `cancel` is not enough: the task would go on, and its owner wait for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)
        for task in ended:
            # An error that was never looked at is logged by the loop.
            _ = task.cancelled() or task.exception()
