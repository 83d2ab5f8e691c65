"""Record locators: six characters that nobody can guess, without those that people take for each other."""

from __future__ import annotations

import secrets
from typing import Final

LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"
CHARACTERS: Final = "23456789" + LETTERS
LENGTH: Final = 6


class LocatorTaken(Exception):
    """The locator belongs to another booking or to an imported party."""


def mint() -> str:
    """Returns one of 658 million locators that begin with a letter; the check-in service refuses one that is taken."""
    return secrets.choice(LETTERS) + "".join(secrets.choice(CHARACTERS) for _ in range(LENGTH - 1))
