"""The transition HELD → HELD with a full TTL (SEAT-9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.departure_limit import FIRST_DEPARTURE
from seat_service.holds.locks import lock_holds, seats_of
from seat_service.holds.outcomes import columns, explain, hold_message, in_rounds
from seat_service.requests import Effects, OnHold
from seat_service.rules.entitlements import REVOKED, revocations
from services.db import Conn
from services.errors import Refusal


async def extend(conn: Conn, requests: Sequence[OnHold], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Gives holds their full TTL again: HELD → HELD (SEAT-9).

    This uses one extension of the hold. The hold must not have ended. Its new end is the first departure of its flights
    at the latest. Returns for each request the hold or a refusal: HOLD_NOT_FOUND, HOLD_MANAGED, HOLD_EXPIRED,
    HOLD_CANCELLED, HOLD_CONFIRMED, HOLD_LIMIT_REACHED or a refusal of `entitlements.revocations`.
    """
    return await in_rounds(conn, requests, extend_hold, effects)


async def extend_hold(conn: Conn, requests: Sequence[OnHold], effects: Effects) -> list[pb.Hold | Refusal]:
    """Extends holds as `extend` does, with at most one request for each hold."""
    standing = await lock_holds(conn, [request.hold_id for request in requests])
    rows = await conn.fetch(
        f"""
        UPDATE holds
        SET expire_time = least(statement_timestamp() + ttl, {FIRST_DEPARTURE}), extensions_left = extensions_left - 1
        FROM unnest($1::uuid[], $2::text[], $3::bool[], $4::text[]) AS request (hold_id, owner, manages, locator)
        WHERE holds.hold_id = request.hold_id AND (request.manages OR NOT holds.managed)
          AND (request.owner IS NULL OR holds.owner = request.owner)
          AND NOT {REVOKED}
          AND holds.state || '' = 'HELD' AND holds.expire_time > statement_timestamp() AND holds.extensions_left > 0
        RETURNING holds.hold_id, holds.expire_time, holds.extensions_left
        """,  # noqa: S608
        *columns(requests),
    )
    for row in rows:
        standing[row["hold_id"]] = replace(
            standing[row["hold_id"]], expire_time=row["expire_time"], extensions_left=row["extensions_left"]
        )
    extended = {row["hold_id"] for row in rows}
    seats = await seats_of(conn, standing)
    revoked = await revocations(conn, [request for request in requests if request.hold_id not in extended])
    return [
        hold_message(standing[request.hold_id], seats, state="HELD")
        if request.hold_id in extended
        else explain(standing.get(request.hold_id), request, seats, revoked)
        for request in requests
    ]
