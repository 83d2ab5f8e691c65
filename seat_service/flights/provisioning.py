"""Flights: each has a cabin layout, and a waitlist that is open or closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.layouts import layout_register
from seat_service.layouts.cabin_layouts import Layout
from seat_service.layouts.layout_register import LayoutUnusable
from services import db
from services.batch import Batcher
from services.db import Conn, Pool
from services.errors import Refusal
from services.idempotency import RequestKey

# The most flights whose layout a process remembers: a year of a large airline fits.
KNOWN_FLIGHTS: Final = 500_000


@dataclass(frozen=True, slots=True)
class ProvisionRequest:
    """A request to create the seats of a flight."""

    flight_id: str
    layout_id: str
    departure_time: datetime | None
    request_key: RequestKey | None


@dataclass(frozen=True, slots=True)
class WaitlistRequest:
    """A request to open or close the waitlist of a flight.

    `offer_window` is the time for which only the waitlist may take a released seat. `revision` counts the changes of
    `open` by the waitlist service: a request with an older revision is stale. Revision 0 is never stale.
    """

    flight_id: str
    open: bool
    revision: int
    offer_window: timedelta
    request_key: RequestKey | None


class FlightLayouts:
    """The layout of each flight, cached in the process.

    The layout of a flight never changes.
    """

    def __init__(self, pool: Pool, layouts: Mapping[str, Layout]) -> None:
        self._pool = pool
        self._layouts = layouts
        self._known: dict[str, Layout] = {}
        self._read: Batcher[str, Layout] = Batcher("flight_layouts", self._read_batch)

    async def of(self, flight_id: str) -> Layout:
        """Returns the flight's layout. Raises FLIGHT_NOT_FOUND or LayoutUnusable."""
        known = self._known.get(flight_id)
        return known if known is not None else await self._read.submit(flight_id)

    async def _read_batch(self, flight_ids: Sequence[str]) -> list[Layout | Refusal]:
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                "SELECT flight_id, layout_id FROM flights WHERE flight_id = ANY($1::text[])", list(flight_ids)
            )
        if len(self._known) > KNOWN_FLIGHTS:
            self._known.clear()
        unusable: dict[str, Refusal] = {}
        for row in rows:
            try:
                self._known[row["flight_id"]] = self._layouts[row["layout_id"]]
            except LayoutUnusable as refusal:
                unusable[row["flight_id"]] = refusal
        return [
            self._known.get(flight_id) or unusable.get(flight_id) or refusals.flight_not_found(flight_id)
            for flight_id in flight_ids
        ]


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


async def set_waitlist_open(
    conn: Conn, requests: Sequence[WaitlistRequest]
) -> list[pb.SetWaitlistOpenResponse | Refusal]:
    """Opens or closes the waitlist of flights.

    Released seats become OFFERED while it is open. Seats that are AVAILABLE or OFFERED already do not change, and a
    stale request changes nothing. Returns for each request the present setting, or FLIGHT_NOT_FOUND.
    """
    return [await _set_waitlist_open(conn, request) for request in requests]


async def _set_waitlist_open(conn: Conn, request: WaitlistRequest) -> pb.SetWaitlistOpenResponse | Refusal:
    await conn.execute(
        """
        UPDATE flights
        SET waitlist_open = $2, offer_window = $3, waitlist_revision = greatest(waitlist_revision, $4)
        WHERE flight_id = $1 AND ($4 = 0 OR waitlist_revision < $4)
        """,
        request.flight_id,
        request.open,
        request.offer_window,
        request.revision,
    )
    standing = await conn.fetchval("SELECT waitlist_open FROM flights WHERE flight_id = $1", request.flight_id)
    if standing is None:
        return refusals.flight_not_found(request.flight_id)
    return pb.SetWaitlistOpenResponse(flight_id=request.flight_id, open=standing)
