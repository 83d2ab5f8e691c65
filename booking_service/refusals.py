"""The booking service's refusals, with their contract reasons and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from skyhigh.booking.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, FailedPrecondition, NotFound, Refusal, ResourceExhausted, missing
from services.proto import rfc3339


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def booking_not_found() -> NotFound:
    """The booking does not exist or has another owner; the text does not say which."""
    return NotFound(_name(ErrorReason.BOOKING_NOT_FOUND), missing("booking"))


def flight_not_found(flight_id: str) -> NotFound:
    """The flight does not exist."""
    return NotFound(
        _name(ErrorReason.FLIGHT_NOT_FOUND),
        f"flight {flight_id} not found; check the flight id",
        metadata={"flight_id": flight_id},
    )


def itinerary_not_found() -> NotFound:
    """The itinerary does not exist, or no longer exists."""
    return NotFound(
        _name(ErrorReason.ITINERARY_NOT_FOUND),
        "itinerary not found: one of its flights does not exist, or its flights do not connect; search again",
    )


def flight_cancelled(flight_id: str) -> FailedPrecondition:
    """The flight is cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_CANCELLED), f"flight {flight_id} is cancelled", metadata={"flight_id": flight_id}
    )


def sale_closed(flight_id: str, close_time: datetime) -> FailedPrecondition:
    """The sale has closed: passengers who book now could not check in."""
    return FailedPrecondition(
        _name(ErrorReason.SALE_CLOSED),
        f"the sale of seats on flight {flight_id} closed at {rfc3339(close_time)}; choose another flight",
        metadata={"flight_id": flight_id, "close_time": rfc3339(close_time)},
    )


def flight_departed(departure_time: datetime) -> FailedPrecondition:
    """All flights of the booking have departed; the time is the first departure."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_DEPARTED),
        f"all flights of the booking have departed, the first one at {rfc3339(departure_time)}",
        metadata={"departure_time": rfc3339(departure_time)},
    )


def adult_required() -> FailedPrecondition:
    """A child needs an adult in the booking, and each infant its own adult."""
    return FailedPrecondition(
        _name(ErrorReason.ADULT_REQUIRED),
        "a child needs an adult in the booking, and each infant an adult of its own; add an adult",
    )


def booking_expired(expire_time: datetime) -> Aborted:
    """The time to pay has passed."""
    return Aborted(
        _name(ErrorReason.BOOKING_EXPIRED),
        f"the time to pay ended at {rfc3339(expire_time)} and the seats were released; book again",
        metadata={"expire_time": rfc3339(expire_time)},
    )


def booking_failed(error: str) -> FailedPrecondition:
    """The booking failed."""
    return FailedPrecondition(
        _name(ErrorReason.BOOKING_FAILED), "the booking failed; book again", metadata={"last_error": error}
    )


def booking_cancelled(reason: str) -> FailedPrecondition:
    """The booking was cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.BOOKING_CANCELLED), "the booking is cancelled; book again", metadata={"reason": reason}
    )


def booking_confirmed() -> FailedPrecondition:
    """The booking is paid and confirmed."""
    return FailedPrecondition(_name(ErrorReason.BOOKING_CONFIRMED), "the booking is paid and confirmed")


def payment_in_progress() -> FailedPrecondition:
    """A payment is running; its outcome decides."""
    return FailedPrecondition(
        _name(ErrorReason.PAYMENT_IN_PROGRESS), "a payment of the booking is in progress; wait for its outcome"
    )


def seats_required() -> FailedPrecondition:
    """The booking has no seats yet."""
    return FailedPrecondition(_name(ErrorReason.SEATS_REQUIRED), "the booking has no seats yet; retry")


class _Values(dict[str, str]):
    """The values of a message, from a refusal's metadata."""

    def __missing__(self, key: str) -> str:
        # Another version of the seat service may send less metadata; the message still names the fact.
        return f"of unknown {key}"


# Refusals of seats by reason, with a message that is filled in from the metadata. Most reasons are the seat service's
# own and have the same name here.
_OF_SEATS: Final[Mapping[str, tuple[type[Refusal], ErrorReason.ValueType, str]]] = {
    "SEATS_UNAVAILABLE": (
        Aborted,
        ErrorReason.SEATS_UNAVAILABLE,
        "the flight does not have enough free seats for the party in its cabin; choose another flight or cabin",
    ),
    "FLIGHT_NOT_FOUND": (NotFound, ErrorReason.FLIGHT_NOT_FOUND, "flight {flight_id} not found; check the flight id"),
    "SEAT_NOT_FOUND": (
        NotFound,
        ErrorReason.SEAT_NOT_FOUND,
        "flight {flight_id} has no seat {seat_number}; choose a seat of its seat map",
    ),
    "FLIGHT_CANCELLED": (FailedPrecondition, ErrorReason.FLIGHT_CANCELLED, "flight {flight_id} is cancelled"),
    "FLIGHT_DEPARTED": (
        FailedPrecondition,
        ErrorReason.FLIGHT_DEPARTED,
        "flight {flight_id} departed at {departure_time}",
    ),
    "SEAT_TAKEN": (
        Aborted,
        ErrorReason.SEAT_TAKEN,
        "seat {seat_number} on flight {flight_id} is taken; choose another seat",
    ),
    "CABIN_NOT_ALLOWED": (
        FailedPrecondition,
        ErrorReason.CABIN_NOT_ALLOWED,
        "seat {seat_number} is in cabin {cabin}; choose a seat in the passenger's cabin",
    ),
    "EXIT_ROW_NOT_ALLOWED": (
        FailedPrecondition,
        ErrorReason.EXIT_ROW_NOT_ALLOWED,
        "seat {seat_number} is in an exit row, which is only for adults without infant, assistance need or duty of "
        "care; choose a seat in another row",
    ),
    "INFANT_NOT_ALLOWED": (
        FailedPrecondition,
        ErrorReason.INFANT_NOT_ALLOWED,
        "seat {seat_number} is in a row without an oxygen mask for an infant; choose a seat in another row",
    ),
    "TOO_MANY_HELD_SEATS": (
        ResourceExhausted,
        ErrorReason.TOO_MANY_HELD_SEATS,
        "your unpaid bookings can hold at most {limit} seats of a flight at a time; pay for or cancel a booking first",
    ),
    "COOLING_DOWN": (
        ResourceExhausted,
        ErrorReason.COOLING_DOWN,
        "too many of your bookings expired unpaid; retry after the given delay",
    ),
    "HOLD_LIMIT_REACHED": (
        FailedPrecondition,
        ErrorReason.HOLD_LIMIT_REACHED,
        "the time to pay can't be restarted again; pay before it ends at {expire_time}",
    ),
}


def is_of_seats(reason: str) -> bool:
    """Whether this reason of the seat service may be shown to a customer."""
    return reason in _OF_SEATS


def of_seats(reason: str, metadata: Mapping[str, str], *, retry_after_seconds: float | None = None) -> Refusal:
    """Returns the refusal for a reason of the seat service or SEATS_UNAVAILABLE."""
    kind, own, message = _OF_SEATS[reason]
    if metadata.get("counted_by") == "ADDRESS":
        message = "too many seats are held unpaid from your network address; retry after the given delay"
    return kind(
        _name(own), message.format_map(_Values(metadata)), metadata=metadata, retry_after_seconds=retry_after_seconds
    )
