"""P13: how many bookings a second, beside bare holds of the same seats' number."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import grpc
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub
from skyhigh.flight.v1 import flight_service_pb2 as flight
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from bench.flights import holds_by_agent, parties, provision
from bench.load import CallFile
from bench.plan import Plan, metered
from bench.report import Measure
from bench.search import schedule
from bench.stack import BenchStack
from deploy.local.process import LOOPBACK

CREATE_BOOKING: Final = "/skyhigh.booking.v1.BookingService/CreateBooking"
# More than two cores do.
MOST_BOOKINGS_PER_SECOND: Final = 300
MOST_HOLDS_PER_SECOND: Final = 8_000
CUSTOMERS_AT_ONCE: Final = 128
SOURCES_ASKED: Final = 120
ALWAYS_SUCCEEDS: Final = "00000"
POLL_SECONDS: Final = 0.05

_customers = itertools.count(1)


async def bookings(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P13: CreateBooking of one flight and of two, and whole orders up to CONFIRMED, beside HoldSeat alone."""
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
            "whole": await _confirmed(stack, one, seconds),
        }
        for name, measure in counted.items():
            if measure:
                measure.ours.append(made[name])
                measure.baseline.append(held.per_second)
    measures["one"].note(f"one adult, best free seat, {len(one)} flights; every call by another customer, with a key")
    measures["two"].note(f"{len(two)} itineraries of two flights")
    measures["whole"].note(
        f"{CUSTOMERS_AT_ONCE} customers at once, client in Python; the provider decides in its usual time"
    )
    return list(measures.values())


async def _journeys(stack: BenchStack) -> tuple[list[pb.CreateBookingRequest], list[pb.CreateBookingRequest]]:
    """Returns requests for single flights, and for itineraries of two, of the next days."""
    rolled = await schedule(stack)
    flight_ids, itinerary_ids = [], []
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports['flight']}") as channel:
        service: FlightServiceStub = FlightServiceStub(channel)
        for day in rolled.days:
            listed = await service.ListFlights(flight.ListFlightsRequest(date=day, page_size=100))
            flight_ids += [each.flight_id for each in listed.flights]
        for question in rolled.questions()[:SOURCES_ASKED]:
            question.max_hops = 1
            found = await service.SearchFlights(question, timeout=10)
            itinerary_ids += [each.itinerary_id for each in found.itineraries if len(each.flights) == 2]
    return (
        [pb.CreateBookingRequest(flight_id=each) for each in flight_ids],
        [pb.CreateBookingRequest(itinerary_id=each) for each in itinerary_ids],
    )


def _orders(journeys: Sequence[pb.CreateBookingRequest]) -> Iterator[pb.CreateBookingRequest]:
    """Yields requests without end, each of one adult, on journeys by turns."""
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


async def _confirmed(stack: BenchStack, journeys: Sequence[pb.CreateBookingRequest], seconds: float) -> float:
    """Returns orders per second that went from the request to CONFIRMED within the turn."""
    orders = _orders(journeys)
    done = 0
    end = time.monotonic() + seconds

    async def customer(service: BookingServiceStub) -> None:
        nonlocal done
        while time.monotonic() < end:
            metadata = (("authorization", f"Bearer {stack.signer.customer(f'c{next(_customers)}')}"),)
            # A flight that is full, or a seat that was lost ten times, is no order.
            with contextlib.suppress(grpc.aio.AioRpcError):
                booking = await service.CreateBooking(next(orders), metadata=metadata, timeout=10)
                named = {"booking_id": booking.booking_id}
                pay = pb.PayBookingRequest(payment_code=ALWAYS_SUCCEEDS, **named)
                booking = await service.PayBooking(pay, metadata=metadata, timeout=10)
                while booking.state in (pb.Booking.PAYMENT_PENDING, pb.Booking.PAYMENT_PROCESSING):
                    await asyncio.sleep(POLL_SECONDS)
                    booking = await service.GetBooking(pb.GetBookingRequest(**named), metadata=metadata, timeout=10)
                done += booking.state == pb.Booking.CONFIRMED and time.monotonic() < end

    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports['booking']}") as channel:
        service: BookingServiceStub = BookingServiceStub(channel)
        await asyncio.gather(*(customer(service) for _ in range(CUSTOMERS_AT_ONCE)))
    return done / seconds
