"""The passengers of a flight: the rows of its manifest, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import refusals
from checkin_service.manifests import names
from services.db import Conn
from services.proto import timestamp

DEFAULT_FARE: Final = "STANDARD"


@dataclass(frozen=True, slots=True)
class Passenger:
    """A row of `passengers`, without its flight."""

    passenger_id: str
    pnr: str
    given_name: str
    last_name: str
    type: str
    cabin: str
    fare: str
    special_services: Sequence[str]
    accompanying_passenger_id: str | None
    contact_email: str

    @classmethod
    def of(cls, asked: pb.ManifestPassenger, known: Passenger | None = None) -> Passenger:
        """Returns the passenger after the import.

        An omitted field keeps its known value, or gets its default.
        """
        type_ = pb.PassengerType.Name(asked.type) if asked.type else known.type if known else "ADULT"
        accompanying = asked.accompanying_passenger_id or (known.accompanying_passenger_id if known else None)
        services = asked.special_services or (known.special_services if known else ())
        return cls(
            passenger_id=asked.passenger_id,
            pnr=asked.pnr,
            given_name=asked.given_name,
            last_name=asked.last_name,
            type=type_,
            cabin=pb.Cabin.Name(asked.cabin) if asked.cabin else known.cabin if known else "ECONOMY",
            fare=asked.fare or (known.fare if known else DEFAULT_FARE),
            special_services=[] if "specialServices" in asked.cleared_fields else sorted(services),
            # A passenger who is no infant any more has no adult; the caller need not clear the field.
            accompanying_passenger_id=accompanying if type_ == "INFANT" or asked.accompanying_passenger_id else None,
            contact_email=""
            if "contactEmail" in asked.cleared_fields
            else asked.contact_email or (known.contact_email if known else ""),
        )

    def message(self) -> pb.ManifestPassenger:
        """Returns the passenger as callers see it."""
        return pb.ManifestPassenger(
            passenger_id=self.passenger_id,
            pnr=self.pnr,
            given_name=self.given_name,
            last_name=self.last_name,
            type=pb.PassengerType.Value(self.type),
            cabin=pb.Cabin.Value(self.cabin),
            fare=self.fare,
            special_services=self.special_services,
            accompanying_passenger_id=self.accompanying_passenger_id or "",
            contact_email=self.contact_email,
        )


async def find(conn: Conn, flight_id: str, passenger_id: str) -> pb.ManifestPassenger:
    """Returns a passenger of a flight. Raises PASSENGER_NOT_FOUND.

    The special services include the needs that `needs_of` adds for an infant on the lap or a child of the party.
    """
    row = await conn.fetchrow(
        """
        SELECT passenger_id, pnr, given_name, last_name, type::text, cabin::text, fare,
               needs_of(passengers) AS special_services, accompanying_passenger_id, contact_email
        FROM passengers WHERE flight_id = $1 AND passenger_id = $2
        """,
        flight_id,
        passenger_id,
    )
    if row is None:
        raise refusals.passenger_not_found()
    return Passenger(**row).message()


async def find_all(conn: Conn, request: pb.FindPassengersRequest) -> pb.FindPassengersResponse:
    """Returns the requested passengers and flights that are known.

    Reads the passengers in one statement and the flights in another.
    """
    asked = [(each.flight_id, each.passenger_id) for each in request.passengers]
    passengers = await conn.fetch(
        """
        SELECT found.*
        FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS one (flight_id, passenger_id)) AS asked
        CROSS JOIN LATERAL (
            SELECT flight_id, passenger_id, pnr, given_name, last_name, type::text, cabin::text, fare,
                   needs_of(passengers) AS special_services, accompanying_passenger_id, contact_email
            FROM passengers
            WHERE passengers.flight_id = asked.flight_id AND passengers.passenger_id = asked.passenger_id LIMIT 1
        ) AS found
        """,
        [flight_id for flight_id, _ in asked],
        [passenger_id for _, passenger_id in asked],
    )
    of_flights = await conn.fetch(
        """
        SELECT flight_id, origin, departure_time - closes_before AS close_time,
               departure_time - closes_before <= statement_timestamp() AS closed, cancel_time,
               (SELECT reason FROM cancelled_flights WHERE cancelled_flights.flight_id = flights.flight_id) AS reason
        FROM flights WHERE flight_id = ANY($1::text[])
        """,
        list({*request.flight_ids, *(flight_id for flight_id, _ in asked)}),
    )
    return pb.FindPassengersResponse(
        passengers=[
            pb.FindPassengersResponse.FoundPassenger(
                flight_id=row["flight_id"],
                passenger=Passenger(**{name: value for name, value in row.items() if name != "flight_id"}).message(),
            )
            for row in passengers
        ],
        flights=[
            pb.FindPassengersResponse.FoundFlight(
                flight_id=row["flight_id"],
                check_in_close_time=timestamp(row["close_time"]),
                check_in_closed=row["closed"],
                cancel_time=None if row["cancel_time"] is None else timestamp(row["cancel_time"]),
                cancel_reason=row["reason"] or "",
                origin=row["origin"],
            )
            for row in of_flights
        ],
    )


async def mark_booked(conn: Conn, flight_id: str, passengers: Sequence[Passenger], *, booking: str) -> None:
    """Marks passengers of a locked flight with their booking and its locator."""
    await conn.executemany(
        """
        UPDATE passengers SET booking = $3, pnr = $4, login_key = CASE WHEN pnr = $4 THEN login_key ELSE $5 END
        WHERE flight_id = $1 AND passenger_id = $2 AND (booking, pnr) IS DISTINCT FROM ($3, $4)
        """,
        [
            (flight_id, each.passenger_id, booking, each.pnr, names.login_key(each.pnr, each.last_name))
            for each in passengers
        ],
    )


async def passengers_of(conn: Conn, flight_id: str) -> dict[str, Passenger]:
    """Returns the flight's passengers as they are, and locks their rows.

    No check-in of these passengers begins until the transaction ends.
    """
    rows = await conn.fetch(
        """
        SELECT passenger_id, pnr, given_name, last_name, type::text, cabin::text, fare, special_services,
               accompanying_passenger_id, contact_email
        FROM passengers WHERE flight_id = $1 ORDER BY passenger_id FOR NO KEY UPDATE
        """,
        flight_id,
    )
    return {row["passenger_id"]: Passenger(**row) for row in rows}


async def write(conn: Conn, flight_id: str, passengers: Sequence[Passenger], *, replace: bool) -> None:
    """Writes passengers of a locked flight.

    With `replace`, overwrites known passengers; else leaves them as they are.
    """
    await conn.executemany(
        """
        INSERT INTO passengers (flight_id, passenger_id, pnr, given_name, last_name, type, cabin, fare,
                                special_services, accompanying_passenger_id, contact_email, login_key)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        ON CONFLICT (flight_id, passenger_id) DO UPDATE
        SET pnr = excluded.pnr, given_name = excluded.given_name, last_name = excluded.last_name,
            type = excluded.type, cabin = excluded.cabin, fare = excluded.fare,
            special_services = excluded.special_services,
            accompanying_passenger_id = excluded.accompanying_passenger_id, contact_email = excluded.contact_email,
            login_key = excluded.login_key
        WHERE $13
        """,
        [(flight_id, *astuple(each), names.login_key(each.pnr, each.last_name), replace) for each in passengers],
    )
