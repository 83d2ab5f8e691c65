"""ChangeBookingSeats: all new seats or none, and the full time to pay again.

Until the life of the hold reaches its limit.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import grpc
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from booking_service import bookings
from booking_service.records import SeatOf
from services import db
from tests.aging import make_timer_due
from tests.booking.agency import (
    TIME_TO_PAY,
    Agency,
    Customer,
    a_foreign_booking_is_as_a_missing_one,
    named_seat,
    seats_of,
    state_of,
    without_history,
)
from tests.callers import refused
from tests.dates import flight_id
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually

# A hold lives at most three times the time to pay, so two changes are possible.
VARIABLES: Final = {"SKYHIGH_SEAT_HOLD_LIFE_TTLS": "3"}


async def booked_on(agency: Agency, customer: Customer, *seat_numbers: str, legs: int = 1) -> pb.Booking:
    """Returns a booking of one adult for each seat number, on each flight."""
    journey = await agency.journey(legs)
    seats = [named_seat(flight, number, n) for flight in journey.flight_ids for n, number in enumerate(seat_numbers)]
    return await customer.book(journey, *["ADULT"] * len(seat_numbers), seats=seats)


def hold_of(booking: pb.Booking) -> bookings.Hold:
    """Returns the hold of a booking as the seat service answered."""
    return bookings.Hold(
        hold_id=UUID(booking.hold_id),
        state="HELD",
        expire_time=booking.expire_time.ToDatetime(UTC),
        seats=[SeatOf(seat.flight_id, seat.passenger_id, seat.seat_number) for seat in booking.seats],
    )


async def unchanged(agency: Agency, customer: Customer, booking: pb.Booking) -> None:
    """Fails if the booking or its seats have changed."""
    assert without_history(await customer.get(booking)) == booking
    taken = await agency.taken(*(flight.flight_id for flight in booking.flights))
    assert {(seat.flight_id, seat.seat_number) for seat in booking.seats} <= taken


async def test_all_seats_on_all_flights_are_changed(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A", "10B", legs=2)
    changed = await customer.move(booked, "11A", "11B", "12C", "12D")
    there, back = (flight.flight_id for flight in booked.flights)
    assert (seats_of(changed, there), seats_of(changed, back)) == (["11A", "11B"], ["12C", "12D"])
    assert await agency.taken(there, back) == {(there, "11A"), (there, "11B"), (back, "12C"), (back, "12D")}
    assert (changed.state, changed.hold_id, changed.total) == (pb.Booking.SEATS_RESERVED, booked.hold_id, booked.total)
    assert without_history(await customer.get(booked)) == changed
    assert await agency.history(booked) == ["CREATED", "SEATS_RESERVED"]
    assert await agency.disagreements(there, back) == set()


async def test_the_time_to_pay_is_restarted(agency: Agency, customer: Customer) -> None:
    (booked,) = await agency.lapse(await booked_on(agency, customer, "10A"), left=timedelta(minutes=5))
    before = datetime.now(UTC)
    changed = await customer.move(booked, "11A")
    assert before + TIME_TO_PAY <= changed.expire_time.ToDatetime(UTC) <= datetime.now(UTC) + TIME_TO_PAY
    end = await agency.seat_database.fetchval("SELECT expire_time FROM holds WHERE hold_id = $1", booked.hold_id)
    assert changed.expire_time.ToMicroseconds() == round(end.timestamp() * 1e6)


async def test_some_passengers_can_keep_their_seats(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A", "10B", "10C")
    changed = await customer.move(booked, "10A", "15D", "10C")
    assert seats_of(changed) == ["10A", "15D", "10C"]
    assert await agency.disagreements(booked.flights[0].flight_id) == set()


async def test_two_passengers_can_swap_seats(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A", "10B")
    assert seats_of(await customer.move(booked, "10B", "10A")) == ["10B", "10A"]
    assert await agency.disagreements(booked.flights[0].flight_id) == set()


async def test_the_time_to_pay_has_a_restart_limit(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A")
    await customer.move(booked, "11A")
    last = await customer.move(booked, "12A")
    with refused("FAILED_PRECONDITION", "HOLD_LIMIT_REACHED"):
        await customer.move(booked, "14A")
    await unchanged(agency, customer, last)


async def test_a_booking_at_the_limit_can_be_paid(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A")
    await customer.move(booked, "11A")
    last = await customer.move(booked, "12A")
    await customer.pay(booked)
    confirmed = await customer.becomes(booked, "CONFIRMED")
    assert (seats_of(confirmed), confirmed.expire_time) == (["12A"], last.expire_time)


@pytest.mark.parametrize("taken_on", [0, 1])
async def test_one_taken_seat_refuses_the_change(agency: Agency, customer: Customer, taken_on: int) -> None:
    booked = await booked_on(agency, customer, "10A", "10B", legs=2)
    flight_id = booked.flights[taken_on].flight_id
    await agency.take(flight_id, "11B")
    with refused("ABORTED", "SEAT_TAKEN") as refusal:
        await customer.move(booked, "11A", "11B", "11A", "11B")
    assert (refusal.info.metadata["flight_id"], refusal.info.metadata["seat_number"]) == (flight_id, "11B")
    await unchanged(agency, customer, booked)
    assert len(await agency.taken(*(flight.flight_id for flight in booked.flights))) == 5


@pytest.mark.parametrize(
    ("aircraft_type", "wish", "refusal"),
    [
        ("AT72", ("13A", "ADULT"), ("NOT_FOUND", "SEAT_NOT_FOUND")),
        ("A321", ("1A", "ADULT"), ("FAILED_PRECONDITION", "CABIN_NOT_ALLOWED")),
        ("AT72", ("1A", "CHILD", "ADULT"), ("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED")),
        ("AT72", ("1A", "ADULT", "INFANT"), ("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED")),
        ("AT72", ("2A", "ADULT", "INFANT"), ("FAILED_PRECONDITION", "INFANT_NOT_ALLOWED")),
    ],
)
async def test_a_seat_not_allowed_for_its_passenger_is_refused(
    agency: Agency, customer: Customer, aircraft_type: str, wish: tuple[str, ...], refusal: tuple[str, str]
) -> None:
    seat_number, *types = wish
    journey = await agency.flight(aircraft_type=aircraft_type)
    booked = await customer.book(journey, *types, seats=[named_seat(journey.flight_id, "10A")])
    with refused(*refusal):
        await customer.move(booked, seat_number, *seats_of(booked)[1:])
    await unchanged(agency, customer, booked)


async def test_a_cancelled_flight_has_no_other_seats(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A")
    await agency.close(booked.flights[0].flight_id)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await customer.move(booked, "11A")
    await unchanged(agency, customer, booked)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("PAYMENT_PROCESSING", "PAYMENT_IN_PROGRESS"),
        ("CONFIRMED", "BOOKING_CONFIRMED"),
        ("FAILED", "BOOKING_FAILED"),
        ("CANCELLED", "BOOKING_CANCELLED"),
    ],
)
async def test_only_reserved_bookings_can_change_seats(
    agency: Agency, customer: Customer, state: str, reason: str
) -> None:
    booked = await customer.brought_to(state)
    (flight,) = booked.flights
    before = await agency.taken(flight.flight_id)
    with refused("FAILED_PRECONDITION", reason):
        await customer.move(booked, "19D")
    assert (flight.flight_id, "19D") not in await agency.taken(flight.flight_id)
    if state == "CONFIRMED":
        assert await agency.taken(flight.flight_id) == before


async def test_a_booking_without_seats_cannot_change_them(customer: Customer, unreserved: pb.Booking) -> None:
    seat = pb.BookedSeat(
        flight_id=unreserved.flights[0].flight_id,
        seat_number="11A",
        passenger_id=unreserved.passengers[0].passenger_id,
    )
    with refused("FAILED_PRECONDITION", "SEATS_REQUIRED"):
        await customer.change(unreserved, seat)


async def test_exactly_one_seat_per_passenger_and_flight_is_required(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    booked = await customer.book(journey, "ADULT", "ADULT", "INFANT")
    one, other, infant = (passenger.passenger_id for passenger in booked.passengers)
    there, back = journey.flight_ids

    def seat(flight_id: str, seat_number: str, passenger_id: str) -> pb.BookedSeat:
        return pb.BookedSeat(flight_id=flight_id, seat_number=seat_number, passenger_id=passenger_id)

    good = [seat(flight, number, name) for flight in (there, back) for number, name in (("10A", one), ("10B", other))]
    for wrong, field in (
        (good[:3], "seats"),
        ([*good, seat(back, "10C", infant)], "seats[4]"),
        ([*good[:3], seat(back, "10C", f"{one}0")], "seats[3]"),
        ([*good[:3], seat(flight_id("SH101"), "10C", other)], "seats[3]"),
        ([*good[:3], seat(back, "10C", one)], "seats"),
        ([*good[:3], seat(back, "10A", other)], "seats"),
        ([], "seats"),
        (good * 10, "seats"),
    ):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await customer.change(booked, *wrong)
        assert field in refusal.fields
        await unchanged(agency, customer, booked)
    await customer.change(booked, *good)


async def test_a_repeat_restarts_the_time_once(agency: Agency, customer: Customer, request_id: str) -> None:
    booked = await booked_on(agency, customer, "10A")
    first = await customer.move(booked, "11A", request_id=request_id)
    before = await agency.rows(booked)
    for again in await at_once(*(customer.move(booked, "11A", request_id=request_id) for _ in range(10))):
        assert again == first
    assert await agency.rows(booked) == before
    await customer.move(booked, "12A")
    assert await customer.move(booked, "11A", request_id=request_id) == first
    assert seats_of(await customer.get(booked)) == ["12A"]


async def test_concurrent_repeats_change_once(agency: Agency, customer: Customer, request_id: str) -> None:
    """If a repeat changed the seats again, the limit would refuse the later change."""
    booked = await booked_on(agency, customer, "10A")
    answers = await at_once(*(customer.move(booked, "11A", request_id=request_id) for _ in range(20)))
    assert outcomes(answers) == {"OK": 20}
    assert all(answer == answers[0] for answer in answers)
    await customer.move(booked, "12A")


async def test_a_foreign_booking_is_not_changed(agency: Agency, customer: Customer, stranger: Customer) -> None:
    booked = await booked_on(agency, customer, "10A")
    wish = pb.BookedSeat(
        flight_id=booked.flights[0].flight_id, passenger_id=booked.passengers[0].passenger_id, seat_number="11A"
    )
    for who in (stranger, agency.agent()):

        async def change(booking: pb.Booking, who: Customer = who) -> pb.Booking:
            return await who.change(booking, wish)

        await a_foreign_booking_is_as_a_missing_one(agency, booked, change)
    await unchanged(agency, customer, booked)


async def test_of_many_changes_to_one_seat_one_succeeds(agency: Agency) -> None:
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(10)]
    booked = [await customer.book(journey) for customer in customers]
    results = await at_once(
        *(customer.move(booking, "19D") for customer, booking in zip(customers, booked, strict=True))
    )
    assert outcomes(results) == {"OK": 1, "SEAT_TAKEN": 9}
    for customer, booking, result in zip(customers, booked, results, strict=True):
        await unchanged(agency, customer, booking if isinstance(result, grpc.aio.AioRpcError) else result)
    assert len(await agency.taken(journey.flight_id)) == 10
    await agency.comes_to_rest([journey])


async def test_concurrent_changes_leave_the_last_seats(agency: Agency, customer: Customer) -> None:
    """Two changes at the same time, as many as the limit allows.

    The booking must have the seats of the change that the seat service processed last.
    """
    wishes = [["11A", "11B"] * 2, ["12C", "12D"] * 2]
    for _ in range(10):
        booked = await booked_on(agency, customer, "10A", "10B", legs=2)
        results = await at_once(*(customer.move(booked, *wish) for wish in wishes))
        assert outcomes(results) == {"OK": 2}
        flight_ids = [flight.flight_id for flight in booked.flights]
        assert seats_of(await customer.get(booked)) in wishes
        assert await agency.disagreements(*flight_ids) == set()
        assert len(await agency.taken(*flight_ids)) == 4


async def test_a_late_response_does_not_revert_newer_seats(agency: Agency, customer: Customer) -> None:
    booked = await booked_on(agency, customer, "10A")
    late = hold_of(await customer.move(booked, "11A"))
    last = await customer.move(booked, "12A")
    async with db.transaction(agency.pool) as conn:
        assert await bookings.adopt(conn, UUID(booked.booking_id), late)
    await unchanged(agency, customer, last)


async def test_a_change_of_a_killed_caller_is_adopted(agency: Agency, customer: Customer) -> None:
    """The seat service changes the seats, and the booking service does not store it."""
    booked = await booked_on(agency, customer, "10A")
    await customer.move(booked, "11A")
    seat = seat_pb.SeatAssignment(
        flight_id=booked.flights[0].flight_id, seat_number="12A", passenger_id=booked.passengers[0].passenger_id
    )
    await agency.seats.service().ChangeHoldSeats(
        seat_pb.ChangeHoldSeatsRequest(hold_id=booked.hold_id, seats=[seat], request_id=str(uuid4()))
    )
    assert seats_of(await customer.get(booked)) == ["11A"]

    async def followed() -> bool:
        return seats_of(await customer.get(booked)) == ["12A"]

    await make_timer_due(agency.database, "booking", "look-at-hold", booked.booking_id)
    await eventually(followed)


async def test_change_and_cancel_at_once_leave_no_seats(agency: Agency) -> None:
    for _ in range(5):
        customer, journey = agency.customer(), await agency.flight()
        booked = await customer.book(journey)
        changed, cancelled = await at_once(customer.move(booked, "19D"), customer.cancel(booked))
        assert state_of(cancelled) == "CANCELLED"
        assert outcomes([changed]).keys() <= {"OK", "BOOKING_CANCELLED"}
        await agency.comes_to_rest([journey])
        assert await agency.taken(journey.flight_id) == set()


async def test_change_and_pay_at_once_confirm_the_decided_seats(agency: Agency) -> None:
    for _ in range(5):
        customer, journey = agency.customer(), await agency.flight()
        booked = await customer.book(journey, seats=[named_seat(journey.flight_id, "10A")])
        changed, paid = await at_once(customer.move(booked, "19D"), customer.pay(booked))
        assert outcomes([paid]) == {"OK": 1}
        confirmed = await customer.becomes(booked, "CONFIRMED")
        assert seats_of(confirmed) == (["19D"] if outcomes([changed]) == {"OK": 1} else ["10A"])
        await agency.comes_to_rest([journey])
