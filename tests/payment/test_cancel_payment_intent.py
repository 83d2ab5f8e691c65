"""CancelPaymentIntent: possible before a payment, refused during and after one."""

from __future__ import annotations

from uuid import uuid4

import pytest
from skyhigh.payment.v1 import payment_service_pb2 as pb

from tests.callers import Caller, refused
from tests.payment.rules import Payments, event, state_of
from tests.seat.rules import at_once, outcomes


async def test_an_unpaid_intent_is_cancelled(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    cancelled = await silent.cancel(intent, reason="DECLARED_AGAIN")
    assert state_of(cancelled) == "CANCELLED"
    line = await silent.database.fetchrow(
        "SELECT actor, reason FROM intent_events WHERE intent_id::text = $1 AND to_state = 'CANCELLED'",
        intent.intent_id,
    )
    assert line is not None
    assert tuple(line) == ("service:checkin", "DECLARED_AGAIN")


async def test_a_repeat_returns_the_same_and_changes_nothing(
    silent: Payments, passenger: Caller, request_id: str
) -> None:
    intent = await silent.intent(passenger)
    cancelled = await silent.cancel(intent, request_id=request_id)
    before = await silent.rows(intent)
    assert await silent.cancel(intent, request_id=request_id) == cancelled
    assert await silent.cancel(intent, reason="AGAIN") == cancelled
    assert await silent.rows(intent) == before


async def test_an_intent_with_a_running_attempt_is_not_cancelled(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    before = await silent.rows(intent)
    with refused("FAILED_PRECONDITION", "PAYMENT_IN_PROGRESS") as refusal:
        await silent.cancel(intent)
    assert dict(refusal.info.metadata) == {"state": "PROCESSING"}
    assert await silent.rows(intent) == before


async def test_a_paid_intent_is_not_cancelled(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    with refused("FAILED_PRECONDITION", "INTENT_PAID") as refusal:
        await silent.cancel(intent)
    assert dict(refusal.info.metadata) == {"state": "SUCCEEDED"}
    await silent.refund(intent)
    with refused("FAILED_PRECONDITION", "INTENT_PAID") as refusal:
        await silent.cancel(intent)
    assert dict(refusal.info.metadata) == {"state": "REFUNDING"}


async def test_an_unknown_intent_is_not_found(silent: Payments) -> None:
    with refused("NOT_FOUND", "INTENT_NOT_FOUND"):
        await silent.cancel(pb.PaymentIntent(intent_id=str(uuid4())))


async def test_cancel_and_pay_at_once_leave_one_result(silent: Payments, passenger: Caller) -> None:
    for _ in range(10):
        intent = await silent.intent(passenger)
        results = await at_once(*(silent.cancel(intent) if n % 2 else silent.pay(passenger, intent) for n in range(10)))
        state = state_of(await silent.get(intent))
        assert state in ("CANCELLED", "PROCESSING")
        assert outcomes(results) == (
            {"OK": 5, "INTENT_CANCELLED": 5} if state == "CANCELLED" else {"OK": 1, "PAYMENT_IN_PROGRESS": 9}
        )
    assert await silent.violations() == []


@pytest.mark.parametrize("reason", ["\n", "é", " x", "x" * 121])
async def test_a_wrong_reason_is_named(silent: Payments, passenger: Caller, reason: str) -> None:
    intent = await silent.intent(passenger)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await silent.cancel(intent, reason=reason)
    assert refusal.fields == ["reason"]


async def test_a_card_number_as_reason_is_refused(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    with refused("INVALID_ARGUMENT", "CARD_DATA_REFUSED"):
        await silent.cancel(intent, reason="paid with 5555 5555 5555 4444 instead")
