"""The refusals of the waitlist service, each with its `ErrorReason` and metadata."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from skyhigh.waitlist.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from services.proto import rfc3339


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def flight_not_found(flight_id: str) -> NotFound:
    """The flight does not exist."""
    return NotFound(_name(ErrorReason.FLIGHT_NOT_FOUND), "flight not found", metadata={"flight_id": flight_id})


def flight_cancelled(flight_id: str) -> FailedPrecondition:
    """The flight is cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_CANCELLED), "the flight was cancelled", metadata={"flight_id": flight_id}
    )


def check_in_closed(flight_id: str, close_time: datetime) -> FailedPrecondition:
    """Check-in for the flight has closed."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_CLOSED),
        f"check-in for flight {flight_id} closed at {rfc3339(close_time)}; nobody can join its waitlist any more",
        metadata={"flight_id": flight_id, "close_time": rfc3339(close_time)},
    )


def lap_infant_has_no_seat(passenger_id: str) -> FailedPrecondition:
    """The passenger is a lap infant, who has no seat."""
    return FailedPrecondition(
        _name(ErrorReason.LAP_INFANT_HAS_NO_SEAT),
        f"passenger {passenger_id} is a lap infant and has no seat of its own; join with the adult",
        metadata={"passenger_id": passenger_id},
    )


def passenger_not_found() -> NotFound:
    """The manifest does not list the passenger, or the session has another locator.

    The response is the same for both.
    """
    return NotFound(_name(ErrorReason.PASSENGER_NOT_FOUND), "passenger not found on this flight")


def entry_not_found() -> NotFound:
    """The entry does not exist, or another principal owns it.

    The response is the same for both.
    """
    return NotFound(_name(ErrorReason.ENTRY_NOT_FOUND), "waitlist entry not found")


def seat_not_found(seat_number: str) -> NotFound:
    """The flight has no seat with this number."""
    return NotFound(
        _name(ErrorReason.SEAT_NOT_FOUND),
        f"there is no seat {seat_number} on this flight",
        metadata={"seat_number": seat_number},
    )


def already_waiting(entry_id: UUID) -> AlreadyExists:
    """The passenger already has a live entry for this flight."""
    return AlreadyExists(
        _name(ErrorReason.ALREADY_WAITING),
        "the passenger waits on this flight already",
        metadata={"entry_id": str(entry_id)},
    )


def no_offer(state: str) -> FailedPrecondition:
    """The entry has no offer to accept or decline."""
    return FailedPrecondition(_name(ErrorReason.NO_OFFER), "the entry has no offer", metadata={"state": state})


def offer_expired(offer_expire_time: datetime) -> Aborted:
    """The offer ended before the request."""
    return Aborted(
        _name(ErrorReason.OFFER_EXPIRED),
        "the offer has ended",
        metadata={"offer_expire_time": rfc3339(offer_expire_time)},
    )


def entry_ended(state: str) -> FailedPrecondition:
    """The entry has ended in another state than the requested one."""
    return FailedPrecondition(_name(ErrorReason.ENTRY_ENDED), "the waiting has ended", metadata={"state": state})


def cabin_not_allowed(cabin: str) -> FailedPrecondition:
    """The requested cabin is not the passenger's."""
    return FailedPrecondition(
        _name(ErrorReason.CABIN_NOT_ALLOWED), f"the passenger's cabin is {cabin}", metadata={"cabin": cabin}
    )
