"""Opens and closes the waitlists of flights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from services.db import Conn
from services.errors import Refusal
from services.idempotency import RequestKey


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
