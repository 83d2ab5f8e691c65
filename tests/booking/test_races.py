"""Many parties book the same seats: each gets all its seats or none (BKG-2, 11.5)."""

from __future__ import annotations

import os
import random
from typing import Final

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, Journey, asked, named_seat, seats_of, state_of
from tests.seat.rules import answers, at_once, outcomes

# SKYHIGH_TEST_ROUNDS raises the number of rounds.
ROUNDS: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "6"))
# The 16 seats of the business cabin, rows 1 to 4.
BUSINESS: Final = [f"{row}{letter}" for row in range(1, 5) for letter in "ACDF"]
LOST: Final = {"SEAT_TAKEN", "SEATS_UNAVAILABLE"}


async def one_wins_whole(agency: Agency, journey: Journey, *requests: pb.CreateBookingRequest) -> None:
    """One of several customers gets the last two seats; the others are refused.

    No call waits for the end of the winner's time to pay: each ends long before.
    """
    results = await at_once(*(agency.customer().desk.CreateBooking(request) for request in requests))
    counted = outcomes(results)
    assert counted["OK"] == 1, counted
    assert counted.keys() - {"OK"} <= LOST, counted
    (won,) = answers(results)
    for flight_id in journey.flight_ids:
        assert len(set(seats_of(won, flight_id))) == 2


@pytest.mark.timeout(120 + 10 * ROUNDS)
async def test_of_two_parties_one_gets_the_last_seats(agency: Agency) -> None:
    """The last two seats are adjacent or far apart, named or chosen by the service."""
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
        assert await agency.disagreements(journey.flight_id) == set()
        assert await agency.violations(journey.flight_id) == []


async def test_of_many_parties_one_gets_the_last_seats(agency: Agency) -> None:
    journey = await agency.two_left("1A", "4F")
    request = asked(journey, "ADULT", "ADULT", cabin=pb.BUSINESS)
    await one_wins_whole(agency, journey, *[request] * 20)
    await agency.comes_to_rest([journey])


@pytest.mark.parametrize("short_leg", [0, 1])
async def test_itineraries_that_compete_are_booked_whole_or_not(agency: Agency, short_leg: int) -> None:
    """The loser's seats on the other flight stay free."""
    journey = await agency.journey(2, aircraft_type="A321")
    short, roomy = journey.flight_ids[short_leg], journey.flight_ids[1 - short_leg]
    await agency.leave(short, "1A", "3D", cabin="BUSINESS")
    request = asked(journey, "ADULT", "ADULT", cabin=pb.BUSINESS)
    await one_wins_whole(agency, journey, *[request] * 6)
    await agency.comes_to_rest([journey])
    assert len(await agency.taken(roomy)) == 2


async def test_crossing_parties_are_booked_whole_or_not(agency: Agency) -> None:
    """Each party names a seat that the next party names on another flight."""
    journey = await agency.journey(4)
    rows = range(5, 13)

    def wish(n: int) -> pb.CreateBookingRequest:
        own, following = (f"{rows[(n + k) % len(rows)]}A" for k in (0, 1))
        seats = [own, following, own, following]
        return asked(
            journey, seats=[named_seat(flight, seat) for flight, seat in zip(journey.flight_ids, seats, strict=True)]
        )

    results = await at_once(*(agency.customer().desk.CreateBooking(wish(n)) for n in (*rows, *reversed(rows))))
    counted = outcomes(results)
    assert counted.keys() == {"OK", "SEAT_TAKEN"}
    assert len(await agency.taken(*journey.flight_ids)) == 4 * counted["OK"]
    await agency.comes_to_rest([journey])


async def test_couples_are_refused_only_without_two_free_seats(agency: Agency) -> None:
    """Twelve couples and 16 seats: no couple is refused while two seats are free."""
    journey = await agency.flight(aircraft_type="A321")
    request = asked(journey, "ADULT", "ADULT", cabin=pb.BUSINESS)
    results = await at_once(*(agency.customer().desk.CreateBooking(request) for _ in range(12)))
    counted = outcomes(results)
    assert counted.keys() <= {"OK", *LOST}
    assert counted["OK"] == len(BUSINESS) // 2
    seats = [seat for booking in answers(results) for seat in seats_of(booking)]
    assert sorted(seats) == BUSINESS
    await agency.comes_to_rest([journey])


async def test_concurrent_bookings_of_a_customer_hold_nine_seats(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    request = asked(journey, "ADULT", "ADULT", "ADULT")
    results = await at_once(*(customer.desk.CreateBooking(request) for _ in range(8)))
    counted = outcomes(results)
    assert counted == {"OK": 3, "TOO_MANY_HELD_SEATS": 5}
    assert len(await agency.taken(journey.flight_id)) == 9
    await agency.comes_to_rest([journey])


async def test_booking_during_the_cancellation_leaves_no_seats(agency: Agency) -> None:
    journey = await agency.journey(2)
    customers = [agency.customer() for _ in range(10)]
    *results, _ = await at_once(
        *(customer.desk.CreateBooking(asked(journey)) for customer in customers),
        agency.cancel_flight(journey.flight_ids[1]),
    )
    assert outcomes(results).keys() <= {"OK", "FLIGHT_CANCELLED"}
    for customer, result in zip(customers, results, strict=True):
        if isinstance(result, pb.Booking):
            ended = await customer.becomes(result, "CANCELLED")
            assert (state_of(ended), ended.cancel_reason) == ("CANCELLED", "FLIGHT_CANCELLED")
    await agency.comes_to_rest([journey])
    assert await agency.taken(*journey.flight_ids) == set()
