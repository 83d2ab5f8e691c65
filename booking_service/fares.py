"""Computes the fare of a party."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from services.money import Amount


class Priced(Protocol):
    """A flight with its fare for one adult."""

    @property
    def price_minor_units(self) -> int:
        """The fare of one adult, in minor units of the booking's currency."""


# Percent of the adult's fare. A child has its own seat and pays like an adult; an infant on a lap pays a tenth, as is
# usual.
SHARES_PERCENT: Final[Mapping[str, int]] = {"ADULT": 100, "CHILD": 100, "INFANT": 10}


def total(legs: Sequence[Priced], types: Sequence[str], *, currency: str) -> Amount:
    """Returns the fare of travellers of these types on these flights.

    The share of each traveller on each flight is rounded up. The total is the sum of the flights' totals, so that the
    refunds of single flights add up to it.
    """
    shares = [-(-leg.price_minor_units * SHARES_PERCENT[kind] // 100) for leg in legs for kind in types]
    return Amount(currency, sum(shares))
