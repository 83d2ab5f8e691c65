"""Shared parts of check-in tests: a flight, its passengers and their check-ins."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.mail.v1 import mail_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from checkin_service import records
from checkin_service.check_ins.timer_names import PAYMENT_DEADLINE
from services import db
from services.db import Pool
from services.inbox import Handler
from tests.callers import LAYOUT, Caller, Callers, read
from tests.checkin.fakes import Others
from tests.dates import new_flight_id
from tests.waiting import eventually

AnyMessage = TypeVar("AnyMessage", bound=Message)
HOUR: Final = 3600
_LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"
ALREADY_OVER: Final = -1.0


def new_pnr() -> str:
    """Returns a record locator that no party has."""
    return "".join(secrets.choice(_LETTERS) for _ in range(6))


def facts(*, departs_in_seconds: float = 6 * HOUR, **more: Any) -> pb.FlightFacts:
    """Returns the facts of a flight whose check-in is open by default."""
    departure = int(time.time() + departs_in_seconds)
    flight = pb.FlightFacts(**{"flight_number": "SH101", "origin": "FRA", "destination": "LIS", "gate": "A12"} | more)
    flight.departure_time.FromSeconds(departure)
    flight.arrival_time.FromSeconds(departure + 2 * HOUR)
    return flight


def outcomes(results: Sequence[Any]) -> Counter[str]:
    """Counts the outcomes of calls: `OK`, or the reason of the refusal."""
    return Counter(
        read(each).reason
        if isinstance(each, grpc.aio.AioRpcError)
        else type(each).__name__
        if isinstance(each, BaseException)
        else "OK"
        for each in results
    )


def seconds(count: float) -> duration_pb2.Duration:
    """A duration."""
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(int(count * 1000))
    return duration


@dataclass
class Traveller:
    """A passenger of the flight, as a caller of the check-in and the seat service."""

    airport: Airport
    passenger_id: str
    pnr: str
    last_name: str
    desk: Caller
    seats: Caller
    checkin_id: str = ""

    async def hold(self, seat_number: str = "") -> seat_pb.Hold:
        """Holds a seat for itself; the default is the next unused one."""
        return await self.seats.hold(self.airport.flight_id, seat_number or self.airport.next_seat(), self.passenger_id)

    async def start(self, *, hold_id: str | None = None, seat_number: str = "", **more: Any) -> pb.CheckIn:
        """Starts its check-in; holds a seat first unless `hold_id` is given ("" for none)."""
        if hold_id is None:
            hold_id = (await self.hold(seat_number)).hold_id
        started: pb.CheckIn = await self.desk.StartCheckIn(
            pb.StartCheckInRequest(
                flight_id=self.airport.flight_id, passenger_id=self.passenger_id, hold_id=hold_id, **more
            )
        )
        self.checkin_id = started.checkin_id
        return started

    async def declare(self, *kilograms: float, **more: Any) -> pb.CheckIn:
        """Declares bags."""
        bags = [pb.CheckIn.Bag(weight_grams=round(each * 1000)) for each in kilograms]
        declared: pb.CheckIn = await self.desk.DeclareBaggage(
            pb.DeclareBaggageRequest(checkin_id=self.checkin_id, bags=bags, **more)
        )
        return declared

    async def cancel(self, **more: Any) -> pb.CheckIn:
        """Cancels its check-in."""
        cancelled: pb.CheckIn = await self.desk.CancelCheckIn(
            pb.CancelCheckInRequest(checkin_id=self.checkin_id, **more)
        )
        return cancelled

    async def get(self) -> pb.CheckIn:
        """Reads its check-in."""
        found: pb.CheckIn = await self.desk.GetCheckIn(pb.GetCheckInRequest(checkin_id=self.checkin_id))
        return found

    async def completed(self, *kilograms: float) -> pb.CheckIn:
        """Checks in completely; pays the fee if there is one."""
        await self.start()
        declared = await self.declare(*kilograms)
        if declared.state == pb.CheckIn.WAITING_FOR_PAYMENT:
            await self.pay()
            await self.becomes(pb.CheckIn.COMPLETED)
        return await self.get()

    async def waiting(self, kilograms: float = 30) -> pb.CheckIn:
        """Checks in until the check-in waits for the payment."""
        await self.start()
        return await self.declare(kilograms)

    async def pay(self) -> None:
        """Pays the fee if there is one; the payment service publishes the event."""
        if intent_id := (await self.get()).payment_intent_id:
            self.airport.payments.begin(intent_id)
            await self.airport.tell("payment.succeeded.v1", self.airport.payments.succeed(intent_id))

    async def fail_to_pay(self) -> None:
        """Fails to pay the fee if there is one; the payment service publishes the event."""
        if intent_id := (await self.get()).payment_intent_id:
            self.airport.payments.begin(intent_id)
            await self.airport.tell("payment.failed.v1", self.airport.payments.fail(intent_id))

    async def has_deadline_in(self, seconds: float) -> pb.CheckIn:
        """Moves the deadline of its fee; `ALREADY_OVER` moves it into the past.

        The row and the timer get the same time.
        """
        async with db.transaction(self.airport.pool) as conn:
            await conn.execute(
                """
                WITH moved AS (
                    UPDATE check_ins SET payment_deadline = statement_timestamp() + $2
                    WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' RETURNING payment_deadline
                )
                UPDATE timers SET due_time = payment_deadline, try_time = payment_deadline FROM moved
                WHERE name = $3 AND subject = $4 AND fire_time IS NULL
                """,
                UUID(self.checkin_id),
                timedelta(seconds=seconds),
                PAYMENT_DEADLINE,
                self.checkin_id,
            )
        return await self.get()

    async def becomes(self, state: int) -> pb.CheckIn:
        """Waits until its check-in is in this state; returns it."""

        async def reached() -> bool:
            return (await self.get()).state == state

        await eventually(reached)
        return await self.get()

    async def has_seat(self, seat_number: str) -> None:
        """Waits until its check-in shows this seat; "" for none."""

        async def known() -> bool:
            return (await self.get()).seat_number == seat_number

        await eventually(known)

    async def seat(self) -> str:
        """Returns the passenger's confirmed seat at the seat service; "" if there is none."""
        return next((each.seat_number for each in await self._confirmed()), "")

    async def lose_seat(self) -> None:
        """Has the booking service release the passenger's confirmed seat."""
        for each in await self._confirmed():
            await self.airport.booking.ReleasePassengerSeat(
                seat_pb.ReleasePassengerSeatRequest(
                    hold_id=each.hold_id, flight_id=each.flight_id, passenger_id=each.passenger_id
                )
            )

    async def _confirmed(self) -> list[seat_pb.FindPassengerSeatsResponse.PassengerSeat]:
        asked = seat_pb.FindPassengerSeatsRequest()
        asked.passengers.add(flight_id=self.airport.flight_id, passenger_id=self.passenger_id)
        answer = await self.airport.booking.FindPassengerSeats(asked)
        return [each for each in answer.seats if each.state == seat_pb.Seat.CONFIRMED]


class Airport:
    """A flight, and the services that check-in works with."""

    def __init__(self, seats: Callers, checkin: Callers, others: Others, pool: Pool) -> None:
        self.seats = seats
        self.checkin = checkin
        self.payments = others.payments
        self.scales = others.scales
        self.pool = pool
        self.flight_id = new_flight_id()
        self.operations = checkin.operations()
        self.agent = checkin.agent("desk")
        self.booking = seats.service("booking")
        self._broker = others.broker
        self._given = 0

    async def open(self, layout_id: str = LAYOUT) -> None:
        """Creates a flight whose check-in is open."""
        await self.seats.operations().provision(self.flight_id, layout_id)
        await self.set_flight()

    def next_seat(self) -> str:
        """Returns the next seat that no passenger of the flight has been given."""
        row, letter = divmod(self._given, 6)
        self._given += 1
        return f"{row + 1}{'ABCDEF'[letter]}"

    def address_of(self, passenger_id: str) -> str:
        """Returns a passenger's mail address, which is unique to this flight."""
        return f"{passenger_id}@{self.flight_id}.example".lower()

    async def set_flight(self, **more: Any) -> None:
        """Imports the flight's facts, which `facts` makes."""
        await self.operations.ImportManifest(pb.ImportManifestRequest(flight_id=self.flight_id, flight=facts(**more)))

    async def imported(self, *passengers: pb.ManifestPassenger) -> pb.ImportManifestResponse:
        """Imports passengers."""
        answer: pb.ImportManifestResponse = await self.operations.ImportManifest(
            pb.ImportManifestRequest(flight_id=self.flight_id, passengers=passengers)
        )
        return answer

    async def traveller(self, passenger_id: str = "P1", **more: Any) -> Traveller:
        """Adds a passenger to the flight."""
        (traveller,) = await self.travellers(passenger_id, **more)
        return traveller

    async def travellers(self, *passenger_ids: str, pnr: str = "", **more: Any) -> list[Traveller]:
        """Adds passengers with one locator to the flight."""
        pnr = pnr or new_pnr()
        return await self._board([self._passenger(each, pnr, **more) for each in passenger_ids])

    async def strangers(self, count: int) -> list[Traveller]:
        """Adds passengers to the flight, each with its own locator."""
        return await self._board([self._passenger(f"P{n}", new_pnr()) for n in range(count)])

    def _passenger(self, passenger_id: str, pnr: str, **more: Any) -> pb.ManifestPassenger:
        return pb.ManifestPassenger(
            **{
                "passenger_id": passenger_id,
                "pnr": pnr,
                "given_name": "Zoë",
                "last_name": "Müller",
                "contact_email": self.address_of(passenger_id),
                **more,
            }
        )

    async def _board(self, passengers: list[pb.ManifestPassenger]) -> list[Traveller]:
        await self.imported(*passengers)
        return [self.as_caller(each) for each in passengers]

    def as_caller(self, passenger: pb.ManifestPassenger) -> Traveller:
        """Returns a passenger as a caller."""
        entry = f"{passenger.passenger_id}:{self.flight_id}"
        return Traveller(
            airport=self,
            passenger_id=passenger.passenger_id,
            pnr=passenger.pnr,
            last_name=passenger.last_name,
            desk=self.checkin.passenger(entry, pnr=passenger.pnr),
            seats=self.seats.passenger(entry, pnr=passenger.pnr),
        )

    async def publish(self, routing_key: str, event: Message, *, event_id: UUID | None = None) -> UUID:
        """Publishes an event as another service does; returns its id."""
        return await self._broker.publish(routing_key, event, event_id=event_id)

    async def tell(self, routing_key: str, event: Message | None) -> None:
        """Publishes an event if there is one; waits until check-in has applied it."""
        if event is None:
            return

        async def applied(event_id: UUID) -> bool:
            async with db.transaction(self.pool) as conn:
                return bool(await conn.fetchval("SELECT true FROM inbox WHERE event_id = $1", event_id))

        await self._broker.tell(routing_key, event, applied)

    @asynccontextmanager
    async def in_the_middle_of(self, handle: Handler, event: Message) -> AsyncIterator[None]:
        """Applies an event; commits once another transaction waits for this one."""
        async with db.transaction(self.pool) as conn:
            await handle(conn, event)
            writer = await conn.fetchval("SELECT pg_backend_pid()")
            yield

            async def waits() -> bool:
                async with db.transaction(self.pool) as other:
                    blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
                    return bool(await other.fetchval(blocked, writer))

            await eventually(waits)

    async def at_rest(self, traveller: Traveller) -> None:
        """Makes a check-in's timers of the next 5 s due; waits until they have fired."""

        async def done() -> bool:
            intents = [str(each.intent_id) for each in self.payments.of(traveller.checkin_id)]
            async with db.transaction(self.pool) as conn:
                return not await conn.fetchval(
                    """
                    WITH soon AS (
                        SELECT name, subject FROM timers
                        WHERE subject = ANY($1::text[]) AND fire_time IS NULL
                          AND due_time < now() + interval '5 seconds'
                    ), brought_forward AS (
                        UPDATE timers SET due_time = now(), try_time = now() FROM soon
                        WHERE timers.name = soon.name AND timers.subject = soon.subject
                          AND timers.fire_time IS NULL AND timers.tries = 0 AND timers.due_time > now()
                    )
                    SELECT EXISTS (SELECT FROM soon)
                    """,
                    [traveller.checkin_id, *intents],
                )

        await eventually(done)

    async def row(self, traveller: Traveller) -> records.CheckIn:
        """Returns the row of the check-in."""
        async with db.transaction(self.pool) as conn:
            return await records.find(conn, UUID(traveller.checkin_id))

    async def mails(self, traveller: Traveller) -> list[str]:
        """Returns the subjects of a traveller's mails without dates, oldest first."""
        async with db.transaction(self.pool) as conn:
            rows = await conn.fetch(
                "SELECT body FROM outbox WHERE routing_key = 'checkin.mail.v1' ORDER BY create_time"
            )
        mails = [mail_pb2.Mail.FromString(row["body"]) for row in rows]
        return [
            each.subject.partition(" on ")[0] for each in mails if each.to == self.address_of(traveller.passenger_id)
        ]

    async def told(self, traveller: Traveller, routing_key: str, message: type[AnyMessage]) -> list[AnyMessage]:
        """Returns the events of one type about a traveller's check-in."""
        async with db.transaction(self.pool) as conn:
            rows = await conn.fetch("SELECT body FROM outbox WHERE routing_key = $1", routing_key)
        events: list[Any] = [message.FromString(row["body"]) for row in rows]
        return [event for event in events if event.checkin_id == traveller.checkin_id]
