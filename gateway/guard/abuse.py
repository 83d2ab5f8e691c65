"""Abuse incidents and blocks, in Postgres.

The database's clock decides when a block ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
from skyhigh.gateway.v1 import events_pb2
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

from gateway.filters import Blocked
from gateway.guard import refusals
from services import outbox
from services.db import Conn
from services.outbox import Event
from services.proto import timestamp

# Each change sends all blocks to Envoy, whose filter accepts at most 65,536 names.
MOST_BLOCKS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """Abuse by one source: more observations in a window than the threshold."""

    kind: str
    source: str
    count: int
    threshold: int
    window: timedelta
    scope: str
    evidence: tuple[str, ...]
    """The last observations."""


async def record(conn: Conn, finding: Finding, *, block_for: timedelta | None) -> bool:
    """Writes an incident and blocks its source, unless it is already blocked.

    Publishes `abuse.detected.v1` through the outbox.

    `block_for` None blocks nothing. Returns False, and writes nothing, if the source already has an incident of this
    kind in its current block or, without a block, within the last window: such calls came before the block took effect.
    """
    # Two processes may detect the same abuse. The second one waits for this lock, then finds the first one's incident.
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", finding.source)
    block = await _block(conn, finding, block_for) if block_for else None
    row = await conn.fetchrow(
        """
        INSERT INTO incidents (incident_id, kind, source, count, threshold, window_seconds, evidence, block_id)
        SELECT $1, $2, $3, $4, $5, extract(epoch FROM $6::interval)::integer, $7, $8
        WHERE NOT EXISTS (
            SELECT FROM incidents
            WHERE source = $3 AND kind = $2 AND (block_id = $8 OR $8 IS NULL AND detect_time > now() - $6::interval))
        RETURNING incident_id, kind, source, count, threshold, window_seconds, evidence, detect_time, block_id
        """,
        uuid4(),
        finding.kind,
        finding.source,
        finding.count,
        finding.threshold,
        finding.window,
        finding.evidence,
        block["block_id"] if block else None,
    )
    if row is None:
        return False
    detected = events_pb2.AbuseDetected(incident=_incident(row), block=_shown(block) if block else None)
    await outbox.enqueue(conn, [Event(uuid4(), "abuse.detected.v1", detected)])
    return True


async def _block(conn: Conn, finding: Finding, block_for: timedelta) -> asyncpg.Record:
    """Returns the source's active block; creates it if there is none."""
    standing = await conn.fetchrow(
        """
        SELECT block_id, source, scope, kind, create_time, expire_time, lift_time, lifted_by, lift_reason
        FROM blocks WHERE source = $1 AND scope = $2 AND lift_time IS NULL AND expire_time > now()
        """,
        finding.source,
        finding.scope,
    )
    if standing is not None:
        return standing
    made = await conn.fetchrow(
        """
        INSERT INTO blocks (block_id, source, scope, kind, expire_time) VALUES ($1, $2, $3, $4, now() + $5::interval)
        RETURNING block_id, source, scope, kind, create_time, expire_time, lift_time, lifted_by, lift_reason
        """,
        uuid4(),
        finding.source,
        finding.scope,
        finding.kind,
        block_for,
    )
    assert made is not None
    return made


async def lift(conn: Conn, block_id: UUID, *, actor: str, reason: str) -> pb.Block:
    """Lifts a block and returns it.

    A block that has ended stays unchanged. Raises BLOCK_NOT_FOUND.
    """
    lifted = await conn.fetchrow(
        """
        UPDATE blocks SET lift_time = now(), lifted_by = $2, lift_reason = $3
        WHERE block_id = $1 AND lift_time IS NULL AND expire_time > now()
        RETURNING block_id, source, scope, kind, create_time, expire_time, lift_time, lifted_by, lift_reason
        """,
        block_id,
        actor,
        reason,
    )
    row = lifted or await conn.fetchrow(
        """
        SELECT block_id, source, scope, kind, create_time, expire_time, lift_time, lifted_by, lift_reason
        FROM blocks WHERE block_id = $1
        """,
        block_id,
    )
    if row is None:
        raise refusals.block_not_found()
    return _shown(row)


async def standing(conn: Conn) -> tuple[Blocked, ...]:
    """Returns the sources with an active block.

    If there are more than `MOST_BLOCKS`, returns those whose blocks end last.
    """
    rows = await conn.fetch(
        """
        SELECT source, scope, expire_time FROM blocks WHERE lift_time IS NULL AND expire_time > now()
        ORDER BY expire_time DESC, source LIMIT $1
        """,
        MOST_BLOCKS,
    )
    return tuple(Blocked(row["source"], row["expire_time"], row["scope"] == "LOGIN") for row in rows)


async def list_incidents(
    conn: Conn, *, source: str, before: tuple[datetime, UUID] | None, limit: int
) -> list[pb.Incident]:
    """Returns incidents, newest first.

    Starts after the position `before`: time and id.
    """
    time, incident_id = before or (None, None)
    rows = await conn.fetch(
        """
        SELECT incident_id, kind, source, count, threshold, window_seconds, evidence, detect_time, block_id
        FROM incidents
        WHERE ($1 = '' OR source = $1) AND ($2::timestamptz IS NULL OR (detect_time, incident_id) < ($2, $3::uuid))
        ORDER BY detect_time DESC, incident_id DESC LIMIT $4
        """,
        source,
        time,
        incident_id,
        limit,
    )
    return [_incident(row) for row in rows]


async def list_blocks(
    conn: Conn, *, source: str, include_ended: bool, before: tuple[datetime, UUID] | None, limit: int
) -> list[pb.Block]:
    """Returns blocks, newest first.

    Starts after the position `before`: time and id.
    """
    time, block_id = before or (None, None)
    rows = await conn.fetch(
        """
        SELECT block_id, source, scope, kind, create_time, expire_time, lift_time, lifted_by, lift_reason
        FROM blocks
        WHERE ($1 = '' OR source = $1) AND ($2 OR lift_time IS NULL AND expire_time > now())
          AND ($3::timestamptz IS NULL OR (create_time, block_id) < ($3, $4::uuid))
        ORDER BY create_time DESC, block_id DESC LIMIT $5
        """,
        source,
        include_ended,
        time,
        block_id,
        limit,
    )
    return [_shown(row) for row in rows]


def _incident(row: asyncpg.Record) -> pb.Incident:
    incident = pb.Incident(
        incident_id=str(row["incident_id"]),
        kind=pb.Incident.Kind.Value(row["kind"]),
        source=row["source"],
        count=row["count"],
        threshold=row["threshold"],
        evidence=row["evidence"],
        detect_time=timestamp(row["detect_time"]),
        block_id=str(row["block_id"] or ""),
    )
    incident.window.FromSeconds(row["window_seconds"])
    return incident


def _shown(row: asyncpg.Record) -> pb.Block:
    return pb.Block(
        block_id=str(row["block_id"]),
        source=row["source"],
        scope=pb.Block.Scope.Value(row["scope"]),
        kind=pb.Incident.Kind.Value(row["kind"]),
        create_time=timestamp(row["create_time"]),
        expire_time=timestamp(row["expire_time"]),
        lift_time=timestamp(row["lift_time"]) if row["lift_time"] else None,
        lifted_by=row["lifted_by"] or "",
        lift_reason=row["lift_reason"] or "",
    )
