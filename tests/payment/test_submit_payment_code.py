"""SubmitPaymentCode: the owner pays, once at a time (PAY-1, PAY-2)."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from skyhigh.payment.v1 import payment_service_pb2 as pb

from deploy.mocks.payment_provider import PaymentProvider
from tests.callers import Caller, refused
from tests.payment.rules import FAILS, SUCCEEDS, Payments, event, state_of
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually


async def test_the_response_precedes_the_attempts(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    answer = await silent.pay(passenger, intent)
    assert (state_of(answer), answer.attempts) == ("PROCESSING", 0)

    async def tried() -> bool:
        shown = await silent.get(intent)
        return (shown.attempts, shown.last_error) == (1, "PROVIDER_UNAVAILABLE")

    await eventually(tried)


async def test_of_fifty_concurrent_codes_one_begins(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    results = await at_once(*(silent.pay(passenger, intent) for _ in range(50)))
    assert outcomes(results) == {"OK": 1, "PAYMENT_IN_PROGRESS": 49}

    async def charged() -> bool:
        return len(await silent.charges(intent)) == 1

    await eventually(charged)
    assert await silent.history(intent) == ["REQUIRES_PAYMENT", "PROCESSING"]


async def test_fifty_repeats_return_the_first_response(silent: Payments, passenger: Caller, request_id: str) -> None:
    intent = await silent.intent(passenger)
    results = await at_once(*(silent.pay(passenger, intent, request_id=request_id) for _ in range(50)))
    assert outcomes(results) == {"OK": 50}
    assert all(result == results[0] for result in results)
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await silent.pay(passenger, intent, "12345", request_id=request_id)


async def test_another_code_during_processing_is_refused(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    with refused("FAILED_PRECONDITION", "PAYMENT_IN_PROGRESS") as refusal:
        await silent.pay(passenger, intent, "12345")
    assert dict(refusal.info.metadata) == {"state": "PROCESSING"}


async def test_a_paid_intent_is_not_charged_again(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    with refused("FAILED_PRECONDITION", "INTENT_PAID"):
        await silent.pay(passenger, intent)


async def test_a_cancelled_intent_cannot_be_paid(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    await silent.cancel(intent)
    before = await silent.rows(intent)
    with refused("FAILED_PRECONDITION", "INTENT_CANCELLED"):
        await silent.pay(passenger, intent)
    assert await silent.rows(intent) == before


async def test_a_foreign_intent_cannot_be_paid(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    before = await silent.rows(intent)
    for stranger in (silent.callers.passenger(), silent.callers.customer()):
        with refused("NOT_FOUND", "INTENT_NOT_FOUND") as foreign:
            await silent.pay(stranger, intent)
        with refused("NOT_FOUND", "INTENT_NOT_FOUND") as missing:
            await silent.pay(stranger, pb.PaymentIntent(intent_id=str(uuid4())))
        assert foreign.status == missing.status
    for other in (silent.callers.agent(), silent.callers.operations()):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await silent.pay(other, intent)
    assert await silent.rows(intent) == before


async def test_a_service_can_submit_its_customers_code(silent: Payments, request_id: str) -> None:
    customer, booking = silent.callers.customer(), silent.callers.service("booking")
    intent = await silent.intent(customer)
    paid = await silent.pay(booking, intent, request_id=request_id)
    assert state_of(paid) == "PROCESSING"
    assert await silent.pay(booking, intent, request_id=request_id) == paid
    # Each intent has one payment at a time, also if different callers submit codes.
    for again in (booking, customer):
        with refused("FAILED_PRECONDITION", "PAYMENT_IN_PROGRESS"):
            await silent.pay(again, intent)
    query = "SELECT actor FROM intent_events WHERE intent_id = $1 AND to_state = 'PROCESSING'"
    assert await silent.database.fetchval(query, UUID(intent.intent_id)) == "service:booking"
    with refused("NOT_FOUND", "INTENT_NOT_FOUND"):
        await silent.pay(booking, pb.PaymentIntent(intent_id=str(uuid4())))


async def test_a_service_can_retry_a_failed_payment(prompt: Payments, provider: PaymentProvider) -> None:
    intent = await prompt.intent(prompt.callers.customer())
    booking = prompt.callers.service("booking")
    for code, end in ((FAILS, "FAILED"), (SUCCEEDS, "SUCCEEDED")):
        await prompt.pay(booking, intent, code)
        await prompt.becomes(intent, end)


@pytest.mark.parametrize(
    "code", ["", "1234", "123456", "1234a", "\uff11\uff12\uff13\uff14\uff15", "12 45", "-1234", "4111111111111111"]
)
async def test_a_code_has_five_digits(
    silent: Payments, passenger: Caller, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    intent = await silent.intent(passenger)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await silent.pay(passenger, intent, code)
    assert refusal.fields == ["payment_code"]
    said = capsys.readouterr()
    assert not code or code not in said.out + said.err + refusal.message


async def test_the_code_is_deleted_after_its_use(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger, code=SUCCEEDS)
    query = "SELECT payment_code FROM intents WHERE intent_id = $1"
    assert await silent.database.fetchval(query, UUID(intent.intent_id)) == SUCCEEDS
    await silent.deliver(event(intent))
    assert await silent.database.fetchval(query, UUID(intent.intent_id)) is None
