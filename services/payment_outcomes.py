"""Rebuilds the payment service's events from the present state of an intent."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message
from skyhigh.payment.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb

from services.money import amount_of

# SQL: the oldest change of the rows that are compared while they wait for a payment. The provider reports a charge
# within minutes; a person looks after money that comes a day later.
UNDECIDED_SINCE: Final = "statement_timestamp() - interval '1 day'"


def events_of(intent: pb.PaymentIntent) -> list[Message]:
    """Returns the events that would have led an intent to its present state.

    An open, running or cancelled intent has none.
    """
    state = pb.PaymentIntent.State.Name(intent.state)
    if state == "FAILED":
        return [
            events_pb2.PaymentFailed(
                intent_id=intent.intent_id,
                reference=intent.reference,
                error=intent.last_error,
                attempts=intent.attempts,
                fail_time=intent.update_time,
            )
        ]
    events: list[Message] = []
    if state in ("SUCCEEDED", "REFUNDING", "REFUNDED"):
        events.append(
            events_pb2.PaymentSucceeded(
                intent_id=intent.intent_id,
                reference=intent.reference,
                amount=intent.amount,
                succeed_time=intent.update_time,
                attempts=intent.attempts,
            )
        )
    # A partial refund leaves the intent SUCCEEDED.
    if intent.HasField("refunded") and amount_of(intent.refunded).minor_units:
        events.append(
            events_pb2.PaymentRefunded(
                intent_id=intent.intent_id,
                reference=intent.reference,
                amount=intent.refunded,
                refund_time=intent.update_time,
                total_refunded=intent.refunded,
            )
        )
    return events
