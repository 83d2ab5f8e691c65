"""P13: bookings per second, beside HoldSeat calls per second."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub

from bench.flights import holds_by_agent, parties, provision
from bench.load import CallFile
from bench.plan import Plan, metered
from bench.report import Measure
from bench.search import answers, schedule
from bench.stack import BenchStack
from deploy.local.process import LOOPBACK

CREATE_BOOKING: Final = "/skyhigh.booking.v1.BookingService/CreateBooking"
# More than two cores reach. A turn prepares calls for these rates.
MOST_BOOKINGS_PER_SECOND: Final = 300
MOST_HOLDS_PER_SECOND: Final = 8_000
CUSTOMERS_AT_ONCE: Final = 64
# The number of searches for itineraries.
PAIRS_ASKED: Final = 4_000
ALWAYS_SUCCEEDS: Final = "00000"
# The time limit for the first orders to end, and for the last ones.
PATIENCE_SECONDS: Final = 60
ENDED: Final = frozenset({pb.Booking.CONFIRMED, pb.Booking.FAILED, pb.Booking.EXPIRED, pb.Booking.CANCELLED})

_customers = itertools.count(1)


async def bookings(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P13: bookings of one and of two flights, and confirmed orders ÷ HoldSeat calls."""
    one, two = await _journeys(stack)
    measures = {
        "one": Measure("P13", "bookings of one flight ÷ bare HoldSeat calls", "bookings/s", 0.02, 0.1),
        "two": Measure("P13 (two flights)", "bookings of two flights ÷ bare HoldSeat calls", "bookings/s", 0.01, 0.1),
        "whole": Measure(
            "P13 (to CONFIRMED)", "orders paid and confirmed ÷ bare HoldSeat calls", "orders/s", 0.005, 0.05
        ),
    }
    holds = await _hold_files(stack, plan)
    for turn, seconds in enumerate(plan.turns()):
        held = await stack.load.run(holds[turn], port=stack.seat.port, seconds=seconds)
        counted = {name: measure if turn else None for name, measure in measures.items()}
        made = {
            "one": await _booked(stack, counted["one"], one, seconds),
            "two": await _booked(stack, counted["two"], two, seconds),
            "whole": await _confirmed(stack, counted["whole"], one, seconds),
        }
        for name, measure in counted.items():
            if measure:
                measure.ours.append(made[name])
                measure.baseline.append(held.per_second)
    measures["one"].note(f"one adult, best free seat, {len(one)} flights; every call by another customer, with a key")
    measures["two"].note(f"{len(two)} itineraries of two flights, no flight in two of them")
    return list(measures.values())


async def _journeys(stack: BenchStack) -> tuple[list[pb.CreateBookingRequest], list[pb.CreateBookingRequest]]:
    """Returns requests for single flights and for itineraries of two flights.

    The flights are of the next days. No flight is in two of the itineraries.
    """
    rolled = await schedule(stack)
    questions = rolled.questions()[:PAIRS_ASKED]
    for question in questions:
        question.max_hops = 1
    itinerary_ids = []
    used: set[str] = set()
    for _, answer in await answers(stack, questions):
        for itinerary in answer.itineraries:
            flight_ids = {flight.flight_id for flight in itinerary.flights}
            if len(flight_ids) == 2 and used.isdisjoint(flight_ids):
                used |= flight_ids
                itinerary_ids.append(itinerary.itinerary_id)
    return (
        [pb.CreateBookingRequest(flight_id=each) for each in rolled.flight_ids],
        [pb.CreateBookingRequest(itinerary_id=each) for each in itinerary_ids],
    )


def _orders(journeys: Sequence[pb.CreateBookingRequest]) -> Iterator[pb.CreateBookingRequest]:
    """Yields requests without end, each for one adult, for one journey after the other."""
    shuffled = random.Random(1).sample(journeys, len(journeys))
    for journey in itertools.cycle(shuffled):
        order = pb.CreateBookingRequest(request_id=str(uuid.uuid4()))
        order.MergeFrom(journey)
        order.passengers.add(given_name="Ada", last_name="Bench")
        yield order


async def _hold_files(stack: BenchStack, plan: Plan) -> list[Path]:
    turns = plan.turns()
    seats = int(max(turns) * MOST_HOLDS_PER_SECOND)
    files = []
    for turn in range(len(turns)):
        flight_ids, seat_numbers = await provision(stack, stack.seat, flights=-(-seats // 180))
        file = stack.folder / f"holds-{turn}.calls"
        files.append(holds_by_agent(stack, parties(flight_ids, seat_numbers)).write(file))
    return files


async def _booked(
    stack: BenchStack, measure: Measure | None, journeys: Sequence[pb.CreateBookingRequest], seconds: float
) -> float:
    calls = CallFile()
    for order in itertools.islice(_orders(journeys), int(seconds * MOST_BOOKINGS_PER_SECOND)):
        calls.add_grpc(CREATE_BOOKING, order, token=stack.signer.customer(f"c{next(_customers)}"))
    result = await metered(
        stack.load,
        measure,
        calls.write(stack.folder / "bookings.calls"),
        port=stack.local.ports["booking"],
        seconds=seconds,
        pids={name: stack.pid(name) for name in ("booking", "flight", "seat")},
    )
    return result.per_second


async def _confirmed(
    stack: BenchStack, measure: Measure | None, journeys: Sequence[pb.CreateBookingRequest], seconds: float
) -> float:
    """Returns how many orders per second became CONFIRMED.

    The measurement starts when as many orders have ended as there are customers.
    """
    names = ("booking", "flight", "seat", "payment", "postgres", "rabbitmq")
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports['booking']}") as channel:
        customers = _Customers(stack, BookingServiceStub(channel), _orders(journeys))
        running = [asyncio.create_task(customers.book_and_pay()) for _ in range(CUSTOMERS_AT_ONCE)]
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await customers.warm.wait()
            before, began = customers.ended.copy(), time.monotonic()
            cpu_before = {name: stack.cpu(name) for name in names}
            await asyncio.sleep(seconds)
            orders, elapsed = customers.ended - before, time.monotonic() - began
            cpu = {name: stack.cpu(name) - cpu_before[name] for name in names}
            customers.open = False
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*running)
        finally:
            for each in running:
                each.cancel()
    confirmed = orders["CONFIRMED"]
    if measure:
        for name, used in cpu.items():
            measure.cpu_us.setdefault(name, []).append(used * 1e6 / max(confirmed, 1))
        for quantile, cut in (("p50", 50), ("p95", 95), ("p99", 99)):
            measure.latency_ms.setdefault(quantile, []).append(customers.percentile_ms(cut))
        measure.note(
            f"{CUSTOMERS_AT_ONCE} customers at once, each by a client in Python that watches its order; the provider "
            "decides after 0.2 s; CPU is per order"
        )
        if others := {name: count for name, count in orders.items() if name != "CONFIRMED"}:
            measure.note(f"beside {confirmed} confirmed: {others}")
    return confirmed / elapsed


@dataclass(slots=True)
class _Customers:
    """Customers who book, pay and wait for the end of their order, while `open` is True."""

    stack: BenchStack
    service: BookingServiceStub
    orders: Iterator[pb.CreateBookingRequest]
    open: bool = True
    ended: Counter[str] = field(default_factory=Counter)
    """The number of ended orders, by their state, or by the message of the error response."""
    seconds: list[float] = field(default_factory=list)
    """The duration of each order that got no error response."""
    warm: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when as many orders have ended as there are customers."""

    async def book_and_pay(self) -> None:
        """Makes one order after the other, each as a new customer."""
        while self.open:
            metadata = (("authorization", f"Bearer {self.stack.signer.customer(f'c{next(_customers)}')}"),)
            began = time.monotonic()
            try:
                self.ended[await self._order(metadata)] += 1
            except grpc.aio.AioRpcError as refused:
                self.ended[refused.details() or refused.code().name] += 1
            else:
                self.seconds.append(time.monotonic() - began)
            if self.ended.total() >= CUSTOMERS_AT_ONCE:
                self.warm.set()

    async def _order(self, metadata: tuple[tuple[str, str], ...]) -> str:
        """Books, pays and watches one order; returns the state in which it ends."""
        booking = await self.service.CreateBooking(next(self.orders), metadata=metadata, timeout=10)
        named = {"booking_id": booking.booking_id}
        pay = pb.PayBookingRequest(payment_code=ALWAYS_SUCCEEDS, **named)
        await self.service.PayBooking(pay, metadata=metadata, timeout=10)
        watch = self.service.WatchBooking(pb.WatchBookingRequest(**named), metadata=metadata, timeout=PATIENCE_SECONDS)
        try:
            async for update in watch:
                if update.booking.state in ENDED:
                    return pb.Booking.State.Name(update.booking.state)
        finally:
            watch.cancel()
        return "UNKNOWN"

    def percentile_ms(self, percent: int) -> float:
        """Returns a percentile of the durations of orders, in milliseconds."""
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1] * 1000
