"""Outages of Postgres are distinguished from defects.

Covers every SQLSTATE of an outage, and a server that accepts no writes. After a failover, sessions may stay open on a
server that has become read-only. The tests produce this by `ALTER DATABASE`, which applies to new sessions only: open
ones stay as they are.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import aio_pika
import asyncpg
import grpc
import pytest
from skyhigh.seat.v1 import events_pb2

from services import amqp, db, interceptors, tasks, telemetry
from services.db import Conn, Pool
from services.errors import Internal, Unavailable
from services.inbox import Consumer, Subscription
from services.timers import Handler, Timers, set_timer
from tests.callers import refused
from tests.dates import new_flight_id
from tests.instances import connected, instance, own_database, pooled
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

CLASSES: Final = ("08", "25", "53", "57", "58")
DRIVER_CODES: Final = sorted(
    {
        error.sqlstate
        for error in vars(asyncpg.exceptions).values()
        if isinstance(error, type)
        and issubclass(error, asyncpg.PostgresError)
        and (error.sqlstate or "").startswith(CLASSES)
    }
)
CODES_WITHOUT_A_CLASS: Final = [f"{each}ZZZ" for each in CLASSES]
DEFECTS: Final = ("22012", "23514", "42P01", "XX000")


async def take_writes(database_url: str, *, yes: bool) -> None:
    """Sets whether sessions that open from now on accept writes."""
    name = database_url.rpartition("/")[2]
    # This session accepts writes in either case.
    owner = await asyncpg.connect(database_url, server_settings={"default_transaction_read_only": "off"})
    try:
        await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {'off' if yes else 'on'}")
    finally:
        await owner.close()


@asynccontextmanager
async def pool_without_writes(world: World) -> AsyncIterator[tuple[Pool, str]]:
    """Yields a pool with read-only sessions.

    The sessions that replace them accept writes.
    """
    url, owner_url = await _urls(world)
    await take_writes(owner_url, yes=False)
    async with pooled(url) as pool:
        async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three, pool.acquire() as four:
            for session in (one, two, three, four):
                assert await session.fetchval("SHOW transaction_read_only") == "on"
        await take_writes(owner_url, yes=True)
        yield pool, url


async def _urls(world: World) -> tuple[str, str]:
    """Creates a database; returns its URL for the seat service and for its owner."""
    url = await own_database(world)
    return url, f"{world.servers.database_url().rpartition('/')[0]}/{url.rpartition('/')[2]}"


async def refusal_for(pool: Pool, sqlstate: str) -> Any:
    """Returns the refusal that a caller gets if a statement fails with this code."""
    try:
        async with db.transaction(pool) as conn:
            await conn.execute(f"DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '{sqlstate}'; END $$")
    except Exception as error:
        return interceptors._as_refusal(error)
    raise AssertionError("the statement did not fail")


async def test_every_sqlstate_of_an_outage_is_unavailable(pool: Pool) -> None:
    assert len(DRIVER_CODES) > 30
    for sqlstate in (*DRIVER_CODES, *CODES_WITHOUT_A_CLASS, "40003", "55P03"):
        refusal = await refusal_for(pool, sqlstate)
        assert isinstance(refusal, Unavailable), sqlstate
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.retry_after_seconds == 1


async def test_a_defect_is_internal(pool: Pool) -> None:
    for sqlstate in DEFECTS:
        assert isinstance(await refusal_for(pool, sqlstate), Internal), sqlstate


async def test_pool_replaces_its_connections_after_a_refused_write(world: World) -> None:
    async with pool_without_writes(world) as (pool, _):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await _write(pool)
        await asyncio.gather(*(_write(pool) for _ in range(8)))


async def _write(pool: Pool) -> None:
    async with db.transaction(pool) as conn:
        await set_timer(conn, f"test-{secrets.token_hex(4)}", "x")


async def test_calls_are_unavailable_while_postgres_is_read_only(world: World) -> None:
    url, owner_url = await _urls(world)
    async with instance(world, database_url=url) as seat:
        flight = new_flight_id()
        await seat.callers.operations().provision(flight)
        agent = seat.callers.agent()
        await take_writes(owner_url, yes=False)
        async with connected(owner_url) as owner:
            await owner.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                """
            )

        async def reads_go_on() -> bool:
            try:
                return (await agent.states(flight))["20A"] == "AVAILABLE"
            except grpc.aio.AioRpcError:
                # The statement used a connection that the server had ended.
                return False

        await eventually(reads_go_on)
        for row in (20, 21, 22):
            with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE") as refusal:
                await agent.hold(flight, f"{row}A")
            assert refusal.retry_after_seconds == 1
        await take_writes(owner_url, yes=True)

        codes: set[grpc.StatusCode] = set()

        async def held() -> bool:
            try:
                return bool((await agent.hold(flight, "20A")).hold_id)
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
                return False

        await eventually(held)
        assert codes <= {grpc.StatusCode.UNAVAILABLE}


async def test_an_event_outlasts_an_outage_without_a_try(world: World) -> None:
    name = f"outage-{secrets.token_hex(4)}"
    applied: list[str] = []

    async def handle(conn: Conn, event: events_pb2.SeatReleased) -> None:
        applied.append(event.flight_id)

    amqp_url = world.servers.amqp_url("seat")
    url, owner_url = await _urls(world)
    await take_writes(owner_url, yes=False)
    async with pooled(url) as pool, await aio_pika.connect(amqp_url) as broker:
        consumer = Consumer(
            pool,
            amqp_url,
            service="seat",
            name=name,
            subscriptions=[Subscription(f"seat.{name}.v1", events_pb2.SeatReleased, handle)],
        )
        running = asyncio.create_task(consumer.run())
        channel = await broker.channel(publisher_confirms=True, on_return_raises=True)

        async def published() -> bool:
            # The broker returns a message that no queue takes: the consumer has not declared its queue yet.
            exchange = await channel.get_exchange(amqp.EVENTS, ensure=False)
            message = aio_pika.Message(
                events_pb2.SeatReleased(flight_id="F").SerializeToString(), message_id=str(uuid4())
            )
            try:
                await exchange.publish(message, routing_key=f"seat.{name}.v1")
            except aio_pika.exceptions.PublishError:
                return False
            return True

        try:
            await eventually(published)

            async def refused_a_write() -> bool:
                return id(pool) in db._just_expired

            await eventually(refused_a_write)
            assert applied == []
            await take_writes(owner_url, yes=True)

            async def done() -> bool:
                return bool(telemetry.EVENTS_CONSUMED.labels(f"seat.{name}", "applied")._value.get() == 1)

            await eventually(done)
        finally:
            await tasks.end([running])
    assert applied == ["F"]
    assert telemetry.EVENTS_CONSUMED.labels(f"seat.{name}", "failed")._value.get() == 0


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (asyncpg.ReadOnlySQLTransactionError("planted"), 1),
        (Unavailable(), 1),
        (asyncpg.DiskFullError("planted"), 1),
        (ZeroDivisionError(), 3),
    ],
)
async def test_an_outage_does_not_count_as_a_timers_try(pool: Pool, error: Exception, tries: int) -> None:
    name = f"test-{secrets.token_hex(4)}"
    fired = 0

    async def fire(subject: str) -> None:
        nonlocal fired
        fired += 1
        if fired < 3:
            raise error

    async with db.transaction(pool) as conn:
        await set_timer(conn, name, "x")
    timers = asyncio.create_task(Timers(pool, {name: Handler(fire)}).run())

    async def done() -> bool:
        return bool(await pool.fetchval("SELECT fire_time IS NOT NULL FROM timers WHERE name = $1", name))

    try:
        await eventually(done)
    finally:
        await tasks.end([timers])
    assert fired == 3
    assert await pool.fetchval("SELECT tries FROM timers WHERE name = $1", name) == tries


def test_of_several_hosts_the_writable_one_is_used() -> None:
    assert db.writable_host("postgresql://seat@one:5432,two:5432/skyhigh") == "read-write"
    assert db.writable_host("postgresql://seat@one:5432/skyhigh") is None
    assert db.writable_host("postgresql://seat@one,two/skyhigh?target_session_attrs=primary") is None
