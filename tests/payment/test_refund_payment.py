"""RefundPayment refunds once; surplus money is refunded without a request."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from google.type import money_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb

from deploy.mocks.payment_provider import PaymentProvider, Refund
from payment_service.charging import charge_key_of
from payment_service.refunds import refund_key_of
from services.money import amount_of
from tests.callers import Caller, refused
from tests.payment.rules import FAILS, PRICE, Payments, event, signed, state_of, usd
from tests.payment.test_attempts import charged, switch
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually


async def paid(payments: Payments, payer: Caller) -> pb.PaymentIntent:
    intent = await payments.intent(payer)
    await payments.pay(payer, intent)
    return await payments.becomes(intent, "SUCCEEDED")


def refunds(provider: PaymentProvider, intent: pb.PaymentIntent, number: int = 1) -> int:
    """Counts the provider's refunds of a charge."""
    charge = provider.charges[str(charge_key_of(UUID(intent.intent_id), number))]
    return sum(refund.charge_id == charge.charge_id for refund in provider.refunds.values())


async def test_a_refund_is_paid_and_publishes_an_event(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await paid(prompt, payer)
    refunding = await prompt.refund(intent, reason="CHECK_IN_CANCELLED")
    assert state_of(refunding) == "REFUNDING"
    await prompt.becomes(intent, "REFUNDED")
    assert refunds(provider, intent) == 1
    key, message = (await prompt.told(intent))[-1]
    assert (key, message.reason, message.amount) == ("payment.refunded.v1", "CHECK_IN_CANCELLED", intent.amount)
    assert (await prompt.history(intent))[-2:] == ["REFUNDING", "REFUNDED"]
    assert await prompt.violations() == []


async def test_an_agent_may_refund_and_a_passenger_may_not(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await prompt.intent(payer, reference=f"voucher/{uuid4()}")
    await prompt.pay(payer, intent)
    await prompt.becomes(intent, "SUCCEEDED")
    request = pb.RefundPaymentRequest(intent_id=intent.intent_id)
    for other in (payer, prompt.callers.customer(), prompt.callers.operations()):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await other.RefundPayment(request)
    await prompt.callers.agent().RefundPayment(request)
    await prompt.becomes(intent, "REFUNDED")


@pytest.mark.parametrize(("purpose", "call"), [("booking", "CancelBooking"), ("checkin", "CancelCheckIn")])
async def test_an_agent_cannot_refund_a_booking_or_check_in(
    prompt: Payments, provider: PaymentProvider, payer: Caller, purpose: str, call: str
) -> None:
    intent = await prompt.intent(payer, reference=f"{purpose}/{uuid4()}")
    await prompt.pay(payer, intent)
    await prompt.becomes(intent, "SUCCEEDED")
    agent = prompt.callers.agent()
    for total in (None, usd(1), intent.amount):
        with refused("FAILED_PRECONDITION", "REFUND_BY_ITS_SERVICE") as refusal:
            await agent.RefundPayment(pb.RefundPaymentRequest(intent_id=intent.intent_id, total_refund=total))
        assert dict(refusal.info.metadata) == {"reference": intent.reference, "call": call}
    assert state_of(await prompt.get(intent)) == "SUCCEEDED"
    assert refunds(provider, intent) == 0
    await prompt.refund(intent)
    await prompt.becomes(intent, "REFUNDED")
    repeat = await agent.RefundPayment(pb.RefundPaymentRequest(intent_id=intent.intent_id))
    assert state_of(repeat) == "REFUNDED", "what is given back already is no reason to refuse"


async def given_back(payments: Payments, intent: pb.PaymentIntent, minor_units: int) -> pb.PaymentIntent:
    """Waits until this amount has been refunded; returns the intent."""

    async def so_much() -> bool:
        return amount_of((await payments.get(intent)).refunded).minor_units == minor_units

    await eventually(so_much)
    return await payments.get(intent)


async def test_a_partial_refund_leaves_the_intent_paid(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await paid(prompt, payer)
    assert state_of(await prompt.refund(intent, total_refund=usd(PRICE - 100))) == "SUCCEEDED"
    after = await given_back(prompt, intent, PRICE - 100)
    assert state_of(after) == "SUCCEEDED"
    assert await prompt.violations() == []
    await prompt.refund(intent, reason="THE_REST")
    await prompt.becomes(intent, "REFUNDED")
    charge = provider.charges[str(charge_key_of(UUID(intent.intent_id), 1))]
    amounts = [each.amount["minor_units"] for each in provider.refunds.values() if each.charge_id == charge.charge_id]
    assert amounts == [PRICE - 100, 100]
    told = [message for key, message in await prompt.told(intent) if key == "payment.refunded.v1"]
    assert [(each.amount, each.total_refunded) for each in told] == [
        (usd(PRICE - 100), usd(PRICE - 100)),
        (usd(100), usd(PRICE)),
    ]
    assert await prompt.violations() == []


async def test_concurrent_partial_refunds_pay_the_largest_total(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await paid(prompt, payer)
    totals = [100, 200, 300, PRICE - 1]
    results = await at_once(*(prompt.refund(intent, total_refund=usd(total)) for total in totals * 5))
    assert outcomes(results) == {"OK": 20}
    await given_back(prompt, intent, PRICE - 1)
    charge = provider.charges[str(charge_key_of(UUID(intent.intent_id), 1))]
    amounts = [each.amount["minor_units"] for each in provider.refunds.values() if each.charge_id == charge.charge_id]
    assert sum(amounts) == PRICE - 1
    assert await prompt.violations() == []


async def test_more_than_the_paid_amount_is_refused(prompt: Payments, provider: PaymentProvider, payer: Caller) -> None:
    intent = await paid(prompt, payer)
    for wrong in (usd(PRICE + 1), money_pb2.Money(currency_code="EUR", units=1), money_pb2.Money(currency_code="USD")):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
            await prompt.refund(intent, total_refund=wrong)
    assert refunds(provider, intent) == 0
    assert (await prompt.get(intent)).refunded == usd(0)


async def test_a_partial_refunds_webhook_completes_only_that_part(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    await silent.refund(intent, total_refund=usd(100))
    await silent.refund(intent, total_refund=usd(250))
    charge_key = charge_key_of(UUID(intent.intent_id), 1)

    def of_part(number: int, minor_units: int) -> bytes:
        return event(
            intent,
            "refund.succeeded",
            refund_id=f"re_{number}",
            refund_key=str(refund_key_of(charge_key, number)),
            refund_amount={"currency": "USD", "minor_units": minor_units},
        )

    # A different amount, and a full refund that was not requested, wait for an operator.
    await silent.deliver(of_part(2, 151))
    await silent.deliver(event(intent, "refund.succeeded"))
    assert (await silent.get(intent)).refunded == usd(0)
    for _ in range(2):
        await silent.deliver(of_part(2, 150))
    assert (await silent.get(intent)).refunded == usd(150)
    await silent.deliver(of_part(1, 100))
    assert (await silent.get(intent)).refunded == usd(250)
    assert state_of(await silent.get(intent)) == "SUCCEEDED"
    assert await silent.violations() == []


async def test_concurrent_refunds_are_one_at_the_provider(
    prompt: Payments, provider: PaymentProvider, payer: Caller, request_id: str
) -> None:
    intent = await paid(prompt, payer)
    calls = [prompt.refund(intent, request_id=request_id) for _ in range(10)]
    results = await at_once(*calls, *(prompt.refund(intent) for _ in range(20)))
    assert outcomes(results) == {"OK": 30}
    await prompt.becomes(intent, "REFUNDED")
    assert state_of(await prompt.refund(intent)) == "REFUNDED"
    assert refunds(provider, intent) == 1
    assert [key for key, _ in await prompt.told(intent)] == ["payment.succeeded.v1", "payment.refunded.v1"]


async def test_a_refund_is_retried_while_the_provider_is_down(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await paid(prompt, payer)
    switch(provider, down=True)
    await prompt.refund(intent)

    async def tried() -> bool:
        error = await prompt.database.fetchval(
            "SELECT last_error FROM timers WHERE name = 'refund' AND subject = $1",
            str(charge_key_of(UUID(intent.intent_id), 1)),
        )
        return "PROVIDER_ERROR" in (error or "")

    await eventually(tried)
    assert state_of(await prompt.get(intent)) == "REFUNDING"
    switch(provider, down=False)
    await prompt.becomes(intent, "REFUNDED")
    assert refunds(provider, intent) == 1


async def test_a_pending_refund_waits_for_its_webhook(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await paid(prompt, payer)
    charge = provider.charges[str(charge_key_of(UUID(intent.intent_id), 1))]
    provider.refunds[charge.charge_id] = Refund("re_slow", charge.charge_id, charge.key, "pending", charge.amount)
    await prompt.refund(intent)

    async def asked() -> bool:
        due = await prompt.database.fetchval(
            "SELECT due_time > now() FROM timers WHERE name = 'refund' AND subject = $1", charge.key
        )
        return bool(due)

    await eventually(asked)
    assert state_of(await prompt.get(intent)) == "REFUNDING"
    await prompt.deliver(event(intent, "refund.succeeded", charge_id=charge.charge_id, refund_id="re_slow"))
    assert state_of(await prompt.get(intent)) == "REFUNDED"


async def test_an_unpaid_intent_is_not_refunded(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    with refused("FAILED_PRECONDITION", "INTENT_NOT_PAID") as refusal:
        await silent.refund(intent)
    assert dict(refusal.info.metadata) == {"state": "REQUIRES_PAYMENT"}
    begun = await silent.unanswered(passenger)
    with refused("FAILED_PRECONDITION", "INTENT_NOT_PAID"):
        await silent.refund(begun)
    await silent.cancel(intent)
    with refused("FAILED_PRECONDITION", "INTENT_NOT_PAID"):
        await silent.refund(intent)
    with refused("NOT_FOUND", "INTENT_NOT_FOUND"):
        await silent.refund(pb.PaymentIntent(intent_id=str(uuid4())))


async def test_a_webhook_alone_completes_a_refund(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    await silent.refund(intent)
    body = event(intent, "refund.succeeded")
    for _ in range(3):
        await silent.deliver(body, signed(body))
    assert state_of(await silent.get(intent)) == "REFUNDED"
    assert [key for key, _ in await silent.told(intent)] == ["payment.succeeded.v1", "payment.refunded.v1"]
    assert await silent.violations() == []


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_late_success_is_accepted_or_refunded(
    prompt: Payments, provider: PaymentProvider, payer: Caller, cancelled: bool
) -> None:
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent, FAILS)
    await prompt.becomes(intent, "FAILED")
    if cancelled:
        await prompt.cancel(intent)
    # The provider reports later that the second charge succeeded.
    key = str(charge_key_of(UUID(intent.intent_id), 2))
    charge = provider.charges[key] = replace(provider.charges[key], status="succeeded", error=None)
    await prompt.deliver(event(intent, number=2, charge_id=charge.charge_id))
    if not cancelled:
        assert state_of(await prompt.get(intent)) == "SUCCEEDED"
        assert [key for key, _ in await prompt.told(intent)] == ["payment.failed.v1", "payment.succeeded.v1"]
        return

    async def given_back() -> bool:
        return refunds(provider, intent, 2) == 1 and len(await prompt.told(intent)) == 2

    await eventually(given_back)
    key, message = (await prompt.told(intent))[-1]
    assert (key, message.reason) == ("payment.refunded.v1", "INTENT_CANCELLED")
    assert state_of(await prompt.get(intent)) == "CANCELLED"
    assert await prompt.violations() == []


async def test_a_second_success_is_refunded(prompt: Payments, provider: PaymentProvider, payer: Caller) -> None:
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent, FAILS)
    await prompt.becomes(intent, "FAILED")
    for number in (1, 3):
        key = str(charge_key_of(UUID(intent.intent_id), number))
        charge = provider.charges[key] = replace(provider.charges[key], status="succeeded", error=None)
        await prompt.deliver(event(intent, number=number, charge_id=charge.charge_id))

    async def given_back() -> bool:
        return refunds(provider, intent, 3) == 1

    await eventually(given_back)
    assert refunds(provider, intent, 1) == 0
    assert state_of(await prompt.get(intent)) == "SUCCEEDED"
    assert [key for key, _ in await prompt.told(intent)] == ["payment.failed.v1", "payment.succeeded.v1"]
    assert await prompt.violations() == []


async def test_a_running_charge_ends_after_another_succeeded(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent, FAILS)
    await prompt.becomes(intent, "FAILED")
    switch(provider, decision_delay_seconds=600)
    await prompt.pay(payer, intent)

    async def runs() -> bool:
        return charged(provider, intent.intent_id)["pending"] == 1

    await eventually(runs)
    await prompt.deliver(event(intent, number=1))
    assert state_of(await prompt.get(intent)) == "SUCCEEDED"

    async def ended() -> bool:
        return (
            charged(provider, intent.intent_id)["voided"] == 1
            and (await prompt.charges(intent))[-1]["state"] == "VOIDED"
        )

    await eventually(ended)
    assert await prompt.violations() == []
