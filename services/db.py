"""Postgres: the pool, transactions, and the meaning of database errors."""

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
    from asyncpg.transaction import Transaction

    Conn: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:
    Conn = asyncpg.Connection
    Pool = asyncpg.Pool

# Long enough for the largest batch on a busy disk. Short enough that a stuck lock makes calls fail with 503 instead of
# piling up.
STATEMENT_TIMEOUT_SECONDS: Final = 4 * FACTOR
LOCK_TIMEOUT_SECONDS: Final = 2 * FACTOR
ACQUIRE_TIMEOUT_SECONDS: Final = 2 * FACTOR
IDLE_TRANSACTION_SECONDS: Final = 10 * FACTOR
# How long a call asks Postgres for the outcome of its commit, and the pause between two queries.
OUTCOME_SECONDS: Final = 2 * FACTOR
OUTCOME_PAUSE_SECONDS: Final = 0.05
# Rows of one cleanup transaction: a few milliseconds of work. Cleanup is never urgent, because rows are kept for days.
DELETED_PER_BATCH: Final = 1000

# Postgres rolled back the whole transaction, so that the caller can safely run it again.
ROLLED_BACK: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)

# SQLSTATE classes that mean an outage whatever the statement was: connection (08), read-only or idle for too long (25),
# out of memory, disk or connections (53), operator, shutdown or timeout (57), system error (58).
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
    # Raised by the driver: the connection is closed or closing.
    asyncpg.InterfaceError,
    # Raised by the driver if it has read why the server ended the idle session but not yet the end of the stream; also
    # if no host of the URL accepts writes.
    asyncpg.InternalClientError,
    asyncpg.InvalidPasswordError,
)

# Errors of an outage: the database, or another system that the caller of these functions uses, is down, starting, out
# of connections or too slow. A retry of the request with its key, never a guess, finds out whether the transaction
# committed.
UNREACHABLE: Final = (*OUTAGE, OSError, TimeoutError)

# The server or the network ended the session. Not ConnectionError: the block may also use another server.
_ENDED: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

# Minimum time between two expirations of a pool's connections. A server that accepts no writes refuses each of a
# thousand calls, and each of them asks for an expiration.
EXPIRE_SECONDS: Final = 1.0
_just_expired: Final[set[int]] = set()
_UNAVAILABLE: Final = "the database does not respond; retry"
_log = telemetry.log("db")


class Written(NamedTuple):
    """A transaction: its id, and the start time of the server that assigned the id."""

    number: int
    server_start_time: datetime


class SessionEnded(Unavailable):
    """The session of a transaction ended before its COMMIT was sent.

    Nothing changed, so that the transaction can be run again at once, in another session.
    """


class GuardMissed(Exception):
    """A guarded write touched other rows than the locks promised.

    The transaction must not commit.
    """


# The transaction was rolled back because a concurrent one was faster. Evaluated again, the request gets its response: a
# refusal, or the response of its duplicate.
CONFLICTS: Final = (GuardMissed, asyncpg.UniqueViolationError, *ROLLED_BACK)


async def connect(url: str, *, schema: str, size: int) -> Pool:
    """Opens a pool whose sessions are bound to one schema and have time limits."""
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
            # In another zone "one day" takes 23 or 25 hours twice a year, and the date of a timestamp is the local one.
            "TimeZone": "UTC",
            # Each statement of a service looks up a few rows by key. For a small table the planner would prefer to read
            # the whole table, which is right for one call and wrong for a thousand calls per second.
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
        },
    )
    assert pool is not None
    return pool


def writable_host(url: str) -> SessionAttribute | None:
    """Returns READ_WRITE if the URL names several hosts, else None.

    A connection then looks for a host that accepts writes, which is the new primary after a failover. None leaves the
    choice to the URL's own `target_session_attrs`. A single host is always accepted: while it is read-only, reads still
    work.
    """
    parts = urlsplit(url)
    several = "," in parts.netloc and "target_session_attrs" not in parse_qs(parts.query)
    return SessionAttribute.read_write if several else None


async def _keep_session(connection: Conn) -> None:
    """Skips the driver's reset of a released connection.

    Transactions leave no state in a session, so that the reset would only cost a round trip.
    """


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Conn]:
    """Opens a READ COMMITTED transaction on a pooled connection.

    Raises Unavailable if the pool has no connection in time, SessionEnded, and the errors of `session`.
    """
    async with session(pool) as connection, _rolled_back_if_ended(connection.transaction()):
        yield connection


@asynccontextmanager
async def _rolled_back_if_ended(transaction: Transaction) -> AsyncIterator[None]:
    """Runs a transaction; raises SessionEnded if its session ends before the commit."""
    committing = False
    try:
        async with transaction:
            yield
            committing = True
    except _ENDED as error:
        if committing:
            raise
        raise SessionEnded(_UNAVAILABLE) from error


@asynccontextmanager
async def decided(pool: Pool) -> AsyncIterator[Conn]:
    """Opens a transaction whose outcome is known even if COMMIT gets no response.

    In that case another connection asks Postgres for the outcome. The block ends normally if the transaction committed.
    Raises Unavailable if it was rolled back: nothing changed; SessionEnded if the session ended before the commit.
    Raises DeadlineExceeded if Postgres does not name the outcome in time.
    """
    async with session(pool) as connection:
        transaction = connection.transaction()
        try:
            await transaction.start()
            written = await _written_by(connection)
            yield connection
        except BaseException as error:
            # If the connection is lost, the server rolls the transaction back.
            with contextlib.suppress(*UNREACHABLE):
                await transaction.rollback()
            if isinstance(error, _ENDED):
                raise SessionEnded(_UNAVAILABLE) from error
            raise
        try:
            await transaction.commit()
        except UNREACHABLE as error:
            await verify_commit(pool, written, error)


async def _written_by(connection: Conn) -> Written:
    row = await connection.fetchrow("SELECT txid_current(), pg_postmaster_start_time()")
    assert row is not None
    return Written(*row)


async def verify_commit(pool: Pool, written: Written, lost: BaseException) -> None:
    """Returns if the transaction committed.

    Raises Unavailable if it was rolled back, DeadlineExceeded if the outcome stays unknown for OUTCOME_SECONDS.
    """
    _log.warning("response to a commit was lost; reading its outcome", error=repr(lost))
    deadline = asyncio.get_running_loop().time() + OUTCOME_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            async with session(pool) as other:
                row = await other.fetchrow(
                    "SELECT txid_status($1), pg_postmaster_start_time() = $2", written.number, written.server_start_time
                )
            assert row is not None
            status, same_server = row
        except UNREACHABLE:
            status, same_server = None, True
        except asyncpg.InvalidParameterValueError:
            # The id is in the future of this server, which has crashed since or is another one: the transaction was
            # lost in the crash.
            status, same_server = "aborted", False
        if status == "committed":
            if same_server:
                return
            # After a crash or a failover the server may have assigned the id again, to another transaction that
            # committed.
            break
        if status == "aborted":
            raise Unavailable(_UNAVAILABLE) from lost
        # The transaction is in progress: its session still runs, or the server has not noticed the end of the
        # connection.
        await asyncio.sleep(OUTCOME_PAUSE_SECONDS)
    raise DeadlineExceeded from lost


@asynccontextmanager
async def session(pool: Pool) -> AsyncIterator[Conn]:
    """Acquires a pooled connection without a transaction, for a single statement.

    Raises Unavailable if the pool has no connection in time, no connection can be opened, or a statement takes too
    long; also for an error of OUTAGE_CLASSES that the driver has no class for. A server that accepts no writes makes
    the pool open new connections.
    """
    try:
        connection = await pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)
    except UNREACHABLE as error:
        raise Unavailable(_UNAVAILABLE) from error
    try:
        yield connection
    except TimeoutError as error:
        raise Unavailable(_UNAVAILABLE) from error
    except asyncpg.ReadOnlySQLTransactionError:
        await _expire_connections(pool)
        raise
    except asyncpg.PostgresError as error:
        if not isinstance(error, OUTAGE) and (error.sqlstate or "")[:2] in OUTAGE_CLASSES:
            raise Unavailable(_UNAVAILABLE) from error
        raise
    finally:
        await pool.release(connection)


async def _expire_connections(pool: Pool) -> None:
    """Makes the pool replace each of its connections before its next use.

    A session stays on its server when another server is promoted. Its own server then refuses writes, and only a new
    connection finds the new primary.
    """
    if id(pool) in _just_expired:
        return
    _just_expired.add(id(pool))
    asyncio.get_running_loop().call_later(EXPIRE_SECONDS, _just_expired.discard, id(pool))
    _log.warning("database is read-only; replacing its connections")
    await pool.expire_connections()


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Conn]:
    """Opens a read-only transaction whose statements all see the same moment.

    For rows of several tables that change concurrently. Raises Unavailable if the pool has no connection in time, and
    SessionEnded.
    """
    async with session(pool) as connection:
        transaction = connection.transaction(isolation="repeatable_read", readonly=True)
        async with _rolled_back_if_ended(transaction):
            yield connection


class Forget(Protocol):
    """Deletes up to `limit` rows; returns how many."""

    def __call__(self, conn: Conn, /, *, limit: int) -> Awaitable[int]: ...


async def in_batches(pool: Pool, forget: Forget) -> int:
    """Deletes rows in small transactions until none are left; returns how many.

    Each transaction deletes at most DELETED_PER_BATCH rows; a batch that is not full is the last one.
    """
    total = 0
    while True:
        async with transaction(pool) as conn:
            forgotten = await forget(conn, limit=DELETED_PER_BATCH)
        total += forgotten
        if forgotten < DELETED_PER_BATCH:
            return total


async def wait_until_there(url: str, *, patience_seconds: float) -> None:
    """Waits for a database that is still starting.

    Raises the last error after `patience_seconds`.
    """
    deadline = asyncio.get_running_loop().time() + patience_seconds
    while True:
        try:
            connection = await asyncpg.connect(url, timeout=5, target_session_attrs=writable_host(url))
        except UNREACHABLE:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            await connection.close()
            return
