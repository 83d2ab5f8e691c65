"""Bookings as their rows store them, and as the contract shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
from skyhigh.booking.v1 import booking_service_pb2 as pb

from booking_service import fares, refusals
from services.db import Conn
from services.money import Amount, money_of
from services.proto import timestamp

ADULT: Final = "ADULT"
CHILD: Final = "CHILD"
INFANT: Final = "INFANT"

_COLUMNS: Final = """booking_id, owner, state::text, bookings.version, cabin::text, contact_email, currency,
    total_minor_units, sale_close_time, departure_time, plan, hold_id, expire_time, payment_code, payment_intent_id,
    payment_attempts, max_payment_attempts, last_error, pay_time, refund_reason, refund_minor_units, refund_time, pnr,
    reserved_pnr, create_time, update_time, cancel_reason, first_answer, refusal"""


@dataclass(frozen=True, slots=True)
class Leg:
    """A flight of a journey, as it was when it was booked.

    The price is the fare of one adult.
    """

    flight_id: str
    flight_number: str
    origin: str
    destination: str
    departure_time: datetime
    arrival_time: datetime
    departure_date: str
    check_in_opens_before: timedelta
    check_in_closes_before: timedelta
    boarding_before: timedelta
    gate: str
    price_minor_units: int
    cancel_time: datetime | None = None
    cancel_reason: str | None = None

    @property
    def sale_close_time(self) -> datetime:
        """The end of the sale: passengers who book later could not check in."""
        return self.departure_time - self.check_in_closes_before


@dataclass(frozen=True, slots=True)
class Traveller:
    """A person who travels; `type` is ADULT, CHILD or INFANT."""

    passenger_id: str
    given_name: str
    last_name: str
    type: str
    accompanying_passenger_id: str | None


@dataclass(frozen=True, slots=True)
class SeatOf:
    """A passenger's seat on a flight.

    `named` says that the customer asked for exactly this seat.
    """

    flight_id: str
    passenger_id: str
    seat_number: str
    named: bool = False


@dataclass(frozen=True, slots=True)
class Booking:
    """A row of `bookings` with its flights, travellers and seats."""

    booking_id: UUID
    owner: str
    state: str
    version: int
    cabin: str
    contact_email: str
    currency: str
    total_minor_units: int
    sale_close_time: datetime
    departure_time: datetime
    plan: int
    hold_id: UUID | None
    expire_time: datetime | None
    payment_code: str | None
    payment_intent_id: UUID | None
    payment_attempts: int
    max_payment_attempts: int
    last_error: str
    pay_time: datetime | None
    refund_reason: str | None
    refund_minor_units: int | None
    refund_time: datetime | None
    pnr: str | None
    reserved_pnr: str | None
    create_time: datetime
    update_time: datetime
    cancel_reason: str | None
    first_answer: bytes | None
    refusal: str | None
    legs: Sequence[Leg]
    travellers: Sequence[Traveller]
    seats: Sequence[SeatOf]
    """The seats of its hold; before there is a hold, the planned seats."""

    @property
    def key(self) -> UUID:
        """The key by which watches identify the booking."""
        return self.booking_id

    @property
    def total(self) -> Amount:
        """The fare of the whole party."""
        return Amount(self.currency, self.total_minor_units)

    @property
    def refund(self) -> Amount | None:
        """The total of all decided refunds, or None."""
        return Amount(self.currency, self.refund_minor_units) if self.refund_minor_units is not None else None

    @property
    def live_legs(self) -> list[Leg]:
        """The flights that are not cancelled."""
        return [leg for leg in self.legs if leg.cancel_time is None]

    def fare_of(self, *legs: Leg) -> Amount:
        """Returns the fare of the party on these flights."""
        return fares.total(legs, [traveller.type for traveller in self.travellers], currency=self.currency)

    @property
    def seated(self) -> list[Traveller]:
        """The travellers who need a seat."""
        return [traveller for traveller in self.travellers if traveller.type != INFANT]

    @property
    def with_infant(self) -> frozenset[str]:
        """The passenger ids of adults with an infant on their lap."""
        return frozenset(each.accompanying_passenger_id for each in self.travellers if each.accompanying_passenger_id)

    def needs(self, passenger_id: str) -> list[str]:
        """Returns the special services of a traveller that affect seat rules.

        INFT is an adult with a lap infant. CHLD is an adult in a party with a child: each adult of the party cares for
        it, by the same rule that the check-in service applies after the confirmation.
        """
        types = {traveller.passenger_id: traveller.type for traveller in self.travellers}
        needs = ["INFT"] if passenger_id in self.with_infant else []
        if types[passenger_id] == ADULT and CHILD in types.values():
            needs.append("CHLD")
        return needs

    def passengers(self) -> list[pb.Passenger]:
        """Returns the travellers as messages of the contract."""
        return [
            pb.Passenger(
                passenger_id=traveller.passenger_id,
                given_name=traveller.given_name,
                last_name=traveller.last_name,
                type=pb.PassengerType.Value(traveller.type),
                accompanying_passenger_id=traveller.accompanying_passenger_id or "",
            )
            for traveller in self.travellers
        ]

    def message(self) -> pb.Booking:
        """Returns the booking as the contract shows it, without its history."""
        return pb.Booking(
            booking_id=str(self.booking_id),
            state=pb.Booking.State.Value(self.state),
            passengers=self.passengers(),
            seats=[
                pb.BookedSeat(flight_id=seat.flight_id, seat_number=seat.seat_number, passenger_id=seat.passenger_id)
                for seat in self._shown_seats()
            ],
            total=money_of(self.total),
            expire_time=timestamp(self.expire_time) if self.expire_time else None,
            payment_attempts=self.payment_attempts,
            last_error=self.last_error,
            pnr=self.pnr or "",
            flights=[
                pb.Booking.Flight(
                    flight_id=leg.flight_id,
                    flight_number=leg.flight_number,
                    origin=leg.origin,
                    destination=leg.destination,
                    departure_time=timestamp(leg.departure_time),
                    arrival_time=timestamp(leg.arrival_time),
                    price=money_of(Amount(self.currency, leg.price_minor_units)),
                    state=self._state_of(leg),
                    fare=money_of(self.fare_of(leg)),
                    cancel_time=timestamp(leg.cancel_time) if leg.cancel_time else None,
                    cancel_reason=leg.cancel_reason or "",
                )
                for leg in self.legs
            ],
            cabin=pb.Cabin.Value(self.cabin),
            contact_email=self.contact_email,
            payment_intent_id=str(self.payment_intent_id or ""),
            max_payment_attempts=self.max_payment_attempts,
            hold_id=str(self.hold_id or ""),
            create_time=timestamp(self.create_time),
            update_time=timestamp(self.update_time),
            cancel_reason=self.cancel_reason or "",
            refund_time=timestamp(self.refund_time) if self.refund_time else None,
            refund=money_of(self.refund) if self.refund is not None else None,
        )

    def _state_of(self, leg: Leg) -> pb.Booking.Flight.State.ValueType:
        cancelled = self.state == "CANCELLED" or leg.cancel_time is not None
        return pb.Booking.Flight.CANCELLED if cancelled else pb.Booking.Flight.BOOKED

    def _shown_seats(self) -> Sequence[SeatOf]:
        """Returns the seats that callers see.

        Planned seats are not shown, and neither are a confirmed booking's seats on cancelled flights.
        """
        if self.hold_id is None:
            return ()
        if self.state != "CONFIRMED":
            return self.seats
        live = {leg.flight_id for leg in self.live_legs}
        return [seat for seat in self.seats if seat.flight_id in live]


async def lock(conn: Conn, booking_id: UUID, *, owner: str | None = None) -> None:
    """Locks a booking's row until the caller's transaction ends.

    So a refusal is explained by the same state that caused it.
    """
    await conn.execute(
        "SELECT FROM bookings WHERE booking_id = $1 AND owner = coalesce($2, owner) FOR NO KEY UPDATE",
        booking_id,
        owner,
    )


async def find(conn: Conn, booking_id: UUID, *, owner: str | None = None) -> Booking:
    """Returns a booking. Raises BOOKING_NOT_FOUND.

    With `owner` a booking of another owner is not found either.
    """
    row = await conn.fetchrow(
        f"SELECT {_COLUMNS} FROM bookings WHERE booking_id = $1 AND owner = coalesce($2, owner)",  # noqa: S608
        booking_id,
        owner,
    )
    if row is None:
        raise refusals.booking_not_found()
    return (await _complete(conn, [row]))[0]


async def newer(conn: Conn, known_versions: Mapping[UUID, int]) -> list[Booking]:
    """Returns the bookings whose version is higher than the known one."""
    rows = await conn.fetch(
        f"""
        SELECT {_COLUMNS} FROM unnest($1::uuid[], $2::bigint[]) AS known (booking_id, version)
        JOIN bookings USING (booking_id) WHERE bookings.version > known.version
        """,  # noqa: S608
        list(known_versions),
        list(known_versions.values()),
    )
    return await _complete(conn, rows)


async def history(conn: Conn, booking_id: UUID) -> list[pb.Booking.Transition]:
    """Returns all transitions of a booking, oldest first."""
    rows = await conn.fetch(
        """
        SELECT from_state::text, to_state::text, actor, reason, event_time
        FROM booking_events WHERE booking_id = $1 ORDER BY version
        """,
        booking_id,
    )
    return [
        pb.Booking.Transition(
            from_state=pb.Booking.State.Value(row["from_state"] or "STATE_UNSPECIFIED"),
            to_state=pb.Booking.State.Value(row["to_state"]),
            actor=row["actor"],
            reason=row["reason"],
            time=timestamp(row["event_time"]),
        )
        for row in rows
    ]


async def _complete(conn: Conn, rows: Sequence[asyncpg.Record]) -> list[Booking]:
    if not rows:
        return []
    booking_ids = [row["booking_id"] for row in rows]
    legs = await _by_booking(
        conn,
        """
        SELECT booking_id, flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
               check_in_opens_before, check_in_closes_before, boarding_before, gate, price_minor_units,
               cancel_time, cancel_reason
        FROM booking_flights WHERE booking_id = ANY($1::uuid[]) ORDER BY booking_id, leg
        """,
        booking_ids,
    )
    travellers = await _by_booking(
        conn,
        """
        SELECT booking_id, passenger_id, given_name, last_name, type::text, accompanying_passenger_id
        FROM booking_passengers WHERE booking_id = ANY($1::uuid[]) ORDER BY booking_id, number
        """,
        booking_ids,
    )
    seats = await _by_booking(
        conn,
        """
        SELECT booking_id, flight_id, passenger_id, seat_number, named
        FROM booking_seats JOIN booking_flights USING (booking_id, flight_id)
        WHERE booking_id = ANY($1::uuid[]) ORDER BY booking_id, leg, passenger_id
        """,
        booking_ids,
    )
    return [
        Booking(
            **row,
            legs=[Leg(**each) for each in legs[row["booking_id"]]],
            travellers=[Traveller(**each) for each in travellers[row["booking_id"]]],
            seats=[SeatOf(**each) for each in seats[row["booking_id"]]],
        )
        for row in rows
    ]


async def _by_booking(conn: Conn, query: str, booking_ids: Sequence[UUID]) -> dict[UUID, list[dict[str, Any]]]:
    found: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
    for row in await conn.fetch(query, booking_ids):
        columns = dict(row)
        found[columns.pop("booking_id")].append(columns)
    return found
