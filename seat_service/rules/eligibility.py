"""Eligibility: the rules that decide whether a seat fits a passenger.

The rules are the passenger's cabin (SEAT-6), exit rows and infants (SEAT-11), in one table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from skyhigh.seat.v1.seat_service_pb2 import PassengerProfile, Seat

from seat_service import refusals
from seat_service.layouts.cabin_layouts import LayoutSeat
from seat_service.requests import Person
from services.errors import Refusal

# IATA codes of special services that exclude a passenger from exit rows. A passenger who needs assistance, or has a
# duty of care, cannot open an emergency exit: 14 CFR 121.585 (b) and (d). In this order: wheelchairs (three codes),
# impaired sight, impaired hearing, stretcher, medical case, intellectual disability, meet and assist, unaccompanied
# minor, infant on lap, child of the same party, pet in cabin, escort.
NO_EXIT_ROW_SERVICES: Final = frozenset(
    {"WCHR", "WCHS", "WCHC", "BLND", "DEAF", "STCR", "MEDA", "DPNA", "MAAS", "UMNR", "INFT", "CHLD", "PETC", "ESCT"}
)
INFANT_ON_LAP: Final = "INFT"


def _in_own_cabin(person: Person, seat: LayoutSeat) -> bool:
    return person.cabin in (Seat.CABIN_UNSPECIFIED, seat.cabin)


def _fit_for_exit_row(person: Person, seat: LayoutSeat) -> bool:
    return not seat.exit_row or (
        person.type == PassengerProfile.ADULT and not person.special_services & NO_EXIT_ROW_SERVICES
    )


def _infant_has_a_mask(person: Person, seat: LayoutSeat) -> bool:
    return INFANT_ON_LAP not in person.special_services or seat.infant_allowed


_RULES: Final[tuple[tuple[Callable[[Person, LayoutSeat], bool], Callable[[LayoutSeat], Refusal]], ...]] = (
    (_in_own_cabin, lambda seat: refusals.cabin_not_allowed(seat.seat_number, Seat.Cabin.Name(seat.cabin))),
    (_fit_for_exit_row, lambda seat: refusals.exit_row_not_allowed(seat.seat_number)),
    (_infant_has_a_mask, lambda seat: refusals.infant_not_allowed(seat.seat_number)),
)


def refusal(person: Person, seat: LayoutSeat) -> Refusal | None:
    """Returns the refusal of the first broken rule; None if the seat fits."""
    return next((refuse(seat) for rule, refuse in _RULES if not rule(person, seat)), None)


def fits(person: Person, seat: LayoutSeat) -> bool:
    """Returns True if the seat fits the passenger. No seat fits a lap infant."""
    return person.type != PassengerProfile.INFANT and refusal(person, seat) is None
