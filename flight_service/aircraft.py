"""What the airline flies: the seats of each type, and what they cost beside the lowest fare. Read from `aircraft.json`.

The seat service has the cabins seat by seat; here they are only counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class AircraftType:
    """A type of aircraft, such as `A320`, in the one configuration that the airline has."""

    name: str
    layout_id: str
    """The seat service's name of the configuration."""
    cabins: Mapping[str, int]
    """Seats by cabin, from nose to tail."""


_DATA: Final = json.loads(files("flight_service").joinpath("aircraft.json").read_text(encoding="utf-8"))
_FARE_PERCENT: Final[Mapping[str, int]] = MappingProxyType(_DATA["fare_percent"])
AIRCRAFT: Final[Mapping[str, AircraftType]] = MappingProxyType(
    {
        name: AircraftType(name, facts["layout_id"], MappingProxyType(facts["cabins"]))
        for name, facts in _DATA["aircraft"].items()
    }
)


def fares(aircraft_type: str, economy_cents: int) -> Mapping[str, int]:
    """Returns the fare of each cabin in whole cents, from nose to tail, given that of economy. Half a cent counts."""
    return {cabin: (economy_cents * _FARE_PERCENT[cabin] + 50) // 100 for cabin in AIRCRAFT[aircraft_type].cabins}
