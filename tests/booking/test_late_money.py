"""Money that comes when a booking's time is over: the same seats again or the money back, never both, never neither."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.booking.agency import Agency, Journey, state_of
from tests.booking.conftest import opened
from tests.booking.orders import ends, switch, times
from tests.payment import conftest as payment_conftest
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

TIME_TO_PAY_SECONDS: Final = 2
VARIABLES: Final = {
    "SKYHIGH_BOOKING_HOLD_TTL_SECONDS": str(TIME_TO_PAY_SECONDS),
    "SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.1",
}
# The payment service waits for a late provider instead of ending its charges.
PATIENT: Final = {"SKYHIGH_PAYMENT_PATIENCE_SECONDS": "60"}
PARTIES: Final = (("ADULT",), ("ADULT", "CHILD"), ("ADULT", "INFANT"))
LEGS: Final = (1, 2)
BOOKINGS_AT_ONCE: Final = 10
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
async def any_agency(world: World) -> AsyncIterator[Agency]:
    """The agency of this file, with a patient payment service."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payment_conftest, "QUICK", payment_conftest.QUICK | PATIENT)
        async with opened(world, **VARIABLES) as agency:
            yield agency


async def rival_gets_one(agency: Agency, seats: Sequence[pb.BookedSeat], *, after_seconds: float) -> bool:
    """Somebody else tries to get one of these seats for good, a moment later; returns whether it did."""
    await asyncio.sleep(after_seconds)
    seat = random.choice(seats)

    async def get() -> seat_pb.Hold:
        hold = await agency.take(seat.flight_id, seat.seat_number)
        return await agency.seats.agent("others").confirm(hold)

    (outcome,) = outcomes(await at_once(get()))
    assert outcome in ("OK", "SEAT_TAKEN")
    return outcome == "OK"


async def paid_too_late(agency: Agency, journey: Journey, *, rival: bool) -> tuple[pb.Booking, bool]:
    """Books and pays; the money comes a second after the end. Returns the booking, and whether a rival got a seat."""
    customer = agency.customer()
    booking = await customer.book(journey, *random.choice(PARTIES))
    await customer.pay(booking)

    async def expired() -> bool:
        # On a busy machine the money may be here before we look.
        return state_of(await customer.get(booking)) in ("EXPIRED", "CONFIRMED")

    await eventually(expired, within_seconds=TIME_TO_PAY_SECONDS + 5)
    lost = rival and await rival_gets_one(agency, booking.seats, after_seconds=random.uniform(0, 1.3))
    return booking, lost


@pytest.mark.timeout(3600)
async def test_a_success_one_second_after_the_end_takes_the_same_seats_or_is_given_back(agency: Agency) -> None:
    came: Counter[str] = Counter()
    for _ in range(times(1)):
        switch(agency.provider, decision_delay_seconds=TIME_TO_PAY_SECONDS + 1)
        journeys = [await agency.journey(legs) for legs in LEGS]
        outcomes = await asyncio.gather(
            *(
                paid_too_late(agency, journeys[number % len(journeys)], rival=number % 3 > 0)
                for number in range(BOOKINGS_AT_ONCE)
            )
        )
        found = await ends(agency, [booking for booking, _ in outcomes])
        for booking, lost in outcomes:
            ended = found[booking.booking_id]
            assert (ended.paid, ended.state) == (True, "EXPIRED" if lost else "CONFIRMED")
            seats = {(seat.flight_id, seat.seat_number) for seat in booking.seats}
            assert ended.seats == (set() if lost else seats)
            came[ended.state] += 1
        for journey in journeys:
            assert await agency.violations(*journey.flight_ids) == []
    _log.info("late money: %s", dict(came))
