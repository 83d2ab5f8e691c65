"""What a customer is told once the time to pay is over, and when that happens too often."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, named_seat, seats_of
from tests.callers import refused

TIME_TO_PAY_SECONDS: Final = 2.0
VARIABLES: Final = {
    "SKYHIGH_BOOKING_HOLD_TTL_SECONDS": str(TIME_TO_PAY_SECONDS),
    "SKYHIGH_SEAT_LAPSES_ALLOWED": "2",
    "SKYHIGH_SEAT_COOL_DOWN_SECONDS": "30",
}


async def over(booking: pb.Booking) -> None:
    """Waits until its time is over by the clock of this machine, which is the database's too."""
    await asyncio.sleep(max(0.0, booking.expire_time.ToNanoseconds() / 1e9 - time.time()) + 0.005)


async def refused_to_all(customer: Customer, booking: pb.Booking) -> None:
    """Neither seats nor money nor an end are to be had any more."""
    end = f"{booking.expire_time.ToDatetime().isoformat()}Z"
    for attempt in (customer.pay, lambda each: customer.move(each, "19D")):
        with refused("ABORTED", "BOOKING_EXPIRED") as refusal:
            await attempt(booking)
        assert refusal.info.metadata == {"expire_time": end}


async def test_an_unpaid_booking_expires_and_its_seats_are_free(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booked = await customer.book(journey)
    await over(booked)
    await refused_to_all(customer, booked)
    expired = await customer.becomes(booked, "EXPIRED", within_seconds=5)
    (*_, last) = expired.history
    assert last.time.ToNanoseconds() >= booked.expire_time.ToNanoseconds()
    assert (last.actor, last.reason, expired.seats) == ("booking", "EXPIRED", booked.seats)
    await refused_to_all(customer, booked)
    with refused("ABORTED", "BOOKING_EXPIRED"):
        await customer.cancel(booked)
    await agency.comes_to_rest([journey])
    assert await agency.taken(journey.flight_id) == set()


async def test_its_seats_are_the_next_ones_at_once(agency: Agency, customer: Customer, stranger: Customer) -> None:
    journey = await agency.flight()
    booked = await customer.book(journey)
    await over(booked)
    (seat_number,) = seats_of(booked)
    taken = await stranger.book(journey, seats=[named_seat(journey.flight_id, seat_number)])
    assert seats_of(taken) == seats_of(booked)
    await refused_to_all(customer, booked)


async def test_who_changes_seats_in_time_does_not_lose_them(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    await asyncio.sleep(TIME_TO_PAY_SECONDS * 0.6)
    changed = await customer.move(booked, "19D")
    await over(booked)
    await customer.pay(changed)
    assert seats_of(await customer.becomes(booked, "CONFIRMED")) == ["19D"]


async def test_who_lets_too_many_bookings_lapse_is_told_how_long_to_wait(
    agency: Agency, customer: Customer, stranger: Customer
) -> None:
    journey = await agency.flight()
    for _ in range(2):
        booked = await customer.book(journey)
        await over(booked)
        await customer.becomes(booked, "EXPIRED")
        await agency.comes_to_rest([journey])
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as refusal:
        await customer.book(journey)
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= 30
    await stranger.book(journey)
