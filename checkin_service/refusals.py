"""The errors of the check-in service, with their contract reasons and metadata.

The docstring of each function states the condition of its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from skyhigh.checkin.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, FailedPrecondition, FieldViolation, NotFound, ResourceExhausted, missing
from services.proto import rfc3339


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason)


def trip_not_found() -> NotFound:
    """The trip does not exist, the name is wrong, or the caller has no access.

    The text is the same in all cases.
    """
    return NotFound(_name(ErrorReason.TRIP_NOT_FOUND), "trip not found; check the record locator and the last name")


def locator_taken() -> Aborted:
    """The locator belongs to another party."""
    return Aborted(
        _name(ErrorReason.LOCATOR_TAKEN),
        "the record locator belongs to another party; generate and reserve another one",
    )


def passenger_not_found() -> NotFound:
    """The flight has no such passenger, or the caller has no access to the passenger."""
    return NotFound(
        _name(ErrorReason.PASSENGER_NOT_FOUND),
        "passenger not found on this flight: the manifest does not list the passenger, or your token gives no access; "
        "check the flight and passenger ids",
    )


def check_in_not_found() -> NotFound:
    """The check-in does not exist, or the caller has no access to it.

    The text is the same in both cases.
    """
    return NotFound(_name(ErrorReason.CHECK_IN_NOT_FOUND), missing("check-in"))


def hold_not_found() -> NotFound:
    """The hold does not exist, or the caller has no access to it."""
    return NotFound(_name(ErrorReason.HOLD_NOT_FOUND), missing("hold"))


def check_in_not_open(open_time: datetime) -> FailedPrecondition:
    """Check-in is not open yet."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_NOT_OPEN),
        f"check-in opens at {rfc3339(open_time)}; retry then",
        metadata={"open_time": rfc3339(open_time)},
    )


def check_in_closed(close_time: datetime) -> FailedPrecondition:
    """Check-in has closed."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_CLOSED),
        f"check-in closed at {rfc3339(close_time)}",
        metadata={"close_time": rfc3339(close_time)},
    )


def flight_cancelled(flight_id: str) -> FailedPrecondition:
    """The flight is cancelled."""
    return FailedPrecondition(_name(ErrorReason.FLIGHT_CANCELLED), f"flight {flight_id} is cancelled")


def flight_departed(flight_id: str, departure_time: datetime) -> FailedPrecondition:
    """The flight has departed."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_DEPARTED),
        f"flight {flight_id} departed at {rfc3339(departure_time)}",
        metadata={"departure_time": rfc3339(departure_time)},
    )


def already_checked_in(checkin_id: UUID, state: str) -> FailedPrecondition:
    """The passenger already has a check-in on this flight."""
    return FailedPrecondition(
        _name(ErrorReason.ALREADY_CHECKED_IN),
        f"the passenger already has check-in {checkin_id} on this flight, which is {state}",
        metadata={"checkin_id": str(checkin_id), "state": state},
    )


def agent_required(special_service: str) -> FailedPrecondition:
    """An agent at the airport has to see the passenger first."""
    return FailedPrecondition(
        _name(ErrorReason.AGENT_REQUIRED),
        f"the passenger needs special service {special_service}; an agent at the airport must check the passenger in",
        metadata={"special_service": special_service},
    )


def adult_required(passenger_id: str) -> FailedPrecondition:
    """The adult on whose lap the infant travels has not completed check-in."""
    return FailedPrecondition(
        _name(ErrorReason.ADULT_REQUIRED),
        f"the infant can check in only after its adult; check in passenger {passenger_id} first",
        metadata={"passenger_id": passenger_id},
    )


def seat_required() -> FailedPrecondition:
    """The passenger has no confirmed seat."""
    return FailedPrecondition(
        _name(ErrorReason.SEAT_REQUIRED), "the passenger has no confirmed seat on this flight; hold a seat first"
    )


def passengers_checked_in(passenger_id: str, fields: Sequence[FieldViolation]) -> FailedPrecondition:
    """The manifest changes fields that can't change while a passenger is checked in.

    `passenger_id` is the first such passenger.
    """
    return FailedPrecondition(
        _name(ErrorReason.PASSENGER_CHECKED_IN),
        f"passenger {passenger_id} is checked in; cancel the check-in first",
        metadata={"passenger_id": passenger_id},
        fields=fields,
    )


def hold_expired() -> Aborted:
    """The hold lapsed before the call."""
    return Aborted(_name(ErrorReason.HOLD_EXPIRED), "the hold expired; hold the seat again")


def hold_cancelled() -> FailedPrecondition:
    """The hold was cancelled."""
    return FailedPrecondition(_name(ErrorReason.HOLD_CANCELLED), "the hold is cancelled; hold the seat again")


def hold_mismatch() -> FailedPrecondition:
    """The hold has no seat for this passenger on this flight."""
    return FailedPrecondition(
        _name(ErrorReason.HOLD_MISMATCH), "the hold has no seat for this passenger on this flight; send another hold id"
    )


def check_in_completed() -> FailedPrecondition:
    """The check-in is completed."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_COMPLETED), "the check-in is completed; it can only be cancelled"
    )


def check_in_cancelled(reason: str) -> FailedPrecondition:
    """The check-in was cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_CANCELLED),
        f"the check-in is cancelled, with reason {reason}; start another one",
        metadata={"reason": reason},
    )


def check_in_not_completed(state: str) -> FailedPrecondition:
    """The check-in is not completed, or not any more: there is no boarding pass."""
    return FailedPrecondition(
        _name(ErrorReason.CHECK_IN_NOT_COMPLETED),
        f"the check-in is {state}; only a completed check-in has a boarding pass",
        metadata={"state": state},
    )


def bag_too_heavy(index: int, weight_grams: int, limit_grams: int) -> FailedPrecondition:
    """A bag is heavier than the limit for one piece."""
    return FailedPrecondition(
        _name(ErrorReason.BAG_TOO_HEAVY),
        f"bag {index + 1} weighs {weight_grams} g, more than the limit of {limit_grams} g; repack it",
        metadata={"index": str(index), "weight_grams": str(weight_grams), "limit_grams": str(limit_grams)},
    )


def payment_in_progress() -> FailedPrecondition:
    """A payment of the current fee is running."""
    return FailedPrecondition(
        _name(ErrorReason.PAYMENT_IN_PROGRESS), "a payment of the current fee is in progress; wait for its outcome"
    )


def fee_paid() -> FailedPrecondition:
    """The current fee is paid."""
    return FailedPrecondition(_name(ErrorReason.FEE_PAID), "the current fee is paid; the check-in completes by itself")


def too_many_tries(retry_after_seconds: float) -> ResourceExhausted:
    """The limit of failed logins for this locator or from this address is reached."""
    return ResourceExhausted(
        _name(ErrorReason.TOO_MANY_TRIES),
        "too many failed logins; retry after the given delay",
        retry_after_seconds=retry_after_seconds,
    )
