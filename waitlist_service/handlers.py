"""Handlers of other services' events, one function for each event type.

The consumer runs a handler in the transaction that also records the event's id: a repeated event has no effect.
"""

from __future__ import annotations

from datetime import UTC
from typing import Final

from skyhigh.flight.v1 import events_pb2 as flight
from skyhigh.seat.v1 import events_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2 import Seat

from services.db import Conn
from services.inbox import Subscription
from waitlist_service import cancellations, released_seats


async def on_seat_released(conn: Conn, event: seat.SeatReleased) -> None:
    """Matches released seats with waiting entries.

    OFFERED seats that no entry wants are returned to general sale. A late or repeated event may match a seat that is
    taken already. The claim is then refused, and the entry is WAITING without a match again.
    """
    offered = {each.seat_number for each in event.seats if each.state == Seat.OFFERED}
    offer_time = event.release_time.ToDatetime(tzinfo=UTC)
    if event.HasField("offer_expire_time"):
        offer_time = released_seats.offer_time(offer_time, event.offer_expire_time.ToDatetime(tzinfo=UTC))
    freed = {each.seat_number: offer_time if each.seat_number in offered else None for each in event.seats}
    unwanted = await released_seats.match_with_entries(conn, event.flight_id, freed)
    await released_seats.return_seats_later(
        conn, event.flight_id, {number for number in unwanted if freed.get(number, offer_time)}
    )


async def on_flight_cancelled(conn: Conn, event: flight.FlightCancelled) -> None:
    """Ends all entries of a cancelled flight."""
    cancel_time = event.cancel_time.ToDatetime(tzinfo=UTC)
    await cancellations.cancel_flight(conn, event.flight_id, reason=event.reason, cancel_time=cancel_time)


SUBSCRIPTIONS: Final = (
    Subscription("seat.released.v1", seat.SeatReleased, on_seat_released),
    Subscription("flight.cancelled.v1", flight.FlightCancelled, on_flight_cancelled),
)
