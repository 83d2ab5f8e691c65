"""Rows that wait for a fact of another service are compared with it.

This works even if the event was lost.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from datetime import timedelta
from typing import Any, Final

import pytest
from prometheus_client import REGISTRY

from services import db, tasks
from services.db import Pool
from services.errors import Unavailable
from services.reconciler import AT_ONCE, BATCH, Comparison, Reconciler, waiting
from tests.waiting import eventually, pause

NEVER: Final = timedelta(hours=1)
AT_ONCE_AGAIN: Final = timedelta()


class Ledger:
    """A table of waiting rows, and how often each row was compared."""

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name
        self.compared: Counter[str] = Counter()
        self.away = False

    async def create(self, subjects: list[str]) -> None:
        async with db.transaction(self.pool) as conn:
            await conn.execute(f"CREATE TABLE {self.name} (subject text PRIMARY KEY, waits boolean DEFAULT true)")
            await conn.execute(f"INSERT INTO {self.name} SELECT unnest($1::text[])", subjects)

    async def left(self) -> set[str]:
        async with db.transaction(self.pool) as conn:
            return {row[0] for row in await conn.fetch(f"SELECT subject FROM {self.name} WHERE waits")}

    async def repair(self, subject: str) -> bool:
        self.compared[subject] += 1
        if self.away:
            raise Unavailable
        if subject.startswith("broken"):
            raise KeyError(subject)
        if subject.startswith("right"):
            return False
        async with db.transaction(self.pool) as conn:
            await conn.execute(f"UPDATE {self.name} SET waits = false WHERE subject = $1", subject)
        return True

    def comparison(self) -> Comparison:
        statement = f"SELECT subject, subject FROM {self.name} WHERE waits AND subject > $1 ORDER BY subject LIMIT $2"
        return Comparison(self.name, waiting(self.pool, statement), self.repair)

    def reconciler(self, interval: timedelta, tell: Any = lambda: None) -> Reconciler:
        return Reconciler(self.pool, [self.comparison()], interval=interval, tell=tell)

    def outcomes(self, outcome: str) -> float:
        labels = {"comparison": self.name, "outcome": outcome}
        return REGISTRY.get_sample_value("skyhigh_reconciled_total", labels) or 0


@pytest.fixture
def ledger(pool: Pool) -> Ledger:
    return Ledger(pool, f"waits_{secrets.token_hex(4)}")


async def test_a_failing_row_delays_no_other(ledger: Ledger) -> None:
    told: list[None] = []
    await ledger.create(["broken-1", "lost-1", "lost-2", "right-1"])
    await ledger.reconciler(AT_ONCE_AGAIN, lambda: told.append(None)).look(ledger.comparison())
    assert await ledger.left() == {"broken-1", "right-1"}
    assert (ledger.outcomes("repaired"), ledger.outcomes("agreed"), ledger.outcomes("failed")) == (2, 1, 1)
    assert len(told) == 2


async def test_a_run_processes_several_batches(ledger: Ledger) -> None:
    await ledger.create([f"lost-{n:03}" for n in range(2 * BATCH + 5)])
    await ledger.reconciler(AT_ONCE_AGAIN).look(ledger.comparison())
    assert await ledger.left() == set()
    assert set(ledger.compared.values()) == {1}


async def test_processes_share_the_runs_of_an_interval(ledger: Ledger) -> None:
    await ledger.create([f"right-{n}" for n in range(5)])
    await asyncio.gather(*(ledger.reconciler(NEVER).look(ledger.comparison()) for _ in range(4)))
    assert set(ledger.compared.values()) == {1}


async def test_one_batch_per_run_is_tried_during_an_outage(ledger: Ledger) -> None:
    await ledger.create([f"lost-{n:03}" for n in range(2 * BATCH)])
    reconciler, ledger.away = ledger.reconciler(AT_ONCE_AGAIN), True
    await reconciler.look(ledger.comparison())
    assert len(ledger.compared) == BATCH
    # The second look starts behind those rows, so that the others are compared too.
    await reconciler.look(ledger.comparison())
    assert len(ledger.compared) == 2 * BATCH
    ledger.away = False
    for _ in range(2):
        await reconciler.look(ledger.comparison())
    assert await ledger.left() == set()


async def test_a_batch_repairs_a_few_rows_at_once(ledger: Ledger) -> None:
    await ledger.create([f"right-{n:03}" for n in range(3 * AT_ONCE)])
    running, most = 0, 0

    async def repair(_: str) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await pause(0)
        running -= 1
        return False

    await ledger.reconciler(AT_ONCE_AGAIN).look(Comparison(ledger.name, ledger.comparison().find, repair))
    assert 1 < most <= AT_ONCE


async def test_a_lost_event_is_repaired_while_the_service_runs(ledger: Ledger) -> None:
    await ledger.create([])
    task = asyncio.create_task(ledger.reconciler(timedelta(milliseconds=50)).run())
    try:
        async with db.transaction(ledger.pool) as conn:
            await conn.execute(f"INSERT INTO {ledger.name} VALUES ('lost-1')")

        async def repaired() -> bool:
            return await ledger.left() == set()

        await eventually(repaired)
    finally:
        await tasks.end([task])


async def test_a_failing_comparison_does_not_stop_the_others(ledger: Ledger) -> None:
    await ledger.create(["lost-1"])

    async def find(_: str, __: int) -> Any:
        raise ValueError

    broken = Comparison(f"{ledger.name}_broken", find, ledger.repair)
    reconciler = Reconciler(
        ledger.pool, [broken, ledger.comparison()], interval=timedelta(milliseconds=50), tell=lambda: None
    )
    task = asyncio.create_task(reconciler.run())
    try:

        async def repaired() -> bool:
            return await ledger.left() == set()

        await eventually(repaired)
        assert not task.done()
    finally:
        await tasks.end([task])
