"""Shared parts of booking tests: flights, customers, and the invariants.

An agency is the set of services that a booking needs.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import asyncpg
import grpc
from google.protobuf.message import Message
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1 import events_pb2
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb
from skyhigh.mail.v1 import mail_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from deploy.mocks.payment_provider import PaymentProvider, ProviderBehaviour
from services.db import Pool
from services.money import Amount, money_of
from services.proto import timestamp
from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused
from tests.instances import Database
from tests.payment.rules import FAILS, SUCCEEDS, Payments
from tests.seat import rules
from tests.waiting import PATIENCE_SECONDS, eventually, pause

# With this fare the 10 % that an infant pays is not a whole cent.
FARE_CENTS: Final = 10_005
AIRPORTS: Final = ("LHR", "FRA", "ATH", "DXB", "SIN")
EMAIL: Final = "ada@example.org"
# The TTL of a hold for an unpaid booking.
TIME_TO_PAY: Final = timedelta(minutes=15)
# The most seats of one flight in one hold.
SEATS_AT_ONCE: Final = 9
# The provider decides later than any test ends.
UNDECIDED: Final = ProviderBehaviour(decision_delay_seconds=600)
GONE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
Answer = TypeVar("Answer")
GIVEN_NAMES: Final = ("Ada", "Émilie", "Mary Jane", "O’Brien", "Anne-Marie", "Zoë", "Łucja", "Ngozi", "Sofía")  # noqa: RUF001

MESSAGES: Final[dict[str, Any]] = {
    "booking.confirmed.v1": events_pb2.BookingConfirmed,
    "booking.cancelled.v1": events_pb2.BookingCancelled,
    "booking.mail.v1": mail_pb2.Mail,
}
TABLES: Final = {
    "bookings": "booking_id",
    "booking_flights": "leg",
    "booking_passengers": "number",
    "booking_seats": "flight_id, passenger_id",
    "booking_events": "version",
}
# Each query returns the rows that violate its invariant.
VIOLATIONS: Final = {
    "each line of a history begins where the one before ended": """
        SELECT * FROM (
            SELECT booking_id, from_state, lag(to_state) OVER (PARTITION BY booking_id ORDER BY version) AS before
            FROM booking_events
        ) AS line WHERE from_state IS DISTINCT FROM before
    """,
    "a booking is where its history ends": """
        SELECT booking_id, state FROM bookings WHERE state IS DISTINCT FROM (
            SELECT to_state FROM booking_events
            WHERE booking_events.booking_id = bookings.booking_id ORDER BY version DESC LIMIT 1)
    """,
    "everybody but an infant has a seat on every flight": """
        SELECT booking_id, flight_id, passenger_id, seat_number
        FROM booking_flights JOIN booking_passengers USING (booking_id)
        FULL JOIN booking_seats USING (booking_id, flight_id, passenger_id)
        WHERE (seat_number IS NULL) <> (type IS NOT DISTINCT FROM 'INFANT')
    """,
    "who told a confirmation has a locator": """
        SELECT booking_id, state FROM bookings
        WHERE (pnr IS NOT NULL)
           <> EXISTS (SELECT FROM booking_events
                      WHERE booking_events.booking_id = bookings.booking_id AND to_state = 'CONFIRMED')
    """,
}
# The state of the hold for each state of a booking that has seats.
HOLD_STATES: Final = {
    "SEATS_RESERVED": "HELD",
    "PAYMENT_PENDING": "HELD",
    "PAYMENT_PROCESSING": "HELD",
    "CONFIRMED": "CONFIRMED",
}


@dataclass(frozen=True, slots=True)
class Journey:
    """One flight, or the flights of an itinerary."""

    flights: Sequence[flight_pb.Flight]

    @property
    def flight_ids(self) -> list[str]:
        """Returns the ids of the flights in the order of travel."""
        return [flight.flight_id for flight in self.flights]

    @property
    def flight_id(self) -> str:
        """Returns the id of the first flight."""
        return self.flight_ids[0]

    @property
    def itinerary_id(self) -> str:
        """Returns the itinerary id as the flight service forms it."""
        return f"CF_{self.flights[0].origin}_{self.flights[-1].destination}_{'_'.join(self.flight_ids)}"

    @property
    def named(self) -> dict[str, Any]:
        """Returns the field of CreateBookingRequest that names this journey."""
        return {"flight_id": self.flight_id} if len(self.flights) == 1 else {"itinerary_id": self.itinerary_id}


async def patiently(ask: Callable[[], Awaitable[Answer]], *, within_seconds: float = PATIENCE_SECONDS) -> Answer:
    """Retries while a service is unavailable or too busy, as a client does.

    `ask` must send the same idempotency key each time.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            if error.code() not in GONE or time.monotonic() > deadline:
                raise
        await pause(0.1)


def people(*types: str) -> list[pb.CreateBookingRequest.NewPassenger]:
    """Returns passengers of these types, such as `ADULT`."""
    return [
        pb.CreateBookingRequest.NewPassenger(given_name=name, last_name="Lovelace", type=pb.PassengerType.Value(kind))
        for name, kind in zip(GIVEN_NAMES, types, strict=False)
    ]


def named_seat(flight_id: str, seat_number: str, passenger_index: int = 0) -> pb.CreateBookingRequest.NamedSeat:
    """Returns a seat that a passenger of the party asks for."""
    return pb.CreateBookingRequest.NamedSeat(
        flight_id=flight_id, seat_number=seat_number, passenger_index=passenger_index
    )


def asked(journey: Journey, *types: str, **more: Any) -> pb.CreateBookingRequest:
    """Returns a request for a booking; the default party is one adult.

    `more` are fields of the request.
    """
    fields: dict[str, Any] = {"passengers": people(*(types or ("ADULT",))), "contact_email": EMAIL, **more}
    return pb.CreateBookingRequest(**journey.named, **fields)


def state_of(booking: pb.Booking) -> str:
    """Returns the name of a booking's state."""
    return pb.Booking.State.Name(booking.state)


def seats_of(booking: pb.Booking, flight_id: str = "") -> list[str]:
    """Returns the seat numbers of a booking, on one flight or on all."""
    return [seat.seat_number for seat in booking.seats if flight_id in ("", seat.flight_id)]


def names_of(booking: pb.Booking) -> list[str]:
    """Returns the passenger ids of a booking."""
    return [passenger.passenger_id for passenger in booking.passengers]


def usd(cents: int) -> Any:
    """Returns an amount in USD."""
    return money_of(Amount("USD", cents))


@dataclass(frozen=True, slots=True)
class Customer:
    """A booking customer or an agent; `desk` calls the booking service."""

    agency: Agency
    desk: Caller

    @property
    def name(self) -> str:
        """The principal that owns the bookings."""
        return self.desk.name

    async def book(self, journey: Journey, *types: str, **more: Any) -> pb.Booking:
        """Books for a party of these types; the default party is one adult.

        `more` are fields of the request. Retries with the same key while a service is unavailable or too busy.
        """
        request = asked(journey, *types, **{"request_id": str(uuid4()), **more})
        booked: pb.Booking = await patiently(lambda: self.desk.CreateBooking(request))
        return booked

    async def get(self, booking: pb.Booking) -> pb.Booking:
        """Reads a booking."""
        found: pb.Booking = await self.desk.GetBooking(pb.GetBookingRequest(booking_id=booking.booking_id))
        return found

    async def change(self, booking: pb.Booking, *seats: pb.BookedSeat, **more: Any) -> pb.Booking:
        """Changes the seats of a booking."""
        changed: pb.Booking = await self.desk.ChangeBookingSeats(
            pb.ChangeBookingSeatsRequest(booking_id=booking.booking_id, seats=seats, **more)
        )
        return changed

    async def move(self, booking: pb.Booking, *seat_numbers: str, **more: Any) -> pb.Booking:
        """Moves each passenger of a booking to a new seat, in the order of its seats."""
        seats = [
            pb.BookedSeat(flight_id=seat.flight_id, passenger_id=seat.passenger_id, seat_number=seat_number)
            for seat, seat_number in zip(booking.seats, seat_numbers, strict=True)
        ]
        return await self.change(booking, *seats, **more)

    async def pay(self, booking: pb.Booking, code: str = SUCCEEDS, **more: Any) -> pb.Booking:
        """Pays with this code."""
        answer: pb.Booking = await self.desk.PayBooking(
            pb.PayBookingRequest(booking_id=booking.booking_id, payment_code=code, **more)
        )
        return answer

    async def cancel(self, booking: pb.Booking, **more: Any) -> pb.Booking:
        """Cancels a booking."""
        answer: pb.Booking = await self.desk.CancelBooking(
            pb.CancelBookingRequest(booking_id=booking.booking_id, **more)
        )
        return answer

    async def becomes(self, booking: pb.Booking, state: str) -> pb.Booking:
        """Waits until a booking is in this state; returns it."""

        async def reached() -> bool:
            return state_of(await patiently(lambda: self.get(booking))) == state

        await eventually(reached)
        return await patiently(lambda: self.get(booking))

    async def confirmed(self, journey: Journey, *types: str, **more: Any) -> pb.Booking:
        """Books and pays; returns the confirmed booking."""
        booking = await self.book(journey, *types, **more)
        await self.pay(booking)
        return await self.becomes(booking, "CONFIRMED")

    async def brought_to(self, state: str, *types: str) -> pb.Booking:
        """Returns a booking of a new flight in this state."""
        booking = await self.book(await self.agency.flight(), *types)
        match state:
            case "PAYMENT_PROCESSING":
                self.agency.provider.behaviour.now = UNDECIDED
                await self.pay(booking)
            case "CONFIRMED":
                await self.pay(booking)
            case "FAILED":
                await self.pay(booking, FAILS)
            case "CANCELLED":
                await self.cancel(booking, reason="CHANGED_MIND")
        return await self.becomes(booking, state)


@dataclass(frozen=True, slots=True)
class Agency:
    """The services that a booking needs, and their databases to inspect."""

    seats: Callers
    flights: Callers
    payments: Payments
    bookings: Callers
    provider: PaymentProvider
    database: Database
    seat_database: Database
    pool: Pool
    """A pool like the booking service's own, for tests that call its functions."""
    variables: Mapping[str, str]
    """The environment variables of its booking service, to start another instance."""

    def customer(self, name: str | None = None) -> Customer:
        """Returns a customer, a new one if no name is given."""
        return Customer(self, self.bookings.customer(name))

    def agent(self, name: str = "desk") -> Customer:
        """Returns an agent, who may act on all bookings."""
        return Customer(self, self.bookings.agent(name))

    async def flight(self, **more: Any) -> Journey:
        """Creates a flight with all seats free: by default 70 in one cabin."""
        return await self.journey(1, **more)

    async def journey(
        self,
        legs: int,
        *,
        departs_in: timedelta = timedelta(days=3),
        aircraft_type: str = "AT72",
        cents: int = FARE_CENTS,
        **more: Any,
    ) -> Journey:
        """Creates connecting flights of one hour, one hour apart.

        `more` are fields of each CreateFlightRequest.
        """
        first = datetime.now(UTC).replace(microsecond=0) + departs_in
        flights = []
        for leg in range(legs):
            number = f"SH{secrets.randbelow(9000) + 1000}"
            departure = first + leg * timedelta(hours=2)
            flight: flight_pb.Flight = await self.flights.operations().CreateFlight(
                flight_pb.CreateFlightRequest(
                    flight_number=number,
                    flight_id=f"{number}-{secrets.token_hex(6)}",
                    origin=AIRPORTS[leg],
                    destination=AIRPORTS[leg + 1],
                    departure_time=timestamp(departure),
                    arrival_time=timestamp(departure + timedelta(hours=1)),
                    aircraft_type=aircraft_type,
                    price=usd(cents),
                    **more,
                )
            )
            flights.append(flight)
        return Journey(flights)

    async def two_left(self, *seat_numbers: str) -> Journey:
        """Creates a flight with only these seats free in its business cabin.

        The default is two seats. The cabin has 16.
        """
        journey = await self.flight(aircraft_type="A321")
        await self.leave(journey.flight_id, *(seat_numbers or ("2D", "2F")), cabin="BUSINESS")
        return journey

    async def leave(self, flight_id: str, *seat_numbers: str, cabin: str = "ECONOMY") -> None:
        """Has another caller take all seats of a cabin except these."""
        free = sorted(await self.free(flight_id, cabin=cabin))
        assert set(seat_numbers) <= set(free)
        taken = [number for number in free if number not in seat_numbers]
        await asyncio.gather(
            *(self.take(flight_id, *taken[n : n + SEATS_AT_ONCE]) for n in range(0, len(taken), SEATS_AT_ONCE))
        )

    async def get_flight(self, flight_id: str) -> flight_pb.Flight:
        """Reads a flight from the flight service."""
        found: flight_pb.Flight = await self.flights.anybody("").GetFlight(
            flight_pb.GetFlightRequest(flight_id=flight_id)
        )
        return found

    async def take(self, flight_id: str, *seat_numbers: str) -> seat_pb.Hold:
        """Has another caller hold these seats."""
        seats = [
            seat_pb.SeatAssignment(flight_id=flight_id, seat_number=number, passenger_id=f"P-{secrets.token_hex(4)}")
            for number in seat_numbers
        ]
        return await self.seats.agent("others").hold_seats(*seats, purpose=seat_pb.Hold.BOOKING)

    async def seat_map(self, flight_id: str) -> seat_pb.SeatMap:
        """Reads the seat map of a flight."""
        found: seat_pb.SeatMap = await self.seats.agent().GetSeatMap(seat_pb.GetSeatMapRequest(flight_id=flight_id))
        return found

    async def free(self, flight_id: str, *, cabin: str = "ECONOMY") -> set[str]:
        """Returns the free seats of a cabin, as the seat map shows them."""
        return {
            seat.seat_number
            for seat in (await self.seat_map(flight_id)).seats
            if seat.state == seat_pb.Seat.AVAILABLE and seat_pb.Seat.Cabin.Name(seat.cabin) == cabin
        }

    async def taken(self, *flight_ids: str) -> set[tuple[str, str]]:
        """Returns the HELD and CONFIRMED seats of these flights, read from Postgres."""
        rows = await self.seat_database.fetch(
            "SELECT flight_id, seat_number FROM seats WHERE flight_id = ANY($1) AND state IN ('HELD', 'CONFIRMED')",
            list(flight_ids),
        )
        return {(row["flight_id"], row["seat_number"]) for row in rows}

    async def hold_state(self, hold_id: str) -> str:
        """Returns the name of a hold's state."""
        request = seat_pb.GetHoldRequest(hold_id=hold_id)
        return seat_pb.Hold.State.Name((await self.seats.service().GetHold(request)).state)

    async def cancel_flight(self, flight_id: str) -> None:
        """Cancels a flight."""
        await self.flights.operations().CancelFlight(flight_pb.CancelFlightRequest(flight_id=flight_id, reason="FOG"))

    async def close(self, flight_id: str) -> None:
        """Closes a flight at the seat service only.

        The other services have not received the event yet.
        """
        await self.seat_database.execute(
            "INSERT INTO cancelled_flights (flight_id, reason, cancel_time) VALUES ($1, 'FOG', now())", flight_id
        )

    async def take_off(self, flight_id: str) -> None:
        """Tells only the seat service that a flight has departed."""
        times = seat_pb.SyncPassengersRequest.FlightTimes(
            flight_id=flight_id, departure_time=timestamp(datetime.now(UTC)), revision=1
        )
        await self.seats.service("checkin").SyncPassengers(seat_pb.SyncPassengersRequest(flights=[times]))

    async def row(self, booking: pb.Booking) -> asyncpg.Record:
        """Returns the row of a booking."""
        row = await self.database.fetchrow("SELECT * FROM bookings WHERE booking_id = $1", UUID(booking.booking_id))
        assert row is not None
        return row

    async def rows(self, booking: pb.Booking) -> dict[str, list[asyncpg.Record]]:
        """Returns all rows of a booking, to compare before and after a call.

        They must be equal if the call changes nothing.
        """
        return {
            table: await self.database.fetch(
                f"SELECT * FROM {table} WHERE booking_id = $1 ORDER BY {order}", UUID(booking.booking_id)
            )
            for table, order in TABLES.items()
        }

    async def written(self) -> asyncpg.Record:
        """Returns the counts of all rows that calls can add."""
        counts = await self.database.fetchrow(
            "SELECT " + ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in (*TABLES, "idempotency"))
        )
        assert counts is not None
        return counts

    async def history(self, booking: pb.Booking) -> list[str]:
        """Returns the states of a booking, oldest first."""
        rows = await self.database.fetch(
            "SELECT to_state::text FROM booking_events WHERE booking_id = $1 ORDER BY version", UUID(booking.booking_id)
        )
        return [row["to_state"] for row in rows]

    async def told(self, routing_key: str) -> list[Any]:
        """Returns the events with this routing key in the outbox, oldest first."""
        rows = await self.database.fetch(
            "SELECT body FROM outbox WHERE routing_key = $1 ORDER BY create_time", routing_key
        )
        return [MESSAGES[routing_key].FromString(row["body"]) for row in rows]

    async def mails(self, email: str) -> list[mail_pb2.Mail]:
        """Returns the mails to an address, oldest first."""
        return [mail for mail in await self.told("booking.mail.v1") if mail.to == email]

    async def set_back(self, booking: pb.Booking, **columns: timedelta) -> None:
        """Moves times of a booking into the past, as if it had been made earlier."""
        moved = ", ".join(f"{column} = {column} - ${n}::interval" for n, column in enumerate(columns, start=2))
        await self.database.execute(
            f"UPDATE bookings SET {moved} WHERE booking_id = $1", UUID(booking.booking_id), *columns.values()
        )

    async def fly(self, booking: pb.Booking, *flight_ids: str) -> None:
        """Makes these flights of a booking depart now, in the booking service's rows."""
        moved = await self.database.fetch(
            """
            UPDATE booking_flights SET departure_time = now() - interval '1 s'
            WHERE booking_id = $1 AND flight_id = ANY($2) RETURNING flight_id
            """,
            UUID(booking.booking_id),
            list(flight_ids),
        )
        assert len(moved) == len(flight_ids)

    async def sit(self, booking: pb.Booking, flight_id: str, seat_number: str) -> None:
        """Moves the first passenger of a confirmed booking to another seat.

        The check-in service does this when a passenger changes seats.
        """
        desk = self.seats.service("checkin")
        hold = await desk.hold(flight_id, seat_number, names_of(booking)[0], owner=f"passenger:{booking.pnr}")
        await desk.ConfirmHold(seat_pb.ConfirmHoldRequest(hold_id=hold.hold_id))

    async def lapse(self, *bookings: pb.Booking, left: timedelta = timedelta(milliseconds=-1)) -> list[pb.Booking]:
        """Moves the ends of bookings and of their holds to now, or `left` from now.

        Returns the bookings with their new `expire_time`. Their seats must be HELD.
        """
        holds = [seat_pb.Hold(hold_id=booking.hold_id) for booking in bookings]
        async with self.database.transaction():
            # The row locks keep a step from ending a booking before its new end is written.
            await self.database.execute(
                "SELECT FROM bookings WHERE booking_id = ANY($1) ORDER BY booking_id FOR UPDATE",
                [UUID(booking.booking_id) for booking in bookings],
            )
            # The holds come first: a step that reads a hold meanwhile must not adopt a later end than the one written
            # here.
            await lapse_holds(self.seat_database, *holds, left=left)
            ends: dict[str, datetime] = {
                str(row["hold_id"]): row["expire_time"]
                for row in await self.seat_database.fetch(
                    "SELECT hold_id, expire_time FROM holds WHERE hold_id = ANY($1)", [hold.hold_id for hold in holds]
                )
            }
            for booking in bookings:
                end = ends[booking.hold_id]
                await self.database.execute(
                    "UPDATE bookings SET expire_time = $2 WHERE booking_id = $1", UUID(booking.booking_id), end
                )
                moved = await self.database.execute(
                    """
                    UPDATE timers SET due_time = $2, try_time = $2
                    WHERE name = 'expire' AND subject = $1 AND fire_time IS NULL
                    """,
                    booking.booking_id,
                    end,
                )
                assert moved == "UPDATE 1", "the booking has no end to come"
        lapsed = []
        for booking in bookings:
            moved_booking = pb.Booking()
            moved_booking.CopyFrom(booking)
            moved_booking.expire_time.CopyFrom(timestamp(ends[booking.hold_id]))
            lapsed.append(moved_booking)
        return lapsed

    async def violations(self, *flight_ids: str) -> list[str]:
        """Returns the invariants that all bookings, or these flights' seats, violate."""
        own = [f"{rule}: {dict(row)}" for rule, query in VIOLATIONS.items() for row in await self.database.fetch(query)]
        return own + await rules.violations(self.seat_database, *flight_ids)

    async def disagreements(self, *flight_ids: str) -> set[tuple[str, str, str, str]]:
        """Returns the differences between the bookings' seats and the seat service's.

        Each item is flight, seat, passenger and state.
        """
        booked = await self.database.fetch(
            """
            SELECT flight_id, seat_number, passenger_id, state::text FROM booking_seats JOIN bookings USING (booking_id)
            WHERE flight_id = ANY($1)
            """,
            list(flight_ids),
        )
        had = await self.seat_database.fetch(
            """
            SELECT flight_id, seat_number, passenger_id, hold_seats.state FROM hold_seats JOIN holds USING (hold_id)
            WHERE flight_id = ANY($1) AND hold_seats.state <> 'RELEASED' AND holds.managed
            """,
            list(flight_ids),
        )
        promised = {
            (row["flight_id"], row["seat_number"], row["passenger_id"], HOLD_STATES[row["state"]])
            for row in booked
            if row["state"] in HOLD_STATES
        }
        return promised ^ {tuple(row.values()) for row in had}

    async def comes_to_rest(self, journeys: Iterable[Journey]) -> None:
        """Waits until bookings and seats of these journeys agree.

        Then checks the invariants.
        """
        flight_ids = {flight_id for journey in journeys for flight_id in journey.flight_ids}

        async def agree() -> bool:
            return not await self.disagreements(*flight_ids)

        await eventually(agree)
        assert await self.violations(*flight_ids) == []


async def a_foreign_booking_is_as_a_missing_one(
    agency: Agency, booking: pb.Booking, ask: Callable[[pb.Booking], Awaitable[Any]]
) -> None:
    """A stranger gets the same status for an existing booking and a missing one.

    The call changes nothing.
    """
    before = await agency.rows(booking)
    with refused("NOT_FOUND", "BOOKING_NOT_FOUND") as foreign:
        await ask(booking)
    unknown = pb.Booking()
    unknown.CopyFrom(booking)
    unknown.booking_id = str(uuid4())
    with refused("NOT_FOUND", "BOOKING_NOT_FOUND") as missing:
        await ask(unknown)
    assert foreign.status == missing.status
    assert await agency.rows(booking) == before


def without_history(booking: pb.Booking) -> pb.Booking:
    """Returns the booking without history; only GetBooking returns the history."""
    shown = pb.Booking()
    shown.CopyFrom(booking)
    shown.ClearField("history")
    return shown


def keyed(request: Message, key: str) -> Any:
    """Returns a copy of the request with this idempotency key."""
    copy: Any = type(request)()
    copy.CopyFrom(request)
    copy.request_id = key
    return copy
