"""Handlers of other services' events.

Each runs in one transaction with the inbox row of its event.
"""

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
    """Stores the counts that are newer than the stored ones.

    A flight may be unknown here: its seats are provisioned before it is inserted.
    """
    named = [
        Count(flight.flight_id, Seat.Cabin.Name(cabin.cabin), cabin.available, flight.version)
        for flight in event.flights
        for cabin in flight.cabins
        if cabin.cabin in Seat.Cabin.values()
    ]
    # A newer version of the contract may have more cabins; flights here have no fare for them.
    await counts.keep(conn, [count for count in named if count.cabin in CABINS])


SUBSCRIPTIONS: Final[Sequence[Subscription]] = (
    Subscription("seat.availability.v1", seat.SeatAvailability, on_seat_availability),
)
