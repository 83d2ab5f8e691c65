"""Refusals after the time to pay, and the cool-down after too many lapses."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, named_seat, seats_of
from tests.callers import refused

COOL_DOWN_SECONDS: Final = 30
VARIABLES: Final = {
    "SKYHIGH_SEAT_LAPSES_ALLOWED": "2",
    "SKYHIGH_SEAT_COOL_DOWN_SECONDS": str(COOL_DOWN_SECONDS),
}


async def refused_to_all(customer: Customer, booking: pb.Booking) -> None:
    """Fails unless paying and changing seats are refused with the time of expiry."""
    end = f"{booking.expire_time.ToDatetime().isoformat()}Z"
    for attempt in (customer.pay, lambda each: customer.move(each, "19D")):
        with refused("ABORTED", "BOOKING_EXPIRED") as refusal:
            await attempt(booking)
        assert refusal.info.metadata == {"expire_time": end}


async def test_an_unpaid_booking_expires_and_releases_its_seats(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    (booked,) = await agency.lapse(await customer.book(journey))
    await refused_to_all(customer, booked)
    expired = await customer.becomes(booked, "EXPIRED")
    (*_, last) = expired.history
    assert last.time.ToNanoseconds() >= booked.expire_time.ToNanoseconds()
    assert (last.actor, last.reason, expired.seats) == ("booking", "EXPIRED", booked.seats)
    await refused_to_all(customer, booked)
    with refused("ABORTED", "BOOKING_EXPIRED"):
        await customer.cancel(booked)
    await agency.comes_to_rest([journey])
    assert await agency.taken(journey.flight_id) == set()


async def test_released_seats_can_be_booked_at_once(agency: Agency, customer: Customer, stranger: Customer) -> None:
    journey = await agency.flight()
    (booked,) = await agency.lapse(await customer.book(journey))
    (seat_number,) = seats_of(booked)
    taken = await stranger.book(journey, seats=[named_seat(journey.flight_id, seat_number)])
    assert seats_of(taken) == seats_of(booked)
    await refused_to_all(customer, booked)


async def test_a_seat_change_in_time_keeps_the_booking(agency: Agency, customer: Customer) -> None:
    (booked,) = await agency.lapse(await customer.book(await agency.flight()), left=timedelta(minutes=5))
    await customer.move(booked, "19D")
    # 10 minutes later, which is 5 minutes after the first end of the booking.
    (changed,) = await agency.lapse(booked, left=timedelta(minutes=5))
    await customer.pay(changed)
    assert seats_of(await customer.becomes(booked, "CONFIRMED")) == ["19D"]


async def test_the_cool_down_after_lapsed_bookings_has_a_delay(
    agency: Agency, customer: Customer, stranger: Customer
) -> None:
    journey = await agency.flight()
    booked = await asyncio.gather(*(customer.book(journey) for _ in range(2)))
    await agency.lapse(*booked)
    for each in booked:
        await customer.becomes(each, "EXPIRED")
    await agency.comes_to_rest([journey])
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as refusal:
        await customer.book(journey)
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= COOL_DOWN_SECONDS
    await stranger.book(journey)
