"""Amounts for people: the digits of each currency (ISO 4217)."""

from __future__ import annotations

import pytest

from services.money import Amount, text_of


@pytest.mark.parametrize(
    ("currency", "minor_units", "text"),
    [("JPY", 12_000, "12000 JPY"), ("USD", 12_005, "120.05 USD"), ("KWD", 1_200, "1.200 KWD"), ("EUR", 0, "0.00 EUR")],
)
def test_an_amount_has_the_digits_of_its_currency(currency: str, minor_units: int, text: str) -> None:
    assert text_of(Amount(currency, minor_units)) == text
