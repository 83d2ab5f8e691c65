"""Runs concurrent requests in batches, in order of arrival.

Requests that arrive while a batch runs form the next batch. Without load each request runs alone; under load they share
the cost of a commit or a round trip. No timer delays a request, unless the batcher has an interval.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from services import db, telemetry
from services.errors import DeadlineExceeded, Unavailable

Request = TypeVar("Request")
Outcome = TypeVar("Outcome")

# A request that loses the race this often in a row fails with its last error, and its caller retries.
ATTEMPTS: Final = 4

_log = telemetry.log("batch")


class Batcher(Generic[Request, Outcome]):
    """Runs `run(requests) -> outcomes`, one batch at a time.

    Batches begin at least `interval_seconds` apart, which pays for work whose cost is the round trip. An outcome that
    is an error is raised to its own requester only. If `run` raises, its requests are run again one by one, so that one
    bad request does not fail the others; `run` must therefore have rolled back everything. If it raises SessionEnded,
    the batch is run once more. If it raises Unavailable, DeadlineExceeded or an error of an outage, no request is run
    again and all requesters get that error: after DeadlineExceeded the outcome is unknown.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Request]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        largest: int = 128,
        longest_queue: int = 4096,
        interval_seconds: float = 0,
    ) -> None:
        self._run = run
        self._largest = largest
        self._longest_queue = longest_queue
        self._interval_seconds = interval_seconds
        self._began = -interval_seconds
        self._waiting: deque[tuple[Request, asyncio.Future[Outcome]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._size = telemetry.BATCH_SIZE.labels(name)

    async def submit(self, request: Request) -> Outcome:
        """Returns the outcome of the request, or raises its error.

        Raises Unavailable if `longest_queue` requests wait already.
        """
        if len(self._waiting) >= self._longest_queue:
            raise Unavailable("too many calls are waiting; retry")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # Yields to the event loop, so that calls that have already arrived join this batch.
            await asyncio.sleep(max(0.0, self._began + self._interval_seconds - loop.time()))
            self._began = loop.time()
            batch: list[tuple[Request, asyncio.Future[Outcome]]] = []
            while self._waiting and len(batch) < self._largest:
                request, future = self._waiting.popleft()
                # The caller's deadline passed while the request waited, so that it must not begin.
                if not future.done():
                    batch.append((request, future))
            if not batch:
                continue
            self._size.observe(len(batch))
            try:
                try:
                    await self._attempt(batch)
                except db.SessionEnded:
                    await self._attempt(batch)
            except (Unavailable, DeadlineExceeded, *db.UNREACHABLE) as error:
                # No single request caused the outage, and each would fail alone too.
                for _, future in batch:
                    _fail(future, error)
            except Exception as error:
                _log.info("batch failed; running its requests one by one", size=len(batch), error=repr(error))
                for pair in batch:
                    await self._alone(pair)

    async def _attempt(self, batch: list[tuple[Request, asyncio.Future[Outcome]]]) -> None:
        outcomes = await self._run([request for request, _ in batch])
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _alone(self, pair: tuple[Request, asyncio.Future[Outcome]]) -> None:
        request, future = pair
        outcome = await run_alone(self._run, request)
        if isinstance(outcome, Exception):
            _fail(future, outcome)
        elif not future.done():
            future.set_result(outcome)


async def run_alone(
    run: Callable[[Sequence[Request]], Awaitable[Sequence[Outcome | Exception]]], request: Request
) -> Outcome | Exception:
    """Runs one request of a batch alone; returns its outcome or its error.

    Retries up to ATTEMPTS times if the transaction lost a race (`db.CONFLICTS`).
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return (await run([request]))[0]
        except db.CONFLICTS as error:
            if attempt == ATTEMPTS:
                return error
        except Exception as error:
            return error
    raise AssertionError


def _fail(future: asyncio.Future[Outcome], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
