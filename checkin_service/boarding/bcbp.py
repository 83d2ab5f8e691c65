"""Encodes and decodes bar coded boarding passes (IATA Resolution 792, format M).

A pass has one leg and no conditional items, and so 60 characters:

    first  length  item                       value
        1       1  format code                M
        2       1  number of legs             1
        3      20  passenger name             OBRIEN/SEAN
       23       1  electronic ticket          E
       24       7  record locator             XK4T7Q and a blank
       31       3  airport of departure       FRA
       34       3  airport of arrival         LIS
       37       3  operating carrier          SH and a blank
       40       5  flight number              0101 and a suffix or a blank
       45       3  day of the year            335
       48       1  compartment                F, C, W or Y
       49       4  seat                       012A, or INF and a blank
       53       5  check-in sequence number   0025 and a blank
       58       1  passenger status           1 checked in, 3 bags and passenger checked in
       59       2  size of what follows       00

Text is padded with blanks on the right, a number with zeros on the left. IATA's own example is
`M1DESMARAIS/LUC       EABC123 YULFRAAC 0834 326J001A0025 100`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from checkin_service.boarding.transliteration import transliterate

LENGTH: Final = 60
INFANT_SEAT: Final = "INF"
COMPARTMENTS: Final = {"FIRST": "F", "BUSINESS": "C", "PREMIUM_ECONOMY": "W", "ECONOMY": "Y"}
NAME_LENGTH: Final = 20
CHECKED_IN: Final = "1"
BAGS_AND_PASSENGER_CHECKED_IN: Final = "3"

_FLIGHT_NUMBER: Final = re.compile(r"([A-Z0-9]{2})([0-9]{1,4})([A-Z]?)")
_SEAT: Final = re.compile(r"([1-9][0-9]{0,2})([A-HJ-NP-Z])")
# Name of the item, its length in characters, and the pattern of a valid value.
_ITEMS: Final = tuple(
    (name, length, re.compile(pattern))
    for name, length, pattern in (
        ("format code", 1, "M"),
        ("number of legs", 1, "1"),
        ("passenger name", NAME_LENGTH, r"[A-Z]+(/[A-Z]+)? *"),
        ("electronic ticket indicator", 1, "E"),
        ("record locator", 7, "[A-Z0-9]{6} "),
        ("airport of departure", 3, "[A-Z]{3}"),
        ("airport of arrival", 3, "[A-Z]{3}"),
        ("operating carrier", 3, "[A-Z0-9]{2} "),
        ("flight number", 5, "[0-9]{4}[A-Z ]"),
        ("day of the year", 3, "00[1-9]|0[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-6]"),
        ("compartment", 1, f"[{''.join(COMPARTMENTS.values())}]"),
        ("seat", 4, "(?!000)[0-9]{3}[A-HJ-NP-Z]|INF "),
        ("check-in sequence number", 5, "(?!0000)[0-9]{4} "),
        ("passenger status", 1, f"{CHECKED_IN}|{BAGS_AND_PASSENGER_CHECKED_IN}"),
        ("size of the conditional items", 2, "00"),
    )
)


class BcbpError(ValueError):
    """Raised for a string that is no such pass, or for a value that does not fit.

    The message names the item.
    """


@dataclass(frozen=True, slots=True)
class Pass:
    """The content of a boarding pass's barcode."""

    last_name: str
    given_name: str
    pnr: str
    origin: str
    destination: str
    flight_number: str
    """Carrier and number, such as `SH101`; with or without leading zeros."""
    day_of_year: int
    """Of the departure, by local time at the origin, 1 to 366."""
    cabin: str
    """FIRST, BUSINESS, PREMIUM_ECONOMY or ECONOMY."""
    seat_number: str
    """Such as `12A`; `INF` for an infant on an adult's lap."""
    sequence_number: int
    """1 to 9999, unique on the flight."""
    bags_checked: bool


def encode(boarding_pass: Pass) -> str:
    """Returns the 60 characters of a boarding pass.

    Cuts off a long name. Raises BcbpError if another value does not fit.
    """
    items = (
        "M1",
        _name(boarding_pass.last_name, boarding_pass.given_name).ljust(NAME_LENGTH),
        "E",
        f"{boarding_pass.pnr:<7}",
        boarding_pass.origin,
        boarding_pass.destination,
        _flight(boarding_pass.flight_number),
        f"{boarding_pass.day_of_year:03}",
        COMPARTMENTS.get(boarding_pass.cabin, "?"),
        _seat(boarding_pass.seat_number),
        f"{boarding_pass.sequence_number:04} ",
        BAGS_AND_PASSENGER_CHECKED_IN if boarding_pass.bags_checked else CHECKED_IN,
        "00",
    )
    bcbp = "".join(items)
    _split(bcbp)
    return bcbp


def decode(bcbp: str) -> Pass:
    """Reads a string that `encode` wrote. Raises BcbpError.

    The names are transliterated, and cut off if they were too long.
    """
    items = _split(bcbp)
    last_name, _, given_name = items["passenger name"].rstrip().partition("/")
    number, suffix = items["flight number"][:4], items["flight number"][4:]
    seat = items["seat"].rstrip()
    return Pass(
        last_name=last_name,
        given_name=given_name,
        pnr=items["record locator"].rstrip(),
        origin=items["airport of departure"],
        destination=items["airport of arrival"],
        flight_number=f"{items['operating carrier'].rstrip()}{int(number)}{suffix.rstrip()}",
        day_of_year=int(items["day of the year"]),
        cabin=next(cabin for cabin, letter in COMPARTMENTS.items() if letter == items["compartment"]),
        seat_number=seat if seat == INFANT_SEAT else seat.lstrip("0"),
        sequence_number=int(items["check-in sequence number"]),
        bags_checked=items["passenger status"] == BAGS_AND_PASSENGER_CHECKED_IN,
    )


def _split(bcbp: str) -> dict[str, str]:
    """Returns the items by name.

    Raises BcbpError with the name and the position of the first malformed item.
    """
    if len(bcbp) != LENGTH:
        raise BcbpError(f"{len(bcbp)} characters instead of {LENGTH}")
    items, first = {}, 0
    for name, length, pattern in _ITEMS:
        item = bcbp[first : first + length]
        if not pattern.fullmatch(item):
            raise BcbpError(f"{name}, character {first + 1}: {item!r} is malformed")
        items[name] = item
        first += length
    return items


def _name(last_name: str, given_name: str) -> str:
    last, given = transliterate(last_name), transliterate(given_name)
    # The cut may leave a slash at the end, which is malformed: a given name must follow a slash.
    return f"{last}/{given}"[:NAME_LENGTH].rstrip("/")


def _flight(flight_number: str) -> str:
    match = _FLIGHT_NUMBER.fullmatch(flight_number)
    if match is None:
        raise BcbpError(f"flight number: {flight_number!r} is malformed")
    carrier, number, suffix = match.groups()
    return f"{carrier:<3}{int(number):04}{suffix or ' '}"


def _seat(seat_number: str) -> str:
    if seat_number == INFANT_SEAT:
        return f"{INFANT_SEAT} "
    match = _SEAT.fullmatch(seat_number)
    if match is None:
        raise BcbpError(f"seat: {seat_number!r} is malformed")
    return f"{int(match[1]):03}{match[2]}"
