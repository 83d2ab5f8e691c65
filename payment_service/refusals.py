"""The errors of the payment service, with their contract reasons and metadata.

The docstring of each function states the condition of its error.
"""

from __future__ import annotations

from uuid import UUID

from skyhigh.payment.v1.error_reason_pb2 import ErrorReason

from services.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def intent_not_found() -> NotFound:
    """The intent does not exist, or the caller has no access to it.

    The text is the same in both cases.
    """
    return NotFound(_name(ErrorReason.INTENT_NOT_FOUND), "payment intent not found")


def intent_exists(intent_id: UUID, state: str) -> AlreadyExists:
    """The reference has an intent with another amount or owner."""
    return AlreadyExists(
        _name(ErrorReason.INTENT_EXISTS),
        "the reference has an intent of another amount or owner",
        metadata={"intent_id": str(intent_id), "state": state},
    )


def payment_in_progress(state: str) -> FailedPrecondition:
    """A payment attempt is running; its outcome decides."""
    return FailedPrecondition(
        _name(ErrorReason.PAYMENT_IN_PROGRESS), "a payment is being processed", metadata={"state": state}
    )


def intent_paid(state: str) -> FailedPrecondition:
    """The intent is paid, or was paid and refunded."""
    return FailedPrecondition(_name(ErrorReason.INTENT_PAID), "the intent was paid", metadata={"state": state})


def intent_cancelled() -> FailedPrecondition:
    """The intent was cancelled."""
    return FailedPrecondition(_name(ErrorReason.INTENT_CANCELLED), "the intent was cancelled")


def intent_not_paid(state: str) -> FailedPrecondition:
    """The intent has no payment to refund."""
    return FailedPrecondition(_name(ErrorReason.INTENT_NOT_PAID), "the intent is not paid", metadata={"state": state})


def refund_by_its_service(reference: str, call: str) -> FailedPrecondition:
    """The payment belongs to a booking or a check-in, whose cancellation refunds it."""
    return FailedPrecondition(
        _name(ErrorReason.REFUND_BY_ITS_SERVICE),
        f"{reference} lives as long as its money stays; call {call}, which ends it and gives the money back",
        metadata={"reference": reference, "call": call},
    )


def webhook_unsigned() -> Unauthenticated:
    """A header of the signature is missing."""
    return Unauthenticated(_name(ErrorReason.WEBHOOK_UNSIGNED), "a header of the signature is missing")


def webhook_forged() -> Unauthenticated:
    """None of our keys made this signature for this body."""
    return Unauthenticated(_name(ErrorReason.WEBHOOK_FORGED), "the signature is not valid")


def webhook_stale() -> InvalidArgument:
    """The signature is valid, but its timestamp is too old or in the future."""
    return InvalidArgument(_name(ErrorReason.WEBHOOK_STALE), "the timestamp is too far from now")


def webhook_malformed() -> InvalidArgument:
    """The body is signed, but is no event that we can read."""
    return InvalidArgument(_name(ErrorReason.WEBHOOK_MALFORMED), "the body is no event that is known here")


def card_data_refused() -> InvalidArgument:
    """The body holds a possible card number; it was neither stored nor logged."""
    return InvalidArgument(_name(ErrorReason.CARD_DATA_REFUSED), "card numbers are not taken here, in no field")
