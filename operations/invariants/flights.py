"""Invariants of the schedule: the seats of flights, and cancelled flights."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant


def _cancelled(schema: str, what: str, living: str) -> Invariant:
    """Returns the invariant that no row of `living` is on a cancelled flight.

    `living` is a query for the columns flight_id, kind and id.
    """
    return Invariant(
        9,
        f"a cancelled flight has no {what}",
        f"""
        SELECT flight_id, living.kind, living.id, flights.cancel_time
        FROM flight.flights JOIN ({living}) AS living USING (flight_id)
        WHERE flights.state = 'CANCELLED' AND flights.cancel_time < now() - interval '30 s'
        """,  # noqa: S608
        needs_service=True,
        schemas=("flight", schema),
    )


FLIGHT_INVARIANTS: Final = (
    Invariant(
        3,
        "the seat service has every flight of the schedule, with the same layout and number of seats",
        """
        SELECT flight_id, flights.layout_id, seats.layout_id AS seats_layout_id, cabins.total_seats, seats.total_seats
        FROM flight.flights
        LEFT JOIN (SELECT flight_id, sum(total_seats) AS total_seats FROM flight.flight_cabins GROUP BY flight_id)
            AS cabins USING (flight_id)
        LEFT JOIN seat.flights AS seats USING (flight_id)
        WHERE (flights.layout_id, cabins.total_seats) IS DISTINCT FROM (seats.layout_id, seats.total_seats::bigint)
        """,
        schemas=("flight", "seat"),
    ),
    Invariant(
        3,
        "the schedule shows the number of free seats of the map, at most 5 s late",
        """
        SELECT flight_id, map.version AS map_version, counted.version AS counted_version,
               map.available, counted.available AS counted_available, map.change_time
        FROM (
            SELECT flight_id, 1 + sum(version) AS version, count(*) FILTER (WHERE state = 'AVAILABLE') AS available,
                   max(update_time) AS change_time
            FROM seat.seats GROUP BY flight_id
        ) AS map
        JOIN (
            -- In a cabin without a count yet, all seats are free.
            SELECT flight_id, coalesce(min(version), 1) AS version,
                   sum(coalesce(available_seats, total_seats)) AS available
            FROM flight.flight_cabins LEFT JOIN flight.seat_counts USING (flight_id, cabin)
            JOIN flight.flights USING (flight_id)
            -- A cancelled flight sells no seats, so its count does not matter.
            WHERE flights.state = 'SCHEDULED'
            GROUP BY flight_id
        ) AS counted USING (flight_id)
        WHERE counted.version > map.version
           OR counted.version = map.version AND counted.available <> map.available
           OR counted.version < map.version AND map.change_time < now() - interval '5 s'
              -- Only if the seat service has recorded the change for publication: another invariant checks that.
              AND EXISTS (
                  SELECT FROM seat.availability
                  WHERE availability.flight_id = map.flight_id AND availability.version = map.version)
              -- Not while the event of the change is being published.
              AND NOT EXISTS (
                  SELECT FROM seat.outbox
                  WHERE routing_key = 'seat.availability.v1'
                    AND coalesce(publish_time, 'infinity') > now() - interval '5 s'
                    AND position(convert_to(map.flight_id, 'UTF8') IN body) > 0)
        """,
        needs_service=True,
        schemas=("flight", "seat"),
    ),
    Invariant(
        7,
        "every cancellation of a flight has its event",
        """
        SELECT flight_id, flights.cancel_time FROM flight.flights
        WHERE state = 'CANCELLED'
          -- Published events are kept for 72 hours.
          AND flights.cancel_time > now() - interval '72 hours'
          AND NOT EXISTS (
              SELECT FROM flight.outbox
              WHERE routing_key = 'flight.cancelled.v1' AND position(convert_to(flight_id, 'UTF8') IN body) > 0)
        """,
        schemas=("flight",),
    ),
    _cancelled(
        "seat",
        "live hold",
        """
        SELECT flight_id, state AS kind, hold_id::text AS id FROM seat.hold_seats WHERE state IN ('HELD', 'CONFIRMED')
        """,
    ),
    _cancelled(
        "checkin",
        "live check-in",
        "SELECT flight_id, state AS kind, checkin_id::text AS id FROM checkin.check_ins WHERE state <> 'CANCELLED'",
    ),
    _cancelled(
        "waitlist",
        "waiting entry",
        """
        SELECT flight_id, state AS kind, entry_id::text AS id
        FROM waitlist.entries WHERE state IN ('WAITING', 'OFFERED')
        """,
    ),
    _cancelled(
        "booking",
        "live booking",
        """
        SELECT flight_id, state AS kind, booking_id::text AS id
        FROM booking.booking_flights JOIN booking.bookings USING (booking_id)
        -- A booking with a payment in progress ends after the payment.
        WHERE live AND state IN ('CREATED', 'SEATS_RESERVED', 'CONFIRMED')
        """,
    ),
)
