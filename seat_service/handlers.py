"""Handlers of other services' events, one function for each event type.

The consumer runs a handler in the transaction that also records the event's id: a repeated event has no effect.
"""

from __future__ import annotations

from datetime import UTC
from typing import Final

from skyhigh.flight.v1 import events_pb2 as flight

from seat_service.flights import cancellations
from services.db import Conn
from services.inbox import Subscription


async def on_flight_cancelled(conn: Conn, event: flight.FlightCancelled) -> None:
    """Closes the flight, and sets the timer that cancels its holds."""
    cancel_time = event.cancel_time.ToDatetime(tzinfo=UTC)
    await cancellations.close(conn, event.flight_id, reason=event.reason, cancel_time=cancel_time)


SUBSCRIPTIONS: Final = (Subscription("flight.cancelled.v1", flight.FlightCancelled, on_flight_cancelled),)
