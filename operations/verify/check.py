"""Checks the invariants of docs/rules.md section 11 on a live system."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from operations.invariants import INVARIANTS, Invariant
from operations.verify.cached_maps import stale_maps
from operations.verify.finding import SAMPLES, Finding, Offender, Offenders

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from services.db import Conn

# A statement may have to read millions of ledger rows. One that takes longer than this is stuck.
STATEMENT_TIMEOUT_SECONDS: Final = 120
USED_LAYOUTS: Final = (3, "the file of each used cabin layout has the same content as at its first use")
CACHED_MAPS: Final = (11, "the cached maps equal the database, at most 1 s late")


async def check(
    connection: Conn,
    redis: Redis | None,
    *,
    invariants: Sequence[Invariant] = INVARIANTS,
    service_runs: bool = True,
) -> list[Finding]:
    """Checks the invariants by SQL in one snapshot, then the layouts and the cached maps.

    `connection` must be able to read all schemas and should be in no transaction. Without `redis` the cached maps are
    reported as not checked. With `service_runs` False, the cached maps and the invariants that hold only while the
    services run are left out.
    """
    findings: list[Finding] = []
    async with one_moment(connection):
        schemas = {row["nspname"] for row in await connection.fetch("SELECT nspname FROM pg_namespace")}
        for invariant in invariants:
            # An invariant is left out if the database lacks the schema of one of its services.
            if schemas.issuperset(invariant.schemas) and (service_runs or not invariant.needs_service):
                findings.append(await _finding(invariant.number, invariant.name, _offenders(connection, invariant)))
    if not schemas.isdisjoint({"seat"}):
        findings.append(await _finding(*USED_LAYOUTS, _faulty_layouts(connection)))
    if service_runs:
        findings.append(await _finding(*CACHED_MAPS, stale_maps(connection, redis)))
    return findings


@contextlib.asynccontextmanager
async def one_moment(connection: Conn) -> AsyncIterator[None]:
    """Opens one read-only snapshot for the block, with a long statement timeout."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(
            f"""
            SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s';
            SET LOCAL work_mem = '64MB';
            SET LOCAL jit = off;
            """
        )
        yield


async def _finding(number: int, name: str, offenders: Coroutine[Any, Any, Offenders]) -> Finding:
    import asyncpg
    from redis.exceptions import RedisError

    began = time.perf_counter()
    violations, samples, not_checked = 0, list[Offender](), None
    try:
        violations, samples = await offenders
    # A database or cache that is down, slow or not set up raises one of these. Any other error is a defect of ours.
    except (asyncpg.PostgresError, asyncpg.InterfaceError, RedisError, OSError, TimeoutError) as error:
        not_checked = f"{type(error).__name__}: {error}"
    return Finding(number, name, violations, samples, (time.perf_counter() - began) * 1000, not_checked)


async def _offenders(connection: Conn, invariant: Invariant) -> Offenders:
    # A savepoint: the error of one invariant would otherwise abort the transaction in which all others are checked.
    async with connection.transaction():
        rows = await connection.fetch(
            f"SELECT offender.*, count(*) OVER () AS violations FROM ({invariant.offenders}) AS offender LIMIT $1",  # noqa: S608
            SAMPLES,
        )
    violations: int = rows[0]["violations"] if rows else 0
    return violations, [{name: value for name, value in row.items() if name != "violations"} for row in rows]


async def _faulty_layouts(connection: Conn) -> Offenders:
    """Compares the layout files with the digests that were stored at their first use."""
    from seat_service.layouts.cabin_layouts import LayoutError, read_layouts
    from seat_service.layouts.layout_register import faults

    rows = await connection.fetch(
        """
        SELECT layout_id, digest
        FROM seat.layouts FULL JOIN (SELECT DISTINCT layout_id FROM seat.flights) AS used USING (layout_id)
        """
    )
    try:
        found = faults({row["layout_id"]: row["digest"] for row in rows}, read_layouts())
    except LayoutError as error:
        return 1, [{"fault": str(error)}]
    offenders: list[Offender] = [{"layout_id": layout_id, "fault": fault} for layout_id, fault in sorted(found.items())]
    return len(offenders), offenders[:SAMPLES]
