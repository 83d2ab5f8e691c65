"""Timers fire once, never early, and survive the death of a process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import pytest

from services import db, tasks
from services.db import Pool
from services.timers import POLL_SECONDS, Handler, Timers, cancel_timer, set_timer
from tests.waiting import PATIENCE_SECONDS, eventually, stays

TWO_LOOKS_SECONDS: Final = 2 * POLL_SECONDS
"""The time in which Timers look for due timers at least once more."""


@pytest.fixture
def name() -> str:
    """Returns a timer name that no other test uses."""
    return f"test-{secrets.token_hex(4)}"


@asynccontextmanager
async def firing(timers: Timers) -> AsyncIterator[None]:
    task = asyncio.create_task(timers.run())
    try:
        yield
    finally:
        await tasks.end([task])


async def set_one(pool: Pool, name: str, subject: str, *, after: timedelta = timedelta()) -> None:
    async with db.transaction(pool) as conn:
        await set_timer(conn, name, subject, after=after)


async def row(pool: Pool, name: str, subject: str) -> Any:
    async with db.transaction(pool) as conn:
        return await conn.fetchrow(
            "SELECT due_time, fire_time, tries, last_error FROM timers WHERE name = $1 AND subject = $2", name, subject
        )


async def test_a_timer_fires_once_and_never_early(pool: Pool, name: str) -> None:
    fired: list[str] = []

    async def fire(subject: str) -> None:
        fired.append(subject)

    timers = [Timers(pool, {name: Handler(fire)}) for _ in range(3)]
    for n in range(20):
        await set_one(pool, name, str(n), after=timedelta(milliseconds=100 * (n % 3)))
    async with firing(timers[0]), firing(timers[1]), firing(timers[2]):

        async def all_fired() -> bool:
            return len(fired) >= 20

        async def each_once() -> bool:
            return len(fired) == 20

        await eventually(all_fired)
        await stays(each_once, seconds=TWO_LOOKS_SECONDS)
    assert sorted(fired) == sorted(map(str, range(20)))
    for n in range(20):
        timer = await row(pool, name, str(n))
        assert timer["fire_time"] >= timer["due_time"]


async def test_a_timer_of_a_rolled_back_transaction_never_fires(pool: Pool, name: str) -> None:
    async def fail_afterwards() -> None:
        async with db.transaction(pool) as conn:
            await set_timer(conn, name, "x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_afterwards()
    assert await row(pool, name, "x") is None


async def test_a_failed_handler_is_retried_and_its_error_kept(pool: Pool, name: str) -> None:
    tries = 0

    async def fire(subject: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError("the other side is away")

    await set_one(pool, name, "x")
    async with firing(Timers(pool, {name: Handler(fire)})):

        async def failed_once() -> bool:
            return bool((await row(pool, name, "x"))["last_error"])

        async def done() -> bool:
            return (await row(pool, name, "x"))["fire_time"] is not None

        await eventually(failed_once)
        await eventually(done)
    assert tries == 3


async def test_a_timer_of_a_dead_process_is_taken_over(pool: Pool, name: str) -> None:
    taken = asyncio.Event()

    async def hang(subject: str) -> None:
        taken.set()
        await asyncio.Event().wait()

    fired: list[str] = []

    async def fire(subject: str) -> None:
        fired.append(subject)

    await set_one(pool, name, "x")
    async with firing(Timers(pool, {name: Handler(hang, lease_seconds=0.5)})):
        await asyncio.wait_for(taken.wait(), PATIENCE_SECONDS)
    # The handler was cancelled, as by a kill: its timer was not settled, and no other process takes it before the lease
    # ends.
    async with firing(Timers(pool, {name: Handler(fire, lease_seconds=0.5)})):

        async def done() -> bool:
            return fired == ["x"]

        await eventually(done)


async def test_a_timer_set_while_firing_fires_again(pool: Pool, name: str) -> None:
    fired: list[str] = []

    async def fire(subject: str) -> None:
        fired.append(subject)
        if len(fired) == 1:
            await set_one(pool, name, subject)

    await set_one(pool, name, "x")
    async with firing(Timers(pool, {name: Handler(fire)})):

        async def twice() -> bool:
            return len(fired) == 2

        await eventually(twice)
        await stays(twice, seconds=TWO_LOOKS_SECONDS)
    assert fired == ["x", "x"]


async def test_a_cancelled_timer_does_not_fire(pool: Pool, name: str) -> None:
    fired: list[str] = []

    async def fire(subject: str) -> None:
        fired.append(subject)

    await set_one(pool, name, "kept", after=timedelta(milliseconds=200))
    await set_one(pool, name, "gone", after=timedelta(milliseconds=200))
    async with db.transaction(pool) as conn:
        await cancel_timer(conn, name, "gone")
    async with firing(Timers(pool, {name: Handler(fire)})):

        async def kept_alone_fired() -> bool:
            return fired == ["kept"]

        await eventually(kept_alone_fired)
        await stays(kept_alone_fired, seconds=TWO_LOOKS_SECONDS)


async def test_concurrent_handlers_are_limited(pool: Pool, name: str) -> None:
    running = most = 0
    done = 0
    go_on = asyncio.Event()

    async def fire(subject: str) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        done += 1

    async with db.transaction(pool) as conn:
        for n in range(30):
            await set_timer(conn, name, str(n))
    async with firing(Timers(pool, {name: Handler(fire)}, at_once=4)):

        async def four_run() -> bool:
            return running == 4

        async def all_done() -> bool:
            return done == 30

        await eventually(four_run)
        await stays(four_run, seconds=TWO_LOOKS_SECONDS)
        go_on.set()
        await eventually(all_done)
    assert most == 4
