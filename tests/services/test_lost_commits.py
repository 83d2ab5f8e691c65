"""11.15: a lost response to COMMIT is not reported as a failure.

An error other than DEADLINE_EXCEEDED means that nothing changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from services import db
from services.db import Pool
from services.errors import DeadlineExceeded, Unavailable
from tests.conftest import World
from tests.instances import own_database
from tests.system.faults.proxy import Cut, Proxy, proxied
from tests.waiting import eventually


@pytest.fixture
async def proxied_pool(world: World) -> AsyncIterator[tuple[Proxy, Pool]]:
    """Yields a pool that reaches its database through a proxy."""
    async with proxied(await own_database(world)) as (proxy, url):
        pool = await db.connect(url, schema="seat", size=3)
        yield proxy, pool
        pool.terminate()


async def note(pool: Pool) -> None:
    async with db.decided(pool) as conn:
        await conn.execute("INSERT INTO reconciliations (name) VALUES ('decided')")


async def is_noted(pool: Pool) -> bool:
    async with db.session(pool) as conn:
        return bool(await conn.fetchval("SELECT EXISTS (SELECT FROM reconciliations WHERE name = 'decided')"))


async def transaction_of(pool: Pool) -> db.Written:
    async with db.session(pool) as conn:
        row = await conn.fetchrow("SELECT txid_current(), pg_postmaster_start_time()")
    assert row is not None
    return db.Written(*row)


async def test_a_commit_with_lost_response_succeeds(proxied_pool: tuple[Proxy, Pool]) -> None:
    proxy, pool = proxied_pool
    proxy.conditions.cut_after = Cut(b"COMMIT;", most=1)
    await note(pool)
    assert proxy.cuts == 1
    assert await is_noted(pool)


async def test_a_commit_that_did_not_arrive_is_unavailable(
    proxied_pool: tuple[Proxy, Pool],
) -> None:
    proxy, pool = proxied_pool
    proxy.conditions.cut_before = Cut(b"COMMIT;", most=1)
    with pytest.raises(Unavailable):
        await note(pool)
    assert proxy.cuts == 1
    assert not await is_noted(pool)


async def test_a_commit_with_unknown_outcome_is_deadline_exceeded(
    proxied_pool: tuple[Proxy, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "OUTCOME_SECONDS", 0.2)
    proxy, pool = proxied_pool
    proxy.conditions.cut_after = Cut(b"COMMIT;", most=1, then_refuse=True)
    with pytest.raises(DeadlineExceeded):
        await note(pool)
    proxy.calm()
    await eventually(lambda: is_noted(pool))


async def test_a_commit_lost_in_a_crash_is_unavailable(proxied_pool: tuple[Proxy, Pool]) -> None:
    _, pool = proxied_pool
    last, started = await transaction_of(pool)
    # This id has not been assigned yet, like the id of a transaction whose log records were lost in a crash.
    with pytest.raises(Unavailable):
        await db.verify_commit(pool, db.Written(last + 1_000_000, started), ConnectionError())


async def test_a_transaction_id_after_a_crash_proves_nothing(proxied_pool: tuple[Proxy, Pool]) -> None:
    _, pool = proxied_pool
    other, started = await transaction_of(pool)
    with pytest.raises(DeadlineExceeded):
        await db.verify_commit(pool, db.Written(other, started - timedelta(minutes=1)), ConnectionError())
    await db.verify_commit(pool, db.Written(other, started), ConnectionError())


async def test_an_error_inside_the_transaction_is_raised_unchanged(proxied_pool: tuple[Proxy, Pool]) -> None:
    _, pool = proxied_pool

    async def fail() -> None:
        async with db.decided(pool) as conn:
            await conn.execute("INSERT INTO reconciliations (name) VALUES ('decided')")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert not await is_noted(pool)
