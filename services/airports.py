"""The world's airports by IATA code with their time zones, and local times.

The data comes from the package `airportsdata`, which every service installs. So a service can write local times in a
mail without a call to the flight service (decision 36).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Final
from zoneinfo import ZoneInfo

import airportsdata

# The package's list by IATA code. Its other lists also hold private strips and heliports.
_LIST: Final = "IATA"


@dataclass(frozen=True, slots=True)
class Airport:
    """An airport that has an IATA code."""

    iata: str
    name: str
    city: str
    country: str
    """The ISO 3166-1 alpha-2 code."""
    zone: ZoneInfo
    latitude: float
    longitude: float


def find(iata: str) -> Airport | None:
    """Returns the airport with this code, or None if there is none."""
    return _airport(iata) if iata in _rows() else None


def zone(iata: str) -> ZoneInfo | None:
    """Returns the time zone of the airport with this code, or None if there is none."""
    airport = find(iata)
    return airport.zone if airport else None


def local_time(moment: datetime, zone: ZoneInfo | None) -> str:
    """Formats a moment as local time of a zone: `2026-12-01 10:30 CET (+01:00)`.

    Uses UTC if `zone` is None: `2026-12-01 09:30 UTC`.
    """
    local = moment.astimezone(zone or UTC)
    if zone is None:
        return f"{local:%Y-%m-%d %H:%M} UTC"
    # A zone without an abbreviation has its UTC offset as its name, such as +03; the offset is printed anyway.
    name = f"{local:%Z} " if f"{local:%Z}".isalpha() else ""
    return f"{local:%Y-%m-%d %H:%M} {name}({local.isoformat(timespec='minutes')[-6:]})"


@cache
def _rows() -> Mapping[str, airportsdata.Airport]:
    """Returns the airport data that has a time zone, by IATA code.

    Reads it at the first call, because reading takes 0.1 s and would delay the start of every process.
    """
    # The package has no time zone for some uninhabited places. The airline does not fly there.
    return MappingProxyType({code: row for code, row in airportsdata.load(_LIST).items() if row["tz"]})


@cache
def _airport(iata: str) -> Airport:
    row = _rows()[iata]
    return Airport(
        iata=iata,
        name=row["name"],
        city=row["city"],
        country=row["country"],
        zone=ZoneInfo(row["tz"]),
        latitude=row["lat"],
        longitude=row["lon"],
    )
