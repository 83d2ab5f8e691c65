"""Amounts as people read them: the digits of each currency (ISO 4217)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from services.money import Amount, money_of, text_of, text_of_money

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {
    "services",
    "operations",
    "gateway",
    *(f"{each}_service" for each in ("seat", "checkin", "waitlist", "payment", "flight", "booking")),
}


@pytest.mark.parametrize(
    ("currency", "minor_units", "text"),
    [
        ("JPY", 12_000, "12000 JPY"),
        ("USD", 12_005, "120.05 USD"),
        ("KWD", 1_200, "1.200 KWD"),
        ("EUR", 0, "0.00 EUR"),
        ("USD", -150, "-1.50 USD"),
    ],
)
def test_an_amount_has_the_digits_of_its_currency(currency: str, minor_units: int, text: str) -> None:
    assert text_of(Amount(currency, minor_units)) == text
    assert text_of_money(money_of(Amount(currency, minor_units))) == text


def test_only_one_module_knows_the_digits_of_currencies() -> None:
    """A constant such as 10_000_000 nanos for a cent would print 12,000 JPY as 120.00."""
    knowing = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("*/**/*.py")
        if path.relative_to(ROOT).parts[0] in PACKAGES and re.search(r"\b10_000_000\b|\.units\b", path.read_text())
    ]
    assert knowing == ["services/money.py"]
