"""Rate limits in Postgres: operations change them while the system runs."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

from gateway.guard import refusals
from gateway.limits import Key, Limit, Mode
from services.db import Conn
from services.proto import timestamp


async def ensure(conn: Conn, defaults: Sequence[Limit]) -> None:
    """Inserts the missing limits.

    Existing ones stay unchanged, because operations may have set them.
    """
    await conn.executemany(
        """
        INSERT INTO limits (limit_id, call_class, key, role, requests_per_minute, burst, mode)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
        """,
        [
            (
                limit.limit_id,
                limit.call_class,
                limit.key,
                limit.role,
                limit.requests_per_minute,
                limit.burst,
                limit.mode,
            )
            for limit in defaults
        ],
    )


async def read(conn: Conn) -> tuple[Limit, ...]:
    """Returns all limits, ordered by id."""
    return tuple(
        Limit(
            limit_id=row["limit_id"],
            call_class=row["call_class"],
            key=Key(row["key"]),
            requests_per_minute=row["requests_per_minute"],
            burst=row["burst"],
            role=row["role"],
            mode=Mode(row["mode"]),
        )
        for row in await _rows(conn)
    )


async def list_all(conn: Conn) -> list[pb.Limit]:
    """Returns all limits as protos.

    They also have the time and the principal of their last change.
    """
    return [_shown(row) for row in await _rows(conn)]


async def change(
    conn: Conn, limit_id: str, *, requests_per_minute: int, burst: int, mode: str | None, actor: str
) -> pb.Limit:
    """Changes a limit and returns it.

    `mode` None keeps its mode. Raises LIMIT_NOT_FOUND.
    """
    row = await conn.fetchrow(
        """
        UPDATE limits
        SET requests_per_minute = $2, burst = $3, mode = coalesce($4::limit_mode, mode), update_time = now(),
            updated_by = $5
        WHERE limit_id = $1
        RETURNING limit_id, call_class, key, role, requests_per_minute, burst, mode, update_time, updated_by
        """,
        limit_id,
        requests_per_minute,
        burst,
        mode,
        actor,
    )
    if row is None:
        raise refusals.limit_not_found(limit_id)
    return _shown(row)


async def _rows(conn: Conn) -> list[asyncpg.Record]:
    return await conn.fetch(
        """
        SELECT limit_id, call_class, key, role, requests_per_minute, burst, mode, update_time, updated_by
        FROM limits ORDER BY limit_id
        """
    )


def _shown(row: asyncpg.Record) -> pb.Limit:
    return pb.Limit(
        limit_id=row["limit_id"],
        call_class=row["call_class"],
        key=pb.Limit.Key.Value(row["key"]),
        role=row["role"],
        requests_per_minute=row["requests_per_minute"],
        burst=row["burst"],
        mode=pb.Limit.Mode.Value(row["mode"]),
        update_time=timestamp(row["update_time"]),
        updated_by=row["updated_by"],
    )
