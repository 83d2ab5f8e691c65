"""Money that comes after a failed payment buys the same seats or is refunded.

The outcome is never both and never neither.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.payment.v1.payment_service_pb2 import PaymentIntent
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from booking_service.bookings import Hold
from booking_service.peers import Peers
from payment_service.charging import charge_key_of
from tests.booking.agency import Agency, Customer, state_of
from tests.booking.orders import booked_by, end, ends, pay_once_more, rest
from tests.payment.rules import FAILS, event
from tests.waiting import eventually, pause

BOOKINGS_AT_ONCE: Final = 10


@pytest.mark.parametrize("lost", [False, True])
async def test_late_success_gets_the_same_seats_or_a_refund(agency: Agency, customer: Customer, lost: bool) -> None:
    journey = await agency.journey(2)
    booking = await customer.book(journey, "ADULT", "ADULT", contact_email=f"{lost}@late.example")
    await customer.pay(booking, FAILS)
    failed = await customer.becomes(booking, "FAILED")
    await rest(agency, [booking])
    if lost:
        await agency.take(journey.flight_ids[1], booking.seats[-1].seat_number)
    await pay_once_more(customer, booking)
    await eventually(lambda: _paid(agency, booking))
    found = await end(agency, booking)
    assert (found.state, found.paid) == ("FAILED" if lost else "CONFIRMED", True)
    shown = await customer.get(booking)
    subjects = [mail.subject for mail in await agency.mails(f"{lost}@late.example")]
    if lost:
        assert shown.last_error == "SEAT_TAKEN"
        assert shown.HasField("refund_time")
        assert subjects == ["Your payment is refunded"]
        (told,) = await agency.mails(f"{lost}@late.example")
        assert "the seats were no longer available" in told.text
    else:
        assert shown.seats == booking.seats
        assert shown.hold_id != failed.hold_id
        assert subjects == [f"Your booking {shown.pnr} is confirmed"]
    # If the booking lost a seat on the second flight, it keeps none on the first flight.
    assert await agency.violations(*journey.flight_ids) == []


async def _paid(agency: Agency, booking: pb.Booking) -> bool:
    return (await agency.row(booking))["pay_time"] is not None


async def test_a_charge_recorded_late_by_the_provider_counts(agency: Agency, customer: Customer) -> None:
    booking = await customer.book(await agency.flight())
    await customer.pay(booking, FAILS)
    failed = await customer.becomes(booking, "FAILED")
    intent = await agency.payments.get(PaymentIntent(intent_id=failed.payment_intent_id))
    key = charge_key_of(UUID(intent.intent_id), 2)
    charge = replace(agency.provider.charges[str(key)], status="succeeded")
    agency.provider.charges[str(key)] = charge
    amount = {"currency": "USD", "minor_units": charge.amount["minor_units"]}
    await agency.payments.deliver(event(intent, key=key, charge_id=charge.charge_id, amount=amount))
    await customer.becomes(booking, "CONFIRMED")
    await end(agency, booking)


async def test_a_late_payment_after_sale_closed_is_refunded(agency: Agency, customer: Customer) -> None:
    booking = await customer.book(await agency.flight(), contact_email="closed@late.example")
    await customer.pay(booking, FAILS)
    await customer.becomes(booking, "FAILED")
    await agency.set_back(booking, sale_close_time=timedelta(days=3))
    await pay_once_more(customer, booking)
    await eventually(lambda: _paid(agency, booking))
    assert (await end(agency, booking)).state == "FAILED"
    assert (await customer.get(booking)).last_error == "SALE_CLOSED"
    (told,) = await agency.mails("closed@late.example")
    assert "the sale of seats on its first flight had closed" in told.text


async def test_payment_during_the_release_gets_seats_or_a_refund(
    agency: Agency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that releases a FAILED booking's seats continues after the money came."""
    journey = await agency.flight()
    customers = [agency.customer() for _ in range(BOOKINGS_AT_ONCE)]
    real, paid = Peers.cancel_hold, asyncio.Event()

    async def drop(self: Peers, hold_id: UUID, *, reason: str) -> None:
        if reason == "PAYMENT_FAILED":
            await paid.wait()
            await pause(random.uniform(0, 0.3))
        await real(self, hold_id, reason=reason)

    monkeypatch.setattr(Peers, "cancel_hold", drop)
    bookings = await booked_by(customers, journey)
    await asyncio.gather(*(each.pay(booking, FAILS) for each, booking in zip(customers, bookings, strict=True)))
    for each, booking in zip(customers, bookings, strict=True):
        await each.becomes(booking, "FAILED")
        await pay_once_more(each, booking)
    paid.set()
    await asyncio.gather(
        *(each.becomes(booking, "CONFIRMED") for each, booking in zip(customers, bookings, strict=True))
    )
    await ends(agency, bookings)


async def test_an_expired_hold_for_late_payment_is_replaced(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = await agency.flight()
    booking = await customer.book(journey)
    await customer.pay(booking, FAILS)
    failed = await customer.becomes(booking, "FAILED")
    real, held = Peers.hold, []

    async def hold(self: Peers, *args: Any, **more: Any) -> Hold:
        got = await real(self, *args, **more)
        held.append(got.hold_id)
        if len(held) == 1:
            await agency.seats.service().CancelHold(seat_pb.CancelHoldRequest(hold_id=str(got.hold_id)))
        return got

    monkeypatch.setattr(Peers, "hold", hold)
    await pay_once_more(customer, booking)
    confirmed = await customer.becomes(booking, "CONFIRMED")
    assert confirmed.hold_id == str(held[1])
    assert confirmed.hold_id not in (failed.hold_id, str(held[0]))
    await end(agency, booking)


async def test_a_superseded_step_leaves_no_held_seat(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes run one step; one holds seats after the booking was cancelled."""
    journey = await agency.flight()
    booking = await customer.book(journey)
    await customer.pay(booking, FAILS)
    await customer.becomes(booking, "FAILED")
    real, cancelled, waiting = Peers.hold, asyncio.Event(), asyncio.Event()
    held: list[UUID] = []

    async def hold(self: Peers, *args: Any, **more: Any) -> Hold:
        if not waiting.is_set():
            waiting.set()
            await cancelled.wait()
        got = await real(self, *args, **more)
        held.append(got.hold_id)
        return got

    async def dropped() -> bool:
        async with agency.pool.acquire() as conn:
            return bool(
                await conn.fetchval(
                    "SELECT true FROM timers WHERE name = 'drop-hold' AND subject = $1 AND fire_time IS NOT NULL",
                    str(held[-1]),
                )
            )

    monkeypatch.setattr(Peers, "hold", hold)
    await pay_once_more(customer, booking)
    await waiting.wait()
    # The lease of the first process has ended, and a second process claims the timer.
    async with agency.pool.acquire() as conn:
        await conn.execute(
            "UPDATE timers SET try_time = now() WHERE name = 'confirm' AND subject = $1", booking.booking_id
        )
    await customer.becomes(booking, "CONFIRMED")
    await customer.cancel(booking)
    await rest(agency, [booking])
    cancelled.set()
    await eventually(dropped)
    assert (await end(agency, booking)).state == "CANCELLED"
    assert state_of(await customer.get(booking)) == "CANCELLED"
