"""What a party pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from services.money import Amount


class Priced(Protocol):
    """A flight with its fare for one adult."""

    @property
    def price_minor_units(self) -> int:
        """In minor units of the booking's currency."""


# Of the adult's fare, in percent. A child takes a seat like everybody; an infant on a lap pays a tenth, as is usual.
SHARES_PERCENT: Final[Mapping[str, int]] = {"ADULT": 100, "CHILD": 100, "INFANT": 10}


def total(legs: Sequence[Priced], types: Sequence[str], *, currency: str) -> Amount:
    """Returns what travellers of these types pay for these flights; each one's part of a flight is rounded up.

    It is the sum of the flights' own totals, so that what flights cost and what they give back add up.
    """
    shares = [-(-leg.price_minor_units * SHARES_PERCENT[kind] // 100) for leg in legs for kind in types]
    return Amount(currency, sum(shares))
