"""A retry gets the first response and changes nothing (rule 11.6)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub

from booking_service.service import BOOKING_SERVICE
from services.rpcs import Effect
from tests.booking.agency import Agency, Customer, Journey, asked, keyed, named_seat, seats_of, state_of
from tests.callers import Caller, Callers, refused
from tests.payment.rules import FAILS, SUCCEEDS
from tests.seat.rules import answers, at_once, outcomes

if TYPE_CHECKING:
    from tests.conftest import World

MANY: Final = 50


@dataclass(frozen=True)
class Mutation:
    """A valid request, and the same with another parameter."""

    request: Any
    other: Any


Prepare = Callable[[Agency, Customer], Awaitable[Mutation]]


async def _create(agency: Agency, customer: Customer) -> Mutation:
    journey = await agency.flight()
    return Mutation(asked(journey, "ADULT"), asked(journey, "ADULT", "ADULT"))


async def _change(agency: Agency, customer: Customer) -> Mutation:
    booked = await customer.book(await agency.flight())
    one, other = (
        pb.ChangeBookingSeatsRequest(
            booking_id=booked.booking_id,
            seats=[
                pb.BookedSeat(
                    flight_id=booked.flights[0].flight_id,
                    passenger_id=booked.passengers[0].passenger_id,
                    seat_number=number,
                )
            ],
        )
        for number in ("19C", "19D")
    )
    return Mutation(one, other)


async def _pay(agency: Agency, customer: Customer) -> Mutation:
    booked = await customer.book(await agency.flight())
    one, other = (pb.PayBookingRequest(booking_id=booked.booking_id, payment_code=code) for code in (SUCCEEDS, FAILS))
    return Mutation(one, other)


async def _cancel(agency: Agency, customer: Customer) -> Mutation:
    booked = await customer.book(await agency.flight())
    one, other = (pb.CancelBookingRequest(booking_id=booked.booking_id, reason=reason) for reason in ("ONE", "OTHER"))
    return Mutation(one, other)


MUTATIONS: Final[dict[str, Prepare]] = {
    "CreateBooking": _create,
    "ChangeBookingSeats": _change,
    "PayBooking": _pay,
    "CancelBooking": _cancel,
}
every_mutation = pytest.mark.parametrize("method", sorted(MUTATIONS))


async def effects(agency: Agency, customer: Customer) -> Counter[str]:
    """Counts how often the customer's bookings entered each state."""
    rows = await agency.database.fetch(
        "SELECT to_state::text FROM booking_events JOIN bookings USING (booking_id) WHERE owner = $1", customer.name
    )
    return Counter(row["to_state"] for row in rows)


def told(booking: pb.Booking) -> bytes:
    """Returns the bytes of a response."""
    return booking.SerializeToString(deterministic=True)


def test_every_mutation_has_an_idempotency_test() -> None:
    keyed_methods = {name for name, rpc in BOOKING_SERVICE.rpcs().items() if rpc.effect is Effect.MUTATION}
    assert keyed_methods == MUTATIONS.keys()


@every_mutation
async def test_a_repeat_returns_the_first_response(
    agency: Agency, customer: Customer, method: str, request_id: str
) -> None:
    mutation = await MUTATIONS[method](agency, customer)
    call, request = getattr(customer.desk, method), keyed(mutation.request, request_id)
    first = await call(request)
    for again in await at_once(*(call(request) for _ in range(5))):
        assert told(again) == told(first)
    assert max((await effects(agency, customer)).values()) == 1


@every_mutation
async def test_a_key_with_other_parameters_is_refused(
    agency: Agency, customer: Customer, method: str, request_id: str
) -> None:
    mutation = await MUTATIONS[method](agency, customer)
    call = getattr(customer.desk, method)
    await call(keyed(mutation.request, request_id))
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await call(keyed(mutation.other, request_id))
    assert max((await effects(agency, customer)).values()) == 1


@every_mutation
async def test_the_header_works_like_the_field(
    agency: Agency, customer: Customer, method: str, request_id: str
) -> None:
    mutation = await MUTATIONS[method](agency, customer)
    call, header = getattr(customer.desk, method), (("idempotency-key", request_id),)
    first = await call(mutation.request, metadata=header)
    assert told(await call(mutation.request, metadata=header)) == told(first)
    assert told(await call(keyed(mutation.request, request_id))) == told(first)
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await call(mutation.other, metadata=header)


@every_mutation
async def test_a_key_that_is_not_a_uuid_is_malformed(agency: Agency, customer: Customer, method: str) -> None:
    mutation = await MUTATIONS[method](agency, customer)
    call = getattr(customer.desk, method)
    for key in ("1", "not-a-uuid", "0" * 5_000):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await call(keyed(mutation.request, key))
        assert refusal.fields == ["request_id"]
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await call(mutation.request, metadata=(("idempotency-key", key),))
        assert refusal.fields == ["idempotency-key"]
    await call(mutation.request)


@pytest.fixture
async def connections(world: World, agency: Agency, customer: Customer) -> AsyncIterator[list[Caller]]:
    """The customer, on 50 connections."""
    name = customer.name.removeprefix("customer:")
    opened = [Callers(agency.bookings.address, world.keys, BookingServiceStub) for _ in range(MANY)]
    yield [each.customer(name) for each in opened]
    await asyncio.gather(*(each.close() for each in opened))


async def test_concurrent_repeats_create_one_booking(
    agency: Agency, customer: Customer, connections: list[Caller], request_id: str
) -> None:
    """All calls get one response, also those that arrive before the seats are held."""
    journey = await agency.journey(2)
    request = keyed(asked(journey, "ADULT", "CHILD", "INFANT"), request_id)
    results = await at_once(*(connection.CreateBooking(request) for connection in connections))
    assert outcomes(results) == {"OK": MANY}
    assert len({told(result) for result in results}) == 1
    assert state_of(results[0]) == "SEATS_RESERVED"
    assert await effects(agency, customer) == {"CREATED": 1, "SEATS_RESERVED": 1}
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await customer.desk.CreateBooking(keyed(asked(journey, "ADULT"), request_id))
    assert len(await agency.taken(*journey.flight_ids)) == 4
    await agency.comes_to_rest([journey])


async def test_of_two_requests_with_one_key_one_is_booked(agency: Agency, customer: Customer, request_id: str) -> None:
    journey = await agency.flight()
    bodies = [keyed(asked(journey, *["ADULT"] * size), request_id) for size in (1, 2)]
    results = await at_once(*(customer.desk.CreateBooking(bodies[n % 2]) for n in range(MANY)))
    assert outcomes(results) == {"OK": MANY // 2, "IDEMPOTENCY_KEY_REUSED": MANY // 2}
    assert len({told(answer) for answer in answers(results)}) == 1
    assert (await effects(agency, customer))["CREATED"] == 1


async def test_concurrent_repeats_of_a_refused_request_are_refused(
    agency: Agency, customer: Customer, request_id: str
) -> None:
    journey = await agency.flight()
    await agency.take(journey.flight_id, "10A")
    request = keyed(asked(journey, seats=[named_seat(journey.flight_id, "10A")]), request_id)
    results = await at_once(*(customer.desk.CreateBooking(request) for _ in range(MANY)))
    assert outcomes(results) == {"SEAT_TAKEN": MANY}
    assert await agency.taken(journey.flight_id) == {(journey.flight_id, "10A")}


async def test_a_refused_booking_is_processed_again_on_retry(
    agency: Agency, customer: Customer, request_id: str
) -> None:
    journey = await agency.flight()
    hold = await agency.take(journey.flight_id, "10A")
    request = keyed(asked(journey, seats=[named_seat(journey.flight_id, "10A")]), request_id)
    with refused("ABORTED", "SEAT_TAKEN"):
        await customer.desk.CreateBooking(request)
    await agency.seats.agent("others").cancel(hold)
    booked = await customer.desk.CreateBooking(request)
    assert seats_of(booked) == ["10A"]
    assert told(await customer.desk.CreateBooking(request)) == told(booked)


async def test_a_repeat_returns_the_first_response_after_later_changes(
    agency: Agency, customer: Customer, request_id: str
) -> None:
    request = keyed(asked(await agency.flight(), "ADULT", "ADULT"), request_id)
    booked = await customer.desk.CreateBooking(request)
    await customer.move(booked, "19C", "19D")
    assert told(await customer.desk.CreateBooking(request)) == told(booked)
    await customer.pay(booked)
    await customer.becomes(booked, "CONFIRMED")
    await customer.cancel(booked)
    assert told(await customer.desk.CreateBooking(request)) == told(booked)
    assert (await effects(agency, customer))["CREATED"] == 1


async def test_a_repeat_completes_a_booking_without_seats(
    agency: Agency, customer: Customer, unreserved: pb.Booking
) -> None:
    """The first call did not reach the seat service; the retry continues its booking."""
    key = await agency.database.fetchval("SELECT request_key::text FROM bookings WHERE owner = $1", customer.name)
    journey = Journey([await agency.get_flight(unreserved.flights[0].flight_id)])
    request = keyed(asked(journey, seats=[named_seat(journey.flight_id, "10A")]), key)
    reserved = await customer.desk.CreateBooking(request)
    assert (reserved.booking_id, seats_of(reserved)) == (unreserved.booking_id, ["10A"])
    assert await effects(agency, customer) == {"CREATED": 1, "SEATS_RESERVED": 1}


async def test_keys_of_different_principals_are_independent(agency: Agency, request_id: str) -> None:
    request = keyed(asked(await agency.flight()), request_id)
    booked = [
        await who.desk.CreateBooking(request)
        for who in (agency.customer(), agency.customer(), agency.agent("one"), agency.agent("other"))
    ]
    assert len({booking.booking_id for booking in booked}) == 4


async def test_a_key_used_by_another_method_is_refused(agency: Agency, customer: Customer, request_id: str) -> None:
    booked = await customer.book(await agency.flight(), request_id=request_id)
    for call in (customer.cancel, customer.pay):
        with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
            await call(booked, request_id=request_id)
    assert state_of(await customer.get(booked)) == "SEATS_RESERVED"


async def test_a_foreign_key_returns_no_response(
    agency: Agency, customer: Customer, stranger: Customer, request_id: str
) -> None:
    booked = await customer.book(await agency.flight())
    await customer.cancel(booked, request_id=request_id)
    with refused("NOT_FOUND", "BOOKING_NOT_FOUND"):
        await stranger.cancel(booked, request_id=request_id)


async def test_calls_without_a_key_are_separate(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    request = asked(journey)
    assert len({(await customer.desk.CreateBooking(request)).booking_id for _ in range(3)}) == 3


async def test_the_case_of_a_key_is_ignored(agency: Agency, customer: Customer, request_id: str) -> None:
    request = asked(await agency.flight())
    booked = await customer.desk.CreateBooking(keyed(request, request_id))
    assert told(await customer.desk.CreateBooking(keyed(request, request_id.upper()))) == told(booked)


async def test_a_header_that_differs_from_the_field_is_malformed(
    agency: Agency, customer: Customer, request_id: str
) -> None:
    request = keyed(asked(await agency.flight()), request_id)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.desk.CreateBooking(request, metadata=(("idempotency-key", str(uuid4())),))
    assert refusal.fields == ["request_id"]
