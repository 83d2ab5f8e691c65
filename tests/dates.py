"""The days that tests use, counted from the day on which the run began.

No test depends on the date of its run. All processes of a run share one day, also when midnight passes: pytest compares
the names of parametrized tests between its processes, and some of those names contain a date.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, date, datetime, timedelta
from typing import Final

_VARIABLE: Final = "SKYHIGH_TEST_TODAY"

TODAY: Final = date.fromisoformat(os.environ.setdefault(_VARIABLE, datetime.now(UTC).date().isoformat()))
"""The UTC day on which the run began."""


def day(days_from_today: int) -> str:
    """Returns a day as `YYYY-MM-DD`, counted from the first day of the run."""
    return (TODAY + timedelta(days=days_from_today)).isoformat()


# Three days ahead is still in the future if midnight passes during a run.
DAY: Final = day(3)
"""The day of departure for tests that do not depend on the day."""
NEXT_DAY: Final = day(4)
"""The day after DAY."""


def flight_id(number: str = "SH101", on: str = DAY) -> str:
    """Returns the id of a flight with this number, such as `SH101-YYYY-MM-DD`."""
    return f"{number}-{on}"


def new_flight_id(prefix: str = "SH", on: str = DAY) -> str:
    """Returns a flight id that no other test uses."""
    return flight_id(f"{prefix}{secrets.token_hex(4)}", on)
