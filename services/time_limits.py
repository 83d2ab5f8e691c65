"""The factor of all time limits of calls and statements.

The limits keep a stuck part from blocking its callers. They are set for a machine that keeps up with its calls. On a
slower one, under a debugger or beside a busy compiler, work that would have succeeded is refused as DEADLINE_EXCEEDED
or DEPENDENCY_UNAVAILABLE. There `SKYHIGH_TIME_LIMITS_FACTOR` makes every limit longer, except those of the gateway.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "SKYHIGH_TIME_LIMITS_FACTOR"
LONGEST: Final = 60.0


def factor(value: str) -> float:
    """Parses the factor. Raises ValueError unless it is a number from 1 to 60."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 1 <= number <= LONGEST:
        raise ValueError(f"{VARIABLE}: {value!r} is no number from 1 to {LONGEST:g}")
    return number


FACTOR: Final = factor(os.environ.get(VARIABLE) or "1")
