"""Postgres: the pool, and what its errors mean to a caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import asyncpg

from services.errors import Unavailable
from services.time_limits import FACTOR

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Conn: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:
    Conn = asyncpg.Connection
    Pool = asyncpg.Pool

# Long enough for the widest batch on a busy disk, short enough that a stuck lock is a 503 and not a queue.
STATEMENT_TIMEOUT_SECONDS: Final = 4 * FACTOR
LOCK_TIMEOUT_SECONDS: Final = 2 * FACTOR
ACQUIRE_TIMEOUT_SECONDS: Final = 2 * FACTOR
IDLE_TRANSACTION_SECONDS: Final = 10 * FACTOR
# A few milliseconds of work: what is kept for days has time.
FORGOTTEN_AT_ONCE: Final = 1000

# Postgres undid the transaction whole, so that running it again is safe.
UNDONE: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)

# The database is away, starting, out of connections, or was too slow. What the transaction did, if anything, is found
# by repeating the request with its key, never guessed.
AWAY: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InterfaceError,
    # The server ended the idle session: the driver has read its error, and not yet the end of the stream.
    asyncpg.InternalClientError,
    asyncpg.InvalidPasswordError,
    TimeoutError,
)


class GuardMissed(Exception):
    """A guarded write touched other rows than the locks promised; the transaction must not commit."""


# The transaction was undone whole because somebody else was faster. Judged anew, the request gets its answer: a
# refusal, or the answer that its twin got.
OVERTAKEN: Final = (GuardMissed, asyncpg.UniqueViolationError, *UNDONE)


async def connect(url: str, *, schema: str, size: int) -> Pool:
    """Opens a pool whose every session is bound to one schema and cannot wait for ever."""
    pool = await asyncpg.create_pool(
        url,
        min_size=min(2, size),
        max_size=size,
        command_timeout=STATEMENT_TIMEOUT_SECONDS + 1,
        reset=_keep_session,
        server_settings={
            "application_name": schema,
            "search_path": schema,
            "statement_timeout": str(round(STATEMENT_TIMEOUT_SECONDS * 1000)),
            "lock_timeout": str(round(LOCK_TIMEOUT_SECONDS * 1000)),
            "idle_in_transaction_session_timeout": str(round(IDLE_TRANSACTION_SECONDS * 1000)),
            "jit": "off",
            # Elsewhere "one day" takes 23 or 25 hours twice a year, and a moment's date is the server's local one.
            "TimeZone": "UTC",
            # Every statement of a service is a handful of look-ups by key. On a small table the planner would rather
            # read it whole, which is right for one call and wrong for a thousand a second.
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
        },
    )
    assert pool is not None
    return pool


async def _keep_session(connection: Conn) -> None:
    """Transactions leave nothing behind in a session, so that the driver's reset would be a wasted round trip."""


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Conn]:
    """A READ COMMITTED transaction on a connection of the pool. Raises Unavailable where there is no answer in time."""
    try:
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection, connection.transaction():
            yield connection
    except TimeoutError as error:
        raise Unavailable("the database does not answer, try again") from error


@asynccontextmanager
async def session(pool: Pool) -> AsyncIterator[Conn]:
    """A connection of the pool in no transaction: for one statement, which is one by itself, without two round trips.

    Raises Unavailable where there is no connection in time.
    """
    try:
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection:
            yield connection
    except TimeoutError as error:
        raise Unavailable("the database does not answer, try again") from error


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Conn]:
    """A transaction that reads one moment, for what lies in several tables and goes on meanwhile.

    Raises Unavailable where there is no connection in time.
    """
    async with session(pool) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        yield connection


class Forget(Protocol):
    """Deletes up to `limit` rows, and returns how many."""

    def __call__(self, conn: Conn, /, *, limit: int) -> Awaitable[int]: ...


async def in_batches(pool: Pool, forget: Forget) -> int:
    """Deletes in transactions of at most FORGOTTEN_AT_ONCE rows, until a batch is not full; returns how many rows."""
    total = 0
    while True:
        async with transaction(pool) as conn:
            forgotten = await forget(conn, limit=FORGOTTEN_AT_ONCE)
        total += forgotten
        if forgotten < FORGOTTEN_AT_ONCE:
            return total


async def wait_until_there(url: str, *, patience_seconds: float) -> None:
    """Waits for a database that is still starting; raises its last error when patience is out."""
    deadline = asyncio.get_running_loop().time() + patience_seconds
    while True:
        try:
            connection = await asyncpg.connect(url, timeout=5)
        except AWAY:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            await connection.close()
            return
