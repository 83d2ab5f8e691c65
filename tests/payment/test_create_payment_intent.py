"""CreatePaymentIntent: one intent for a reference (PAY-1)."""

from __future__ import annotations

from typing import Any

import pytest
from google.type import money_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb

from tests.callers import Caller, refused
from tests.payment.rules import PRICE, Payments, new_reference, state_of, usd
from tests.seat.rules import at_once, outcomes


def request(passenger: Caller, /, **different: Any) -> pb.CreatePaymentIntentRequest:
    fields = {"reference": new_reference(), "amount": usd(PRICE), "owner": passenger.name, **different}
    return pb.CreatePaymentIntentRequest(**fields)


async def test_a_new_intent_requires_payment(silent: Payments, passenger: Caller) -> None:
    reference = new_reference()
    intent = await silent.intent(passenger, reference=reference)
    assert state_of(intent) == "REQUIRES_PAYMENT"
    assert (intent.reference, intent.amount) == (reference, usd(PRICE))
    assert (intent.attempts, intent.max_attempts, intent.last_error) == (0, 3, "")
    assert intent.create_time == intent.update_time
    assert await silent.history(intent) == ["REQUIRES_PAYMENT"]
    assert await silent.told(intent) == []


async def test_a_reference_has_one_intent(silent: Payments, passenger: Caller) -> None:
    reference = new_reference()
    intent = await silent.intent(passenger, reference=reference)
    assert await silent.intent(passenger, reference=reference) == intent
    begun = await silent.pay(passenger, intent)
    again = await silent.intent(passenger, reference=reference)
    assert (again.intent_id, again.state) == (intent.intent_id, begun.state)


async def test_a_reference_with_another_amount_or_owner_is_refused(silent: Payments, passenger: Caller) -> None:
    reference = new_reference()
    intent = await silent.intent(passenger, reference=reference)
    before = await silent.rows(intent)
    for different in (
        {"amount": usd(PRICE + 1)},
        {"amount": money_pb2.Money(currency_code="EUR", units=90)},
        {"owner": silent.callers.passenger().name},
    ):
        with refused("ALREADY_EXISTS", "INTENT_EXISTS") as refusal:
            await silent.callers.service().CreatePaymentIntent(request(passenger, reference=reference, **different))
        assert dict(refusal.info.metadata) == {"intent_id": intent.intent_id, "state": "REQUIRES_PAYMENT"}
    assert await silent.rows(intent) == before


async def test_a_cancelled_intents_reference_can_be_used_again(silent: Payments, passenger: Caller) -> None:
    reference = new_reference()
    first = await silent.intent(passenger, reference=reference)
    await silent.cancel(first)
    second = await silent.intent(passenger, reference=reference, minor_units=PRICE + 1)
    assert second.intent_id != first.intent_id


async def test_concurrent_requests_create_one_intent(silent: Payments, passenger: Caller) -> None:
    reference = new_reference()
    results = await at_once(*(silent.intent(passenger, reference=reference) for _ in range(50)))
    assert outcomes(results) == {"OK": 50}
    assert len({intent.intent_id for intent in results}) == 1


async def test_a_repeat_returns_the_first_response(silent: Payments, passenger: Caller, request_id: str) -> None:
    asked = request(passenger, request_id=request_id)
    service = silent.callers.service()
    intent = await service.CreatePaymentIntent(asked)
    await silent.cancel(intent)
    assert await service.CreatePaymentIntent(asked) == intent
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await service.CreatePaymentIntent(request(passenger, request_id=request_id))


@pytest.mark.parametrize(
    ("currency", "units", "nanos", "minor_units"),
    [
        ("USD", 1_000_000, 0, 100_000_000),
        ("USD", 0, 10_000_000, 1),
        ("EUR", 15, 990_000_000, 1599),
        ("JPY", 1500, 0, 1500),
        ("KWD", 1, 230_000_000, 1230),
        ("KWD", 1, 234_000_000, 1234),
    ],
)
async def test_amounts_are_stored_exactly_in_minor_units(
    silent: Payments, passenger: Caller, *, currency: str, units: int, nanos: int, minor_units: int
) -> None:
    amount = money_pb2.Money(currency_code=currency, units=units, nanos=nanos)
    intent = await silent.callers.service().CreatePaymentIntent(request(passenger, amount=amount))
    assert intent.amount == amount
    kept = await silent.database.fetchval(
        "SELECT minor_units FROM intents WHERE intent_id::text = $1", intent.intent_id
    )
    assert kept == minor_units


@pytest.mark.parametrize(
    ("field", "different"),
    [
        ("reference", {"reference": ""}),
        ("reference", {"reference": "checkin"}),
        ("reference", {"reference": "checkin/" + "x" * 121}),
        ("reference", {"reference": "checkin/ü"}),
        ("owner", {"owner": ""}),
        ("owner", {"owner": "operations:ops"}),
        ("amount", {"amount": None}),
        ("amount", {"amount": money_pb2.Money(currency_code="USD")}),
        ("amount", {"amount": money_pb2.Money(currency_code="USD", units=-1)}),
        ("amount", {"amount": money_pb2.Money(currency_code="USD", units=1, nanos=-10_000_000)}),
        ("amount", {"amount": money_pb2.Money(currency_code="USD", units=10_000_001)}),
        ("amount", {"amount": money_pb2.Money(currency_code="USD", units=10_000_000, nanos=10_000_000)}),
        ("amount.nanos", {"amount": money_pb2.Money(currency_code="USD", units=1, nanos=1)}),
        ("amount.nanos", {"amount": money_pb2.Money(currency_code="USD", units=1, nanos=1_000_000)}),
        ("amount", {"amount": money_pb2.Money(currency_code="usd", units=1)}),
        ("amount.currency_code", {"amount": money_pb2.Money(currency_code="XXX", units=1)}),
        ("amount.nanos", {"amount": money_pb2.Money(currency_code="JPY", units=1, nanos=500_000_000)}),
        ("request_id", {"request_id": "1"}),
    ],
)
async def test_a_wrong_field_is_named(
    silent: Payments, passenger: Caller, field: str, different: dict[str, Any]
) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await silent.callers.service().CreatePaymentIntent(request(passenger, **different))
    assert refusal.fields == [field]


async def test_a_card_number_as_reference_is_refused(silent: Payments, passenger: Caller) -> None:
    with refused("INVALID_ARGUMENT", "CARD_DATA_REFUSED"):
        await silent.callers.service().CreatePaymentIntent(request(passenger, reference="card/4111-1111-1111-1111"))
