"""Applies the booking service's events to the manifests.

A confirmed booking adds its passengers, a cancelled booking removes them. The result does not depend on the order in
which the events arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Final
from uuid import UUID

from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1 import events_pb2

from checkin_service.check_ins import cancel_reasons, cancellation
from checkin_service.manifests import flights, locators, manifest
from checkin_service.manifests.flights import Flight
from checkin_service.manifests.manifest import DEFAULT_FARE, Passenger
from services.db import Conn

# The cabin of a booking determines its fare, and so the free baggage.
BUSINESS_CABINS: Final = ("FIRST", "BUSINESS")
BUSINESS_FARE: Final = "BUSINESS"
ACTOR: Final = "booking"


async def add_passengers(conn: Conn, event: events_pb2.BookingConfirmed) -> None:
    """Adds the passengers of a confirmed booking to the manifests of its flights.

    A flight or a passenger that is known already stays as it is, because an import is the better source. Its manifest
    entry only gets the mark and the locator of the booking. A cancelled booking adds no passenger, even if this event
    arrives after the cancellation. Raises LOCATOR_TAKEN if the locator belongs to another party; the event then ends in
    the dead-letter queue, for operators.
    """
    await flights.lock(conn, [each.flight_id for each in event.flights])
    if await conn.fetchval("SELECT true FROM cancelled_bookings WHERE booking_id = $1", UUID(event.booking_id)):
        return
    booking_id = UUID(event.booking_id)
    await locators.reserve(conn, event.pnr, booking_id=booking_id)
    passengers = [_passenger(event, each) for each in event.passengers]
    for each in event.flights:
        await flights.write(conn, Flight.of(each.flight_id, each), replace=False)
        await manifest.write(conn, each.flight_id, passengers, replace=False)
        await manifest.mark_booked(conn, each.flight_id, passengers, booking=locators.key_of(booking_id))


async def remove_passengers(conn: Conn, event: events_pb2.BookingCancelled) -> None:
    """Cancels the check-ins of a cancelled booking, and removes its passengers.

    A flight that had departed before the cancellation keeps its manifest and its check-ins. The event may arrive later.
    """
    cancel_time = event.cancel_time.ToDatetime(tzinfo=UTC)
    await flights.lock(conn, event.flight_ids)
    await conn.execute(
        """
        INSERT INTO cancelled_bookings (booking_id, reason, cancel_time) VALUES ($1, $2, $3)
        ON CONFLICT (booking_id) DO NOTHING
        """,
        UUID(event.booking_id),
        event.reason,
        cancel_time,
    )
    for checkin_id in await _live_check_ins(conn, event):
        await cancellation.cancel(
            conn, checkin_id, reason=cancel_reasons.BOOKING_CANCELLED, actor=ACTOR, cause_time=cancel_time
        )
    await conn.execute(
        """
        DELETE FROM passengers
        WHERE flight_id = ANY($1::text[]) AND passenger_id = ANY($2::text[]) AND pnr = $3
          AND NOT EXISTS (SELECT FROM flights
                          WHERE flights.flight_id = passengers.flight_id AND flights.cancel_time IS NULL
                            AND $4 >= flights.departure_time)
          AND NOT EXISTS (SELECT FROM check_ins
                          WHERE check_ins.flight_id = passengers.flight_id
                            AND check_ins.passenger_id = passengers.passenger_id AND check_ins.state <> 'CANCELLED')
        """,
        *_named(event),
        cancel_time,
    )


async def _live_check_ins(conn: Conn, event: events_pb2.BookingCancelled) -> list[UUID]:
    """Returns the check-ins to cancel, and locks the passengers' manifest entries.

    No other transaction can begin a check-in of these passengers until this one ends.
    """
    rows = await conn.fetch(
        """
        WITH theirs AS (
            SELECT flight_id, passenger_id FROM passengers
            WHERE flight_id = ANY($1::text[]) AND passenger_id = ANY($2::text[]) AND pnr = $3
            ORDER BY flight_id, passenger_id FOR NO KEY UPDATE
        )
        SELECT flight_id, passenger_id FROM theirs
        """,
        *_named(event),
    )
    found = await conn.fetch(
        """
        SELECT checkin_id FROM check_ins
        JOIN unnest($1::text[], $2::text[]) AS theirs (flight_id, passenger_id) USING (flight_id, passenger_id)
        WHERE state <> 'CANCELLED' ORDER BY checkin_id
        """,
        [row["flight_id"] for row in rows],
        [row["passenger_id"] for row in rows],
    )
    return [row["checkin_id"] for row in found]


def _named(event: events_pb2.BookingCancelled) -> tuple[Sequence[str], Sequence[str], str]:
    return list(event.flight_ids), list(event.passenger_ids), event.pnr


def _passenger(event: events_pb2.BookingConfirmed, each: pb.Passenger) -> Passenger:
    cabin = pb.Cabin.Name(event.cabin)
    return Passenger(
        passenger_id=each.passenger_id,
        pnr=event.pnr,
        given_name=each.given_name,
        last_name=each.last_name,
        type=pb.PassengerType.Name(each.type),
        cabin=cabin,
        fare=BUSINESS_FARE if cabin in BUSINESS_CABINS else DEFAULT_FARE,
        special_services=(),
        accompanying_passenger_id=each.accompanying_passenger_id or None,
        contact_email=event.contact_email,
    )
