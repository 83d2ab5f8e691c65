"""CancelBooking before departure: seats are released, and money is refunded."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.payment.v1 import payment_service_pb2 as payment_pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.aging import make_timer_due
from tests.booking.agency import (
    Agency,
    Customer,
    a_foreign_booking_is_as_a_missing_one,
    names_of,
    state_of,
    without_history,
)
from tests.booking.orders import rest
from tests.callers import refused
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually

BAD_REASONS = ["\n", " X", "A\x00B", "A\x1b[31m", "A" * 121, "A" * 10_240, "Grund für", "<script>"]


async def cancellations_of(agency: Agency, booking: pb.Booking) -> list[Any]:
    """Returns the events about a booking's cancellation."""
    return [each for each in await agency.told("booking.cancelled.v1") if each.booking_id == booking.booking_id]


async def refunded(customer: Customer, booking: pb.Booking) -> pb.Booking:
    """Waits until the money of a booking has been refunded; returns the booking."""

    async def done() -> bool:
        return (await customer.get(booking)).HasField("refund_time")

    await eventually(done)
    return await customer.get(booking)


async def test_unpaid_seats_are_released(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    booked = await customer.book(journey, "ADULT", "ADULT", contact_email=f"{uuid4().hex}@example.org")
    cancelled = await customer.cancel(booked, reason="CHANGED_MIND")
    assert (state_of(cancelled), cancelled.cancel_reason) == ("CANCELLED", "CHANGED_MIND")
    assert cancelled.seats == booked.seats, "it tells those that it had"
    assert without_history(await customer.get(booked)) == cancelled
    await agency.comes_to_rest([journey])
    assert await agency.taken(*journey.flight_ids) == set()
    assert await cancellations_of(agency, booked) == [], "nobody had been told that it was confirmed"
    assert await agency.mails(booked.contact_email) == []


async def test_seat_taken_after_a_cancellation_is_released_at_departure(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(1)
    confirmed = await customer.confirmed(journey)
    await customer.cancel(confirmed)
    await agency.comes_to_rest([journey])
    # Check-in has not heard of the cancellation yet, so a session may still hold and confirm a seat.
    desk = agency.seats.agent("desk")
    (passenger_id,) = names_of(confirmed)
    await desk.confirm(await desk.hold(journey.flight_ids[0], "18A", passenger_id))
    await agency.comes_to_rest([journey])
    assert await agency.taken(*journey.flight_ids) != set()
    await make_timer_due(agency.database, "booking", "release-at-departure", confirmed.booking_id)

    async def released() -> bool:
        return await agency.taken(*journey.flight_ids) == set()

    await eventually(released)


async def test_a_cancelled_confirmed_booking_is_released_and_refunded(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    email = f"{uuid4().hex}@example.org"
    confirmed = await customer.confirmed(journey, "ADULT", "INFANT", contact_email=email)
    cancelled = await customer.cancel(confirmed)
    assert (state_of(cancelled), cancelled.cancel_reason, cancelled.pnr) == ("CANCELLED", "CANCELLED", confirmed.pnr)
    await refunded(customer, confirmed)
    request = payment_pb.GetPaymentIntentRequest(intent_id=confirmed.payment_intent_id)
    intent = await agency.payments.callers.service().GetPaymentIntent(request)
    assert (intent.state, intent.amount) == (payment_pb.PaymentIntent.REFUNDED, confirmed.total)
    await agency.comes_to_rest([journey])
    assert await agency.taken(*journey.flight_ids) == set()
    (told,) = await cancellations_of(agency, confirmed)
    assert (told.pnr, list(told.flight_ids), list(told.passenger_ids), told.reason) == (
        confirmed.pnr,
        journey.flight_ids,
        names_of(confirmed),
        "CANCELLED",
    )
    subjects = [mail.subject for mail in await agency.mails(email)]
    assert subjects == [f"Your booking {confirmed.pnr} is confirmed", f"Your booking {confirmed.pnr} was cancelled"]


async def test_seats_chosen_at_check_in_are_released_too(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    confirmed = await customer.confirmed(journey, "ADULT", "ADULT")
    desk = agency.seats.service("checkin")
    hold = await desk.hold(journey.flight_id, "19D", names_of(confirmed)[0], owner=f"passenger:{confirmed.pnr}")
    await desk.ConfirmHold(seat_pb.ConfirmHoldRequest(hold_id=hold.hold_id))
    assert (journey.flight_id, "19D") in await agency.taken(journey.flight_id)
    await customer.cancel(confirmed)

    async def free() -> bool:
        return not await agency.taken(journey.flight_id)

    await eventually(free)
    await agency.comes_to_rest([journey])


async def test_an_agent_cancels_for_the_owner(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    assert state_of(await agency.agent("desk").cancel(booked)) == "CANCELLED"
    assert (await customer.get(booked)).history[-1].actor == "agent:desk"


@pytest.mark.parametrize("state", ["SEATS_RESERVED", "CONFIRMED"])
async def test_a_repeat_succeeds_and_changes_nothing(agency: Agency, customer: Customer, state: str) -> None:
    booked = await customer.brought_to(state)
    first = await customer.cancel(booked, reason="FIRST")
    if state == "CONFIRMED":
        await refunded(customer, booked)
    before = await agency.rows(booked)
    for who in (customer, agency.agent()):
        again = await who.cancel(booked, reason="OTHER")
        assert (state_of(again), again.cancel_reason) == ("CANCELLED", first.cancel_reason)
    assert await agency.rows(booked) == before


@pytest.mark.parametrize(
    ("state", "reason"), [("PAYMENT_PROCESSING", "PAYMENT_IN_PROGRESS"), ("FAILED", "BOOKING_FAILED")]
)
async def test_only_held_or_confirmed_bookings_are_cancelled(customer: Customer, state: str, reason: str) -> None:
    booked = await customer.brought_to(state)
    with refused("FAILED_PRECONDITION", reason):
        await customer.cancel(booked)


async def test_a_booking_without_seats_is_not_cancelled(
    agency: Agency, customer: Customer, unreserved: pb.Booking
) -> None:
    with refused("FAILED_PRECONDITION", "SEATS_REQUIRED"):
        await customer.cancel(unreserved)
    await make_timer_due(agency.database, "booking", "reserve", unreserved.booking_id)
    await customer.becomes(unreserved, "SEATS_RESERVED")
    assert state_of(await customer.cancel(unreserved)) == "CANCELLED"


@pytest.mark.parametrize("state", ["SEATS_RESERVED", "CONFIRMED"])
async def test_a_departed_booking_is_not_cancelled(agency: Agency, customer: Customer, state: str) -> None:
    booked = await customer.brought_to(state)
    four_days = timedelta(days=4)
    await agency.set_back(booked, departure_time=four_days, sale_close_time=four_days)
    await agency.fly(booked, booked.flights[0].flight_id)
    before = await agency.rows(booked)
    for who in (customer, agency.agent()):
        with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED") as refusal:
            await who.cancel(booked)
        assert refusal.info.metadata.keys() == {"departure_time"}
    assert await agency.rows(booked) == before


@pytest.mark.parametrize("reason", BAD_REASONS)
async def test_a_reason_is_a_short_plain_text(agency: Agency, customer: Customer, reason: str) -> None:
    booked = await customer.book(await agency.flight())
    before = await agency.rows(booked)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.cancel(booked, reason=reason)
    assert refusal.fields == ["reason"]
    assert await agency.rows(booked) == before


async def test_of_concurrent_cancellations_one_applies(agency: Agency, customer: Customer) -> None:
    booked = await customer.confirmed(await agency.flight())
    results = await at_once(*(customer.cancel(booked, reason=f"R{n}") for n in range(20)))
    assert outcomes(results) == {"OK": 20}
    assert len({each.cancel_reason for each in results}) == 1
    assert (await agency.history(booked)).count("CANCELLED") == 1
    assert len(await cancellations_of(agency, booked)) == 1
    await refunded(customer, booked)


async def test_released_seats_can_be_booked_at_once(agency: Agency, customer: Customer) -> None:
    """Another customer gets the seats; a repeated cancellation does not release them."""
    journey = await agency.two_left()
    cabin = {"cabin": pb.BUSINESS}
    booked = await customer.book(journey, "ADULT", "ADULT", **cabin)
    following = agency.customer()
    with refused("ABORTED", "SEATS_UNAVAILABLE"):
        await following.book(journey, "ADULT", "ADULT", **cabin)
    await customer.cancel(booked)

    async def free() -> bool:
        return len(await agency.free(journey.flight_id, cabin="BUSINESS")) == 2

    await eventually(free)
    taken = await following.book(journey, "ADULT", "ADULT", **cabin)
    await customer.cancel(booked)
    # No step of the first owner's booking is pending that could release a seat.
    await rest(agency, [booked])
    assert without_history(await following.get(taken)) == taken
    await agency.comes_to_rest([journey])


async def test_a_foreign_booking_is_not_cancelled(agency: Agency, customer: Customer, stranger: Customer) -> None:
    booked = await customer.book(await agency.flight())
    await a_foreign_booking_is_as_a_missing_one(agency, booked, stranger.cancel)
    assert without_history(await customer.get(booked)) == booked


async def test_cancel_and_payment_end_at_once_leave_one_result(agency: Agency) -> None:
    """A cancellation either succeeds or is refused with PAYMENT_IN_PROGRESS."""
    reasons: Counter[str] = Counter()
    for _ in range(int(os.environ.get("SKYHIGH_TEST_ROUNDS", "3"))):
        customer = agency.customer()
        booked = await customer.book(await agency.flight())
        await customer.pay(booked)

        async def give_up(customer: Customer = customer, booked: pb.Booking = booked) -> None:
            asked = Counter({"PAYMENT_IN_PROGRESS": 1})
            # A payment service that is too busy to answer has decided nothing.
            while asked.keys() <= {"PAYMENT_IN_PROGRESS", "DEPENDENCY_UNAVAILABLE"}:
                asked = outcomes(await at_once(customer.cancel(booked)))
                reasons.update(asked)

        await asyncio.gather(*(give_up() for _ in range(8)))
        assert state_of(await refunded(customer, booked)) == "CANCELLED"
    assert reasons.keys() - {"DEPENDENCY_UNAVAILABLE"} == {"OK", "PAYMENT_IN_PROGRESS"}
