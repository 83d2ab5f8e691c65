"""Fares: allowance, fee per started kilogram, limit for a piece (CHK-6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service.check_ins.fares import load_fares
from services.errors import InvalidArgument
from services.validation import validate

FARES = load_fares()


def test_each_fare_of_the_contract_has_its_allowance() -> None:
    assert {code: fare.allowance_grams for code, fare in FARES.items()} == {
        "BASIC": 15_000,
        "STANDARD": 25_000,
        "FLEX": 32_000,
        "BUSINESS": 40_000,
    }


def test_the_contract_has_exactly_these_fares() -> None:
    passenger = pb.ManifestPassenger(passenger_id="P1", pnr="XK4T7Q", given_name="Ada", last_name="Lovelace")
    for passenger.fare in ("", *FARES):
        validate(passenger)
    passenger.fare = "GOLD"
    with pytest.raises(InvalidArgument):
        validate(passenger)


@pytest.mark.parametrize(
    ("weights_grams", "excess_grams", "fee_minor_units"),
    [
        ([], 0, 0),
        ([25_000], 0, 0),
        ([12_500, 12_500], 0, 0),
        ([25_001], 1, 1500),
        ([26_000], 1000, 1500),
        ([13_000, 13_001], 1001, 3000),
        ([31_000], 6000, 9000),
        ([32_000] * 6, 167_000, 250_500),
    ],
)
def test_each_started_kilogram_over_the_allowance_costs(
    weights_grams: list[int], excess_grams: int, fee_minor_units: int
) -> None:
    assessed = FARES["STANDARD"].assess(weights_grams)
    assert (assessed.total_grams, assessed.excess_grams) == (sum(weights_grams), excess_grams)
    assert (assessed.fee_minor_units, assessed.currency) == (fee_minor_units, "USD")
    assert assessed.too_heavy_index is None


@pytest.mark.parametrize(
    ("weights_grams", "index"), [([32_000], None), ([32_001], 0), ([1, 32_000, 40_000, 50_000], 2)]
)
def test_the_first_bag_over_the_limit_is_named(weights_grams: list[int], index: int | None) -> None:
    for fare in FARES.values():
        assert fare.assess(weights_grams).too_heavy_index == index


@pytest.mark.parametrize("weights_grams", [[1] * 7, [0], [10_000, -1]])
def test_invalid_bags_are_refused(weights_grams: list[int]) -> None:
    with pytest.raises(ValueError, match="piece"):
        FARES["FLEX"].assess(weights_grams)


@given(st.lists(st.integers(1, 200_000), max_size=6), st.sampled_from(sorted(FARES)))
def test_the_fee_covers_each_started_kilogram(weights_grams: list[int], code: str) -> None:
    fare = FARES[code]
    assessed = fare.assess(weights_grams)
    paid_kilograms, rest = divmod(assessed.fee_minor_units, 1500)
    assert rest == 0
    assert 0 <= paid_kilograms * 1000 - assessed.excess_grams < 1000
    assert assessed.excess_grams == max(0, assessed.total_grams - fare.allowance_grams)


def test_settings_replace_the_standard_allowance_and_the_fee() -> None:
    fares = load_fares(standard_allowance_grams=23_000, fee_minor_units_per_kg=990)
    assert fares["STANDARD"].assess([25_000]).fee_minor_units == 1980
    assert fares["BASIC"].assess([16_000]).fee_minor_units == 990
    assert fares["BASIC"].allowance_grams == 15_000
