"""Flights as check-in knows them: their facts and their cancellation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, timedelta

from skyhigh.booking.v1 import events_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service.check_ins import timer_names
from services import airports, timers
from services.check_in_times import CheckInTimes
from services.db import Conn
from services.errors import FieldViolation, InvalidArgument


@dataclass(frozen=True, slots=True)
class Flight:
    """A row of `flights`, without its cancellation."""

    flight_id: str
    flight_number: str
    origin: str
    destination: str
    departure_time: datetime
    arrival_time: datetime
    departure_date: date
    opens_before: timedelta
    closes_before: timedelta
    boarding_before: timedelta
    gate: str

    @classmethod
    def of(cls, flight_id: str, facts: pb.FlightFacts | booking.BookingConfirmed.BookedFlight) -> Flight:
        """Returns the flight of a message; omitted fields get their defaults.

        Raises INVALID_FIELD.
        """
        departure = facts.departure_time.ToDatetime(UTC)
        times = CheckInTimes.of(facts)
        if violations := list(times.violations("flight.")):
            raise InvalidArgument.of(*violations)
        return cls(
            flight_id=flight_id,
            flight_number=facts.flight_number,
            origin=facts.origin,
            destination=facts.destination,
            departure_time=departure,
            arrival_time=facts.arrival_time.ToDatetime(UTC),
            departure_date=_day(facts.departure_date) if facts.departure_date else _local_day(departure, facts.origin),
            opens_before=times.opens_before,
            closes_before=times.closes_before,
            boarding_before=times.boarding_before,
            gate=facts.gate,
        )

    def refuse_other_day(self) -> None:
        """Raises INVALID_FIELD if the departure has another date at the origin.

        For manifests that other systems import. An event of the booking service is not checked: its date is the one
        with which the flight was sold.
        """
        zone = airports.zone(self.origin)
        # The zone of an airport without an IATA code is not known: its date is between those of UTC-12 and UTC+14.
        earliest, latest = (
            (self.departure_time + ahead).astimezone(zone or UTC).date()
            for ahead in ((timedelta(), timedelta()) if zone else (timedelta(hours=-12), timedelta(hours=14)))
        )
        if not earliest <= self.departure_date <= latest:
            raise InvalidArgument.of(
                FieldViolation(
                    "flight.departure_date",
                    f"must be the local date of departure_time at {self.origin}, {earliest}, not "
                    f"{self.departure_date}; correct it or leave it out",
                )
            )


def _local_day(departure: datetime, origin: str) -> date:
    """Returns the date of a departure at its origin.

    The date is UTC's for an airport without an IATA code.
    """
    return departure.astimezone(airports.zone(origin) or UTC).date()


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgument.of(
            FieldViolation("flight.departure_date", f"must be a date of the calendar, not {text}")
        ) from error


async def lock(conn: Conn, flight_ids: Iterable[str]) -> None:
    """Locks flights, known or not, until the transaction ends.

    Every writer of a flight's facts, passengers or cancellation takes this lock. The caller reads in a later statement
    what it decides by, and so sees what the writer before it committed.
    """
    await conn.execute(
        """
        SELECT count(*) FROM (
            SELECT DISTINCT hashtextextended('checkin ' || flight_id, 0) AS key
            FROM unnest($1::text[]) AS flight_id ORDER BY key
        ) AS flights CROSS JOIN LATERAL pg_advisory_xact_lock(key)
        """,
        list(flight_ids),
    )


async def write(conn: Conn, flight: Flight, *, replace: bool) -> None:
    """Writes the facts of a locked flight.

    With `replace`, overwrites a known flight; else leaves it as it is.
    """
    await conn.execute(
        """
        INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time,
                             departure_date, opens_before, closes_before, boarding_before, gate, cancel_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,
                (SELECT cancel_time FROM cancelled_flights WHERE flight_id = $1 AND cancel_time < $5))
        ON CONFLICT (flight_id) DO UPDATE
        SET flight_number = excluded.flight_number, origin = excluded.origin, destination = excluded.destination,
            departure_time = excluded.departure_time, arrival_time = excluded.arrival_time,
            departure_date = excluded.departure_date, opens_before = excluded.opens_before,
            closes_before = excluded.closes_before, boarding_before = excluded.boarding_before, gate = excluded.gate
        WHERE $12
        """,
        *astuple(flight),
        replace,
    )


async def cancel(conn: Conn, flight_id: str, *, reason: str, cancel_time: datetime) -> None:
    """Records that a flight is cancelled: no check-in begins on it any more.

    A timer cancels its check-ins. A transaction that begins a check-in locks its passenger's manifest entry. It either
    commits before this one, and the timer finds its check-in, or comes later and sees the cancellation. A repeat
    changes nothing. Neither does a cancellation after the departure.
    """
    await lock(conn, [flight_id])
    noted = await conn.fetchval(
        """
        INSERT INTO cancelled_flights (flight_id, reason, cancel_time) VALUES ($1, $2, $3)
        ON CONFLICT (flight_id) DO NOTHING RETURNING flight_id
        """,
        flight_id,
        reason,
        cancel_time,
    )
    if noted is None:
        return
    await conn.execute("SELECT FROM passengers WHERE flight_id = $1 ORDER BY passenger_id FOR NO KEY UPDATE", flight_id)
    await conn.execute(
        "UPDATE flights SET cancel_time = $2 WHERE flight_id = $1 AND cancel_time IS NULL AND $2 < departure_time",
        flight_id,
        cancel_time,
    )
    await timers.set_timer(conn, timer_names.CANCEL_CHECK_INS, flight_id)
