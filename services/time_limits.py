"""How much longer than usual the parts wait for each other: the factor of all time limits of calls and statements.

The limits keep a stuck part from holding up its callers. They are set for a machine that keeps up with its calls. On
one that does not, under a debugger or beside a busy compiler, work that would have succeeded is refused as
DEADLINE_EXCEEDED or DEPENDENCY_UNAVAILABLE. `SKYHIGH_TIME_LIMITS_FACTOR` makes every limit longer there. The limits of
the gateway stay.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "SKYHIGH_TIME_LIMITS_FACTOR"
LONGEST: Final = 60.0


def factor(value: str) -> float:
    """Returns the factor that the variable's value names. Raises ValueError unless it is a number from 1 to 60."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 1 <= number <= LONGEST:
        raise ValueError(f"{VARIABLE}: {value!r} is no number from 1 to {LONGEST:g}")
    return number


FACTOR: Final = factor(os.environ.get(VARIABLE) or "1")
