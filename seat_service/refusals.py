"""The refusals of the seat service, each with its `ErrorReason` and metadata."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from skyhigh.seat.v1.error_reason_pb2 import ErrorReason

from services.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, Refusal, ResourceExhausted, missing
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


def flight_departed(flight_id: str, departure_time: datetime) -> FailedPrecondition:
    """The flight has departed."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_DEPARTED),
        f"flight {flight_id} departed at {rfc3339(departure_time)}",
        metadata={"flight_id": flight_id, "departure_time": rfc3339(departure_time)},
    )


def layout_not_found(layout_id: str) -> NotFound:
    """The cabin layout does not exist."""
    return NotFound(
        _name(ErrorReason.LAYOUT_NOT_FOUND),
        f"cabin layout {layout_id} not found; check the layout id",
        metadata={"layout_id": layout_id},
    )


def flight_exists(layout_id: str) -> AlreadyExists:
    """The flight was provisioned with another layout."""
    return AlreadyExists(
        _name(ErrorReason.FLIGHT_EXISTS),
        f"the flight already has seats of layout {layout_id}; use that layout or another flight id",
        metadata={"layout_id": layout_id},
    )


def seat_not_found(flight_id: str, seat_number: str) -> NotFound:
    """The flight has no such seat."""
    return NotFound(
        _name(ErrorReason.SEAT_NOT_FOUND),
        f"flight {flight_id} has no seat {seat_number}; choose a seat of its seat map",
        metadata={"flight_id": flight_id, "seat_number": seat_number},
    )


def seat_taken(flight_id: str, seat_number: str, state: str) -> Aborted:
    """The seat is HELD, CONFIRMED, BLOCKED or OFFERED."""
    return Aborted(
        _name(ErrorReason.SEAT_TAKEN),
        f"seat {seat_number} on flight {flight_id} is taken; choose another seat",
        metadata={"flight_id": flight_id, "seat_number": seat_number, "state": state},
    )


def seat_occupied(flight_id: str, seat_number: str, state: str) -> Aborted:
    """The state of the seat does not permit to block, unblock or return it."""
    return Aborted(
        _name(ErrorReason.SEAT_OCCUPIED),
        f"seat {seat_number} on flight {flight_id} is {state}, which does not permit this change",
        metadata={"flight_id": flight_id, "seat_number": seat_number, "state": state},
    )


def passenger_not_found() -> NotFound:
    """The manifest lists no such passenger for whom the caller may act."""
    return NotFound(
        _name(ErrorReason.PASSENGER_NOT_FOUND),
        "passenger not found on this flight: the manifest does not list the passenger, or your token gives no access; "
        "check the flight and passenger ids",
    )


def passenger_not_entitled(flight_id: str, passenger_id: str) -> FailedPrecondition:
    """The passenger's entitlement to a seat has ended."""
    return FailedPrecondition(
        _name(ErrorReason.PASSENGER_NOT_ENTITLED),
        f"passenger {passenger_id} is no longer entitled to a seat on flight {flight_id}: the booking was cancelled, "
        "or the manifest no longer lists the passenger",
        metadata={"flight_id": flight_id, "passenger_id": passenger_id},
    )


def lap_infant_has_no_seat(passenger_id: str) -> FailedPrecondition:
    """The passenger is a lap infant."""
    return FailedPrecondition(
        _name(ErrorReason.LAP_INFANT_HAS_NO_SEAT),
        f"passenger {passenger_id} is a lap infant and has no seat; use the passenger id of the adult",
        metadata={"passenger_id": passenger_id},
    )


def passenger_holds_seat(flight_id: str, passenger_id: str) -> FailedPrecondition:
    """The passenger holds another seat on the flight."""
    return FailedPrecondition(
        _name(ErrorReason.PASSENGER_HOLDS_SEAT),
        f"passenger {passenger_id} holds another seat on flight {flight_id}; change that hold instead",
        metadata={"flight_id": flight_id, "passenger_id": passenger_id},
    )


def cabin_not_allowed(seat_number: str, cabin: str) -> FailedPrecondition:
    """The seat is not in the passenger's cabin."""
    return FailedPrecondition(
        _name(ErrorReason.CABIN_NOT_ALLOWED),
        f"seat {seat_number} is in cabin {cabin}; choose a seat in the passenger's cabin",
        metadata={"seat_number": seat_number, "cabin": cabin},
    )


def exit_row_not_allowed(seat_number: str) -> FailedPrecondition:
    """The passenger is not eligible for an exit row."""
    return FailedPrecondition(
        _name(ErrorReason.EXIT_ROW_NOT_ALLOWED),
        f"seat {seat_number} is in an exit row, which is only for adults without infant, assistance need or duty of "
        "care; choose a seat in another row",
        metadata={"seat_number": seat_number},
    )


def infant_not_allowed(seat_number: str) -> FailedPrecondition:
    """The seat is in a row without infants, and the passenger has one on the lap."""
    return FailedPrecondition(
        _name(ErrorReason.INFANT_NOT_ALLOWED),
        f"seat {seat_number} is in a row without an oxygen mask for an infant; choose a seat in another row",
        metadata={"seat_number": seat_number},
    )


def hold_not_found() -> NotFound:
    """The hold does not exist, or another principal owns it.

    The response is the same for both.
    """
    return NotFound(_name(ErrorReason.HOLD_NOT_FOUND), missing("hold"))


def hold_expired(expire_time: datetime) -> Aborted:
    """The hold has lapsed."""
    return Aborted(
        _name(ErrorReason.HOLD_EXPIRED),
        f"the hold expired at {rfc3339(expire_time)}; hold the seat again",
        metadata={"expire_time": rfc3339(expire_time)},
    )


def hold_cancelled() -> FailedPrecondition:
    """The hold was cancelled."""
    return FailedPrecondition(_name(ErrorReason.HOLD_CANCELLED), "the hold is cancelled; hold the seat again")


def hold_confirmed() -> FailedPrecondition:
    """The hold is confirmed: it can be neither extended nor changed, and has no end."""
    return FailedPrecondition(
        _name(ErrorReason.HOLD_CONFIRMED), "the hold is already confirmed, so it can't be extended or changed"
    )


def hold_managed() -> FailedPrecondition:
    """A service manages the hold for an order; only services may move it."""
    return FailedPrecondition(
        _name(ErrorReason.HOLD_MANAGED), "the hold belongs to an order; change or cancel the order instead"
    )


def seat_included_in_booking(flight_id: str, passenger_id: str) -> FailedPrecondition:
    """The passenger's confirmed booking includes the seat."""
    return FailedPrecondition(
        _name(ErrorReason.SEAT_INCLUDED_IN_BOOKING),
        f"the booking of passenger {passenger_id} includes this seat on flight {flight_id}; hold and confirm another "
        "seat instead, or cancel the booking",
        metadata={"flight_id": flight_id, "passenger_id": passenger_id},
    )


def hold_limit_reached(expire_time: datetime) -> FailedPrecondition:
    """The hold has no extension left."""
    return FailedPrecondition(
        _name(ErrorReason.HOLD_LIMIT_REACHED),
        f"the hold can't be extended or changed any more; confirm it before it expires at {rfc3339(expire_time)}",
        metadata={"expire_time": rfc3339(expire_time)},
    )


# Metadata of a refusal that counts all guests of one network address (SEAT-16).
_OF_ADDRESS: Final = {"counted_by": "ADDRESS"}


def too_many_held_seats(limit: int, retry_after_seconds: float, *, of_address: bool = False) -> ResourceExhausted:
    """The request exceeds the limit of held seats.

    The limit is that of the principal, or that of all guests of its address.
    """
    message = (
        f"guests at one network address can hold at most {limit} seats of a flight at a time; retry after the given "
        "delay"
        if of_address
        else f"you can hold at most {limit} seats of a flight at a time; confirm or cancel a hold first"
    )
    return ResourceExhausted(
        _name(ErrorReason.TOO_MANY_HELD_SEATS),
        message,
        metadata={"limit": str(limit)} | (_OF_ADDRESS if of_address else {}),
        retry_after_seconds=retry_after_seconds,
    )


def cooling_down(retry_after_seconds: float, *, of_address: bool = False) -> ResourceExhausted:
    """Too many holds of the principal, or of all guests of its address, have lapsed."""
    whose = "holds of guests at your network address" if of_address else "of your holds"
    return ResourceExhausted(
        _name(ErrorReason.COOLING_DOWN),
        f"too many {whose} expired; retry after the given delay",
        metadata=_OF_ADDRESS if of_address else {},
        retry_after_seconds=retry_after_seconds,
    )


class LapsedHoldConflict(Aborted):
    """Only lapsed holds prevent the request; `hold_ids` names them.

    A lapsed hold counts as free (SEAT-3): `Inventory` expires these holds and runs the request again. A client sees
    this refusal only if the last attempt meets a lapsed hold, too; its reason is SEAT_TAKEN.
    """

    def __init__(self, flight_id: str, seat_number: str, hold_ids: Sequence[UUID]) -> None:
        taken: Refusal = seat_taken(flight_id, seat_number, "HELD")
        super().__init__(taken.reason, taken.message, metadata=taken.metadata)
        self.hold_ids = tuple(hold_ids)
