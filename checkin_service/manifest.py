"""Manifests: who is on a flight, and the flight's own facts, as they are imported (CHK-1).

An import is judged whole, against what it would make of the flight, and written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import flights, locators, names, refusals
from checkin_service.flights import Flight
from services.db import Conn
from services.errors import FieldViolation, InvalidArgument

DEFAULT_FARE: Final = "STANDARD"
# What a check-in was judged by, and can't follow once it has begun. Names, needs and addresses it follows.
FIXED_BY_CHECK_IN: Final = ("pnr", "type", "cabin", "fare", "accompanying_passenger_id")


@dataclass(frozen=True, slots=True)
class Passenger:
    """A row of `passengers` without its flight."""

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
    def of(cls, asked: pb.ManifestPassenger) -> Passenger:
        """Returns what the message says, with its defaults."""
        return cls(
            passenger_id=asked.passenger_id,
            pnr=asked.pnr,
            given_name=asked.given_name,
            last_name=asked.last_name,
            type=pb.PassengerType.Name(asked.type or pb.ADULT),
            cabin=pb.Cabin.Name(asked.cabin or pb.ECONOMY),
            fare=asked.fare or DEFAULT_FARE,
            special_services=sorted(asked.special_services),
            accompanying_passenger_id=asked.accompanying_passenger_id or None,
            contact_email=asked.contact_email,
        )

    def message(self) -> pb.ManifestPassenger:
        """Returns it as callers see it."""
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


async def import_passengers(conn: Conn, request: pb.ImportManifestRequest) -> pb.ImportManifestResponse:
    """Writes a flight's facts and passengers, all or none; what is so already is left alone.

    Raises INVALID_FIELD or PASSENGER_CHECKED_IN, naming each wrong passenger by its index.
    """
    flight_id = request.flight_id
    # One import of a flight at a time: each is judged by what the one before made of it.
    await flights.lock(conn, [flight_id])
    if request.HasField("flight"):
        await flights.write(conn, Flight.of(flight_id, request.flight), replace=True)
    if await conn.fetchval("SELECT flight_id FROM flights WHERE flight_id = $1", flight_id) is None:
        raise InvalidArgument.of(FieldViolation("flight", "must be given, because the flight is not known"))
    known = await _known(conn, flight_id)
    asked = [Passenger.of(each) for each in request.passengers]
    parties = await locators.take(conn, [each.pnr for each in asked], booking=None)
    violations = [*_foreign_locators(known, asked, parties, await _booked(conn, flight_id)), *_violations(known, asked)]
    if violations:
        raise InvalidArgument.of(*violations)
    changed = [each for each in asked if known.get(each.passenger_id) != each]
    await _refuse_what_check_ins_cannot_follow(conn, flight_id, known, asked)
    await write(conn, flight_id, changed, replace=True)
    added = sum(each.passenger_id not in known for each in changed)
    return pb.ImportManifestResponse(
        flight_id=flight_id,
        added=added,
        changed=len(changed) - added,
        unchanged=len(asked) - len(changed),
    )


async def find(conn: Conn, flight_id: str, passenger_id: str) -> pb.ManifestPassenger:
    """Returns a passenger of a flight, with what it needs. Raises PASSENGER_NOT_FOUND."""
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


def _foreign_locators(
    known: Mapping[str, Passenger],
    asked: Sequence[Passenger],
    parties: Mapping[str, str | None],
    booked: Collection[str],
) -> Iterator[FieldViolation]:
    """Yields each passenger by whose locator one party would see and change the trip of another."""
    for n, each in enumerate(asked):
        booking = parties[each.pnr]
        if booking is not None and not locators.belongs_to(each.passenger_id, booking):
            yield FieldViolation(
                f"passengers[{n}].pnr",
                f"{each.pnr} is the record locator of a booking that passenger {each.passenger_id} does not belong to; "
                "import the passenger with the party's own locator",
            )
        elif each.passenger_id in booked and known[each.passenger_id].pnr != each.pnr:
            yield FieldViolation(
                f"passengers[{n}].pnr",
                f"passenger {each.passenger_id} belongs to a booking with another record locator than {each.pnr}; "
                "import the passenger with the booking's locator",
            )


def _violations(known: Mapping[str, Passenger], asked: Sequence[Passenger]) -> Iterator[FieldViolation]:
    """Yields what would be wrong with the flight after the import, at the passenger that makes it so."""
    index = {each.passenger_id: n for n, each in enumerate(asked)}
    after = {**known, **{each.passenger_id: each for each in asked}}
    infants: dict[str, str] = {}
    for each in after.values():
        if each.type != "INFANT":
            if each.accompanying_passenger_id is not None:
                yield _at(index, each, "accompanying_passenger_id", "only an infant travels on somebody's lap")
            continue
        adult = after.get(each.accompanying_passenger_id or "")
        if each.accompanying_passenger_id is None:
            yield _at(index, each, "accompanying_passenger_id", "an infant needs the adult on whose lap it travels")
        elif adult is None:
            yield _at(index, each, "accompanying_passenger_id", "there is no such passenger on this flight")
        elif adult.type != "ADULT":
            at = each if each.passenger_id in index else adult
            field = "accompanying_passenger_id" if at is each else "type"
            yield _at(index, at, field, "an infant travels with an adult")
        elif adult.pnr != each.pnr:
            at = each if each.passenger_id in index else adult
            yield _at(index, at, "pnr", "an infant and its adult have the same record locator")
        elif infants.setdefault(adult.passenger_id, each.passenger_id) != each.passenger_id:
            other = after[infants[adult.passenger_id]]
            at = each if each.passenger_id in index else other
            yield _at(index, at, "accompanying_passenger_id", "an adult has one infant on the lap, not two")


def _at(index: Mapping[str, int], passenger: Passenger, field: str, description: str) -> FieldViolation:
    return FieldViolation(f"passengers[{index[passenger.passenger_id]}].{field}", description)


async def _refuse_what_check_ins_cannot_follow(
    conn: Conn, flight_id: str, known: Mapping[str, Passenger], asked: Sequence[Passenger]
) -> None:
    unfit = {
        each.passenger_id: [
            FieldViolation(f"passengers[{n}].{field}", "can't change while the passenger is checked in")
            for field in FIXED_BY_CHECK_IN
            if getattr(known[each.passenger_id], field) != getattr(each, field)
        ]
        for n, each in enumerate(asked)
        if each.passenger_id in known
    }
    rows = await conn.fetch(
        """
        SELECT passenger_id FROM check_ins
        WHERE flight_id = $1 AND passenger_id = ANY($2::text[]) AND state <> 'CANCELLED'
        """,
        flight_id,
        [passenger_id for passenger_id, fields in unfit.items() if fields],
    )
    checked_in = {row["passenger_id"] for row in rows}
    wrong = {passenger_id: fields for passenger_id, fields in unfit.items() if passenger_id in checked_in}
    if wrong:
        raise refusals.passengers_checked_in(
            next(iter(wrong)), [field for fields in wrong.values() for field in fields]
        )


async def _booked(conn: Conn, flight_id: str) -> set[str]:
    """Returns the passengers of a flight whose seats are in a confirmed booking."""
    rows = await conn.fetch(
        "SELECT passenger_id FROM passengers WHERE flight_id = $1 AND booking IS NOT NULL", flight_id
    )
    return {row["passenger_id"] for row in rows}


async def mark_booked(conn: Conn, flight_id: str, passengers: Sequence[Passenger], *, booking: str) -> None:
    """Notes that passengers of a locked flight have the seats and the locator of a confirmed booking."""
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


async def _known(conn: Conn, flight_id: str) -> dict[str, Passenger]:
    """Returns the flight's passengers as they are; nobody begins a check-in of them until the transaction ends."""
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
    """Writes passengers of a locked flight. Of those that are known they `replace` what is there, or are left alone."""
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
