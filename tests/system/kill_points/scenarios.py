"""The scenarios in which a process dies, step by step.

Each has conditions that must hold at its end. A scenario is a generator. Up to its first `yield` it prepares the work
for the process. From then on the process counts its I/Os; the scenario acts as its callers, which repeat calls without
a response with the same key, and waits until all work is done. After the second `yield` it checks the result.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
from skyhigh.booking.v1 import booking_service_pb2 as booking_pb
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin_pb
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb
from skyhigh.payment.v1 import payment_service_pb2 as payment_pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb
from skyhigh.waitlist.v1 import waitlist_service_pb2 as waitlist_pb

from services import amqp
from tests.aging import lapse_holds
from tests.booking.agency import AIRPORTS, FARE_CENTS, Journey, asked, usd
from tests.checkin.airport import facts, new_pnr
from tests.dates import new_flight_id
from tests.instances import connected
from tests.payment.rules import SUCCEEDS
from tests.system.kill_points.lane import PATIENCE_SECONDS, Lane, Who
from tests.waiting import eventually
from tests.waitlist.conftest import take_all_seats

LAYOUT: Final = "AT72-70Y"
# A bag that is heavier than the free allowance of each fare.
HEAVY_GRAMS: Final = 31_000
NO_BROKER: Final = "amqp://nobody:nothing@127.0.0.1:9/skyhigh"
RELEASED: Final = "seat.released.v1"


@dataclass(frozen=True, slots=True)
class Answered:
    """A caller's request with its key, and the response."""

    service: str
    who: Who
    method: str
    request: Any
    answer: Any


@dataclass
class Stage:
    """The state and the checks of one run of a scenario."""

    lane: Lane
    answered: list[Answered] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def ask(self, service: str, who: Who, method: str, request: Any) -> Any:
        """Requests a change with a key until there is a response, which a repeat must get too."""
        request.request_id = str(uuid4())
        answer = await self.lane.ask(service, who, method, request)
        self.answered.append(Answered(service, who, method, request, answer))
        return answer

    async def repeat(self) -> None:
        """Repeats each change with its key: the response must be the first one."""
        for each in self.answered:
            again = await self.lane.ask(each.service, each.who, each.method, each.request)
            self.expect(again == each.answer, f"a repeat of {each.method} was answered {again}, not {each.answer}")

    def expect(self, holds: bool, text: str) -> None:
        """Records the text as a violation if `holds` is False."""
        if not holds:
            self.wrong.append(text)

    def equal(self, found: object, expected: object, text: str) -> None:
        """Records a violation if the values differ."""
        self.expect(found == expected, f"{text}: {found}, not {expected}")

    async def becomes(self, table: str, key: str, identity: str, state: str) -> None:
        """Waits until a row has this state, in the database: a call would be one more I/O of the process."""
        query = f"SELECT state::text = $2 FROM {table} WHERE {key} = $1"
        await eventually(lambda: self.lane.holds(query, UUID(identity), state), within_seconds=PATIENCE_SECONDS)

    async def released(self, flight_id: str) -> None:
        """Waits until all seats of a flight are free."""
        query = "SELECT NOT EXISTS (SELECT FROM seat.seats WHERE flight_id = $1 AND state <> 'AVAILABLE')"
        await eventually(lambda: self.lane.holds(query, flight_id), within_seconds=PATIENCE_SECONDS)

    async def rests(self) -> None:
        """Waits until no event is unpublished and no timer is due."""
        await eventually(self.lane.rests, within_seconds=PATIENCE_SECONDS)

    async def value(self, query: str, *args: Any) -> Any:
        """Returns one value from the database."""
        return await self.lane.database.fetchval(query, *args)

    async def sales(self, flight_id: str) -> list[tuple[str, str]]:
        """Returns number and state of each seat of a flight that is not free.

        Reads the database, not the map.
        """
        rows = await self.lane.database.fetch(
            "SELECT seat_number, state::text FROM seat.seats WHERE flight_id = $1 AND state <> 'AVAILABLE' "
            "ORDER BY seat_number",
            flight_id,
        )
        return [(row["seat_number"], row["state"]) for row in rows]

    async def changes(self, flight_id: str, seat_number: str) -> list[str]:
        """Returns the states that a seat went through, in order."""
        rows = await self.lane.database.fetch(
            "SELECT to_state::text FROM seat.seat_events WHERE (flight_id, seat_number) = ($1, $2) ORDER BY version",
            flight_id,
            seat_number,
        )
        return [row["to_state"] for row in rows]

    async def provisioned(self) -> str:
        """Returns a flight that only the seat service knows."""
        flight_id = new_flight_id("KP")
        request = seat_pb.ProvisionSeatsRequest(flight_id=flight_id, layout_id=LAYOUT)
        await self.lane.ask("seat", operations, "ProvisionSeats", request)
        return flight_id

    def held(self, *seats: tuple[str, str]) -> seat_pb.HoldSeatsRequest:
        """Returns a request for these seats, by flight and number, each for a different passenger."""
        return seat_pb.HoldSeatsRequest(
            seats=[
                seat_pb.SeatAssignment(
                    flight_id=flight_id, seat_number=number, passenger_id=f"P-{secrets.token_hex(4)}"
                )
                for flight_id, number in seats
            ]
        )


Play = Callable[[Stage], AsyncIterator[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, and the process that dies in it."""

    name: str
    service: str
    """The service whose process dies."""
    origins: Sequence[str]
    """The I/Os that are part of it: those of calls, and of the background work with these names."""
    play: Play
    ios: int
    """About the number of I/Os in a run without a kill."""
    from_start: bool = False
    """Whether the process counts from its start on, including all polls of its background work."""


def operations(callers: Any) -> Any:
    """Selects an operations caller."""
    return callers.operations()


def agent(callers: Any) -> Any:
    """Selects an agent."""
    return callers.agent()


def passenger(pnr: str) -> Who:
    """Selects the passengers of a locator."""
    return lambda callers: callers.passenger(pnr=pnr)


def customer(name: str) -> Who:
    """Selects a customer."""
    return lambda callers: callers.customer(name)


async def hold(stage: Stage) -> AsyncIterator[None]:
    """One seat is held."""
    flight_id = await stage.provisioned()
    yield
    request = seat_pb.HoldSeatRequest(flight_id=flight_id, seat_number="7C", passenger_id="P-1")
    answer = await stage.ask("seat", agent, "HoldSeat", request)
    yield
    stage.equal(answer.state, seat_pb.Hold.HELD, "state of the hold")
    stage.equal(await stage.sales(flight_id), [("7C", "HELD")], "seats")
    stage.equal(await stage.changes(flight_id, "7C"), ["HELD"], "changes of the seat")
    holds = "SELECT array_agg(hold_id::text) FROM seat.hold_seats WHERE flight_id = $1"
    stage.equal(await stage.value(holds, flight_id), [answer.hold_id], "holds")


async def group_hold(stage: Stage) -> AsyncIterator[None]:
    """Seats of two flights are held together."""
    first, second = [await stage.provisioned() for _ in range(2)]
    seats = [(first, "7A"), (first, "7B"), (second, "8C"), (second, "8D")]
    yield
    answer = await stage.ask("seat", agent, "HoldSeats", stage.held(*seats))
    yield
    stage.equal(sorted((each.flight_id, each.seat_number) for each in answer.seats), sorted(seats), "seats of the hold")
    for flight_id in (first, second):
        own = [number for flight, number in seats if flight == flight_id]
        stage.equal(await stage.sales(flight_id), [(number, "HELD") for number in own], "seats")
        for number in own:
            stage.equal(await stage.changes(flight_id, number), ["HELD"], f"changes of {number}")
    holds = "SELECT array_agg(DISTINCT hold_id::text) FROM seat.hold_seats WHERE flight_id = ANY($1)"
    stage.equal(await stage.value(holds, [first, second]), [answer.hold_id], "holds")


async def confirm(stage: Stage) -> AsyncIterator[None]:
    """A hold of two seats is confirmed."""
    flight_id = await stage.provisioned()
    held = await stage.ask("seat", agent, "HoldSeats", stage.held((flight_id, "7A"), (flight_id, "7B")))
    yield
    answer = await stage.ask("seat", agent, "ConfirmHold", seat_pb.ConfirmHoldRequest(hold_id=held.hold_id))
    yield
    stage.equal(answer.state, seat_pb.Hold.CONFIRMED, "state of the hold")
    stage.equal(await stage.sales(flight_id), [("7A", "CONFIRMED"), ("7B", "CONFIRMED")], "seats")
    for number in ("7A", "7B"):
        stage.equal(await stage.changes(flight_id, number), ["HELD", "CONFIRMED"], f"changes of {number}")


async def expiry(stage: Stage) -> AsyncIterator[None]:
    """A hold of two seats lapses, and the sweeper releases them."""
    flight_id = await stage.provisioned()
    held = await stage.ask("seat", agent, "HoldSeats", stage.held((flight_id, "7A"), (flight_id, "7B")))
    yield
    await lapse_holds(stage.lane.database, held)

    async def read() -> Any:
        return await stage.lane.ask("seat", agent, "GetHold", seat_pb.GetHoldRequest(hold_id=held.hold_id))

    await stage.released(flight_id)
    await stage.rests()
    yield
    stage.equal((await read()).state, seat_pb.Hold.EXPIRED, "state of the hold")
    for number in ("7A", "7B"):
        stage.equal(await stage.changes(flight_id, number), ["HELD", "AVAILABLE"], f"changes of {number}")
    # Other callers can hold the seats.
    again = await stage.lane.ask("seat", agent, "HoldSeats", stage.held((flight_id, "7A"), (flight_id, "7B")))
    stage.equal(again.state, seat_pb.Hold.HELD, "state of a hold of the same seats")


@asynccontextmanager
async def _listening(stage: Stage, service: str, *routing_keys: str) -> AsyncIterator[list[str]]:
    """Yields the ids of the events that reach a new queue within the block."""
    name = f"{service}.kill-{secrets.token_hex(6)}"
    heard: list[str] = []

    async def hear(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        heard.append(str(message.message_id))
        await message.ack()

    async with await aio_pika.connect(stage.lane.world.servers.amqp_url()) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        for routing_key in routing_keys:
            await queue.bind(amqp.EVENTS, routing_key=routing_key)
        await queue.consume(hear)
        try:
            yield heard
        finally:
            await channel.queue_delete(name)


async def relay(stage: Stage) -> AsyncIterator[None]:
    """A process left unpublished events behind; the next one publishes them."""
    worker = stage.lane.workers["seat"]
    await worker.stop()
    await worker.start(SKYHIGH_SEAT_AMQP_URL=NO_BROKER)
    flight_id = await stage.provisioned()
    for number in ("7A", "7B", "7C"):
        held = await stage.ask("seat", agent, "HoldSeats", stage.held((flight_id, number)))
        await stage.ask("seat", agent, "CancelHold", seat_pb.CancelHoldRequest(hold_id=held.hold_id))
    await worker.stop()
    rows = await stage.lane.database.fetch("SELECT event_id::text FROM seat.outbox WHERE publish_time IS NULL")
    left = {row["event_id"] for row in rows}
    async with _listening(stage, "seat", "seat.#") as heard:
        yield

        async def all_heard() -> bool:
            return left <= set(heard)

        await eventually(all_heard, within_seconds=PATIENCE_SECONDS)
        await stage.rests()
        yield
        written = await stage.lane.database.fetch("SELECT event_id::text FROM seat.outbox")
        stage.expect(set(heard) <= {row["event_id"] for row in written}, "an event was published that is not written")
    stage.expect(len(left) >= 3, f"the process left {len(left)} events behind")
    stage.equal(await stage.sales(flight_id), [], "seats")


async def claim(stage: Stage) -> AsyncIterator[None]:
    """A seat is released, and the first of two passengers who wait for it gets it."""
    lane = stage.lane
    flight_id = await stage.provisioned()
    async with connected(lane.world.servers.database_url("seat")) as database:
        taken = await take_all_seats(database, flight_id)
    pnrs = [new_pnr() for _ in range(2)]
    await lane.ask(
        "checkin",
        operations,
        "ImportManifest",
        checkin_pb.ImportManifestRequest(
            flight_id=flight_id, flight=facts(), passengers=[_listed(pnr) for pnr in pnrs]
        ),
    )
    first, second = [
        await stage.ask(
            "waitlist",
            passenger(pnr),
            "JoinWaitlist",
            waitlist_pb.JoinWaitlistRequest(flight_id=flight_id, passenger_id=f"{pnr}-1"),
        )
        for pnr in pnrs
    ]
    yield
    await stage.ask("seat", agent, "CancelHold", seat_pb.CancelHoldRequest(hold_id=taken["7C"].hold_id))
    await stage.becomes("waitlist.entries", "entry_id", first.entry_id, "ASSIGNED")
    await eventually(lambda: _has_mail(stage, _address(pnrs[0])), within_seconds=PATIENCE_SECONDS)
    await stage.rests()
    yield
    request = waitlist_pb.GetWaitlistEntryRequest(entry_id=first.entry_id)
    served = await lane.ask("waitlist", passenger(pnrs[0]), "GetWaitlistEntry", request)
    stage.equal(served.seat_number, "7C", "seat of the entry")
    owned = """
        SELECT array_agg(seat_number) FROM seat.seats JOIN seat.hold_seats USING (flight_id, seat_number, hold_id)
        WHERE flight_id = $1 AND passenger_id = $2
    """
    stage.equal(await stage.value(owned, flight_id, f"{pnrs[0]}-1"), ["7C"], "seats of the passenger")
    stage.equal(await stage.value(owned, flight_id, f"{pnrs[1]}-1"), None, "seats of the next in line")
    stage.equal((await stage.changes(flight_id, "7C"))[-1], "CONFIRMED", "the seat")
    stage.equal(len(await stage.sales(flight_id)), len(taken), "taken seats")
    waits = "SELECT state::text FROM waitlist.entries WHERE entry_id = $1"
    stage.equal(await stage.value(waits, UUID(second.entry_id)), "WAITING", "the next in line")
    # Otherwise the service would look at the flight every second until the lane ends.
    await lane.ask(
        "waitlist",
        passenger(pnrs[1]),
        "LeaveWaitlist",
        waitlist_pb.LeaveWaitlistRequest(entry_id=second.entry_id),
    )
    _one_mail_each(stage, _address(pnrs[0]))


def _listed(pnr: str) -> checkin_pb.ManifestPassenger:
    return checkin_pb.ManifestPassenger(
        passenger_id=f"{pnr}-1", pnr=pnr, given_name="Ada", last_name="Byron", contact_email=_address(pnr)
    )


def _address(pnr: str) -> str:
    return f"{pnr.lower()}@example.org"


async def _has_mail(stage: Stage, address: str) -> bool:
    return any(address in each.to for each in stage.lane.mails.mails)


def _one_mail_each(stage: Stage, address: str) -> None:
    """No mail is written twice; one that is sent twice has the same Message-ID."""
    mails = {(each.message_id, each.subject) for each in stage.lane.mails.mails if address in each.to}
    subjects = [subject for _, subject in mails]
    stage.equal(len(subjects), len(set(subjects)), f"mails {subjects}")


async def check_in(stage: Stage) -> AsyncIterator[None]:
    """A passenger checks in with a heavy bag, pays the fee and completes the check-in."""
    lane = stage.lane
    flight_id = await stage.provisioned()
    pnr = new_pnr()
    await lane.ask(
        "checkin",
        operations,
        "ImportManifest",
        checkin_pb.ImportManifestRequest(flight_id=flight_id, flight=facts(), passengers=[_listed(pnr)]),
    )
    await stage.rests()
    who = passenger(pnr)
    held = await stage.ask(
        "seat",
        who,
        "HoldSeat",
        seat_pb.HoldSeatRequest(flight_id=flight_id, seat_number="7C", passenger_id=f"{pnr}-1"),
    )
    yield
    started = await stage.ask(
        "checkin",
        who,
        "StartCheckIn",
        checkin_pb.StartCheckInRequest(flight_id=flight_id, passenger_id=f"{pnr}-1", hold_id=held.hold_id),
    )
    declared = await stage.ask(
        "checkin",
        who,
        "DeclareBaggage",
        checkin_pb.DeclareBaggageRequest(
            checkin_id=started.checkin_id, bags=[checkin_pb.CheckIn.Bag(weight_grams=HEAVY_GRAMS)]
        ),
    )
    await stage.ask(
        "payment",
        who,
        "SubmitPaymentCode",
        payment_pb.SubmitPaymentCodeRequest(intent_id=declared.payment_intent_id, payment_code=SUCCEEDS),
    )
    await stage.becomes("checkin.check_ins", "checkin_id", started.checkin_id, "COMPLETED")
    await stage.rests()
    yield
    read = checkin_pb.GetCheckInRequest(checkin_id=started.checkin_id)
    done = await lane.ask("checkin", who, "GetCheckIn", read)
    stage.equal(declared.state, checkin_pb.CheckIn.WAITING_FOR_PAYMENT, "state after the declaration")
    stage.equal(done.seat_number, "7C", "seat of the check-in")
    stage.equal(await stage.sales(flight_id), [("7C", "CONFIRMED")], "seats")
    intents = "SELECT array_agg(intent_id::text) FROM payment.intents WHERE reference LIKE $1 AND state = 'SUCCEEDED'"
    paid = await stage.value(intents, f"checkin/{started.checkin_id}/%")
    stage.equal(paid, [done.payment_intent_id], "paid fees")
    await _money(stage, [done.payment_intent_id], refunded=0)


async def _money(stage: Stage, intent_ids: Sequence[str], *, refunded: int) -> None:
    """The provider has charged each intent once, and refunded so many of them completely."""
    provider = stage.lane.provider
    charges = [each for each in provider.charges.values() if each.metadata.get("intent_id") in intent_ids]
    taken = [each for each in charges if each.status == "succeeded"]
    stage.equal(sorted(each.metadata["intent_id"] for each in taken), sorted(intent_ids), "charges")
    back = [each for each in provider.refunds.values() if each.charge_id in {charge.charge_id for charge in taken}]
    stage.equal(len(back), refunded, "refunds")
    given, due = [sum(each.amount["minor_units"] for each in some) for some in (back, taken[:refunded])]
    stage.equal(given, due, "cents given back")


async def _flight(stage: Stage) -> Journey:
    """Returns a flight that can be booked."""
    number = f"SH{secrets.randbelow(9000) + 1000}"
    departure = facts(departs_in_seconds=3 * 86_400)
    flight = await stage.lane.ask(
        "flight",
        operations,
        "CreateFlight",
        flight_pb.CreateFlightRequest(
            flight_number=number,
            flight_id=f"{number}-{secrets.token_hex(6)}",
            origin=AIRPORTS[0],
            destination=AIRPORTS[1],
            departure_time=departure.departure_time,
            arrival_time=departure.arrival_time,
            aircraft_type="AT72",
            price=usd(FARE_CENTS),
        ),
    )
    return Journey([flight])


class _Order:
    """A customer's booking of two seats."""

    def __init__(self, stage: Stage, journey: Journey) -> None:
        self.stage = stage
        self.flight_id = journey.flight_id
        name = secrets.token_hex(6)
        self.who = customer(name)
        self.address = f"{name}@example.org"
        self.request = asked(journey, "ADULT", "CHILD", contact_email=self.address)
        self.booking = booking_pb.Booking()

    async def book(self) -> None:
        self.booking = await self.stage.ask("booking", self.who, "CreateBooking", self.request)

    async def pay(self) -> None:
        request = booking_pb.PayBookingRequest(booking_id=self.booking.booking_id, payment_code=SUCCEEDS)
        await self.stage.ask("booking", self.who, "PayBooking", request)

    async def cancel(self) -> None:
        request = booking_pb.CancelBookingRequest(booking_id=self.booking.booking_id)
        await self.stage.ask("booking", self.who, "CancelBooking", request)

    async def becomes(self, state: str) -> None:
        """Waits for the state, and then until all work is done."""
        await self.stage.becomes("booking.bookings", "booking_id", self.booking.booking_id, state)
        await eventually(lambda: _has_mail(self.stage, self.address), within_seconds=PATIENCE_SECONDS)
        await self.stage.rests()

    async def intent_id(self) -> str:
        """Returns the payment intent of the booking."""
        intent = "SELECT payment_intent_id::text FROM booking.bookings WHERE booking_id = $1"
        found: str = await self.stage.value(intent, UUID(self.booking.booking_id))
        return found

    async def is_confirmed(self) -> None:
        """Records what is wrong with a confirmed booking."""
        stage = self.stage
        stage.equal(
            [state for _, state in await stage.sales(self.flight_id)], ["CONFIRMED", "CONFIRMED"], "seats of the flight"
        )
        stage.equal(await self.told("booking.confirmed.v1"), 1, "confirmations that were published")
        await _money(stage, [await self.intent_id()], refunded=0)
        _one_mail_each(stage, self.address)

    async def told(self, routing_key: str) -> int:
        """Returns the number of events of this kind about the booking."""
        count: int = await self.stage.value(
            "SELECT count(*) FROM booking.outbox WHERE routing_key = $1 AND position($2::bytea IN body) > 0",
            routing_key,
            self.booking.booking_id.encode(),
        )
        return count


async def booking(stage: Stage) -> AsyncIterator[None]:
    """A customer books two seats."""
    order = _Order(stage, await _flight(stage))
    yield
    await order.book()
    await stage.rests()
    yield
    stage.equal(order.booking.state, booking_pb.Booking.SEATS_RESERVED, "state of the booking")
    sales = await stage.sales(order.flight_id)
    stage.equal(sales, sorted((seat.seat_number, "HELD") for seat in order.booking.seats), "seats of the flight")
    made = "SELECT count(*) FROM booking.bookings WHERE contact_email = $1"
    stage.equal(await stage.value(made, order.address), 1, "bookings of the customer")


async def booking_payment(stage: Stage) -> AsyncIterator[None]:
    """A customer pays a booking, which is confirmed."""
    order = _Order(stage, await _flight(stage))
    await order.book()
    await stage.rests()
    yield
    await order.pay()
    await order.becomes("CONFIRMED")
    yield
    await order.is_confirmed()


async def refund(stage: Stage) -> AsyncIterator[None]:
    """A customer cancels a confirmed booking and gets the money back."""
    order = _Order(stage, await _flight(stage))
    await order.book()
    await order.pay()
    await order.becomes("CONFIRMED")
    yield
    await order.cancel()
    await order.becomes("CANCELLED")
    intent_id = await order.intent_id()
    await stage.becomes("payment.intents", "intent_id", intent_id, "REFUNDED")
    await stage.released(order.flight_id)
    await stage.rests()
    yield
    stage.equal(await order.told("booking.cancelled.v1"), 1, "cancellations that were published")
    await _money(stage, [intent_id], refunded=1)
    _one_mail_each(stage, order.address)


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("hold", "seat", ("call", "invalidation"), hold, 14),
        Scenario("group-hold", "seat", ("call", "invalidation"), group_hold, 14),
        Scenario("confirm", "seat", ("call", "invalidation", "availability"), confirm, 15),
        Scenario("expiry", "seat", ("sweeper", "relay", "invalidation", "availability"), expiry, 20),
        Scenario("relay", "seat", ("relay",), relay, 11, from_start=True),
        Scenario("claim", "waitlist", ("call", "events", "timers", "mails", "relay"), claim, 59),
        Scenario("claim-seat", "seat", ("call", "timers", "relay"), claim, 59),
        Scenario("check-in", "checkin", ("call", "events", "timers", "relay"), check_in, 82),
        Scenario("check-in-payment", "payment", ("call", "timers", "relay"), check_in, 41),
        Scenario("booking", "booking", ("call", "timers"), booking, 33),
        Scenario("booking-payment", "booking", ("call", "events", "timers", "mails", "relay"), booking_payment, 73),
        Scenario("booking-charge", "payment", ("call", "timers", "relay"), booking_payment, 44),
        Scenario("refund", "booking", ("call", "events", "timers", "mails", "relay"), refund, 73),
        Scenario("refund-charge", "payment", ("call", "timers", "relay"), refund, 39),
    )
}
