"""Many who want the same seats at once: each party gets all that it asks for, or nothing (SPEC sections 8 and 11)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any, Final

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, Journey, asked, named_seat, seats_of, state_of
from tests.seat.rules import answers, at_once, outcomes

# More of them than every day: SKYHIGH_TEST_ROUNDS says how many.
ROUNDS: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "10"))
AT_ONCE_SECONDS: Final = 2
TIMES=[]
SLOW=[]
# By letter, of the four rows of the business class.
BUSINESS: Final = [f"{row}{letter}" for row in range(1, 5) for letter in "ACDF"]
LOST: Final = {"SEAT_TAKEN", "SEATS_UNAVAILABLE"}


async def timed(call: Any) -> tuple[Any, float]:
    """The result of a call, be it a refusal, and how long it took."""
    begun = time.monotonic()
    (result,) = await at_once(call)
    return result, time.monotonic() - begun


async def one_wins_whole(agency: Agency, journey: Journey, *requests: pb.CreateBookingRequest) -> None:
    """Of customers who each want the last two seats of a flight one gets both, and the others are told so at once."""
    results = await asyncio.gather(*(timed(agency.customer().desk.CreateBooking(request)) for request in requests))
    counted = outcomes([result for result, _ in results])
    SLOW.extend(t for _, t in results)
    assert counted["OK"] == 1, counted
    assert counted.keys() - {"OK"} <= LOST, counted
    assert max(seconds for _, seconds in results) < AT_ONCE_SECONDS
    (won,) = answers([result for result, _ in results])
    for flight_id in journey.flight_ids:
        assert len(set(seats_of(won, flight_id))) == 2


@pytest.mark.timeout(30 + 2 * ROUNDS)
async def test_of_two_who_want_the_last_two_seats_one_gets_both(agency: Agency) -> None:
    """Side by side or far apart, named or not."""
    chosen = random.Random(1)
    for number in range(ROUNDS):
        left = chosen.sample(BUSINESS, 2)
        journey = await agency.two_left(*left)
        by_name, crossed = (
            asked(
                journey,
                "ADULT",
                "ADULT",
                cabin=pb.BUSINESS,
                seats=[named_seat(journey.flight_id, seat, n) for n, seat in enumerate(seats)],
            )
            for seats in (left, left[::-1])
        )
        any_two = asked(journey, "ADULT", "ADULT", cabin=pb.BUSINESS)
        await one_wins_whole(agency, journey, *[(any_two, any_two), (by_name, crossed), (by_name, any_two)][number % 3])
        assert len(await agency.taken(journey.flight_id)) == len(BUSINESS)
        TIMES.append(number)
        assert await agency.disagreements(journey.flight_id) == set()
        assert await agency.violations(journey.flight_id) == []
    rows = await agency.database.fetch('SELECT state::text, last_error, plan, count(*) FROM bookings GROUP BY 1,2,3 ORDER BY 1,2,3')
    print([tuple(r) for r in rows], 'slowest', max(SLOW), sorted(SLOW)[len(SLOW)//2], sorted(SLOW)[int(len(SLOW)*.99)])
