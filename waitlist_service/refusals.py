"""The refusals of the waitlist service, each with its `ErrorReason` and metadata."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from skyhigh.waitlist.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, missing
from services.proto import rfc3339


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def flight_not_found(flight_id: str) -> NotFound:
    """The flight does not exist."""
    return NotFound(
        _name(ErrorReason.FLIGHT_NOT_FOUND),
        f"flight {flight_id} not found; check the flight id",
        metadata={"flight_id": flight_id},
    )


def flight_cancelled(flight_id: str) -> FailedPrecondition:
    """The flight is cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_CANCELLED), f"flight {flight_id} is cancelled", metadata={"flight_id": flight_id}
    )


def check_in_closed(flight_id: str, close_time: datetime) -> FailedPrecondition:
    """Check-in for the flight has closed."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_CLOSED),
        f"check-in for flight {flight_id} closed at {rfc3339(close_time)}, and its waitlist with it",
        metadata={"flight_id": flight_id, "close_time": rfc3339(close_time)},
    )


def lap_infant_has_no_seat(passenger_id: str) -> FailedPrecondition:
    """The passenger is a lap infant, who has no seat."""
    return FailedPrecondition(
        _name(ErrorReason.LAP_INFANT_HAS_NO_SEAT),
        f"passenger {passenger_id} is a lap infant and has no seat; use the passenger id of the adult",
        metadata={"passenger_id": passenger_id},
    )


def passenger_not_found() -> NotFound:
    """The manifest does not list the passenger, or the session has another locator.

    The response is the same for both.
    """
    return NotFound(
        _name(ErrorReason.PASSENGER_NOT_FOUND),
        "passenger not found on this flight: the manifest does not list the passenger, or your token gives no access; "
        "check the flight and passenger ids",
    )


def entry_not_found() -> NotFound:
    """The entry does not exist, or another principal owns it.

    The response is the same for both.
    """
    return NotFound(_name(ErrorReason.ENTRY_NOT_FOUND), missing("waitlist entry"))


def seat_not_found(flight_id: str, seat_number: str) -> NotFound:
    """The flight has no seat with this number."""
    return NotFound(
        _name(ErrorReason.SEAT_NOT_FOUND),
        f"flight {flight_id} has no seat {seat_number}; choose a seat of its seat map",
        metadata={"seat_number": seat_number},
    )


def already_waiting(entry_id: UUID) -> AlreadyExists:
    """The passenger already has a live entry for this flight."""
    return AlreadyExists(
        _name(ErrorReason.ALREADY_WAITING),
        f"the passenger already has waitlist entry {entry_id} for this flight; use that entry, or leave the waitlist "
        "first",
        metadata={"entry_id": str(entry_id)},
    )


def no_offer(state: str) -> FailedPrecondition:
    """The entry has no offer to accept or decline."""
    return FailedPrecondition(
        _name(ErrorReason.NO_OFFER),
        f"the waitlist entry is {state} and has no offer to accept or decline",
        metadata={"state": state},
    )


def offer_expired(offer_expire_time: datetime) -> Aborted:
    """The offer ended before the request."""
    return Aborted(
        _name(ErrorReason.OFFER_EXPIRED),
        f"the offer expired at {rfc3339(offer_expire_time)}; join the waitlist again",
        metadata={"offer_expire_time": rfc3339(offer_expire_time)},
    )


def entry_ended(state: str) -> FailedPrecondition:
    """The entry has ended in another state than the requested one."""
    return FailedPrecondition(
        _name(ErrorReason.ENTRY_ENDED),
        f"the waitlist entry has ended with state {state}, so it can't be left",
        metadata={"state": state},
    )


def cabin_not_allowed(cabin: str) -> FailedPrecondition:
    """The requested cabin is not the passenger's."""
    return FailedPrecondition(
        _name(ErrorReason.CABIN_NOT_ALLOWED),
        f"the passenger's cabin is {cabin}; join the waitlist of this cabin",
        metadata={"cabin": cabin},
    )
