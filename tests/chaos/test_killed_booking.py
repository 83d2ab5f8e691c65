"""A booking service is killed at every step and at random times.

Each order ends with correct seats and money. Its processes are real, two workers of one parent. The other services run
in this process, behind gates that delay a call at the step at which the workers are killed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import secrets
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

import asyncpg
import grpc
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from booking_service.steps import LEASE_SECONDS
from deploy.local.process import LOOPBACK, Process, free_ports, serves_grpc
from deploy.local.supervisor import Supervisor
from deploy.mocks.payment_provider import ProviderSettings, serving
from flight_service.service import FLIGHT_SERVICE
from seat_service.service import SEAT_SERVICE
from services import db
from services.time_limits import FACTOR
from services.timers import pause_after
from tests.booking.agency import Agency, Journey, asked, patiently, seats_of, state_of
from tests.booking.gate import Gate, Stop, gate
from tests.booking.locator_desk import locator_desk
from tests.booking.orders import (
    ENDS,
    LATEST_SECONDS,
    ends,
    pay_once_more,
    rest,
    switch,
    times,
)
from tests.callers import Callers, read
from tests.conftest import World
from tests.instances import connected, database_with, running, serves
from tests.payment.conftest import PROMPT, paying
from tests.payment.rules import FAILS, SECRET, SUCCEEDS
from tests.waiting import eventually, pause

SERVICE: Final = "skyhigh.booking.v1.BookingService"
AT_REST_SECONDS: Final = 120
SHOPPERS: Final = 8
MAYHEM_SECONDS: Final = float(os.environ.get("SKYHIGH_TEST_MAYHEM_SECONDS", "6"))
AWAY_SECONDS: Final = 1
# Seats that no passenger gets without asking for them.
FAR_SEATS: Final = ("18A", "18B", "18C", "18D")
MIDDLE_SEATS: Final = [f"{row}{letter}" for row in range(6, 17) if row != 13 for letter in "ABCD"]
# The longest wait for a response: after that the workers should be dead.
CALL_SECONDS: Final = 1.7
_log = logging.getLogger(__name__)


@dataclass
class Killed:
    """A booking service that tests kill, with everything that it needs."""

    agency: Agency
    seats: Gate
    payments: Gate
    supervisor: Supervisor
    kills: int = 0
    down_seconds: float = 0
    """The longest time without a running service."""

    def stop(self, method: str, names: str, *, answered: bool) -> Stop:
        """Stops calls of a method of the seat or the payment service."""
        return (self.payments if "Payment" in method else self.seats).stop(method, names, answered=answered)

    def workers(self) -> list[int]:
        """Returns the pids of the workers that are alive now."""
        (status,) = self.supervisor.statuses
        with suppress(FileNotFoundError):
            return [int(pid) for pid in Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text().split()]
        return []

    def kill(self, pids: Sequence[int]) -> None:
        """Kills workers; their parent starts new ones."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills += 1

    async def try_again(self) -> None:
        """Ends the long pauses before the next tries of failed steps.

        A wait longer than a lease is a pause.
        """
        async with self.agency.pool.acquire() as conn:
            await conn.execute(
                """
                UPDATE timers SET try_time = clock_timestamp()
                WHERE fire_time IS NULL AND due_time <= clock_timestamp() AND tries > 0
                  AND try_time > clock_timestamp() + $1::interval
                """,
                timedelta(seconds=LEASE_SECONDS),
            )

    async def kill_all(self, *, parent_too: bool) -> None:
        """Kills all workers, or the whole service, and waits until it serves again."""
        begun = time.monotonic()
        (status,) = self.supervisor.statuses
        if parent_too:
            await self.supervisor.kill(status.name)
            self.kills += 1
        else:
            self.kill(self.workers())
        self.seats.open()
        self.payments.open()
        if parent_too:
            await self.supervisor.start(status.name)
        # If the parent is alive, it starts the workers, else the supervisor starts the parent.
        await eventually(partial(serves, status.port, SERVICE), within_seconds=AT_REST_SECONDS)
        self.down_seconds = max(self.down_seconds, time.monotonic() - begun)


@asynccontextmanager
async def selling(world: World, **variables: str) -> AsyncIterator[Killed]:
    """Runs everything within the block; `variables` are environment variables."""
    databases = await database_with(world, "flight", "booking")
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(
            serving(ProviderSettings(listen=f"{LOOPBACK}:0", webhook_secret=SECRET))
        )
        provider.behaviour.now = PROMPT.model_copy(update={"failure_rate": 0})
        payments = await stack.enter_async_context(paying(world, provider))
        seats = await stack.enter_async_context(running(world, SEAT_SERVICE, SeatServiceStub, **variables))
        variables |= databases | {"SKYHIGH_SEAT_ADDRESS": seats.address, "SKYHIGH_FLIGHT_HORIZON_DAYS": "0"}
        flights = await stack.enter_async_context(running(world, FLIGHT_SERVICE, FlightServiceStub, **variables))
        seat_gate = await stack.enter_async_context(gate(seats.address))
        payment_gate = await stack.enter_async_context(gate(payments.callers.address))
        variables |= {
            "SKYHIGH_CHECKIN_ADDRESS": await stack.enter_async_context(locator_desk()),
            "SKYHIGH_FLIGHT_ADDRESS": flights.address,
            "SKYHIGH_SEAT_ADDRESS": seat_gate.address,
            "SKYHIGH_PAYMENT_ADDRESS": payment_gate.address,
        }
        url = databases["SKYHIGH_BOOKING_DATABASE_URL"]
        (port,) = free_ports(1)
        process = Process(
            name=f"booking-{port}",
            command=[sys.executable, "-m", "booking_service"],
            ready=serves_grpc(port, SERVICE),
            port=port,
            environment=world.environment(
                **variables,
                SKYHIGH_BOOKING_LISTEN=f"{LOOPBACK}:{port}",
                SKYHIGH_BOOKING_PROCESSES="2",
                SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS="0.05",
                SKYHIGH_LOG_LEVEL="error",
            ),
        )
        supervisor = await stack.enter_async_context(Supervisor([process], logs=world.folder / "logs", restart=False))
        bookings = Callers(f"{LOOPBACK}:{port}", world.keys, BookingServiceStub)
        stack.push_async_callback(bookings.close)
        seat_database = await stack.enter_async_context(connected(world.servers.database_url("seat")))
        database = await asyncpg.connect(url, server_settings={"search_path": "booking"})
        stack.push_async_callback(database.close)
        pool = await db.connect(url, schema="booking", size=4)
        stack.push_async_callback(pool.close)
        agency = Agency(seats, flights, payments, bookings, provider, database, seat_database, pool, variables)
        yield Killed(agency, seat_gate, payment_gate, supervisor)


# Retries until a killed service serves again, even on a busy machine.
while_killed = partial(patiently, within_seconds=2 * AT_REST_SECONDS)


class Order:
    """A customer's order; its requests are retried until there is a response."""

    def __init__(self, killed: Killed, journey: Journey) -> None:
        self.agency = killed.agency
        self.journey = journey
        self.customer = killed.agency.customer()
        # Five digits that no other order of a round has; all such codes succeed.
        self.code = f"{secrets.randbelow(90_000) + 10_000}"
        self.booking = pb.Booking()
        self._keys: defaultdict[str, str] = defaultdict(lambda: str(uuid4()))

    async def book(self, *types: str) -> pb.Booking:
        """Creates the booking."""
        self.booking = await while_killed(
            lambda: self.customer.book(self.journey, *types, request_id=self._keys["book"])
        )
        return self.booking

    async def pay(self, code: str = SUCCEEDS) -> None:
        """Starts the payment."""
        await while_killed(lambda: self.customer.pay(self.booking, code, request_id=self._keys["pay"]))

    async def cancel(self) -> None:
        """Cancels the booking."""
        await while_killed(lambda: self.customer.cancel(self.booking, request_id=self._keys["cancel"]))

    async def move(self, *seat_numbers: str) -> None:
        """Changes the seats."""
        await while_killed(lambda: self.customer.move(self.booking, *seat_numbers, request_id=self._keys["move"]))

    async def get(self) -> pb.Booking:
        """Reads the booking."""
        self.booking = await while_killed(lambda: self.customer.get(self.booking))
        return self.booking

    async def becomes(self, *states: str) -> pb.Booking:
        """Waits for one of these states."""

        async def reached() -> bool:
            return state_of(await self.get()) in states

        await eventually(reached, within_seconds=AT_REST_SECONDS)
        return self.booking

    async def has_the_seats_of_its_hold(self) -> bool:
        """Returns whether the booking shows the seats of its hold."""
        shown = await self.get()
        hold = await self.agency.seats.service().GetHold(seat_pb.GetHoldRequest(hold_id=shown.hold_id))
        return sorted(seats_of(shown)) == sorted(seat.seat_number for seat in hold.seats)


Scene = AsyncIterator[tuple[str, str]]
"""A generator of two parts.

The first brings an order to a step and yields the method to stop there, and a text that its request contains. The
second does the step and checks that the order ends as expected.
"""


async def holding(order: Order) -> Scene:
    """The customer repeats the request."""
    yield "HoldSeats", order.customer.name
    await order.book("ADULT", "CHILD")
    await order.pay()
    await order.becomes("CONFIRMED")


async def holding_and_gone(order: Order) -> Scene:
    """The customer does not return: the seats are held, and the hold expires."""
    yield "HoldSeats", order.customer.name
    with suppress(grpc.aio.AioRpcError):
        await order.customer.desk.CreateBooking(asked(order.journey, "ADULT"))

    async with db.transaction(order.agency.pool) as conn:
        written = await conn.fetchval("SELECT booking_id FROM bookings WHERE owner = $1", order.customer.name)
    if written is None:
        # The service died before it wrote anything, so nothing happened.
        await order.book("ADULT")
    else:
        order.booking = pb.Booking(booking_id=str(written))
    await order.becomes("SEATS_RESERVED")
    await order.cancel()


async def changing(order: Order) -> Scene:
    """The customer does not repeat the change: the booking copies the seats of its hold."""
    booking = await order.book("ADULT", "CHILD")
    yield "ChangeHoldSeats", booking.hold_id
    with suppress(grpc.aio.AioRpcError):
        await order.customer.move(booking, *random.sample(FAR_SEATS, len(booking.seats)))
    await eventually(order.has_the_seats_of_its_hold, within_seconds=AT_REST_SECONDS)
    await order.pay()
    await order.becomes("CONFIRMED")


async def paying_up_to(method: str, order: Order) -> Scene:
    """After the payment code, timers do everything up to the confirmation."""
    booking = await order.book("ADULT", "INFANT")
    names = {"CreatePaymentIntent": booking.booking_id, "SubmitPaymentCode": order.code}
    yield method, names.get(method, booking.hold_id)
    await order.pay(order.code)
    await order.becomes("CONFIRMED")


async def looking(order: Order) -> Scene:
    """The attempts of a running payment are read.

    The stop matches any order, because this order has no intent yet.
    """
    await order.book("ADULT")
    yield "GetPaymentIntent", ""
    await order.pay(order.code)
    await order.becomes("CONFIRMED")


async def failing(order: Order) -> Scene:
    """The seats are released after the last attempt."""
    booking = await order.book("ADULT", "CHILD")
    yield "CancelHold", booking.hold_id
    await order.pay(FAILS)
    await order.becomes("FAILED")


async def cancelling_up_to(method: str, order: Order) -> Scene:
    """A confirmed booking releases its seats and gets its money back."""
    await order.book("ADULT", "CHILD")
    await order.pay()
    booking = await order.becomes("CONFIRMED")
    names = {"FindPassengerSeats": booking.passengers[0].passenger_id, "RefundPayment": booking.payment_intent_id}
    yield method, names.get(method, booking.hold_id)
    await order.cancel()
    await order.becomes("CANCELLED")


async def paying_late_up_to(method: str, order: Order) -> Scene:
    """After a late payment the booking holds the same seats again."""
    await order.book("ADULT", "CHILD")
    await order.pay(FAILS)
    booking = await order.becomes("FAILED")
    await rest(order.agency, [booking])
    yield method, booking.hold_id if method == "CancelHold" else booking.passengers[0].passenger_id
    await pay_once_more(order.customer, booking)
    await order.becomes("CONFIRMED")


SCENES: Final[dict[str, Callable[[Order], Scene]]] = {
    "the hold is asked for": holding,
    "the hold is asked for, and nobody comes back": holding_and_gone,
    "other seats are asked for": changing,
    "PAYMENT_PENDING, the hold is extended": partial(paying_up_to, "ExtendHold"),
    "PAYMENT_PENDING, the intent is created": partial(paying_up_to, "CreatePaymentIntent"),
    "PAYMENT_PENDING, the code is passed on": partial(paying_up_to, "SubmitPaymentCode"),
    "PAYMENT_PROCESSING, the payment is looked at": looking,
    "paid, the seats are confirmed": partial(paying_up_to, "ConfirmHold"),
    "FAILED, the seats are freed": failing,
    "CANCELLED, the seats are freed": partial(cancelling_up_to, "CancelHold"),
    "CANCELLED, the passengers are looked for": partial(cancelling_up_to, "FindPassengerSeats"),
    "CANCELLED, the money is given back": partial(cancelling_up_to, "RefundPayment"),
    "FAILED and paid, the old hold is given back": partial(paying_late_up_to, "CancelHold"),
    "FAILED and paid, the seats are held again": partial(paying_late_up_to, "HoldSeats"),
}
# These scenes need a response of the provider first, so they start earlier than the others. Then all are in their steps
# at the same time.
SLOW: Final = ("paid", "FAILED", "PAYMENT_PROCESSING")
HEAD_START_SECONDS: Final = 0.4


async def timers_were_in_time(killed: Killed, *, more_seconds: float) -> Counter[str]:
    """Fails if a timer fired early or late; returns how many fired, by name.

    A timer is late if it fires more than five seconds after its due time, even if its process was killed. The time
    without a running service does not count, nor does the time of each further try: its lease, while its call is
    delayed, and the pause after it.
    """
    fired: Counter[str] = Counter()
    async with killed.agency.pool.acquire() as conn:
        rows = await conn.fetch(
            "SELECT name, subject, tries, extract(epoch FROM fire_time - due_time)::float AS late FROM timers "
            "WHERE fire_time IS NOT NULL"
        )
    for row in rows:
        again = sum(LEASE_SECONDS + pause_after(tries) for tries in range(2, row["tries"]))
        # The five seconds include a lease of the usual length.
        longer = LEASE_SECONDS - LEASE_SECONDS / FACTOR if row["tries"] > 1 else 0
        assert 0 <= row["late"] <= LATEST_SECONDS + more_seconds + again + longer, dict(row)
        fired[row["name"]] += 1
    return fired


@pytest.mark.timeout(3600)
async def test_orders_killed_at_every_step_complete(world: World) -> None:
    """The workers die before the call arrives, or after its effect but before its response."""
    in_step: Counter[str] = Counter()
    rounds = times(1)
    async with selling(world) as killed:
        for number, answered in itertools.product(range(rounds), (False, True)):
            # Each order has a flight of its own, so that they do not compete for seats.
            orders = {name: Order(killed, await killed.agency.journey(1 + number % 2)) for name in SCENES}
            scenes = {name: SCENES[name](order) for name, order in orders.items()}
            steps = await asyncio.gather(*map(anext, scenes.values()))
            stops = [killed.stop(*step, answered=answered) for step in steps]
            going_on = [
                asyncio.create_task(_go_on(scene, after_seconds=0 if name.startswith(SLOW) else HEAD_START_SECONDS))
                for name, scene in scenes.items()
            ]
            with suppress(TimeoutError):
                async with asyncio.timeout(CALL_SECONDS):
                    await asyncio.gather(*(stop.reached.wait() for stop in stops))

            async def most_are_in_step(stops: Sequence[Stop] = stops) -> bool:
                # The orders wait for each other, and meanwhile the pauses after failed tries grow.
                await killed.try_again()
                return sum(stop.waiting > 0 for stop in stops) > len(stops) / 2

            # On a busy machine some orders arrive later, and some steps have failed and are retried.
            await eventually(most_are_in_step)
            in_step.update(name for name, stop in zip(SCENES, stops, strict=True) if stop.waiting)
            await killed.kill_all(parent_too=number % 3 == 2)
            await asyncio.gather(*going_on)
            await ends(killed.agency, [order.booking for order in orders.values()], within_seconds=AT_REST_SECONDS)
            flights = [flight_id for order in orders.values() for flight_id in order.journey.flight_ids]
            assert await killed.agency.violations(*flights) == []
        fired = await timers_were_in_time(killed, more_seconds=killed.down_seconds)
    died = 2 * rounds * len(SCENES)
    _log.info("%d of %d orders died in the very step", in_step.total(), died)
    _log.info("of %d each: %s; timers that fired: %s", 2 * rounds, dict(in_step), dict(fired))
    assert in_step.total() > died / 2


async def _go_on(scene: Scene, *, after_seconds: float) -> None:
    await pause(after_seconds)
    with suppress(StopAsyncIteration):
        await anext(scene)


@pytest.mark.timeout(600)
async def test_bookings_expire_in_time_after_a_kill(world: World) -> None:
    async with selling(world) as killed:
        journey = await killed.agency.journey(2)
        orders = [Order(killed, journey) for _ in range(10)]
        bookings = [await order.book("ADULT") for order in orders]
        stops = [
            killed.stop("GetHold", booking.hold_id, answered=number % 2 == 0) for number, booking in enumerate(bookings)
        ]
        await killed.agency.lapse(*bookings, left=timedelta(seconds=0.5))

        async def both_kinds_are_in_step() -> bool:
            return all(stop.waiting for stop in stops[-2:])

        await eventually(both_kinds_are_in_step)
        in_step = sum(stop.waiting > 0 for stop in stops)
        await killed.kill_all(parent_too=False)
        found = await ends(killed.agency, bookings)
        assert {each.state for each in found.values()} == {"EXPIRED"}
        await timers_were_in_time(killed, more_seconds=killed.down_seconds)
        async with killed.agency.pool.acquire() as conn:
            late = await conn.fetchval("SELECT extract(epoch FROM max(fire_time - due_time))::float FROM timers")
    _log.info("%d died with the end in hand; at most %.2f s late, down %.2f s", in_step, late, killed.down_seconds)
    assert in_step


class Mayhem:
    """Customers with random orders, while processes are killed and connections are cut."""

    def __init__(self, killed: Killed, journeys: Sequence[Journey]) -> None:
        self.killed = killed
        self.agency = killed.agency
        self.journeys = journeys
        self.over = asyncio.Event()
        self.orders: list[Order] = []
        self.told: Counter[str] = Counter()

    async def shop(self) -> None:
        """Makes one order after the other."""
        while not self.over.is_set():
            order = Order(self.killed, random.choice(self.journeys))
            try:
                await self._order(order)
            except grpc.aio.AioRpcError as error:
                self.told[read(error).reason] += 1
            if order.booking.booking_id:
                self.orders.append(order)

    async def _order(self, order: Order) -> None:
        booking = await order.book(*random.choice((("ADULT",), ("ADULT", "CHILD"), ("ADULT", "INFANT"))))
        if random.random() < 0.3:
            await order.move(*(random.choice(MIDDLE_SEATS) for _ in booking.seats))
        match random.choices(("pay", "cancel", "forget"), (8, 1, 1))[0]:
            case "pay":
                await order.pay(random.choice((SUCCEEDS, SUCCEEDS, FAILS, order.code)))
                self.told["paying"] += 1
                ended = await order.becomes("CONFIRMED", "FAILED", "EXPIRED")
                if state_of(ended) == "CONFIRMED" and random.random() < 0.2:
                    await order.cancel()
                elif state_of(ended) == "FAILED" and random.random() < 0.3:
                    await pay_once_more(order.customer, ended)
            case "cancel":
                await order.cancel()

    async def has_killed(self) -> bool:
        """Returns whether any process has been killed so far."""
        return self.killed.kills > 0

    async def kill(self) -> None:
        """Kills one worker, both, or the whole service.

        Sometimes cuts the connections to the other services for a moment instead.
        """
        while not self.over.is_set():
            await pause(random.uniform(1, 2.5))
            match random.choices(("one", "both", "parent", "away"), (4, 2, 1, 2))[0]:
                case "one":
                    self.killed.kill(random.sample(self.killed.workers(), 1))
                case "both":
                    await self.killed.kill_all(parent_too=False)
                case "parent":
                    await self.killed.kill_all(parent_too=True)
                case "away":
                    cut = random.choice((self.killed.seats, self.killed.payments))
                    cut.away = True
                    await pause(AWAY_SECONDS)
                    cut.away = False


@pytest.mark.timeout(3600)
async def test_orders_complete_while_workers_are_killed(world: World) -> None:
    async with selling(world) as killed:
        agency = killed.agency
        switch(agency.provider, failure_rate=0.15, decision_delay_seconds=0.3)
        mayhem = Mayhem(killed, [await agency.journey(1 + number % 2) for number in range(6)])
        begun = time.monotonic()
        shopping = [asyncio.create_task(mayhem.shop()) for _ in range(SHOPPERS)]
        killing = asyncio.create_task(mayhem.kill())
        await pause(MAYHEM_SECONDS)
        await eventually(mayhem.has_killed)
        mayhem.over.set()
        await killing
        await asyncio.gather(*shopping)
        seconds = time.monotonic() - begun

        async def all_have_ended() -> bool:
            """Lapses the bookings that their customers abandoned.

            Includes those that get their seats only now.
            """
            forgotten = await agency.database.fetch(
                """
                SELECT booking_id::text, hold_id::text FROM bookings
                WHERE state = 'SEATS_RESERVED' AND expire_time > clock_timestamp()
                """
            )
            if forgotten:
                await agency.lapse(*(pb.Booking(**row) for row in forgotten))
            return not await agency.database.fetchval(
                "SELECT EXISTS (SELECT FROM bookings WHERE state::text <> ALL($1))", list(ENDS)
            )

        await eventually(all_have_ended, within_seconds=AT_REST_SECONDS)
        rows = await agency.database.fetch("SELECT booking_id::text FROM bookings WHERE hold_id IS NOT NULL")
        bookings = [pb.Booking(booking_id=row["booking_id"]) for row in rows]
        found = await ends(agency, bookings, within_seconds=AT_REST_SECONDS)
        assert {order.booking.booking_id for order in mayhem.orders} <= found.keys()
        flights = [flight_id for journey in mayhem.journeys for flight_id in journey.flight_ids]
        assert await agency.violations(*flights) == []
        fired = await timers_were_in_time(killed, more_seconds=killed.down_seconds + 2 * AWAY_SECONDS)
        left = await agency.database.fetchval("SELECT count(*) FROM bookings WHERE state::text <> ALL($1)", list(ENDS))
    ended = Counter(f"{each.state}{' after money' if each.paid else ''}" for each in found.values())
    _log.info("%d kills in %.0f s, down for %.1f s at most", killed.kills, seconds, killed.down_seconds)
    _log.info("ended: %s; told: %s; timers that fired: %s", dict(ended), dict(mayhem.told), dict(fired))
    assert left == 0
    assert "INTERNAL" not in mayhem.told
    assert killed.kills
