"""The world's airports by IATA code with their time zones, from the package `airportsdata`, and local times.

Every service has the same package, so that a mail needs no other service to say when a flight leaves (decision 36).
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

# In the package's list, what has no IATA code is listed besides: private strips, heliports.
_LIST: Final = "IATA"


@dataclass(frozen=True, slots=True)
class Airport:
    """An airport that has an IATA code."""

    iata: str
    name: str
    city: str
    country: str
    """ISO 3166-1 alpha-2."""
    zone: ZoneInfo
    latitude: float
    longitude: float


def find(iata: str) -> Airport | None:
    """Returns the airport, or None where no airport has this code."""
    return _airport(iata) if iata in _rows() else None


def zone(iata: str) -> ZoneInfo | None:
    """Returns the airport's time zone, or None where no airport has this code."""
    airport = find(iata)
    return airport.zone if airport else None


def local_time(moment: datetime, zone: ZoneInfo | None) -> str:
    """Returns a moment as a clock in the zone shows it: `2026-12-01 10:30 CET (+01:00)`; in UTC if there is no zone."""
    local = moment.astimezone(zone or UTC)
    if zone is None:
        return f"{local:%Y-%m-%d %H:%M} UTC"
    # Zones without a name of their own have their difference to UTC as name: +03.
    name = f"{local:%Z} " if f"{local:%Z}".isalpha() else ""
    return f"{local:%Y-%m-%d %H:%M} {name}({local.isoformat(timespec='minutes')[-6:]})"


@cache
def _rows() -> Mapping[str, airportsdata.Airport]:
    """The whole list, read when it is first needed: that takes a tenth of a second, which no start shall wait for."""
    # Where nobody lives there is no time zone either, and no flight of ours.
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
