"""Which seats a passenger can't have, known before they are claimed: exit rows and infants (SEAT-11).

The seat service decides, and its refusal is the last word. Without this look ahead the oldest entry could be matched
with a seat that it can't have, while the one that it could have goes to a younger.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

# As the seat service has them: 14 CFR 121.585 (b) and (d).
NO_EXIT_ROW_SERVICES: Final = frozenset(
    {"WCHR", "WCHS", "WCHC", "BLND", "DEAF", "STCR", "MEDA", "DPNA", "MAAS", "UMNR", "INFT", "CHLD", "PETC", "ESCT"}
)
INFANT_ON_LAP: Final = "INFT"
# An adult whose party has a child on the flight.
CHILD_IN_CARE: Final = "CHLD"
# PADIS 9825 codes of seats.
EXIT_ROW: Final = "E"
NOT_FOR_INFANTS: Final = "1A"


def forbidden(type: str, special_services: Collection[str], *, exit_row: bool, infant_allowed: bool) -> str | None:
    """Returns the reason for which the seat service would refuse such a seat to such a passenger; None without one."""
    if exit_row and (type != "ADULT" or not NO_EXIT_ROW_SERVICES.isdisjoint(special_services)):
        return "EXIT_ROW_NOT_ALLOWED"
    if not infant_allowed and (type == "INFANT" or INFANT_ON_LAP in special_services):
        return "INFANT_NOT_ALLOWED"
    return None
