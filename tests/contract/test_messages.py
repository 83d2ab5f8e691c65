"""The same fact has the same error message in every service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest

from booking_service import refusals as booking
from checkin_service import refusals as checkin
from flight_service import refusals as flight
from seat_service import refusals as seat
from services.errors import Refusal
from waitlist_service import refusals as waitlist

FLIGHT: Final = "SH101"
TIME: Final = datetime.fromtimestamp(0, UTC)
# Refusals of the seat service that the booking service passes on.
PASSED_ON: Final = (
    seat.flight_not_found(FLIGHT),
    seat.flight_cancelled(FLIGHT),
    seat.flight_departed(FLIGHT, TIME),
    seat.seat_not_found(FLIGHT, "99A"),
    seat.seat_taken(FLIGHT, "12A", "HELD"),
    seat.cabin_not_allowed("1A", "FIRST"),
    seat.exit_row_not_allowed("12A"),
    seat.infant_not_allowed("11A"),
)
SAME: Final[dict[str, tuple[Refusal, ...]]] = {
    "flight not found": tuple(each.flight_not_found(FLIGHT) for each in (seat, waitlist, booking, flight)),
    "flight cancelled": tuple(each.flight_cancelled(FLIGHT) for each in (seat, waitlist, booking, checkin)),
    "flight departed": (
        seat.flight_departed(FLIGHT, TIME),
        checkin.flight_departed(FLIGHT, TIME),
        flight.flight_departed(FLIGHT, TIME),
    ),
    "seat not found": (seat.seat_not_found(FLIGHT, "99A"), waitlist.seat_not_found(FLIGHT, "99A")),
    "passenger not found": tuple(each.passenger_not_found() for each in (seat, waitlist, checkin)),
    "lap infant": (seat.lap_infant_has_no_seat("P3"), waitlist.lap_infant_has_no_seat("P3")),
    "hold not found": (seat.hold_not_found(), checkin.hold_not_found()),
    "hold cancelled": (seat.hold_cancelled(), checkin.hold_cancelled()),
    "itinerary not found": (booking.itinerary_not_found(), flight.itinerary_not_found()),
}


@pytest.mark.parametrize("refusals", SAME.values(), ids=SAME.keys())
def test_one_fact_has_one_message(refusals: tuple[Refusal, ...]) -> None:
    assert {refusal.message for refusal in refusals} == {refusals[0].message}


@pytest.mark.parametrize("refusal", PASSED_ON, ids=lambda refusal: refusal.reason)
def test_a_booking_passes_on_the_seat_services_message(refusal: Refusal) -> None:
    assert booking.of_seats(refusal.reason, refusal.metadata).message == refusal.message


def test_a_message_names_the_fact_without_its_metadata() -> None:
    assert booking.of_seats("SEAT_TAKEN", {}).message.endswith("is taken; choose another seat")
