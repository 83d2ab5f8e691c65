"""Detection of card numbers in text with many digits (PAY-6)."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from payment_service import card_numbers

# Distances from an ASCII digit to the same digit in another form.
ARABIC_INDIC = ord("\N{ARABIC-INDIC DIGIT ZERO}") - ord("0")
FULL_WIDTH = 0xFEE0
# The published test numbers of the card networks.
CARDS = [
    "4111111111111111",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "6011111111111117",
    "3530111333300000",
    "30569309025904",
    "6205500000000000004",
    "4222222222222",
    "135412345678911",
]


@pytest.mark.parametrize("number", CARDS)
@pytest.mark.parametrize(
    "text", ["{}", '{{"pan":"{}"}}', '{{"pan":{}}}', "with {} please", "pan={},cvv=123", "{} 12/28"]
)
def test_a_card_number_is_found(number: str, text: str) -> None:
    assert card_numbers.found(text.format(number))


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "3782 822463 10005",
        "".join(chr(ord(digit) + FULL_WIDTH) for digit in CARDS[0]),
        "".join(chr(ord(digit) + ARABIC_INDIC) for digit in CARDS[0]),
        "1 4111 1111 1111 1111 2",
    ],
)
def test_a_card_number_is_found_in_any_notation(text: str) -> None:
    assert card_numbers.found(text)


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",
        "411111111111",
        "41111111111111111111",
        "1795240000123",
        "1795240000123456789",
        "2010-11-21T05:58:56.123456Z",
        "ch_4111111111111111",
        "9000",
        "0000000000000000",
    ],
)
def test_other_digits_are_not_found(text: str) -> None:
    assert not card_numbers.found(text)


def test_a_uuid_is_not_taken_for_a_card() -> None:
    chance = random.Random(6)
    # For example 41111111-1111-4111-…, which has digits and dashes only.
    digits = ["".join(chance.choice("0123456789") for _ in range(32)) for _ in range(20_000)]
    assert not any(card_numbers.found(f'{{"key":"{UUID(each)}"}}') for each in digits)
