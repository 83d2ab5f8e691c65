"""The free baggage of each fare, and the fee for more (CHK-6).

The values come from `fares.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Final

STANDARD: Final = "STANDARD"
_KILOGRAM: Final = 1000


@dataclass(frozen=True, slots=True)
class Assessment:
    """The result of checking bags against a fare."""

    total_grams: int
    excess_grams: int
    """Weight beyond the allowance; 0 if there is none."""
    fee_minor_units: int
    """Fee for the excess, in the currency's smallest unit; 0 if there is no excess."""
    currency: str
    too_heavy_index: int | None
    """Index of the first piece over the limit for one piece, or None. Such bags are refused, not charged."""


@dataclass(frozen=True, slots=True)
class Fare:
    """A fare's rules for checked baggage."""

    code: str
    allowance_grams: int
    """The free weight of all pieces together."""
    fee_minor_units_per_kg: int
    """The price of each started kilogram of excess."""
    currency: str
    piece_limit_grams: int
    most_pieces: int

    def assess(self, weights_grams: Sequence[int]) -> Assessment:
        """Checks bags of these weights.

        Raises ValueError for too many pieces, or for a weight of zero or less.
        """
        if len(weights_grams) > self.most_pieces:
            raise ValueError(f"{len(weights_grams)} pieces, at most {self.most_pieces} are carried")
        if any(weight <= 0 for weight in weights_grams):
            raise ValueError("a piece weighs nothing, or less")
        total = sum(weights_grams)
        excess = max(0, total - self.allowance_grams)
        started_kilograms = -(-excess // _KILOGRAM)
        return Assessment(
            total_grams=total,
            excess_grams=excess,
            fee_minor_units=started_kilograms * self.fee_minor_units_per_kg,
            currency=self.currency,
            too_heavy_index=next((n for n, grams in enumerate(weights_grams) if grams > self.piece_limit_grams), None),
        )


def load_fares(
    *, standard_allowance_grams: int | None = None, fee_minor_units_per_kg: int | None = None
) -> Mapping[str, Fare]:
    """Returns all fares by code.

    An argument replaces the value of the file: the allowance of STANDARD, or the price of all fares.
    """
    data = json.loads(files("checkin_service.check_ins").joinpath("fares.json").read_text(encoding="utf-8"))
    allowances = {code: kilograms * _KILOGRAM for code, kilograms in data["allowances_kg"].items()}
    if standard_allowance_grams is not None:
        allowances[STANDARD] = standard_allowance_grams
    if fee_minor_units_per_kg is None:
        fee_minor_units_per_kg = data["excess_fee_minor_units_per_kg"]
    return MappingProxyType(
        {
            code: Fare(
                code=code,
                allowance_grams=allowance_grams,
                fee_minor_units_per_kg=fee_minor_units_per_kg,
                currency=data["currency"],
                piece_limit_grams=data["piece_limit_kg"] * _KILOGRAM,
                most_pieces=data["most_pieces"],
            )
            for code, allowance_grams in allowances.items()
        }
    )
