"""Mints record locators: six random characters without look-alikes."""

from __future__ import annotations

import secrets
from typing import Final

LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"
CHARACTERS: Final = "23456789" + LETTERS
LENGTH: Final = 6


class LocatorTaken(Exception):
    """The locator belongs to another booking or to an imported party."""


def mint() -> str:
    """Returns a random locator that begins with a letter.

    There are 658 million. The check-in service refuses a locator that is taken.
    """
    return secrets.choice(LETTERS) + "".join(secrets.choice(CHARACTERS) for _ in range(LENGTH - 1))
