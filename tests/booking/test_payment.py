"""Payments: visible attempts, one outcome, events in any order (BKG-4, PAY-3)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import Message
from google.type import money_pb2
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.payment.v1 import events_pb2

from booking_service.peers import Peers
from services import db
from services.money import Amount, amount_of, money_of
from tests.booking.agency import Agency, Customer, patiently, state_of, usd
from tests.booking.conftest import opened
from tests.booking.orders import (
    ENDS,
    booked_by,
    end,
    ends,
    fired_well,
    intent_of,
    payer,
    provider_decides,
    seen,
    shows,
    switch,
    taken,
)
from tests.callers import a_few_at_once, refused
from tests.checkin.fakes import Broker
from tests.payment.rules import FAILS, SUCCEEDS
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

VARIABLES: Final = {"SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "0.05", "SKYHIGH_BOOKING_WATCH_INTERVAL_SECONDS": "0.05"}
# The values of PAY-3.
REAL_TIMES: Final = {
    "SKYHIGH_PAYMENT_ATTEMPT_SECONDS": "10",
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": "1",
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": "5",
}
ANY_CODE: Final = "12345"
FAILURE_RATE: Final = 0.15
AT_ONCE: Final = 15
CHARGES: Final = int(os.environ.get("SKYHIGH_TEST_CHARGES", "60"))
# One run in 1.7 million deviates by more standard deviations than this.
DEVIATIONS: Final = 5
LOCATOR: Final = re.compile(r"[A-HJ-NP-Z][2-9A-HJ-NP-Z]{5}")
_log = logging.getLogger(__name__)


@pytest.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    """Publishes as the payment service does."""
    async with Broker.opened(world.servers.amqp_url()) as opened_broker:
        yield opened_broker


async def tell(
    agency: Agency, broker: Broker, routing_key: str, event: Message, *, event_id: UUID | None = None
) -> None:
    """Publishes an event, and waits until the booking service has applied it."""
    published = await broker.publish(routing_key, event, event_id=event_id)

    async def applied() -> bool:
        async with db.transaction(agency.pool) as conn:
            return bool(await conn.fetchval("SELECT true FROM inbox WHERE event_id = $1", published))

    await eventually(applied)


def success(booking: pb.Booking, *, amount: money_pb2.Money | None = None) -> tuple[str, Message]:
    """Returns the event that a booking was paid; the default amount is its price."""
    event = events_pb2.PaymentSucceeded(
        intent_id=booking.payment_intent_id,
        reference=f"booking/{booking.booking_id}",
        amount=amount or booking.total,
        attempts=2,
    )
    return "payment.succeeded.v1", event


def failure(booking: pb.Booking) -> tuple[str, Message]:
    """Returns the event that the last attempt failed."""
    event = events_pb2.PaymentFailed(
        intent_id=booking.payment_intent_id,
        reference=f"booking/{booking.booking_id}",
        error="DECLINED",
        attempts=3,
    )
    return "payment.failed.v1", event


async def ended(customer: Customer, booking: pb.Booking) -> None:
    """Waits until the booking is in a final state."""

    async def over() -> bool:
        return state_of(await customer.get(booking)) in ENDS

    await eventually(over)


async def processing(agency: Agency, customer: Customer, **more: Any) -> pb.Booking:
    """Returns a booking whose payment runs without an outcome."""
    switch(agency.provider, decision_delay_seconds=600)
    booking = await customer.book(await agency.flight(), **more)
    await customer.pay(booking)
    return await customer.becomes(booking, "PAYMENT_PROCESSING")


async def test_code_00000_confirms_seats_and_locator_and_mails(agency: Agency, customer: Customer) -> None:
    journey = await agency.journey(2)
    booking = await customer.book(journey, "ADULT", "CHILD", "INFANT", contact_email="paid@example.org")
    paying = await customer.pay(booking)
    assert state_of(paying) == "PAYMENT_PENDING"
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert LOCATOR.fullmatch(confirmed.pnr)
    assert seen(confirmed) == ("CONFIRMED", 1, "")
    assert confirmed.max_payment_attempts == 3
    assert confirmed.seats == booking.seats
    assert [pb.Booking.State.Name(line.to_state) for line in confirmed.history] == [
        "CREATED",
        "SEATS_RESERVED",
        "PAYMENT_PENDING",
        "PAYMENT_PROCESSING",
        "CONFIRMED",
    ]
    # `end` checks seats, money and events.
    assert len((await end(agency, booking)).seats) == 4
    (told,) = [each for each in await agency.told("booking.confirmed.v1") if each.booking_id == booking.booking_id]
    assert (told.pnr, told.passengers, told.contact_email) == (confirmed.pnr, booking.passengers, "paid@example.org")
    assert [flight.flight_id for flight in told.flights] == journey.flight_ids
    (mail,) = await agency.mails("paid@example.org")
    assert mail.subject == f"Your booking {confirmed.pnr} is confirmed"
    assert all(seat.seat_number in mail.text for seat in booking.seats)
    assert await agency.violations(*journey.flight_ids) == []
    await fired_well(agency, [booking])


@pytest.mark.timeout(900)
async def test_every_booking_ends_consistently_at_the_failure_rate(agency: Agency) -> None:
    switch(agency.provider, failure_rate=FAILURE_RATE)
    journeys = [await agency.flight() for _ in range(math.ceil(CHARGES / 60))]

    async def order(number: int) -> pb.Booking:
        customer = agency.customer()
        journey, request_id = journeys[number % len(journeys)], str(uuid4())
        booking = await patiently(lambda: customer.book(journey, request_id=request_id))
        await patiently(lambda: customer.pay(booking, ANY_CODE, request_id=booking.booking_id))
        await ended(customer, booking)
        return booking

    bookings = await a_few_at_once((order(number) for number in range(CHARGES)), at_once=AT_ONCE)
    found = await ends(agency, bookings)
    async with db.transaction(agency.payments.pool) as conn:
        first = await conn.fetch(
            """
            SELECT charges.state::text FROM charges JOIN intents USING (intent_id)
            WHERE number = 1 AND reference = ANY($1)
            """,
            [f"booking/{booking.booking_id}" for booking in bookings],
        )
    failed = sum(row["state"] == "FAILED" for row in first)
    deviation = math.sqrt(CHARGES * FAILURE_RATE * (1 - FAILURE_RATE))
    _log.info(
        "%d of %d first attempts failed; three in a row in %d orders",
        failed,
        CHARGES,
        sum(each.state == "FAILED" for each in found.values()),
    )
    assert len(first) == CHARGES
    assert abs(failed - CHARGES * FAILURE_RATE) <= DEVIATIONS * deviation
    assert {each.state for each in found.values()} <= {"CONFIRMED", "FAILED"}
    assert await agency.violations(*(journey.flight_id for journey in journeys)) == []


async def test_a_verdict_after_all_attempts_counts(agency: Agency, customer: Customer) -> None:
    """The attempts and their pauses end by the real clock."""
    switch(agency.provider, decision_delay_seconds=600)
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    await shows(customer, booking, "PAYMENT_PROCESSING", 3, "TIMEOUT")
    await provider_decides(agency, booking)
    confirmed = await customer.becomes(booking, "CONFIRMED")
    await end(agency, booking)
    assert len(await agency.payments.charges(intent_of(confirmed))) == 1


@pytest.mark.skipif("SKYHIGH_TEST_SLOW" not in os.environ, reason="takes half a minute: SKYHIGH_TEST_SLOW=1")
async def test_a_verdict_after_11_seconds_counts_as_attempt(world: World) -> None:
    async with opened(world, **REAL_TIMES) as agency:
        switch(agency.provider, decision_delay_seconds=11)
        customer = agency.customer()
        booking = await customer.book(await agency.flight())
        await customer.pay(booking)
        await shows(customer, booking, "PAYMENT_PROCESSING", 1, "TIMEOUT")
        confirmed = await customer.becomes(booking, "CONFIRMED")
        await end(agency, booking)
        assert len(await agency.payments.charges(intent_of(confirmed))) == 1


async def test_of_concurrent_payments_one_charges_once(agency: Agency, customer: Customer) -> None:
    booking = await customer.book(await agency.flight())
    outcomes = await asyncio.gather(
        *(customer.pay(booking, request_id=str(uuid4())) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(each, pb.Booking) for each in outcomes) == 1
    assert (await end(agency, booking)).state == "CONFIRMED"


async def test_payments_at_both_services_charge_once(agency: Agency, customer: Customer) -> None:
    switch(agency.provider, decision_delay_seconds=0.3)
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    intent = intent_of(await customer.becomes(booking, "PAYMENT_PROCESSING"))
    with refused("FAILED_PRECONDITION", "PAYMENT_IN_PROGRESS"):
        await agency.payments.pay(payer(customer), intent)
    assert (await end(agency, booking)).state == "CONFIRMED"


async def test_repeated_and_late_events_change_nothing(agency: Agency, customer: Customer, broker: Broker) -> None:
    booking = await customer.confirmed(await agency.flight())
    await end(agency, booking)
    before = await agency.rows(booking)
    one = uuid4()
    for number in range(10):
        await tell(agency, broker, *success(booking), event_id=one if number % 2 else None)
        await tell(agency, broker, *failure(booking))
    assert await agency.rows(booking) == before
    assert (await end(agency, booking)).state == "CONFIRMED"


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("FFSS"))), ids="".join)
async def test_success_and_failure_in_any_order_are_success(
    agency: Agency, customer: Customer, broker: Broker, order: tuple[str, ...]
) -> None:
    booking = await processing(agency, customer)
    for letter in order:
        await tell(agency, broker, *(success(booking) if letter == "S" else failure(booking)))
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert confirmed.last_error == ""
    assert confirmed.seats == booking.seats
    (told,) = [each for each in await agency.told("booking.confirmed.v1") if each.booking_id == booking.booking_id]
    assert told.pnr == confirmed.pnr


async def test_an_event_before_the_submission_response_applies(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = await agency.flight()
    real, over = Peers.submit, asyncio.Event()

    async def submit(self: Peers, intent_id: UUID, **more: Any) -> None:
        await real(self, intent_id, **more)
        await over.wait()

    monkeypatch.setattr(Peers, "submit", submit)
    paid, unpaid = await customer.book(journey), await customer.book(journey)
    await customer.pay(paid)
    await customer.pay(unpaid, FAILS)
    confirmed = await customer.becomes(paid, "CONFIRMED")
    failed = await customer.becomes(unpaid, "FAILED")
    assert confirmed.payment_attempts == 1
    assert (failed.payment_attempts, failed.last_error) == (3, "DECLINED")
    over.set()
    found = await ends(agency, [paid, unpaid])
    assert [found[each.booking_id].state for each in (paid, unpaid)] == ["CONFIRMED", "FAILED"]
    assert await customer.get(paid) == confirmed


async def test_a_payment_of_another_amount_confirms_nothing(agency: Agency, customer: Customer, broker: Broker) -> None:
    booking = await processing(agency, customer)
    cents = amount_of(booking.total).minor_units
    for amount in (usd(1), usd(cents + 1), usd(cents - 1), money_of(Amount("EUR", cents))):
        await tell(agency, broker, *success(booking, amount=amount))
    assert state_of(await customer.get(booking)) == "PAYMENT_PROCESSING"
    assert await agency.hold_state(booking.hold_id) == "HELD"
    await tell(agency, broker, *success(booking))
    await customer.becomes(booking, "CONFIRMED")


async def test_a_verdict_with_another_amount_is_asked_again(agency: Agency, customer: Customer) -> None:
    switch(agency.provider, wrong_amount=True)
    booking = await customer.book(await agency.flight())
    await customer.pay(booking)
    # The webhook with the wrong amount is quarantined. The payment service then asks the provider, which returns the
    # right amount.
    assert (await end(agency, booking)).state == "CONFIRMED"
    assert ("QUARANTINED", "AMOUNT_DIFFERS") in (await agency.payments.webhook_events()).values()


async def test_webhooks_in_any_order_charge_once(agency: Agency) -> None:
    switch(agency.provider, duplicate=9, reorder=5, failure_rate=0.5)
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(20)]
    bookings = await booked_by(customers, journey)
    await asyncio.gather(
        *(
            customer.pay(booking, ANY_CODE if number % 2 else SUCCEEDS)
            for number, (customer, booking) in enumerate(zip(customers, bookings, strict=True))
        )
    )
    # The provider's mock sends reordered webhooks in groups of five and keeps an incomplete group back. The payment
    # service asks for those outcomes.
    found = await ends(agency, bookings)
    assert {each.state for each in found.values()} <= {"CONFIRMED", "FAILED"}
    assert len(taken(agency.provider)) >= 10
    await agency.comes_to_rest([journey])
