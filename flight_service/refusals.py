"""The flight service's refusals, with their contract reasons and metadata."""

from __future__ import annotations

from datetime import datetime

from skyhigh.flight.v1.error_reason_pb2 import ErrorReason

from services.errors import AlreadyExists, FailedPrecondition, NotFound
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


def itinerary_not_found() -> NotFound:
    """One of its flights does not exist, or the flights are no journey."""
    return NotFound(
        _name(ErrorReason.ITINERARY_NOT_FOUND),
        "itinerary not found: one of its flights does not exist, or its flights do not connect; search again",
    )


def flight_exists(flight_id: str) -> AlreadyExists:
    """The flight exists with other facts, or has seats of another layout."""
    return AlreadyExists(
        _name(ErrorReason.FLIGHT_EXISTS),
        f"flight {flight_id} already exists with other data; use another flight id, or send the same data",
        metadata={"flight_id": flight_id},
    )


def flight_departed(flight_id: str, departure_time: datetime) -> FailedPrecondition:
    """The flight has departed and can no longer be cancelled."""
    return FailedPrecondition(
        _name(ErrorReason.FLIGHT_DEPARTED),
        f"flight {flight_id} departed at {rfc3339(departure_time)}",
        metadata={"departure_time": rfc3339(departure_time)},
    )
