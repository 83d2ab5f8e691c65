"""GetBooking: the current booking with its history."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import (
    TIME_TO_PAY,
    Agency,
    Customer,
    a_foreign_booking_is_as_a_missing_one,
    seats_of,
    state_of,
)
from tests.callers import refused

Transition = tuple[str, str, str, str]
ENDS: Final = (pb.Booking.CONFIRMED, pb.Booking.FAILED, pb.Booking.EXPIRED)


def transitions(booking: pb.Booking) -> list[Transition]:
    """Returns the history of a booking: from, to, actor and reason."""
    name = pb.Booking.State.Name
    return [(name(each.from_state), name(each.to_state), each.actor, each.reason) for each in booking.history]


async def test_a_confirmed_booking_shows_its_history(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    found = await customer.confirmed(journey)
    assert transitions(found) == [
        ("STATE_UNSPECIFIED", "CREATED", customer.name, "CREATED"),
        ("CREATED", "SEATS_RESERVED", "booking", "SEATS_HELD"),
        ("SEATS_RESERVED", "PAYMENT_PENDING", customer.name, "SUBMITTED"),
        ("PAYMENT_PENDING", "PAYMENT_PROCESSING", "booking", "PROCESSING"),
        ("PAYMENT_PROCESSING", "CONFIRMED", "booking", "PAID"),
    ]
    times = [each.time.ToNanoseconds() for each in found.history]
    assert times == sorted(times)
    assert found.create_time.ToNanoseconds() <= times[0]
    assert (found.payment_attempts, found.max_payment_attempts, found.last_error) == (1, 3, "")


async def test_a_cancelled_booking_shows_actor_and_reason(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    await agency.agent("desk").cancel(booked, reason="CUSTOMER CALLED")
    found = await customer.get(booked)
    assert transitions(found)[-1] == ("SEATS_RESERVED", "CANCELLED", "agent:desk", "CUSTOMER CALLED")
    assert (found.cancel_reason, seats_of(found)) == ("CUSTOMER CALLED", seats_of(booked))


async def test_every_read_shows_the_same_expire_time(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    before = datetime.now(UTC)
    booked = await customer.book(journey)
    assert before + TIME_TO_PAY <= booked.expire_time.ToDatetime(UTC) <= datetime.now(UTC) + TIME_TO_PAY
    for _ in range(3):
        assert (await customer.get(booked)).expire_time == booked.expire_time


async def test_a_booking_without_seats_shows_none(customer: Customer, unreserved: pb.Booking) -> None:
    """The seats of the request are only planned, not held."""
    found = await customer.get(unreserved)
    assert (state_of(found), list(found.seats), found.hold_id) == ("CREATED", [], "")
    assert not found.HasField("expire_time")


async def test_an_agent_can_read_every_booking(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    assert await agency.agent().get(booked) == await customer.get(booked)


async def test_a_foreign_booking_is_not_found(agency: Agency, customer: Customer, stranger: Customer) -> None:
    booked = await customer.book(await agency.flight())
    await a_foreign_booking_is_as_a_missing_one(agency, booked, stranger.get)


async def test_a_customer_cannot_read_an_agents_booking(agency: Agency, customer: Customer) -> None:
    booked = await agency.agent().book(await agency.flight())
    await a_foreign_booking_is_as_a_missing_one(agency, booked, customer.get)


async def test_the_case_of_an_id_is_ignored(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    assert (await customer.get(pb.Booking(booking_id=booked.booking_id.upper()))).booking_id == booked.booking_id


async def test_passengers_and_services_cannot_read_bookings(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    for caller in (agency.bookings.passenger(), agency.bookings.service("checkin"), agency.bookings.operations()):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await Customer(agency, caller).get(booked)


async def test_a_booking_is_read_at_one_moment(agency: Agency, customer: Customer) -> None:
    """A reader gets state, history, seats and locator of one version of the booking."""
    booked = await customer.book(await agency.flight())
    seen = [booked]

    async def read() -> None:
        while seen[-1].state not in ENDS:
            found = await customer.get(booked)
            assert found.history[-1].to_state == found.state
            assert (found.pnr != "") == (found.state == pb.Booking.CONFIRMED)
            seen.append(found)

    readers = [asyncio.create_task(read()) for _ in range(8)]
    for seat_number in ("19C", "19D", "18C", "18D"):
        changed = await customer.move(booked, seat_number)
        seen.append(changed)
    await customer.pay(booked)
    await asyncio.gather(*readers)
    numbers_by_end = {(found.expire_time.ToNanoseconds(), *seats_of(found)) for found in seen}
    assert len({end for end, _ in numbers_by_end}) == len(numbers_by_end)
