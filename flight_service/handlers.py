"""Events of other services, one function per event type, each in one transaction with the note that it was applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.seat.v1 import events_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2 import Seat

from flight_service import counts
from flight_service.counts import Count
from services.db import Conn
from services.inbox import Subscription

CABINS: Final = frozenset(name for name, number in pb.Cabin.items() if number)


async def on_seat_availability(conn: Conn, event: seat.SeatAvailability) -> None:
    """Keeps the counts of each flight, known here or not, that are newer than what is there."""
    named = [
        Count(flight.flight_id, Seat.Cabin.Name(cabin.cabin), cabin.available, flight.version)
        for flight in event.flights
        for cabin in flight.cabins
        if cabin.cabin in Seat.Cabin.values()
    ]
    # A cabin that only a later version of the contract knows has no fare here either.
    await counts.keep(conn, [count for count in named if count.cabin in CABINS])


SUBSCRIPTIONS: Final[Sequence[Subscription]] = (
    Subscription("seat.availability.v1", seat.SeatAvailability, on_seat_availability),
)
