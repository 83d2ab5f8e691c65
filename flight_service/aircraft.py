"""The airline's aircraft types: seats per cabin, and fares by cabin.

Read from `aircraft.json`. The seat service has each seat of a cabin; this module has only their number.
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
    """A type of aircraft, such as `A320`, in the airline's only configuration."""

    name: str
    layout_id: str
    """The id of the configuration in the seat service."""
    cabins: Mapping[str, int]
    """Number of seats by cabin, from nose to tail."""


_DATA: Final = json.loads(files("flight_service").joinpath("aircraft.json").read_text(encoding="utf-8"))
_FARE_PERCENT: Final[Mapping[str, int]] = MappingProxyType(_DATA["fare_percent"])
AIRCRAFT: Final[Mapping[str, AircraftType]] = MappingProxyType(
    {
        name: AircraftType(name, facts["layout_id"], MappingProxyType(facts["cabins"]))
        for name, facts in _DATA["aircraft"].items()
    }
)


def fares(aircraft_type: str, economy_cents: int) -> Mapping[str, int]:
    """Returns the fare of each cabin in cents, from nose to tail.

    It is a percentage of the economy fare; half a cent is rounded up.
    """
    return {cabin: (economy_cents * _FARE_PERCENT[cabin] + 50) // 100 for cabin in AIRCRAFT[aircraft_type].cabins}
