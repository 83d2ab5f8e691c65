"""SEAT-18 for the tables that all services have.

Timers, events and stored responses cost the same, however large the history is.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import cast
from uuid import uuid4

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services import app, db, idempotency, inbox, outbox, timers
from services.db import Conn, Pool
from services.outbox import Relay
from services.timers import Handler, Timers
from tests.conftest import World
from tests.instances import database_with, pooled
from tests.plans.costing import Costing, pool_of

# Rows of each kind. More than one clean-up deletes, and for timers as many again that have not fired.
PAST = 50_000
FILL = """
WITH past AS (
    SELECT gen_random_uuid() AS id, now() - $2::interval - n * interval '1 ms' AS at
    FROM generate_series(1, $1::int) AS n
), timer AS (
    INSERT INTO timers (name, subject, due_time, try_time, fire_time)
    SELECT 'past', 'fired ' || id, at, at, at FROM past UNION ALL
    SELECT 'past', 'to come ' || id, at + interval '100 years', at + interval '100 years', NULL FROM past
), event AS (
    INSERT INTO outbox (event_id, routing_key, body, create_time, publish_time)
    SELECT id, 'past', '', at, at FROM past
), note AS (
    INSERT INTO inbox (consumer, event_id, receive_time) SELECT 'past', id, at FROM past
)
INSERT INTO idempotency (principal, key, fingerprint, response, create_time) SELECT 'past', id, '', '', at FROM past
"""
# Rolled-back rows stay in the indexes. Therefore each test adds rows that are older than those of the test before, and
# reads its own first.
OLDER = itertools.count(400)
TABLES = ("timers", "outbox", "inbox", "idempotency")


async def fill(conn: Conn, *, rows: int, age: timedelta) -> None:
    await conn.execute(FILL, rows, age, timeout=60)


async def counts(pool: Pool) -> dict[str, int]:
    async with db.transaction(pool) as conn:
        return {table: await conn.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


@pytest.fixture(scope="module")
async def past(world: World) -> AsyncIterator[Pool]:
    """Yields a pool for tables with a long history, partly old enough to be deleted.

    The tables were never analyzed.
    """
    url = (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]
    async with pooled(url) as pool:
        async with db.transaction(pool) as conn:
            for table in TABLES:
                await conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            await conn.execute("SET LOCAL statement_timeout = '60s'")
            await fill(conn, rows=PAST, age=timedelta(hours=1))
        yield pool


@pytest.fixture
async def costing(past: Pool) -> AsyncIterator[Costing]:
    """Yields a service's connection in a transaction that is rolled back."""
    async with past.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        yield Costing(conn)
        await transaction.rollback()


async def test_a_timer_costs_the_same_however_many_fired_and_are_to_come(costing: Costing) -> None:
    conn = cast("Conn", costing)

    async def fire(subject: str) -> None:
        raise AssertionError(subject)

    keeper = Timers(pool_of(costing), {"past": Handler(fire), "other": Handler(fire, lease_seconds=40)})
    await timers.set_timers(conn, "past", ["due", "gone"])
    await timers.set_timer(conn, "other", "due")
    await timers.cancel_timer(conn, "past", "gone")
    taken = await keeper._take(32)
    assert {(timer.name, timer.subject) for timer in taken} == {("past", "due"), ("other", "due")}
    leases = await costing.conn.fetch(
        "SELECT name, try_time - clock_timestamp() > interval '20 s' AS long FROM timers WHERE subject = 'due'"
    )
    assert {row["name"]: row["long"] for row in leases} == {"past": False, "other": True}
    for timer in taken:
        await keeper._settle(timer, None, pause_seconds=0, tries=timer.tries)
    assert len(costing.plans) == 6
    costing.expect_bounded()


async def test_events_and_answers_cost_the_same_however_many_there_were(costing: Costing) -> None:
    conn = cast("Conn", costing)
    relay = Relay(pool_of(costing), "amqp://unused", source="test")
    assert await relay.publish_batch() == 0
    await relay._measure()
    assert len(await inbox.note(conn, consumer="past", event_ids=[uuid4() for _ in range(10)])) == 10
    await outbox.enqueue(conn, [outbox.Event(uuid4(), "seat.released.v1", events_pb2.SeatReleased())])
    key = idempotency.RequestKey("past", uuid4(), b"")
    assert await idempotency.find_response(conn, key, pb.Hold) is None
    await idempotency.store_response(conn, key, pb.Hold(hold_id="h"))
    assert await idempotency.find_response(conn, key, pb.Hold) == pb.Hold(hold_id="h")
    costing.expect_bounded()


@pytest.mark.parametrize("forget", [timers.forget_old, outbox.forget_old, inbox.forget_old, idempotency.forget_old])
async def test_a_batch_of_forgetting_reads_what_it_deletes(costing: Costing, forget: db.Forget) -> None:
    await fill(costing.conn, rows=100, age=timedelta(days=next(OLDER)))
    assert await forget(cast("Conn", costing), limit=10) == 10
    costing.expect_bounded()


async def test_all_that_is_old_is_forgotten_in_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "DELETED_PER_BATCH", 20)
    url = (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]
    async with pooled(url) as pool:
        async with db.transaction(pool) as conn:
            await fill(conn, rows=3, age=timedelta(minutes=1))
        kept = await counts(pool)
        async with db.transaction(pool) as conn:
            await fill(conn, rows=50, age=timedelta(days=400))
        await app.forget_old(pool)
        # A timer that has not fired is never deleted, however old it is.
        assert await counts(pool) == kept | {"timers": kept["timers"] + 50}
