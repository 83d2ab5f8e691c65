"""The waitlist service's refusals, each with its reason of the contract and the metadata that it carries."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from skyhigh.waitlist.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from services.proto import rfc3339


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def flight_not_found(flight_id: str) -> NotFound:
    """There is no such flight."""
    return NotFound(_name(ErrorReason.FLIGHT_NOT_FOUND), "flight not found", metadata={"flight_id": flight_id})


def flight_cancelled(flight_id: str) -> FailedPrecondition:
    """The flight will not leave."""
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
    """A lap infant has no seat of its own."""
    return FailedPrecondition(
        _name(ErrorReason.LAP_INFANT_HAS_NO_SEAT),
        f"passenger {passenger_id} is a lap infant and has no seat of its own; join with the adult",
        metadata={"passenger_id": passenger_id},
    )


def passenger_not_found() -> NotFound:
    """The flight's manifest has no such passenger, or the session is of another locator: one answer for both."""
    return NotFound(_name(ErrorReason.PASSENGER_NOT_FOUND), "passenger not found on this flight")


def entry_not_found() -> NotFound:
    """There is no such entry, or it is somebody else's; not even the text says which."""
    return NotFound(_name(ErrorReason.ENTRY_NOT_FOUND), "waitlist entry not found")


def seat_not_found(seat_number: str) -> NotFound:
    """The flight has no such seat."""
    return NotFound(
        _name(ErrorReason.SEAT_NOT_FOUND),
        f"there is no seat {seat_number} on this flight",
        metadata={"seat_number": seat_number},
    )


def already_waiting(entry_id: UUID) -> AlreadyExists:
    """The passenger waits on this flight already."""
    return AlreadyExists(
        _name(ErrorReason.ALREADY_WAITING),
        "the passenger waits on this flight already",
        metadata={"entry_id": str(entry_id)},
    )


def no_offer(state: str) -> FailedPrecondition:
    """There is nothing to accept or decline."""
    return FailedPrecondition(_name(ErrorReason.NO_OFFER), "the entry has no offer", metadata={"state": state})


def offer_expired(offer_expire_time: datetime) -> Aborted:
    """The offer ended before the call."""
    return Aborted(
        _name(ErrorReason.OFFER_EXPIRED),
        "the offer has ended",
        metadata={"offer_expire_time": rfc3339(offer_expire_time)},
    )


def entry_ended(state: str) -> FailedPrecondition:
    """The waiting has ended otherwise."""
    return FailedPrecondition(_name(ErrorReason.ENTRY_ENDED), "the waiting has ended", metadata={"state": state})


def cabin_not_allowed(cabin: str) -> FailedPrecondition:
    """Nobody waits for another class than its own."""
    return FailedPrecondition(
        _name(ErrorReason.CABIN_NOT_ALLOWED), f"the passenger's cabin is {cabin}", metadata={"cabin": cabin}
    )
