"""The airline that the clients of a run share.

It has flights, parties, and the ids that clients have received.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from tests.system.players import Actor

LOCATOR_LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"
LOCATOR_CHARACTERS: Final = "23456789" + LOCATOR_LETTERS
GIVEN_NAMES: Final = ("Ada", "Zoë", "Jan", "Mei", "Olu", "Ravi", "Inès", "Björn")
LAST_NAMES: Final = ("Alpha", "Lindqvist-Ågren", "O'Neil", "'t Hart", "Núñez", "Beta", "Col·lell", "Roe")
# Each leg connects to the next one; a party flies one or two of them.
ROUTE: Final = ("FRA", "LIS", "FNC", "JFK", "BOS")
REMEMBERED: Final = 300
# Some clients still use a flight that departed less than this time ago.
REMEMBERED_SECONDS: Final = 45.0
NO_SUCH_SEATS: Final = ("99A", "12I", "0A", "77Z")


@dataclass(slots=True)
class Flight:
    """A flight and what its clients know of it."""

    flight_id: str
    number: str
    origin: str
    destination: str
    aircraft: str
    departure: float
    """Unix time, by the clock that the database uses too."""
    arrival: float
    closes_before: int
    sold: bool
    """Whether it is in the schedule and for sale; otherwise only its manifest exists."""
    date: str = ""
    seats: list[str] = field(default_factory=list)
    business: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    """The seats that most clients choose."""
    cancelled: bool = False
    in_manifest: bool = False
    """Whether check-in has received the facts of the flight."""

    @property
    def seconds_left(self) -> float:
        """The time until its departure; negative after it."""
        return self.departure - time.time()

    def some_seat(self, dice: random.Random, cabin: str = "ECONOMY") -> str:
        """Draws a seat: mostly a popular one, sometimes any, seldom one that does not exist."""
        way = dice.random()
        if cabin == "BUSINESS" and self.business and way < 0.85:
            return dice.choice(self.business)
        if way < 0.8 and self.wanted:
            return dice.choice(self.wanted)
        if way < 0.97 and self.seats:
            return dice.choice(self.seats + self.business)
        return dice.choice(NO_SUCH_SEATS)


@dataclass(slots=True)
class Passenger:
    """A passenger and what its party knows of it."""

    passenger_id: str
    given_name: str
    last_name: str
    kind: str = "ADULT"
    cabin: str = "ECONOMY"
    lap_of: str = ""
    needs: tuple[str, ...] = ()


@dataclass(slots=True)
class Party:
    """The passengers of one locator, on one flight or more.

    A party remembers what it has learned from responses.
    """

    pnr: str
    passengers: list[Passenger]
    flights: list[Flight]
    booking_id: str = ""
    customer: Actor | None = None
    cancelled: bool = False
    sessions: list[Actor] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    checkins: dict[str, str] = field(default_factory=dict)
    """The state of each check-in by id."""
    entries: dict[str, str] = field(default_factory=dict)
    """The state of each waitlist entry by id."""
    intents: list[str] = field(default_factory=list)

    @property
    def last_name(self) -> str:
        """The last name for the party's login."""
        return self.passengers[0].last_name


@dataclass
class Airline:
    """The state that the clients of one run share."""

    run: str
    """A label in all names of the run, so that two runs on one stack use different names."""
    seed: int
    flights: dict[str, Flight] = field(default_factory=dict)
    parties: list[Party] = field(default_factory=list)
    heard: dict[str, deque[str]] = field(default_factory=dict)
    """The ids that any client has received, by kind. Other clients use them too."""
    ending: bool = False

    def __post_init__(self) -> None:
        self._names = random.Random(f"{self.seed}/{self.run}/names")
        self._pnrs: set[str] = set()
        self._flights = 0

    def flight_number(self) -> str:
        """Returns a flight number that no other flight of the run has."""
        self._flights += 1
        return f"SH{self._flights}"

    def locator(self) -> str:
        """Draws a locator that no other party of the run has."""
        while True:
            pnr = self._names.choice(LOCATOR_LETTERS) + "".join(self._names.choices(LOCATOR_CHARACTERS, k=5))
            if pnr not in self._pnrs:
                self._pnrs.add(pnr)
                return pnr

    def hear(self, kind: str, identifier: str) -> None:
        """Stores an id for clients that use the ids of others."""
        if identifier:
            self.heard.setdefault(kind, deque(maxlen=REMEMBERED)).append(identifier)

    def some_id(self, kind: str, dice: random.Random) -> str | None:
        """Draws an id of this kind that any client has received; None if there is none."""
        known = self.heard.get(kind)
        return dice.choice(known) if known else None

    def open_flights(self, *, sold: bool | None = None, seconds: float = 0) -> list[Flight]:
        """Returns the flights that depart more than so many seconds from now."""
        return [
            flight
            for flight in self.flights.values()
            if flight.seconds_left > seconds and flight.seats and sold in (None, flight.sold) and not flight.cancelled
        ]

    def known_flights(self) -> list[Flight]:
        """Returns the flights that have not departed, and those that departed recently.

        Includes cancelled ones.
        """
        return [each for each in self.flights.values() if each.seconds_left > -REMEMBERED_SECONDS and each.seats]

    def living_parties(self) -> list[Party]:
        """Returns the parties of known flights."""
        return [
            party for party in self.parties if any(each.seconds_left > -REMEMBERED_SECONDS for each in party.flights)
        ]

    def forget(self) -> None:
        """Removes the flights that departed long ago, and their parties."""
        for flight in list(self.flights.values()):
            if flight.seconds_left < -2 * REMEMBERED_SECONDS:
                del self.flights[flight.flight_id]
        self.parties = self.living_parties()


def timestamp(moment: float) -> Timestamp:
    """Converts Unix time to a message."""
    made = Timestamp()
    made.FromMilliseconds(round(moment * 1000))
    return made


def day_of(moment: float) -> str:
    """Returns the UTC date of a Unix time."""
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def new_people(dice: random.Random, pnr: str, *, business: bool = False) -> Iterator[Passenger]:
    """Draws the passengers of a party: mostly one adult, sometimes a family or friends."""
    shape = dice.choices(("A", "AA", "AC", "AI", "AAC", "AAII", "AAAAA", "C", "W"), (50, 12, 8, 10, 4, 3, 2, 2, 5))[0]
    last_name = dice.choice(LAST_NAMES)
    adults: list[str] = []
    needs = {"W": ("WCHR",), "A": ("INFT",)}
    for number, letter in enumerate(shape, start=1):
        passenger_id = f"{pnr}-{number}"
        yield Passenger(
            passenger_id,
            dice.choice(GIVEN_NAMES),
            last_name,
            kind={"C": "CHILD", "I": "INFANT"}.get(letter, "ADULT"),
            cabin="BUSINESS" if business else "ECONOMY",
            lap_of=adults[min(shape[:number].count("I"), len(adults)) - 1] if letter == "I" and adults else "",
            needs=needs.get(letter, ()) if letter == "W" or shape[:number].count("A") <= shape.count("I") else (),
        )
        if letter in "AW":
            adults.append(passenger_id)
