"""The factor of all time limits."""

from __future__ import annotations

import pytest

from booking_service import bookings
from booking_service import peers as booking_peers
from booking_service import steps as booking_steps
from booking_service.service import BOOKING_SERVICE
from services import db, reconciler, time_limits
from services.time_limits import FACTOR, factor
from waitlist_service import assignment
from waitlist_service import peers as waitlist_peers


@pytest.mark.parametrize(("value", "number"), [("1", 1.0), ("2.5", 2.5), ("60", 60.0)])
def test_factor_is_a_number_from_1_to_60(value: str, number: float) -> None:
    assert factor(value) == number


@pytest.mark.parametrize("value", ["0.9", "61", "nan", "inf", "-2", "two"])
def test_an_invalid_factor_is_refused_with_its_variable(value: str) -> None:
    with pytest.raises(ValueError, match=rf"{time_limits.VARIABLE}: '{value}'"):
        factor(value)


def limit_of_a_booking(rpc: str) -> float:
    seconds = BOOKING_SERVICE.rpcs()[rpc].time_limit_seconds
    assert seconds is not None
    return seconds


def test_calls_and_statements_use_the_same_factor() -> None:
    assert FACTOR > 1, "tests/patience.py sets it before the services are imported"
    assert (limit_of_a_booking("GetBooking"), limit_of_a_booking("CreateBooking")) == (2 * FACTOR, 5 * FACTOR)
    assert limit_of_a_booking("CreateBooking") > db.STATEMENT_TIMEOUT_SECONDS


def test_a_steps_lease_is_longer_than_its_calls() -> None:
    """Otherwise a second process would start a step that is still waiting for other services."""
    longest = {
        "booking": (booking_steps.LEASE_SECONDS, 2 * booking_peers.TIMEOUT_SECONDS),
        "waitlist": (assignment.CLAIM_LEASE_SECONDS, 3 * waitlist_peers.TIMEOUT_SECONDS),
        "a repair": (reconciler.REPAIR_SECONDS, 3 * booking_peers.TIMEOUT_SECONDS + db.STATEMENT_TIMEOUT_SECONDS),
        "a booking": (bookings.CALL_ENDED_AFTER.total_seconds(), limit_of_a_booking("CreateBooking")),
    }
    assert [name for name, (lasts, waits) in longest.items() if lasts <= waits] == []
