"""PayBooking: who may start a payment, and when.

The outcomes of payments are tested in test_payment.py.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.payment.v1 import payment_service_pb2 as payment_pb

from tests.booking.agency import (
    EMAIL,
    TIME_TO_PAY,
    UNDECIDED,
    Agency,
    Customer,
    Journey,
    a_foreign_booking_is_as_a_missing_one,
    named_seat,
    seats_of,
    state_of,
    without_history,
)
from tests.callers import refused
from tests.payment.rules import FAILS, SUCCEEDS
from tests.seat.rules import at_once, outcomes

BAD_CODES: Final = [
    "",
    "0000",
    "000000",
    "0000a",
    "-0001",
    "00 00",
    "00000\n",
    "00000\x00",
    "٠٠٠٠٠",  # noqa: RUF001
    "０００００",  # noqa: RUF001
    "0" * 10_240,
]


async def confirmation_of(agency: Agency, booking: pb.Booking) -> Any:
    """Returns the only event about the booking's confirmation."""
    (told,) = [each for each in await agency.told("booking.confirmed.v1") if each.booking_id == booking.booking_id]
    return told


async def test_a_paid_booking_is_confirmed_with_a_record_locator(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    booked = await customer.book(journey, "ADULT", "CHILD")
    begun = await customer.pay(booked)
    assert state_of(begun) == "PAYMENT_PENDING"
    confirmed = await customer.becomes(booked, "CONFIRMED")
    assert len(confirmed.pnr) == 6
    assert (confirmed.seats, confirmed.hold_id, confirmed.total) == (booked.seats, booked.hold_id, booked.total)
    assert (confirmed.payment_attempts, confirmed.max_payment_attempts, confirmed.last_error) == (1, 3, "")
    assert await agency.hold_state(booked.hold_id) == "CONFIRMED"
    assert await agency.history(booked) == [
        "CREATED",
        "SEATS_RESERVED",
        "PAYMENT_PENDING",
        "PAYMENT_PROCESSING",
        "CONFIRMED",
    ]
    await agency.comes_to_rest([journey])


async def test_the_charge_equals_the_total(agency: Agency, customer: Customer) -> None:
    confirmed = await customer.confirmed(await agency.flight(), "ADULT", "INFANT")
    payer = agency.payments.callers.customer(customer.name.removeprefix("customer:"))
    intent = await payer.GetPaymentIntent(payment_pb.GetPaymentIntentRequest(intent_id=confirmed.payment_intent_id))
    assert intent.state == payment_pb.PaymentIntent.SUCCEEDED
    assert intent.amount == confirmed.total
    assert intent.reference == f"booking/{confirmed.booking_id}"


async def test_the_time_to_pay_restarts_with_the_payment(agency: Agency, customer: Customer) -> None:
    """The time to pay is renewed, so that it outlasts all attempts."""
    agency.provider.behaviour.now = UNDECIDED
    (booked,) = await agency.lapse(await customer.book(await agency.flight()), left=timedelta(minutes=5))
    before = datetime.now(UTC)
    begun = await customer.pay(booked)
    assert begun.expire_time == booked.expire_time
    processing = await customer.becomes(booked, "PAYMENT_PROCESSING")
    assert before + TIME_TO_PAY <= processing.expire_time.ToDatetime(UTC) <= datetime.now(UTC) + TIME_TO_PAY
    end = await agency.seat_database.fetchval("SELECT expire_time FROM holds WHERE hold_id = $1", booked.hold_id)
    assert processing.expire_time.ToMicroseconds() == round(end.timestamp() * 1e6)


async def test_the_event_has_everything_a_manifest_needs(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2, gate="B12")
    confirmed = await customer.confirmed(journey, "ADULT", "INFANT")
    told = await confirmation_of(agency, confirmed)
    assert (told.pnr, told.cabin, told.contact_email) == (confirmed.pnr, pb.ECONOMY, EMAIL)
    assert list(told.passengers) == list(confirmed.passengers)
    for flight, fact in zip(journey.flights, told.flights, strict=True):
        for name in (
            "flight_id",
            "flight_number",
            "origin",
            "destination",
            "departure_time",
            "arrival_time",
            "departure_date",
            "check_in_opens_before",
            "check_in_closes_before",
            "boarding_before",
            "gate",
        ):
            assert getattr(fact, name) == getattr(flight, name), name


async def test_the_party_gets_locator_and_seats_by_mail(agency: Agency, customer: Customer) -> None:
    email = f"{uuid4().hex}@example.org"
    journey = await agency.flight()
    confirmed = await customer.confirmed(journey, seats=[named_seat(journey.flight_id, "10A")], contact_email=email)
    (mail,) = await agency.mails(email)
    assert confirmed.pnr in mail.subject
    for expected in (confirmed.pnr, "10A", journey.flights[0].flight_number, "100.05 USD", "Dear Ada"):
        assert expected in mail.text
    silent = await customer.confirmed(await agency.flight(), contact_email="")
    assert not [mail for mail in await agency.told("booking.mail.v1") if silent.pnr in mail.subject]


async def test_the_payment_code_is_not_stored(agency: Agency, customer: Customer) -> None:
    """Neither stored responses nor events contain the payment code."""
    booked = await customer.book(await agency.flight())
    await customer.pay(booked, "71830", request_id=str(uuid4()))
    agency.provider.behaviour.now = agency.provider.behaviour.now.model_copy(update={"failure_rate": 0.0})

    async def kept() -> list[Any]:
        return [
            *(await agency.rows(booked)).values(),
            await agency.database.fetch("SELECT encode(response, 'escape') FROM idempotency"),
            await agency.database.fetch("SELECT encode(body, 'escape') FROM outbox"),
            await agency.database.fetch("SELECT * FROM timers WHERE subject = $1", booked.booking_id),
        ]

    await customer.becomes(booked, "CONFIRMED")
    assert "71830" not in str(await kept())


async def test_a_failed_payment_releases_the_seats(agency: Agency, customer: Customer) -> None:
    journey = await agency.flight()
    booked = await customer.book(journey)
    await customer.pay(booked, FAILS)
    failed = await customer.becomes(booked, "FAILED")
    assert (failed.payment_attempts, failed.last_error, failed.pnr) == (3, "DECLINED", "")
    assert failed.seats == booked.seats, "it tells those that it had"
    await agency.comes_to_rest([journey])
    assert await agency.taken(journey.flight_id) == set()
    (seat_number,) = seats_of(booked)
    await customer.book(journey, seats=[named_seat(journey.flight_id, seat_number)])


@pytest.mark.parametrize("code", BAD_CODES)
async def test_a_payment_code_has_five_digits(agency: Agency, customer: Customer, code: str) -> None:
    booked = await customer.book(await agency.flight())
    before = await agency.rows(booked)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await customer.pay(booked, code)
    assert refusal.fields == ["payment_code"]
    assert await agency.rows(booked) == before


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("PAYMENT_PROCESSING", "PAYMENT_IN_PROGRESS"),
        ("CONFIRMED", "BOOKING_CONFIRMED"),
        ("FAILED", "BOOKING_FAILED"),
        ("CANCELLED", "BOOKING_CANCELLED"),
    ],
)
async def test_only_reserved_bookings_can_be_paid(customer: Customer, state: str, reason: str) -> None:
    booked = await customer.brought_to(state)
    with refused("FAILED_PRECONDITION", reason):
        await customer.pay(booked)


async def test_a_booking_without_seats_cannot_be_paid(customer: Customer, unreserved: pb.Booking) -> None:
    with refused("FAILED_PRECONDITION", "SEATS_REQUIRED"):
        await customer.pay(unreserved)


async def test_a_repeat_returns_the_first_response_without_charge(
    agency: Agency, customer: Customer, request_id: str
) -> None:
    booked = await customer.book(await agency.flight())
    first = await customer.pay(booked, request_id=request_id)
    assert await customer.pay(booked, request_id=request_id) == first
    await customer.becomes(booked, "CONFIRMED")
    assert await customer.pay(booked, request_id=request_id) == first
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await customer.pay(booked, FAILS, request_id=request_id)
    assert len(await charges(agency, booked)) == 1


async def charges(agency: Agency, booking: pb.Booking) -> list[str]:
    """Returns the states of the charges for a booking at the provider."""
    intent_id = await agency.payments.database.fetchval(
        "SELECT intent_id::text FROM intents WHERE reference = $1", f"booking/{booking.booking_id}"
    )
    return [
        charge.status for charge in agency.provider.charges.values() if charge.metadata.get("intent_id") == intent_id
    ]


async def test_of_concurrent_payments_one_begins(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    results = await at_once(*(customer.pay(booked, code) for code in [SUCCEEDS] * 20))
    counted = outcomes(results)
    assert counted["OK"] == 1
    assert counted.keys() <= {"OK", "PAYMENT_IN_PROGRESS", "BOOKING_CONFIRMED"}
    await customer.becomes(booked, "CONFIRMED")
    assert await charges(agency, booked) == ["succeeded"]


async def test_pay_and_cancel_at_once_confirm_or_refund(agency: Agency) -> None:
    journeys: list[Journey] = []
    for _ in range(10):
        customer, journey = agency.customer(), await agency.flight()
        journeys.append(journey)
        booked = await customer.book(journey)
        paid, cancelled = await at_once(customer.pay(booked), customer.cancel(booked))
        if outcomes([paid]) == {"OK": 1}:
            assert outcomes([cancelled]).keys() <= {"PAYMENT_IN_PROGRESS", "OK"}
        else:
            assert outcomes([paid, cancelled]) == {"BOOKING_CANCELLED": 1, "OK": 1}
        end = await customer.becomes(booked, "CANCELLED" if outcomes([cancelled]) == {"OK": 1} else "CONFIRMED")
        kept = [status for status in await charges(agency, booked) if status == "succeeded"]
        assert (len(kept) == 1) == (state_of(end) == "CONFIRMED" or end.pnr != "")
    await agency.comes_to_rest(journeys)


async def test_a_foreign_booking_cannot_be_paid(agency: Agency, customer: Customer, stranger: Customer) -> None:
    booked = await customer.book(await agency.flight())
    for who in (stranger, agency.agent()):
        await a_foreign_booking_is_as_a_missing_one(agency, booked, who.pay)
    assert without_history(await customer.get(booked)) == booked


async def test_an_agent_can_pay_its_booking(agency: Agency) -> None:
    assert (await agency.agent("desk").confirmed(await agency.flight())).pnr
