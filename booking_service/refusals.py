"""The booking service's refusals, with their contract reasons and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from skyhigh.booking.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, FailedPrecondition, NotFound, Refusal, ResourceExhausted
from services.proto import rfc3339


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def booking_not_found() -> NotFound:
    """The booking does not exist or has another owner; the text does not say which."""
    return NotFound(_name(ErrorReason.BOOKING_NOT_FOUND), "booking not found")


def flight_not_found(flight_id: str) -> NotFound:
    """The flight does not exist."""
    return NotFound(_name(ErrorReason.FLIGHT_NOT_FOUND), "flight not found", metadata={"flight_id": flight_id})


def itinerary_not_found() -> NotFound:
    """The itinerary does not exist, or no longer exists."""
    return NotFound(_name(ErrorReason.ITINERARY_NOT_FOUND), "itinerary not found")


def flight_cancelled(flight_id: str) -> FailedPrecondition:
    """The flight was cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_CANCELLED), "the flight was cancelled", metadata={"flight_id": flight_id}
    )


def sale_closed(flight_id: str, close_time: datetime) -> FailedPrecondition:
    """The sale has closed: passengers who book now could not check in."""
    return FailedPrecondition(
        _name(ErrorReason.SALE_CLOSED),
        "seats of the flight are not sold any more",
        metadata={"flight_id": flight_id, "close_time": rfc3339(close_time)},
    )


def flight_departed(departure_time: datetime) -> FailedPrecondition:
    """All flights of the booking have departed; the time is the first departure."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_DEPARTED),
        "all flights of the booking have departed",
        metadata={"departure_time": rfc3339(departure_time)},
    )


def adult_required() -> FailedPrecondition:
    """A child needs an adult in the booking, and each infant its own adult."""
    return FailedPrecondition(
        _name(ErrorReason.ADULT_REQUIRED), "children need an adult in the booking, and each infant one of its own"
    )


def booking_expired(expire_time: datetime) -> Aborted:
    """The time to pay has passed."""
    return Aborted(
        _name(ErrorReason.BOOKING_EXPIRED),
        "the time to pay is over, the seats are free again",
        metadata={"expire_time": rfc3339(expire_time)},
    )


def booking_failed(error: str) -> FailedPrecondition:
    """The booking failed."""
    return FailedPrecondition(
        _name(ErrorReason.BOOKING_FAILED), "the booking failed, book again", metadata={"last_error": error}
    )


def booking_cancelled(reason: str) -> FailedPrecondition:
    """The booking was cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.BOOKING_CANCELLED), "the booking was cancelled", metadata={"reason": reason}
    )


def booking_confirmed() -> FailedPrecondition:
    """The booking is paid and confirmed."""
    return FailedPrecondition(_name(ErrorReason.BOOKING_CONFIRMED), "the booking is paid and confirmed")


def payment_in_progress() -> FailedPrecondition:
    """A payment is running; its outcome decides."""
    return FailedPrecondition(
        _name(ErrorReason.PAYMENT_IN_PROGRESS), "a payment of this booking runs; its outcome decides"
    )


def seats_required() -> FailedPrecondition:
    """The booking has no seats yet."""
    return FailedPrecondition(_name(ErrorReason.SEATS_REQUIRED), "the booking has no seats yet, try again")


# Refusals of seats by reason. Most reasons are the seat service's own and have the same name here.
_OF_SEATS: Final[Mapping[str, tuple[type[Refusal], ErrorReason.ValueType, str]]] = {
    "SEATS_UNAVAILABLE": (Aborted, ErrorReason.SEATS_UNAVAILABLE, "the flight has not enough seats for the party"),
    "FLIGHT_NOT_FOUND": (NotFound, ErrorReason.FLIGHT_NOT_FOUND, "flight not found"),
    "SEAT_NOT_FOUND": (NotFound, ErrorReason.SEAT_NOT_FOUND, "the flight has no such seat"),
    "FLIGHT_CANCELLED": (FailedPrecondition, ErrorReason.FLIGHT_CANCELLED, "the flight was cancelled"),
    "FLIGHT_DEPARTED": (FailedPrecondition, ErrorReason.FLIGHT_DEPARTED, "the flight has left"),
    "SEAT_TAKEN": (Aborted, ErrorReason.SEAT_TAKEN, "the seat is taken"),
    "CABIN_NOT_ALLOWED": (FailedPrecondition, ErrorReason.CABIN_NOT_ALLOWED, "the seat is in another cabin"),
    "EXIT_ROW_NOT_ALLOWED": (
        FailedPrecondition,
        ErrorReason.EXIT_ROW_NOT_ALLOWED,
        "an exit row takes only adults without infant or duty of care",
    ),
    "INFANT_NOT_ALLOWED": (
        FailedPrecondition,
        ErrorReason.INFANT_NOT_ALLOWED,
        "the row has no oxygen mask for an infant",
    ),
    "TOO_MANY_HELD_SEATS": (
        ResourceExhausted,
        ErrorReason.TOO_MANY_HELD_SEATS,
        "your open bookings hold as many seats on the flight as they may",
    ),
    "COOLING_DOWN": (
        ResourceExhausted,
        ErrorReason.COOLING_DOWN,
        "too many of your bookings lapsed unpaid, wait before the next",
    ),
    "HOLD_LIMIT_REACHED": (
        FailedPrecondition,
        ErrorReason.HOLD_LIMIT_REACHED,
        "the time to pay can't be renewed any more",
    ),
}


def is_of_seats(reason: str) -> bool:
    """Whether this reason of the seat service may be shown to a customer."""
    return reason in _OF_SEATS


def of_seats(reason: str, metadata: Mapping[str, str], *, retry_after_seconds: float | None = None) -> Refusal:
    """Returns the refusal for a reason of the seat service or SEATS_UNAVAILABLE."""
    kind, own, message = _OF_SEATS[reason]
    if metadata.get("counted_by") == "ADDRESS":
        message = "too many seats are held unpaid from your network address, wait before the next booking"
    return kind(_name(own), message, metadata=metadata, retry_after_seconds=retry_after_seconds)
