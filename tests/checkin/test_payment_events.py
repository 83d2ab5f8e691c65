"""payment.succeeded, .failed, .refunded: the only truth about money (CHK-7).

The events may arrive in any order and repeatedly.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from google.type import money_pb2
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1 import events_pb2
from skyhigh.payment.v1 import events_pb2 as payment_events
from skyhigh.payment.v1 import payment_service_pb2

from checkin_service import handlers
from services import db
from tests.checkin.airport import Airport
from tests.waiting import eventually

Intent = payment_service_pb2.PaymentIntent


async def test_a_success_completes_the_check_in(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    await traveller.pay()
    completed = await traveller.becomes(pb.CheckIn.COMPLETED)
    assert (completed.sequence_number, completed.fee.units, completed.last_payment_error) == (1, 75, "")
    await airport.at_rest(traveller)
    assert airport.payments.money_kept(traveller.checkin_id) == 1
    assert await airport.mails(traveller) == []


async def test_a_failure_is_shown_while_waiting_for_payment(airport: Airport) -> None:
    traveller = await airport.traveller()
    before = await traveller.waiting()
    await traveller.fail_to_pay()
    found = await traveller.get()
    assert (found.state, found.last_payment_error) == (pb.CheckIn.WAITING_FOR_PAYMENT, "DECLINED")
    assert found.payment_deadline == before.payment_deadline
    await traveller.pay()
    assert (await traveller.becomes(pb.CheckIn.COMPLETED)).last_payment_error == ""


async def test_a_late_failure_changes_nothing(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    failed = airport.payments.fail(waiting.payment_intent_id)
    await airport.tell("payment.succeeded.v1", airport.payments.succeed(waiting.payment_intent_id))
    await traveller.becomes(pb.CheckIn.COMPLETED)
    await airport.at_rest(traveller)
    before = await airport.row(traveller)
    await airport.tell("payment.failed.v1", failed)
    assert await airport.row(traveller) == before


async def test_a_repeated_success_completes_once(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    succeeded = airport.payments.succeed(waiting.payment_intent_id)
    assert succeeded is not None
    event_id = uuid4()
    for _ in range(3):
        await airport.publish("payment.succeeded.v1", succeeded, event_id=event_id)
    await airport.tell("payment.succeeded.v1", succeeded)
    await traveller.becomes(pb.CheckIn.COMPLETED)
    await airport.at_rest(traveller)
    assert len(await airport.told(traveller, "checkin.completed.v1", events_pb2.CheckInCompleted)) == 1
    assert airport.payments.money_kept(traveller.checkin_id) == 1
    assert await airport.mails(traveller) == []


async def test_a_success_after_cancellation_is_refunded_and_mailed(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    await traveller.cancel()
    await airport.tell("payment.succeeded.v1", airport.payments.succeed(waiting.payment_intent_id))
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
    assert await airport.mails(traveller) == ["Your payment is refunded: SH101"]


async def test_a_payment_of_a_replaced_intent_is_refunded(airport: Airport) -> None:
    traveller = await airport.traveller()
    first = await traveller.waiting(30)
    await traveller.declare(30)
    # As if the provider had taken the money of the cancelled intent.
    airport.payments.intents[UUID(first.payment_intent_id)].state = Intent.PROCESSING
    await airport.tell("payment.succeeded.v1", airport.payments.succeed(first.payment_intent_id))
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [
        Intent.REFUNDED,
        Intent.REQUIRES_PAYMENT,
    ]
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT


@pytest.mark.parametrize(
    "amount",
    [
        money_pb2.Money(currency_code="USD", units=74, nanos=990_000_000),
        money_pb2.Money(currency_code="EUR", units=75),
        money_pb2.Money(currency_code="USD", units=75, nanos=1),
    ],
)
async def test_a_payment_of_another_amount_is_refunded(airport: Airport, amount: money_pb2.Money) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    # The intent has this amount too, because on a busy machine the reconciler may read the intent before the event
    # arrives.
    airport.payments.intents[UUID(waiting.payment_intent_id)].amount = amount
    airport.payments.begin(waiting.payment_intent_id)
    await airport.tell("payment.succeeded.v1", airport.payments.succeed(waiting.payment_intent_id))
    await airport.at_rest(traveller)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    assert airport.payments.money_kept(traveller.checkin_id) == 0


async def test_a_refund_before_its_payment_prevents_completion(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    intent_id = waiting.payment_intent_id
    airport.payments.begin(intent_id)
    succeeded = airport.payments.succeed(intent_id)
    (intent,) = airport.payments.of(traveller.checkin_id)
    intent.state = Intent.REFUNDED
    refunded = payment_events.PaymentRefunded(intent_id=intent_id, reference=intent.reference, amount=intent.amount)
    await airport.tell("payment.refunded.v1", refunded)
    assert (await airport.row(traveller)).fee_refund_time is not None
    await airport.tell("payment.succeeded.v1", succeeded)
    await airport.at_rest(traveller)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    assert (await traveller.declare(10)).state == pb.CheckIn.COMPLETED


async def test_payments_of_other_services_are_ignored(airport: Airport) -> None:
    booking = f"booking/{uuid4()}/1"
    async with db.transaction(airport.pool) as conn:
        await handlers.on_payment_succeeded(
            conn, payment_events.PaymentSucceeded(intent_id=str(uuid4()), reference=booking)
        )
        await handlers.on_payment_failed(conn, payment_events.PaymentFailed(intent_id="", reference=booking))
        await handlers.on_payment_refunded(conn, payment_events.PaymentRefunded(intent_id="", reference=booking))


async def test_a_fee_paid_without_a_seat_completes_later(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    await traveller.lose_seat()
    await traveller.has_seat("")
    await traveller.pay()
    found = await traveller.get()
    assert (found.state, found.sequence_number) == (pb.CheckIn.WAITING_FOR_PAYMENT, 0)
    assert (await airport.row(traveller)).fee_pay_time is not None
    await traveller.seats.confirm(await traveller.hold("20C"))
    completed = await traveller.becomes(pb.CheckIn.COMPLETED)
    assert (completed.seat_number, completed.sequence_number) == ("20C", 1)


async def test_a_refund_is_retried_while_payments_are_down(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    airport.payments.away = True
    await traveller.cancel()

    async def tried() -> bool:
        return airport.payments.calls.count("CancelPaymentIntent") >= 2

    await eventually(tried)
    airport.payments.away = False
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
