"""The aircraft types of the flight service agree with the seat service's layouts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2 import Seat

from flight_service.aircraft import AIRCRAFT, fares
from seat_service.layouts.cabin_layouts import load_layouts

# The highest fare that CreateFlight accepts.
HIGHEST_FARE_CENTS = 2_000_000


def test_each_aircraft_has_the_seats_of_its_layout() -> None:
    layouts = load_layouts()
    assert {aircraft.layout_id for aircraft in AIRCRAFT.values()} == set(layouts)
    for name, aircraft in AIRCRAFT.items():
        assert aircraft.name == name
        # From nose to tail in both services.
        seats = Counter(Seat.Cabin.Name(seat.cabin) for seat in layouts[aircraft.layout_id].seats)
        assert list(aircraft.cabins.items()) == list(seats.items())


def test_the_contract_lists_the_aircraft_types() -> None:
    assert set(AIRCRAFT) == {"A320", "A321", "AT72", "B738", "B789", "E190"}
    for aircraft in AIRCRAFT.values():
        # The contract lists the cabins in the order of the aircraft, and each type has an economy cabin.
        numbers = [pb.Cabin.Value(cabin) for cabin in aircraft.cabins]
        assert numbers == sorted(numbers)
        assert numbers[-1] == pb.Cabin.ECONOMY


@pytest.mark.parametrize(
    ("aircraft_type", "economy_cents", "expected"),
    [
        ("A320", 8900, {"ECONOMY": 8900}),
        ("A321", 12345, {"BUSINESS": 37035, "ECONOMY": 12345}),
        ("B789", 59900, {"BUSINESS": 179700, "PREMIUM_ECONOMY": 95840, "ECONOMY": 59900}),
        # Rounded to whole cents: 1.6 to 2, 4.8 to 5, 17.6 to 18.
        ("B789", 1, {"BUSINESS": 3, "PREMIUM_ECONOMY": 2, "ECONOMY": 1}),
        ("B789", 3, {"BUSINESS": 9, "PREMIUM_ECONOMY": 5, "ECONOMY": 3}),
        ("B789", 11, {"BUSINESS": 33, "PREMIUM_ECONOMY": 18, "ECONOMY": 11}),
    ],
)
def test_fares_are_whole_cents(aircraft_type: str, economy_cents: int, expected: dict[str, int]) -> None:
    assert list(fares(aircraft_type, economy_cents).items()) == list(expected.items())


@given(st.sampled_from(sorted(AIRCRAFT)), st.integers(1, HIGHEST_FARE_CENTS))
def test_the_lowest_fare_is_that_of_the_last_cabin(aircraft_type: str, economy_cents: int) -> None:
    found = fares(aircraft_type, economy_cents)
    assert list(found) == list(AIRCRAFT[aircraft_type].cabins)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert [*found.values()][-1] == economy_cents


def test_an_unknown_aircraft_has_no_fare() -> None:
    with pytest.raises(KeyError):
        fares("A388", 8900)
