"""Provisioning: creates a flight and its seats from a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.layouts import layout_register
from seat_service.layouts.cabin_layouts import Layout
from seat_service.layouts.layout_register import LayoutUnusable
from services.db import Conn
from services.errors import Refusal
from services.idempotency import RequestKey


@dataclass(frozen=True, slots=True)
class ProvisionRequest:
    """A request to create the seats of a flight."""

    flight_id: str
    layout_id: str
    departure_time: datetime | None
    request_key: RequestKey | None


async def provision(
    conn: Conn, requests: Sequence[ProvisionRequest], *, layouts: Mapping[str, Layout]
) -> list[pb.ProvisionSeatsResponse | Refusal]:
    """Creates a flight and a seat, AVAILABLE, for each seat of its layout.

    A repeat with the same layout changes nothing. Returns for each request the flight or a refusal: LAYOUT_NOT_FOUND;
    DEPENDENCY_UNAVAILABLE if this process cannot use the layout (layout_register.py); FLIGHT_EXISTS if the flight was
    created with another layout.
    """
    return [await _provision(conn, request, layouts) for request in requests]


async def _provision(
    conn: Conn, request: ProvisionRequest, layouts: Mapping[str, Layout]
) -> pb.ProvisionSeatsResponse | Refusal:
    layout = layouts.get(request.layout_id)
    if layout is None:
        refusal = await layout_register.unusable(conn, request.layout_id, layouts)
        return refusal or refusals.layout_not_found(request.layout_id)
    try:
        await layout_register.use(conn, layout)
    except LayoutUnusable as refusal:
        return refusal
    created = await conn.fetchval(
        """
        INSERT INTO flights (flight_id, layout_id, total_seats) VALUES ($1, $2, $3)
        ON CONFLICT (flight_id) DO NOTHING RETURNING flight_id
        """,
        request.flight_id,
        layout.layout_id,
        len(layout.seats),
    )
    if created is None:
        standing: str = await conn.fetchval("SELECT layout_id FROM flights WHERE flight_id = $1", request.flight_id)
        if standing != layout.layout_id:
            return refusals.flight_exists(standing)
    else:
        await conn.execute(
            """
            INSERT INTO seats (flight_id, seat_number, ordinal)
            SELECT $1, seat_number, ordinal FROM unnest($2::text[], $3::smallint[]) AS seat (seat_number, ordinal)
            """,
            request.flight_id,
            [seat.seat_number for seat in layout.seats],
            [seat.ordinal for seat in layout.seats],
        )
    if request.departure_time is not None:
        # Revision 0 is older than each revision of the manifest, and an existing row stays: the manifest's departure
        # time counts, even if it was written before the seats were created.
        await conn.execute(
            """
            INSERT INTO departures (flight_id, departure_time, revision) VALUES ($1, $2, 0)
            ON CONFLICT (flight_id) DO NOTHING
            """,
            request.flight_id,
            request.departure_time,
        )
    return pb.ProvisionSeatsResponse(
        flight_id=request.flight_id, layout_id=layout.layout_id, total_seats=len(layout.seats)
    )
