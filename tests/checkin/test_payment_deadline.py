"""The deadline of a fee cancels an unpaid check-in, never early (CHK-7).

The seat is released, and late money is refunded.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, timedelta
from typing import Final
from uuid import UUID

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.payment.v1 import events_pb2 as payment_events
from skyhigh.payment.v1 import payment_service_pb2

from checkin_service import handlers
from checkin_service.check_ins import cancellation, timer_names
from services import db
from services.timers import set_timer
from tests.checkin.airport import ALREADY_OVER, HOUR, Airport, Traveller
from tests.waiting import eventually, until

# One hour: each test moves the deadline of its check-in.
VARIABLES: Final = {"SKYHIGH_PAYMENT_DEADLINE_SECONDS": str(HOUR)}
Intent = payment_service_pb2.PaymentIntent


async def test_an_unpaid_check_in_is_cancelled_at_the_deadline(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    # By the real clock: the timer exists before it is due.
    waiting = await traveller.has_deadline_in(0.5)
    cancelled = await traveller.becomes(pb.CheckIn.CANCELLED)
    assert cancelled.cancel_reason == "PAYMENT_TIMEOUT"
    lateness = cancelled.update_time.ToDatetime() - waiting.payment_deadline.ToDatetime()
    assert 0 <= lateness.total_seconds() < 5
    await airport.at_rest(traveller)
    assert await traveller.seat() == ""
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.CANCELLED]
    assert await airport.mails(traveller) == ["Your check-in was cancelled: SH101"]
    assert cancelled.history[-1].actor == "deadline"


async def test_a_paid_check_in_is_not_cancelled(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    await traveller.pay()
    # As if the timer had been claimed just before the payment event arrived.
    async with db.transaction(airport.pool) as conn:
        await conn.execute(
            "UPDATE check_ins SET payment_deadline = now() WHERE checkin_id = $1", UUID(traveller.checkin_id)
        )
        await set_timer(conn, timer_names.PAYMENT_DEADLINE, traveller.checkin_id)
    await airport.at_rest(traveller)
    assert (await traveller.get()).state == pb.CheckIn.COMPLETED


async def test_a_new_declaration_restarts_the_deadline(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    first = await traveller.has_deadline_in(HOUR / 2)
    second = await traveller.declare(31)
    assert second.payment_deadline.ToDatetime() - first.payment_deadline.ToDatetime() >= timedelta(seconds=HOUR / 2)
    async with db.transaction(airport.pool) as conn:
        due_times = await conn.fetch(
            "SELECT due_time FROM timers WHERE name = $1 AND subject = $2 AND fire_time IS NULL",
            timer_names.PAYMENT_DEADLINE,
            traveller.checkin_id,
        )
    # There is one timer, and it is no longer due at the first deadline.
    assert [row["due_time"] >= second.payment_deadline.ToDatetime(tzinfo=UTC) for row in due_times] == [True]
    moved = await traveller.has_deadline_in(ALREADY_OVER)
    cancelled = await traveller.becomes(pb.CheckIn.CANCELLED)
    assert cancelled.update_time.ToDatetime() >= moved.payment_deadline.ToDatetime()


async def test_a_paid_check_in_waits_for_its_event(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    succeeded = airport.payments.succeed(waiting.payment_intent_id)

    async def asked() -> bool:
        return "CancelPaymentIntent" in airport.payments.calls

    airport.payments.calls.clear()
    await traveller.has_deadline_in(ALREADY_OVER)
    await eventually(asked)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    await airport.tell("payment.succeeded.v1", succeeded)
    assert (await traveller.becomes(pb.CheckIn.COMPLETED)).state == pb.CheckIn.COMPLETED


async def _asked(airport: Airport) -> None:
    """Waits until the timer of the deadline has called the payment service."""

    async def asked() -> bool:
        return "CancelPaymentIntent" in airport.payments.calls

    airport.payments.calls.clear()
    await eventually(asked)


async def _waited_long_enough(traveller: Traveller) -> None:
    """Moves the end of the longest wait for a running payment into the past."""
    async with db.transaction(traveller.airport.pool) as conn:
        await conn.execute(
            "UPDATE check_ins SET payment_wait_end = now() - interval '1 s' WHERE checkin_id = $1",
            UUID(traveller.checkin_id),
        )
    await traveller.has_deadline_in(ALREADY_OVER)


async def _paid_after_the_longest_wait(airport: Airport) -> tuple[Traveller, payment_events.PaymentSucceeded]:
    """Returns a traveller whose check-in was cancelled while its payment ran.

    Also returns the event of the payment's success.
    """
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    await _waited_long_enough(traveller)
    await traveller.becomes(pb.CheckIn.CANCELLED)
    succeeded = airport.payments.succeed(waiting.payment_intent_id)
    assert succeeded is not None
    return traveller, succeeded


async def test_the_deadline_waits_for_a_payment_in_progress(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    passed = await traveller.has_deadline_in(ALREADY_OVER)

    async def extended() -> bool:
        return (await traveller.get()).payment_deadline.ToDatetime() > passed.payment_deadline.ToDatetime()

    await eventually(extended)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    await airport.tell("payment.succeeded.v1", airport.payments.succeed(waiting.payment_intent_id))
    await traveller.becomes(pb.CheckIn.COMPLETED)
    await airport.at_rest(traveller)
    assert airport.payments.money_kept(traveller.checkin_id) == 1
    assert await traveller.seat() != ""


async def test_a_failed_payment_after_the_deadline_cancels(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    await traveller.has_deadline_in(ALREADY_OVER)
    await _asked(airport)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    await airport.tell("payment.failed.v1", airport.payments.fail(waiting.payment_intent_id))
    await traveller.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.CANCELLED]


async def test_a_payment_after_the_longest_wait_is_refunded(airport: Airport) -> None:
    traveller, succeeded = await _paid_after_the_longest_wait(airport)
    await airport.tell("payment.succeeded.v1", succeeded)
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
    assert await airport.mails(traveller) == ["Your check-in was cancelled: SH101", "Your payment is refunded: SH101"]
    assert await traveller.seat() == ""


async def test_concurrent_events_of_a_late_payment_mail_once(airport: Airport) -> None:
    traveller, succeeded = await _paid_after_the_longest_wait(airport)

    async def compare() -> None:
        # As the reconciler does.
        async with db.transaction(airport.pool) as conn:
            await handlers.on_payment_succeeded(conn, succeeded)

    async with airport.in_the_middle_of(handlers.on_payment_succeeded, succeeded):
        comparing = asyncio.create_task(compare())
    await comparing
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
    assert await airport.mails(traveller) == ["Your check-in was cancelled: SH101", "Your payment is refunded: SH101"]


async def test_the_deadline_is_retried_while_payments_are_down(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    airport.payments.away = True
    await traveller.has_deadline_in(ALREADY_OVER)

    async def asked_in_vain() -> bool:
        async with db.transaction(airport.pool) as conn:
            return bool(
                await conn.fetchval(
                    "SELECT last_error FROM timers WHERE name = $1 AND subject = $2",
                    timer_names.PAYMENT_DEADLINE,
                    traveller.checkin_id,
                )
            )

    await eventually(asked_in_vain)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    airport.payments.away = False
    await traveller.becomes(pb.CheckIn.CANCELLED)


async def test_a_deadline_killed_before_its_commit_fires_again(
    airport: Airport, monkeypatch: pytest.MonkeyPatch
) -> None:
    traveller = await airport.traveller()
    real, deaths = cancellation.time_out, 0

    async def die_once(*args: object, **more: object) -> bool:
        nonlocal deaths
        deaths += 1
        if deaths == 1:
            raise RuntimeError("killed")
        return await real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(cancellation, "time_out", die_once)
    await traveller.waiting()
    await traveller.has_deadline_in(ALREADY_OVER)
    await traveller.becomes(pb.CheckIn.CANCELLED)
    assert deaths == 2
    await airport.at_rest(traveller)
    assert await traveller.seat() == ""


async def test_deadline_and_payment_at_once_leave_one_result(airport: Airport) -> None:
    travellers = await airport.travellers(*(f"P{n}" for n in range(8)))

    async def race(n: int) -> None:
        traveller = travellers[n]
        await traveller.waiting()
        waiting = await traveller.has_deadline_in(0.3)
        await until(waiting.payment_deadline, seconds_before=0.02, seconds_after=n * 0.04)
        if airport.payments.begin(waiting.payment_intent_id):
            await airport.tell("payment.succeeded.v1", airport.payments.succeed(waiting.payment_intent_id))
        await airport.at_rest(traveller)
        found = await traveller.get()
        assert found.state in (pb.CheckIn.COMPLETED, pb.CheckIn.CANCELLED)
        completed = found.state == pb.CheckIn.COMPLETED
        assert airport.payments.money_kept(traveller.checkin_id) == completed
        assert bool(await traveller.seat()) == completed

    await asyncio.gather(*(race(n) for n in range(8)))


async def test_a_timer_fires_once_and_on_time(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    await traveller.has_deadline_in(0.5)
    await traveller.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(traveller)
    async with db.transaction(airport.pool) as conn:
        rows = await conn.fetch(
            "SELECT name, tries, fire_time - due_time AS late FROM timers WHERE subject = $1", traveller.checkin_id
        )
    fired = {row["name"]: row for row in rows}
    assert {"payment-deadline", "release-seat", "settle-fee"} <= set(fired)
    assert all(row["tries"] == 1 and 0 <= row["late"].total_seconds() < 5 for row in rows)
