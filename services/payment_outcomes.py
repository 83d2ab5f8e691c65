"""What the payment service told, or would have told, of an intent that is as it is now."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message
from skyhigh.payment.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb

from services.money import amount_of

# SQL: since when what waits for a payment is compared. The provider tells of a charge within minutes. What comes a day
# later is looked after by a person.
UNDECIDED_SINCE: Final = "statement_timestamp() - interval '1 day'"


def events_of(intent: pb.PaymentIntent) -> list[Message]:
    """Returns the events of the intent's way to its present state, as far as they end a payment: none while it runs."""
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
    # A part that was given back leaves the intent SUCCEEDED.
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
