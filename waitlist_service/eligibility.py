"""Eligibility for exit rows and for rows without infants (SEAT-11).

It is checked before a seat is claimed. The seat service decides in the end, by the same rules. Without the check here,
the oldest entry could be matched with a seat that is not eligible for its passenger, while a younger entry gets the
seat that would have been.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

# The same codes as in `seat_service.rules.eligibility`: 14 CFR 121.585 (b) and (d).
NO_EXIT_ROW_SERVICES: Final = frozenset(
    {"WCHR", "WCHS", "WCHC", "BLND", "DEAF", "STCR", "MEDA", "DPNA", "MAAS", "UMNR", "INFT", "CHLD", "PETC", "ESCT"}
)
INFANT_ON_LAP: Final = "INFT"
# The code of an adult whose party has a child on the flight.
CHILD_IN_CARE: Final = "CHLD"
# PADIS 9825 codes of seats.
EXIT_ROW: Final = "E"
NOT_FOR_INFANTS: Final = "1A"


def forbidden(type: str, special_services: Collection[str], *, exit_row: bool, infant_allowed: bool) -> str | None:
    """Returns the reason with which the seat service would refuse the seat.

    None if it would not refuse the seat by these rules.
    """
    if exit_row and (type != "ADULT" or not NO_EXIT_ROW_SERVICES.isdisjoint(special_services)):
        return "EXIT_ROW_NOT_ALLOWED"
    if not infant_allowed and (type == "INFANT" or INFANT_ON_LAP in special_services):
        return "INFANT_NOT_ALLOWED"
    return None
