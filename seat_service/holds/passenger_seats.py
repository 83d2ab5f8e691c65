"""Look-ups of the seats that passengers hold or have confirmed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.locks import HeldSeat
from seat_service.requests import FlightPassenger
from services.db import Conn
from services.proto import timestamp


async def find(
    conn: Conn, passengers: Sequence[pb.FindPassengerSeatsRequest.FlightPassenger]
) -> list[pb.FindPassengerSeatsResponse.PassengerSeat]:
    """Returns the passengers' held and confirmed seats.

    Seats of lapsed holds are left out.
    """
    # Two look-ups for each passenger, each with its LIMIT 1: so the planner uses the partial unique indexes, also while
    # it has no statistics of the table.
    rows = await conn.fetch(
        """
        SELECT seat.flight_id, seat.passenger_id, seat.seat_number, seat.state, seat.hold_id, hold.confirm_time
        FROM (
            SELECT DISTINCT flight_id, passenger_id
            FROM unnest($1::text[], $2::text[]) AS passenger (flight_id, passenger_id)
        ) AS asked
        CROSS JOIN LATERAL (
            (SELECT flight_id, passenger_id, seat_number, state, hold_id FROM hold_seats
             WHERE hold_seats.flight_id = asked.flight_id AND hold_seats.passenger_id = asked.passenger_id
               AND hold_seats.state = 'CONFIRMED' LIMIT 1)
            UNION ALL
            (SELECT flight_id, passenger_id, seat_number, state, hold_id FROM hold_seats
             WHERE hold_seats.flight_id = asked.flight_id AND hold_seats.passenger_id = asked.passenger_id
               AND hold_seats.state = 'HELD' LIMIT 1)
        ) AS seat
        CROSS JOIN LATERAL (
            SELECT holds.state, holds.confirm_time, holds.expire_time FROM holds
            WHERE holds.hold_id = seat.hold_id LIMIT 1
        ) AS hold
        WHERE hold.state = 'CONFIRMED' OR hold.state = 'HELD' AND hold.expire_time > statement_timestamp()
        """,
        [passenger.flight_id for passenger in passengers],
        [passenger.passenger_id for passenger in passengers],
    )
    return [
        pb.FindPassengerSeatsResponse.PassengerSeat(
            flight_id=row["flight_id"],
            passenger_id=row["passenger_id"],
            seat_number=row["seat_number"],
            state=pb.Seat.State.Value(row["state"]),
            hold_id=str(row["hold_id"]),
            confirm_time=timestamp(row["confirm_time"]) if row["confirm_time"] is not None else None,
        )
        for row in rows
    ]


async def live(conn: Conn, passengers: Iterable[FlightPassenger]) -> list[HeldSeat]:
    """Returns the passengers' held and confirmed seats.

    Seats of lapsed holds are included.
    """
    asked = sorted(set(passengers))
    rows = await conn.fetch(
        """
        SELECT seat.hold_id, seat.flight_id, seat.seat_number, seat.passenger_id, seat.state
        FROM unnest($1::text[], $2::text[]) AS asked (flight_id, passenger_id)
        CROSS JOIN LATERAL (
            (SELECT hold_id, flight_id, seat_number, passenger_id, state FROM hold_seats
             WHERE hold_seats.flight_id = asked.flight_id AND hold_seats.passenger_id = asked.passenger_id
               AND hold_seats.state = 'CONFIRMED' LIMIT 1)
            UNION ALL
            (SELECT hold_id, flight_id, seat_number, passenger_id, state FROM hold_seats
             WHERE hold_seats.flight_id = asked.flight_id AND hold_seats.passenger_id = asked.passenger_id
               AND hold_seats.state = 'HELD' LIMIT 1)
        ) AS seat
        """,
        [flight_id for flight_id, _ in asked],
        [passenger_id for _, passenger_id in asked],
    )
    return [
        HeldSeat(row["hold_id"], row["flight_id"], row["seat_number"], row["passenger_id"], row["state"])
        for row in rows
    ]


async def confirmed_holds(conn: Conn, passengers: Iterable[FlightPassenger]) -> set[UUID]:
    """Returns the ids of the holds of the passengers' confirmed seats."""
    asked = set(passengers)
    return {seat.hold_id for seat in await live(conn, asked) if seat.state == "CONFIRMED"} if asked else set()
