"""Flights and their two transitions: creation and cancellation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import uuid4

from skyhigh.flight.v1 import events_pb2

from flight_service import refusals
from flight_service.records import SELECT, Flight, flight_of
from services.check_in_times import CheckInTimes
from services.db import Conn
from services.outbox import Event, enqueue
from services.proto import timestamp
from services.running_call import running
from services.telemetry import traceparent_or_new

_TIMES: Final = CheckInTimes()
CANCELLED_SHOWN: Final = "3 days"


@dataclass(frozen=True, slots=True)
class NewFlight:
    """The facts of a flight to create, which never change.

    Times are aware and in UTC, fares in US cents.
    """

    flight_id: str
    flight_number: str
    origin: str
    destination: str
    departure_time: datetime
    arrival_time: datetime
    departure_date: date
    """The local date of departure at the origin."""
    aircraft_type: str
    layout_id: str
    fares: Mapping[str, int]
    """The fare of one adult, by cabin from nose to tail."""
    seats: Mapping[str, int]
    """The number of seats, by cabin."""
    gate: str = ""
    check_in_opens_before: timedelta = _TIMES.opens_before
    check_in_closes_before: timedelta = _TIMES.closes_before
    boarding_before: timedelta = _TIMES.boarding_before


async def insert(conn: Conn, flights: Sequence[NewFlight]) -> set[str]:
    """(nothing) → SCHEDULED for each flight that does not exist; returns their ids.

    Runs in the caller's transaction. Provision the seats before. If two transactions insert the same flight, the slower
    one waits and then finds it.
    """
    # All transactions that insert flights lock them in the same order.
    ordered = sorted(flights, key=lambda flight: flight.flight_id)
    rows = await conn.fetch(
        """
        INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time,
            departure_date, aircraft_type, layout_id, check_in_opens_before, check_in_closes_before, boarding_before,
            gate)
        SELECT flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
            aircraft_type, layout_id, check_in_opens_before, check_in_closes_before, boarding_before, gate
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::date[],
                $8::text[], $9::text[], $10::interval[], $11::interval[], $12::interval[], $13::text[])
            WITH ORDINALITY AS new (flight_id, flight_number, origin, destination, departure_time, arrival_time,
                departure_date, aircraft_type, layout_id, check_in_opens_before, check_in_closes_before,
                boarding_before, gate, n)
        ORDER BY n
        ON CONFLICT (flight_id) DO NOTHING
        RETURNING flight_id
        """,
        [flight.flight_id for flight in ordered],
        [flight.flight_number for flight in ordered],
        [flight.origin for flight in ordered],
        [flight.destination for flight in ordered],
        [flight.departure_time for flight in ordered],
        [flight.arrival_time for flight in ordered],
        [flight.departure_date for flight in ordered],
        [flight.aircraft_type for flight in ordered],
        [flight.layout_id for flight in ordered],
        [flight.check_in_opens_before for flight in ordered],
        [flight.check_in_closes_before for flight in ordered],
        [flight.boarding_before for flight in ordered],
        [flight.gate for flight in ordered],
    )
    inserted = {row["flight_id"] for row in rows}
    new = [flight for flight in ordered if flight.flight_id in inserted]
    await _insert_cabins(conn, new)
    await _move_days(conn, {flight.departure_time.astimezone(UTC).date() for flight in new})
    return inserted


async def _insert_cabins(conn: Conn, flights: Sequence[NewFlight]) -> None:
    cabins = [(flight, cabin, cents) for flight in flights for cabin, cents in flight.fares.items()]
    await conn.execute(
        """
        INSERT INTO flight_cabins (flight_id, cabin, fare_cents, total_seats)
        SELECT flight_id, cabin, fare_cents, total_seats
        FROM unnest($1::text[], $2::cabin[], $3::integer[], $4::integer[])
            AS new (flight_id, cabin, fare_cents, total_seats)
        """,
        [flight.flight_id for flight, _, _ in cabins],
        [cabin for _, cabin, _ in cabins],
        [cents for _, _, cents in cabins],
        [flight.seats[cabin] for flight, cabin, _ in cabins],
    )


async def cancel(conn: Conn, flight_id: str, *, reason: str) -> Flight:
    """SCHEDULED → CANCELLED, before the departure.

    Publishes `flight.cancelled.v1`. A repeat returns the cancelled flight. Raises FLIGHT_NOT_FOUND, FLIGHT_DEPARTED.
    """
    row = await conn.fetchrow(
        """
        UPDATE flights SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = $2
        WHERE flight_id = $1 AND state = 'SCHEDULED' AND departure_time > statement_timestamp()
        RETURNING departure_time, cancel_time
        """,
        flight_id,
        reason,
    )
    flight = await find(conn, flight_id)
    if row is None:
        if flight.state != "CANCELLED":
            raise refusals.flight_departed(flight_id, flight.departure_time)
        return flight
    await _move_days(conn, {row["departure_time"].date()})
    cancelled = events_pb2.FlightCancelled(
        flight_id=flight_id, reason=reason, cancel_time=timestamp(row["cancel_time"])
    )
    trace = traceparent_or_new(running().traceparent)
    await enqueue(conn, [Event(uuid4(), "flight.cancelled.v1", cancelled, trace)])
    return flight


async def find(conn: Conn, flight_id: str) -> Flight:
    """Returns a flight. Raises FLIGHT_NOT_FOUND."""
    found = await find_all(conn, [flight_id])
    if not found:
        raise refusals.flight_not_found(flight_id)
    return found[flight_id]


async def find_all(conn: Conn, flight_ids: Sequence[str]) -> dict[str, Flight]:
    """Returns the flights that exist, by their ids."""
    rows = await conn.fetch(f"{SELECT} WHERE flights.flight_id = ANY($1::text[])", flight_ids)
    return {row["flight_id"]: flight_of(row) for row in rows}


async def list_page(
    conn: Conn,
    *,
    origin: str,
    destination: str,
    day: date | None,
    state: str | None = None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Flight]:
    """Returns a page of flights, ordered by departure.

    With `day` the flights of that local day at their origin, otherwise the future flights. With `state` CANCELLED and
    no day it includes flights until CANCELLED_SHOWN after their departure, because other services compare their
    cancelled flights with them. An empty `origin` or `destination` means every airport, `state` None means both states.
    The page begins after the position `after`.
    """
    moment, flight_id = after or (None, "")
    # Each case has a statement of its own, because each uses another index.
    if day:
        which = "flights.departure_date = $1"
    elif state == "CANCELLED":
        which = f"$1::date IS NULL AND departure_time > statement_timestamp() - interval '{CANCELLED_SHOWN}'"
    else:
        which = "$1::date IS NULL AND departure_time > statement_timestamp()"
    if state is not None:
        which += f" AND flights.state = '{state}'"
    rows = await conn.fetch(
        f"""
        {SELECT}
        WHERE {which} AND (flights.origin = $2 OR $2 = '') AND (flights.destination = $3 OR $3 = '')
          AND ($4::timestamptz IS NULL OR (flights.departure_time, flights.flight_id) > ($4, $5))
        ORDER BY flights.departure_time, flights.flight_id LIMIT $6
        """,
        day,
        origin,
        destination,
        moment,
        flight_id,
        limit,
    )
    return [flight_of(row) for row in rows]


async def scheduled(conn: Conn, days: Sequence[date]) -> list[Flight]:
    """Returns the scheduled flights that depart on these UTC days, by departure."""
    rows = await conn.fetch(
        f"""
        {SELECT}
        JOIN unnest($1::date[]) AS wanted (day)
            ON flights.departure_time >= wanted.day::timestamp AT TIME ZONE 'UTC'
           AND flights.departure_time < (wanted.day + 1)::timestamp AT TIME ZONE 'UTC'
        WHERE flights.state = 'SCHEDULED'
        ORDER BY flights.departure_time, flights.flight_id
        """,
        days,
    )
    return [flight_of(row) for row in rows]


async def _move_days(conn: Conn, days: set[date]) -> None:
    """Increments the revisions of these UTC days.

    Runs in the transaction that changes the flights of these days.
    """
    await conn.execute(
        """
        INSERT INTO schedule_days (day) SELECT day FROM unnest($1::date[]) AS day ORDER BY day
        ON CONFLICT (day) DO UPDATE SET revision = greatest(schedule_days.revision + 1, excluded.revision)
        """,
        list(days),
    )
