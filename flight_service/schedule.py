"""The airline's schedule: the flights that depart on a day.

Read from `schedule.json`, which docs/schedule.md explains. The module reads no clock and no database: the same file
always gives the same flights for a day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Final

from flight_service.aircraft import AIRCRAFT, fares
from flight_service.flights import NewFlight
from services import airports

EVERY_DAY: Final = "1234567"


@dataclass(frozen=True, slots=True)
class Leg:
    """A line of the schedule: one flight number on the same days of every week."""

    flight_number: str
    origin: str
    destination: str
    departs: time
    """Local time at the origin."""
    block_time: timedelta
    """The time from gate to gate."""
    aircraft_type: str
    gate: str
    economy_cents: int
    """The economy fare of one adult."""
    weekdays: str = EVERY_DAY
    """The days of departure at the origin, from 1 for Monday to 7 for Sunday."""

    def flies_on(self, day: date) -> bool:
        """Returns whether it departs on this local day at the origin."""
        return str(day.isoweekday()) in self.weekdays

    def flight_on(self, day: date) -> NewFlight:
        """Returns the flight of a local day at the origin.

        If clocks go forward over its time, it departs as long after the change as its time is after the beginning of
        the skipped hour: 02:30 becomes 03:30. If its time occurs twice, it departs at the first one. Raises ValueError
        for an airport without a time zone.
        """
        zone = airports.zone(self.origin)
        if zone is None:
            raise ValueError(f"{self.flight_number}: {self.origin} is no airport")
        # `fold=0` follows both rules when the time is converted to UTC.
        departure_time = datetime.combine(day, self.departs, zone).astimezone(UTC)
        aircraft = AIRCRAFT[self.aircraft_type]
        return NewFlight(
            flight_id=f"{self.flight_number}-{day}",
            flight_number=self.flight_number,
            origin=self.origin,
            destination=self.destination,
            departure_time=departure_time,
            arrival_time=departure_time + self.block_time,
            # The date may be the next day: in Greenland the skipped hour is the last one of a day.
            departure_date=departure_time.astimezone(zone).date(),
            aircraft_type=self.aircraft_type,
            layout_id=aircraft.layout_id,
            fares=fares(self.aircraft_type, self.economy_cents),
            seats=aircraft.cabins,
            gate=self.gate,
        )


def departures(day: date) -> list[NewFlight]:
    """Returns the flights that depart on this local day at their origin.

    They are ordered by departure, then by id.
    """
    flights = [leg.flight_on(day) for leg in legs() if leg.flies_on(day)]
    return sorted(flights, key=lambda flight: (flight.departure_time, flight.flight_id))


@cache
def legs() -> Sequence[Leg]:
    """Returns every line of the schedule; reads the file once per process."""
    return tuple(leg for rotation in json.loads(_text())["rotations"] for leg in _there_and_back(rotation))


@cache
def edition() -> str:
    """Returns the edition of the schedule: a digest of its file."""
    return hashlib.sha256(_text().encode()).hexdigest()[:16]


def _text() -> str:
    return files("flight_service").joinpath("schedule.json").read_text(encoding="utf-8")


def _there_and_back(rotation: Mapping[str, Any]) -> Iterator[Leg]:
    there, back = rotation["route"]
    for n, (origin, destination) in enumerate(((there, back), (back, there))):
        yield Leg(
            flight_number=rotation["flights"][n],
            origin=origin,
            destination=destination,
            departs=time.fromisoformat(rotation["departs"][n]),
            block_time=timedelta(minutes=rotation["minutes"][n]),
            aircraft_type=rotation["aircraft"],
            gate=rotation["gates"][n],
            economy_cents=rotation["economy_cents"],
            weekdays=rotation["days"][n] if "days" in rotation else EVERY_DAY,
        )
