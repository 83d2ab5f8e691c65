"""The errors of the payment service, with their contract reasons and metadata.

The docstring of each function states the condition of its error.
"""

from __future__ import annotations

from uuid import UUID

from skyhigh.payment.v1.error_reason_pb2 import ErrorReason

from services.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated, missing


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def intent_not_found() -> NotFound:
    """The intent does not exist, or the caller has no access to it.

    The text is the same in both cases.
    """
    return NotFound(_name(ErrorReason.INTENT_NOT_FOUND), missing("payment intent"))


def intent_exists(intent_id: UUID, state: str) -> AlreadyExists:
    """The reference has an intent with another amount or owner."""
    return AlreadyExists(
        _name(ErrorReason.INTENT_EXISTS),
        f"the reference already has payment intent {intent_id} with another amount or owner; use another reference",
        metadata={"intent_id": str(intent_id), "state": state},
    )


def payment_in_progress(state: str) -> FailedPrecondition:
    """A payment attempt is running; its outcome decides."""
    return FailedPrecondition(
        _name(ErrorReason.PAYMENT_IN_PROGRESS),
        "a payment is in progress; wait for its outcome",
        metadata={"state": state},
    )


def intent_paid(state: str) -> FailedPrecondition:
    """The intent is paid, or was paid and refunded."""
    return FailedPrecondition(
        _name(ErrorReason.INTENT_PAID),
        f"the payment intent is already paid, with state {state}",
        metadata={"state": state},
    )


def intent_cancelled() -> FailedPrecondition:
    """The intent was cancelled."""
    return FailedPrecondition(_name(ErrorReason.INTENT_CANCELLED), "the payment intent is cancelled and can't be paid")


def intent_not_paid(state: str) -> FailedPrecondition:
    """The intent has no payment to refund."""
    return FailedPrecondition(
        _name(ErrorReason.INTENT_NOT_PAID),
        f"the payment intent is {state}, not paid, so there is nothing to refund",
        metadata={"state": state},
    )


def refund_by_its_service(reference: str, call: str) -> FailedPrecondition:
    """The payment belongs to a booking or a check-in, whose cancellation refunds it."""
    return FailedPrecondition(
        _name(ErrorReason.REFUND_BY_ITS_SERVICE),
        f"the payment belongs to {reference}; call {call}, which cancels that and refunds the payment",
        metadata={"reference": reference, "call": call},
    )


def webhook_unsigned() -> Unauthenticated:
    """A header of the signature is missing."""
    return Unauthenticated(
        _name(ErrorReason.WEBHOOK_UNSIGNED),
        "a header of the signature is missing; send webhook-id, webhook-timestamp and webhook-signature",
    )


def webhook_forged() -> Unauthenticated:
    """None of our keys made this signature for this body."""
    return Unauthenticated(
        _name(ErrorReason.WEBHOOK_FORGED), "the signature does not match; sign the sent body with a current webhook key"
    )


def webhook_stale() -> InvalidArgument:
    """The signature is valid, but its timestamp is too old or in the future."""
    return InvalidArgument(
        _name(ErrorReason.WEBHOOK_STALE),
        "webhook-timestamp is more than five minutes from now; sign the event again with the current time",
    )


def webhook_malformed() -> InvalidArgument:
    """The body is signed, but is no event that we can read."""
    return InvalidArgument(
        _name(ErrorReason.WEBHOOK_MALFORMED),
        "the body is not a charge or refund event of the payment provider; check its JSON fields",
    )


def card_data_refused() -> InvalidArgument:
    """The body holds a possible card number; it was neither stored nor logged."""
    return InvalidArgument(
        _name(ErrorReason.CARD_DATA_REFUSED),
        "a field has what may be a card number; no field accepts one, so remove it",
    )
