"""Money that comes after the expiry buys the same seats or is refunded (BKG-5).

The outcome is never both and never neither.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.booking.agency import UNDECIDED, Agency, Customer, Journey, patiently
from tests.booking.orders import ends, provider_decides, times
from tests.seat.rules import at_once, outcomes
from tests.waiting import pause

VARIABLES: Final = {"SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.1"}
PARTIES: Final = (("ADULT",), ("ADULT", "CHILD"), ("ADULT", "INFANT"))
LEGS: Final = (1, 2)
BOOKINGS_AT_ONCE: Final = 10
# Verdicts and competing calls come at random moments within this time.
SPREAD_SECONDS: Final = 0.5
_log = logging.getLogger(__name__)


async def rival_gets_one(agency: Agency, seats: Sequence[pb.BookedSeat]) -> bool:
    """Another caller tries to hold and confirm one of these seats.

    It waits for a random moment first. Returns whether it got the seat.
    """
    await pause(random.uniform(0, SPREAD_SECONDS))
    seat = random.choice(seats)

    async def get() -> seat_pb.Hold:
        hold = await agency.take(seat.flight_id, seat.seat_number)
        return await agency.seats.agent("others").confirm(hold)

    (outcome,) = outcomes(await at_once(get()))
    assert outcome in ("OK", "SEAT_TAKEN")
    return outcome == "OK"


async def paying(customer: Customer, journey: Journey) -> pb.Booking:
    """Books and pays; the provider does not decide the charge."""
    booking = await customer.book(journey, *random.choice(PARTIES))
    await patiently(lambda: customer.pay(booking, request_id=booking.booking_id))
    return await customer.becomes(booking, "PAYMENT_PROCESSING")


async def paid_too_late(agency: Agency, booking: pb.Booking, *, rival: bool) -> bool:
    """Makes the charge succeed after the booking's end.

    Returns whether a competing caller got a seat.
    """

    async def money() -> None:
        await pause(random.uniform(0, SPREAD_SECONDS))
        await provider_decides(agency, booking)

    if not rival:
        await money()
        return False
    lost, _ = await asyncio.gather(rival_gets_one(agency, booking.seats), money())
    return lost


@pytest.mark.timeout(3600)
async def test_late_payments_get_the_same_seats_or_a_refund(agency: Agency) -> None:
    came: Counter[str] = Counter()
    for _ in range(times(1)):
        agency.provider.behaviour.now = UNDECIDED
        journeys = [await agency.journey(legs) for legs in LEGS]
        customers = [agency.customer() for _ in range(BOOKINGS_AT_ONCE)]
        bookings = await asyncio.gather(
            *(paying(customer, journeys[number % len(journeys)]) for number, customer in enumerate(customers))
        )
        await agency.lapse(*bookings)
        await asyncio.gather(
            *(each.becomes(booking, "EXPIRED") for each, booking in zip(customers, bookings, strict=True))
        )
        lost = await asyncio.gather(
            *(paid_too_late(agency, booking, rival=number % 3 > 0) for number, booking in enumerate(bookings))
        )
        found = await ends(agency, bookings)
        for booking, seat_lost in zip(bookings, lost, strict=True):
            ended = found[booking.booking_id]
            assert (ended.paid, ended.state) == (True, "EXPIRED" if seat_lost else "CONFIRMED")
            seats = {(seat.flight_id, seat.seat_number) for seat in booking.seats}
            assert ended.seats == (set() if seat_lost else seats)
            came[ended.state] += 1
        for journey in journeys:
            assert await agency.violations(*journey.flight_ids) == []
    _log.info("late money: %s", dict(came))
