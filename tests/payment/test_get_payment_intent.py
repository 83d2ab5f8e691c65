"""GetPaymentIntent: owner, agents and services can read it; others get NOT_FOUND."""

from __future__ import annotations

from uuid import uuid4

from skyhigh.payment.v1 import payment_service_pb2 as pb

from tests.callers import Caller, refused
from tests.payment.rules import Payments


async def test_owner_agent_and_service_see_the_same(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    request = pb.GetPaymentIntentRequest(intent_id=intent.intent_id)
    for caller in (passenger, silent.callers.agent(), silent.callers.service()):
        assert await caller.GetPaymentIntent(request) == intent


async def test_a_customer_sees_its_own_intent(silent: Payments) -> None:
    customer = silent.callers.customer()
    intent = await silent.intent(customer)
    assert await customer.GetPaymentIntent(pb.GetPaymentIntentRequest(intent_id=intent.intent_id)) == intent


async def test_a_foreign_and_a_missing_intent_look_the_same(silent: Payments, passenger: Caller) -> None:
    intent = await silent.intent(passenger)
    # A customer with the same name as the passenger is another principal.
    for stranger in (silent.callers.passenger(), silent.callers.customer(passenger.name.partition(":")[2])):
        with refused("NOT_FOUND", "INTENT_NOT_FOUND") as foreign:
            await stranger.GetPaymentIntent(pb.GetPaymentIntentRequest(intent_id=intent.intent_id))
        with refused("NOT_FOUND", "INTENT_NOT_FOUND") as missing:
            await stranger.GetPaymentIntent(pb.GetPaymentIntentRequest(intent_id=str(uuid4())))
        assert foreign.status == missing.status


async def test_a_wrong_id_is_named(silent: Payments, passenger: Caller) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await passenger.GetPaymentIntent(pb.GetPaymentIntentRequest(intent_id="1"))
    assert refusal.fields == ["intent_id"]
