"""Postgres: the pool, and what its errors mean to a caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from services import telemetry
from services.errors import DeadlineExceeded, Unavailable
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
# How long a call waits to hear what became of its commit, and between two questions.
OUTCOME_SECONDS: Final = 2 * FACTOR
OUTCOME_PAUSE_SECONDS: Final = 0.05
# A few milliseconds of work: what is kept for days has time.
FORGOTTEN_AT_ONCE: Final = 1000

# Postgres undid the transaction whole, so that running it again is safe.
UNDONE: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)

# SQLSTATE classes of an outage, whatever the statement was: the connection (08), a transaction that cannot write or
# lived too long (25), no room or no connection left (53), an operator, a shutdown or a timeout (57), the system (58).
OUTAGE_CLASSES: Final = frozenset({"08", "25", "53", "57", "58"})
OUTAGE: Final = (
    Unavailable,
    asyncpg.PostgresConnectionError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.LockNotAvailableError,
    # The driver's own: the connection is closed or closing.
    asyncpg.InterfaceError,
    # The server ended the idle session: the driver has read its error, and not yet the end of the stream. Also: no host
    # of the URL takes writes.
    asyncpg.InternalClientError,
    asyncpg.InvalidPasswordError,
)

# The database, or whatever else a caller of these functions reaches, is down, starting, out of connections, or too
# slow. What the transaction did, if anything, is found by repeating the request with its key, never guessed.
AWAY: Final = (*OUTAGE, OSError, TimeoutError)

# A pool expires its connections at most this often: a server that takes no writes refuses each of a thousand calls.
EXPIRE_SECONDS: Final = 1.0
_just_expired: Final[set[int]] = set()
_log = telemetry.log("db")


class Written(NamedTuple):
    """A transaction: its number, and when the server started that gave it the number."""

    number: int
    server_start_time: datetime


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
        target_session_attrs=writable_host(url),
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


def writable_host(url: str) -> SessionAttribute | None:
    """Returns what a connection demands of its host: that it takes writes, if the URL names several hosts.

    After a failover the new primary is found by this. None leaves the choice to the URL's own `target_session_attrs`.
    A single host is taken as it is: while it takes no writes, reads go on.
    """
    parts = urlsplit(url)
    several = "," in parts.netloc and "target_session_attrs" not in parse_qs(parts.query)
    return SessionAttribute.read_write if several else None


async def _keep_session(connection: Conn) -> None:
    """Transactions leave nothing behind in a session, so that the driver's reset would be a wasted round trip."""


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Conn]:
    """Opens a READ COMMITTED transaction on a pooled connection. Raises Unavailable if the pool has none in time."""
    async with session(pool) as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def decided(pool: Pool) -> AsyncIterator[Conn]:
    """Opens a transaction whose outcome is known afterwards, also where the answer to its COMMIT was lost.

    Then another connection is asked what became of it. It returns if the transaction was committed, and raises
    Unavailable if it was not: nothing changed. Raises DEADLINE_EXCEEDED where Postgres does not say which in time.
    """
    async with session(pool) as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            written = await _written_by(connection)
            yield connection
        except BaseException:
            # A connection that is gone has been rolled back by its server.
            with contextlib.suppress(*AWAY):
                await transaction.rollback()
            raise
        try:
            await transaction.commit()
        except AWAY as error:
            await ask_what_became_of(pool, written, error)


async def _written_by(connection: Conn) -> Written:
    row = await connection.fetchrow("SELECT txid_current(), pg_postmaster_start_time()")
    assert row is not None
    return Written(*row)


async def ask_what_became_of(pool: Pool, written: Written, lost: BaseException) -> None:
    """Returns if the transaction was committed. Raises Unavailable or DeadlineExceeded otherwise."""
    _log.warning("the answer to a commit was lost", error=repr(lost))
    deadline = asyncio.get_running_loop().time() + OUTCOME_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            async with session(pool) as other:
                row = await other.fetchrow(
                    "SELECT txid_status($1), pg_postmaster_start_time() = $2", written.number, written.server_start_time
                )
            assert row is not None
            status, same_server = row
        except AWAY:
            status, same_server = None, True
        except asyncpg.InvalidParameterValueError:
            # A server that crashed, or another one, has not come to this number: the transaction died with the crash.
            status, same_server = "aborted", False
        if status == "committed":
            if same_server:
                return
            # After a crash or a failover the number may be another transaction's, whose log was written.
            break
        if status == "aborted":
            raise Unavailable("the database does not respond, try again") from lost
        # Its session may still be at it, or its end has not been noticed.
        await asyncio.sleep(OUTCOME_PAUSE_SECONDS)
    raise DeadlineExceeded from lost


@asynccontextmanager
async def session(pool: Pool) -> AsyncIterator[Conn]:
    """Acquires a pooled connection without a transaction: a single statement needs no BEGIN and no COMMIT.

    Raises Unavailable if the pool has no connection in time, none can be opened, or a statement takes too long; also
    for an error of OUTAGE_CLASSES that the driver has no class for. A server that takes no writes makes the pool open
    new connections.
    """
    try:
        connection = await pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)
    except AWAY as error:
        raise Unavailable("the database does not respond, try again") from error
    try:
        yield connection
    except TimeoutError as error:
        raise Unavailable("the database does not respond, try again") from error
    except asyncpg.ReadOnlySQLTransactionError:
        await _expire_connections(pool)
        raise
    except asyncpg.PostgresError as error:
        if not isinstance(error, OUTAGE) and (error.sqlstate or "")[:2] in OUTAGE_CLASSES:
            raise Unavailable("the database does not respond, try again") from error
        raise
    finally:
        await pool.release(connection)


async def _expire_connections(pool: Pool) -> None:
    """Lets the pool replace each of its connections before the next use.

    A session outlives the promotion of another server: its own server refuses writes from then on, and only a new
    connection finds the new primary.
    """
    if id(pool) in _just_expired:
        return
    _just_expired.add(id(pool))
    asyncio.get_running_loop().call_later(EXPIRE_SECONDS, _just_expired.discard, id(pool))
    _log.warning("the database takes no writes: its connections are replaced")
    await pool.expire_connections()


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
            connection = await asyncpg.connect(url, timeout=5, target_session_attrs=writable_host(url))
        except AWAY:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            await connection.close()
            return
