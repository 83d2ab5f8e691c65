"""Refuses text that holds a card number, without storing or logging it (PAY-6)."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from payment_service import refusals

# ISO/IEC 7812: 12 to 19 digits; no card network in use has fewer than 13.
LENGTHS: Final = range(13, 20)
# Card numbers begin with 2 to 6. Those of UATP, the airlines' own network, begin with 1 and have 15 digits. So neither
# milliseconds since 1970 nor an amount is taken for a card number.
NETWORKS: Final = "23456"
UATP_DIGITS: Final = 15

_UUID: Final = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
# Groups of digits with a single space or dash between them. Digits that touch a letter are part of an id.
_GROUPS: Final = re.compile(r"(?<![A-Za-z0-9_])[0-9]+(?:[ -][0-9]+)*(?![A-Za-z0-9_])")


def refuse(*texts: str) -> None:
    """Raises CARD_DATA_REFUSED if one of the texts holds a possible card number."""
    if any(found(text) for text in texts):
        raise refusals.card_data_refused()


def found(text: str) -> bool:
    """Returns whether a text holds a possible card number.

    That is one group of digits, or several groups side by side, with the length, the first digit and the check digit of
    a card number.
    """
    text = _UUID.sub("", _ascii_digits(unicodedata.normalize("NFKC", text)))
    return any(_holds_card(re.split("[ -]", run)) for run in _GROUPS.findall(text))


def _ascii_digits(text: str) -> str:
    """Returns a text with the decimal digits of all scripts as 0 to 9, because people read them as digits."""
    return "".join(str(unicodedata.decimal(each)) if each.isdecimal() else each for each in text)


def _holds_card(groups: list[str]) -> bool:
    for first in range(len(groups)):
        number = ""
        for group in groups[first:]:
            number += group
            if len(number) >= LENGTHS.stop:
                break
            if _is_card(number):
                return True
    return False


def _is_card(number: str) -> bool:
    if len(number) not in LENGTHS:
        return False
    network = number[0] in NETWORKS or (number[0] == "1" and len(number) == UATP_DIGITS)
    return network and _luhn(number)


def _luhn(number: str) -> bool:
    """Returns whether the check digit is right (ISO/IEC 7812-1 annex B).

    Every second digit from the right is doubled.
    """
    digits = [int(digit) for digit in reversed(number)]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
