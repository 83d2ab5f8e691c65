"""The demo airline: its timetable and its passengers.

A flight determines its passengers: each call generates the same passengers for it, on any machine and any day.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final, TypeVar

from google.type import money_pb2
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb

from checkin_service.manifests.names import fold
from flight_service.aircraft import AIRCRAFT, AircraftType
from services.check_in_times import CheckInTimes
from services.proto import timestamp

Thing = TypeVar("Thing")

DAYS: Final = 5
_TIMES: Final = CheckInTimes()
# A flight that departs sooner than this is not added to the schedule.
ADDED_BEFORE: Final = timedelta(minutes=1)
# The demo passengers have no seats before they check in, so the seats look available to a booking. This high fare keeps
# customers from booking them, so that enough seats remain for the demo passengers.
FARE_USD: Final = 5000

STANDARD: Final = "STANDARD"
# The fares of each cabin, with the weight of each fare in the random choice.
FARES: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "BUSINESS": {"BUSINESS": 1},
        "PREMIUM_ECONOMY": {"FLEX": 1},
        "ECONOMY": {"BASIC": 2, STANDARD: 6, "FLEX": 2},
    }
)
# Codes of special services and how many of 1000 adults need each: wheelchair on the ramp, on the stairs, in the cabin;
# blind; deaf; meet and assist.
ASSISTANCE: Final = {"": 955, "WCHR": 20, "WCHS": 8, "WCHC": 3, "BLND": 5, "DEAF": 4, "MAAS": 5}
# Adults, children and lap infants of a booking, and how many of 100 bookings in economy have that composition.
PARTIES: Final = {
    (1, 0, 0): 60,
    (2, 0, 0): 18,
    (3, 0, 0): 2,
    (4, 0, 0): 1,
    (2, 1, 0): 4,
    (2, 2, 0): 4,
    (2, 0, 1): 3,
    (2, 1, 1): 2,
    (2, 2, 2): 1,
    (1, 1, 0): 2,
    (1, 0, 1): 2,
    # An unaccompanied child.
    (0, 1, 0): 1,
}
GROWN_UP_PARTIES: Final = {(1, 0, 0): 70, (2, 0, 0): 30}
# A record locator begins with a letter and has no 0, 1, I, L or O.
LOCATOR_LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"
LOCATOR_CHARACTERS: Final = "23456789" + LOCATOR_LETTERS
LOCATORS: Final = len(LOCATOR_LETTERS) * len(LOCATOR_CHARACTERS) ** 5
# A prime that is no factor of LOCATORS: a multiplication by it, modulo LOCATORS, makes consecutive numbers look random
# and never maps two of them to one locator.
SCATTER: Final = 414_507_281
PARTIES_PER_FLIGHT: Final = 512


@dataclass(frozen=True, slots=True)
class Service:
    """A line of the timetable: a flight that departs every day."""

    flight_number: str
    aircraft_type: str
    origin: str
    destination: str
    departs: time
    """In UTC. The local date at the origin is the same date."""
    block_time: timedelta
    gate: str
    onward: str
    """The flight number to which some of its passengers connect; empty if none do."""

    @property
    def aircraft(self) -> AircraftType:
        """Its aircraft type."""
        return AIRCRAFT[self.aircraft_type]


# One flight departs every four hours. Check-in is open for 23 hours, so it is always open for five or six flights.
TIMETABLE: Final = {
    service.flight_number: service
    for service in (
        Service("SH101", "A320", "FRA", "LIS", time(18, 30), timedelta(minutes=190), "A24", onward="SH202"),
        Service("SH202", "B738", "LIS", "ATH", time(6, 30), timedelta(minutes=245), "41", onward="SH404"),
        Service("SH303", "A321", "JFK", "LIS", time(22, 30), timedelta(minutes=400), "B32", onward="SH202"),
        Service("SH404", "E190", "ATH", "VIE", time(14, 30), timedelta(minutes=140), "B7", onward="SH505"),
        Service("SH505", "AT72", "VIE", "LJU", time(10, 30), timedelta(minutes=55), "F12", onward=""),
        Service("SH606", "B789", "SIN", "FRA", time(2, 30), timedelta(minutes=800), "C21", onward="SH101"),
    )
}
ONE_OF_SO_MANY_CONNECTS: Final = 14


@dataclass(frozen=True, slots=True)
class Flight:
    """A dated departure."""

    service: Service
    day: date

    @property
    def flight_id(self) -> str:
        """For example `SH101-2026-12-01`."""
        return f"{self.service.flight_number}-{self.day}"

    @property
    def departure_time(self) -> datetime:
        """The scheduled departure, in UTC."""
        return datetime.combine(self.day, self.service.departs, UTC)

    @property
    def arrival_time(self) -> datetime:
        """The scheduled arrival, in UTC."""
        return self.departure_time + self.service.block_time

    @property
    def onward(self) -> Flight | None:
        """The flight of its connecting passengers: the first that departs after arrival."""
        service = TIMETABLE.get(self.service.onward)
        if service is None:
            return None
        same_day = Flight(service, self.arrival_time.date())
        if same_day.departure_time > self.arrival_time:
            return same_day
        return Flight(service, same_day.day + timedelta(days=1))

    def check_in_is_open(self, now: datetime, *, for_another: timedelta = timedelta(0)) -> bool:
        """Returns True if check-in is open now and stays open longer than `for_another`."""
        opens = self.departure_time - _TIMES.opens_before
        closes = self.departure_time - _TIMES.closes_before
        return opens <= now and now + for_another < closes


@dataclass(frozen=True, slots=True)
class Party:
    """The passengers of one record locator, on one flight or on two that connect."""

    passengers: Sequence[pb.ManifestPassenger]
    connects: bool


def flights(first_day: date, days: int = DAYS) -> list[Flight]:
    """Returns the flights of `days` UTC dates from `first_day` on."""
    return [Flight(service, first_day + timedelta(days=day)) for day in range(days) for service in TIMETABLE.values()]


def flights_to_come(now: datetime) -> list[Flight]:
    """Returns the flights of the next DAYS days that do not depart within ADDED_BEFORE."""
    return [flight for flight in flights(now.date()) if flight.departure_time > now + ADDED_BEFORE]


def schedule(flight: Flight) -> flight_pb.CreateFlightRequest:
    """Returns the request that adds the flight, with its fare, to the schedule."""
    service = flight.service
    return flight_pb.CreateFlightRequest(
        flight_id=flight.flight_id,
        flight_number=service.flight_number,
        origin=service.origin,
        destination=service.destination,
        departure_time=timestamp(flight.departure_time),
        arrival_time=timestamp(flight.arrival_time),
        aircraft_type=service.aircraft_type,
        price=money_pb2.Money(currency_code="USD", units=FARE_USD),
        gate=service.gate,
    )


def manifest(flight: Flight) -> pb.ImportManifestRequest:
    """Returns the request that imports the flight's facts and passengers."""
    service = flight.service
    return pb.ImportManifestRequest(
        flight_id=flight.flight_id,
        flight=pb.FlightFacts(
            flight_number=service.flight_number,
            origin=service.origin,
            destination=service.destination,
            departure_time=timestamp(flight.departure_time),
            arrival_time=timestamp(flight.arrival_time),
            gate=service.gate,
        ),
        passengers=[passenger for party in parties(flight) for passenger in party.passengers],
    )


def parties(flight: Flight) -> list[Party]:
    """Returns the parties that begin their trip here, then those that connect to it."""
    return [*_beginning(flight), *_connecting(flight)]


def alone(flight: Flight) -> list[pb.ManifestPassenger]:
    """Returns the adults who travel alone in economy, on this flight only.

    They have the STANDARD fare and need no special service.
    """
    return [
        passenger
        for party in parties(flight)
        for passenger in party.passengers
        if len(party.passengers) == 1
        and not party.connects
        and passenger.type == pb.ADULT
        and passenger.cabin == pb.ECONOMY
        and passenger.fare == STANDARD
        and not passenger.special_services
    ]


@lru_cache(maxsize=len(TIMETABLE) * (DAYS + 2))
def _beginning(flight: Flight) -> tuple[Party, ...]:
    """Draws the parties that begin their trip here: they fill 55 to 63 % of each cabin."""
    # The flight id is the seed, so that each call draws the same people: `random` hashes a string alike in every
    # interpreter. No secret depends on it.
    dice = random.Random(flight.flight_id)  # noqa: S311
    found: list[Party] = []
    for cabin, capacity in flight.service.aircraft.cabins.items():
        wanted = round(capacity * dice.uniform(0.55, 0.63))
        while wanted > 0:
            shape = _drawn(dice, PARTIES if cabin == "ECONOMY" else GROWN_UP_PARTIES)
            adults, children, _ = shape
            if adults + children > wanted:
                shape = (1, 0, 0)
            party = _party(dice, _locator(flight, len(found)), cabin, shape)
            found.append(party if flight.onward else replace(party, connects=False))
            wanted -= shape[0] + shape[1]
    return tuple(found)


def _connecting(flight: Flight) -> Iterator[Party]:
    """Yields the parties that connect from another flight.

    They are in economy, which every aircraft has.
    """
    for service in TIMETABLE.values():
        if service.onward != flight.service.flight_number:
            continue
        # The first flight arrives on its departure date or the next, and the second departs within a day of that.
        for days in range(3):
            feeder = Flight(service, flight.day - timedelta(days=days))
            if feeder.onward == flight:
                yield from (party for party in _beginning(feeder) if party.connects)


def _party(dice: random.Random, pnr: str, cabin: str, shape: tuple[int, int, int]) -> Party:
    adults, children, infants = shape
    names = dice.choice(_names())
    last_name = dice.choice(names["last"])
    given_names = dice.sample(names["given"], adults + children + infants)
    fare = _drawn(dice, FARES[cabin])
    types = [pb.ADULT] * adults + [pb.CHILD] * children + [pb.INFANT] * infants
    passengers = [
        pb.ManifestPassenger(
            passenger_id=f"{pnr}-{number}",
            pnr=pnr,
            given_name=given_name,
            # More than two adults are friends, each with a last name of their own. Other parties are families.
            last_name=dice.choice(names["last"]) if adults > 2 else last_name,
            type=kind,
            cabin=pb.Cabin.Value(cabin),
            fare=fare,
            special_services=_needs(dice, kind, is_alone=sum(shape) == 1),
        )
        for number, (kind, given_name) in enumerate(zip(types, given_names, strict=True), start=1)
    ]
    for adult, infant in zip(passengers, passengers[adults + children :], strict=False):
        adult.special_services.append("INFT")
        infant.accompanying_passenger_id = adult.passenger_id
    for passenger in passengers:
        passenger.contact_email = _email(passenger if passenger.type == pb.ADULT else passengers[0])
    connects = adults > 0 and cabin == "ECONOMY" and dice.randrange(ONE_OF_SO_MANY_CONNECTS) == 0
    return Party(passengers, connects)


@cache
def _names() -> list[dict[str, list[str]]]:
    """Reads groups of given names and last names that go together."""
    found: list[dict[str, list[str]]] = json.loads(
        files("operations.demo").joinpath("passenger_names.json").read_text(encoding="utf-8")
    )
    return found


def _needs(dice: random.Random, kind: pb.PassengerType.ValueType, *, is_alone: bool) -> list[str]:
    if kind == pb.CHILD and is_alone:
        return ["UMNR"]
    need = _drawn(dice, ASSISTANCE) if kind == pb.ADULT else ""
    return [need] if need else []


def _email(passenger: pb.ManifestPassenger) -> str:
    return f"{fold(passenger.given_name)}.{fold(passenger.last_name)}@passengers.example".lower()


def _drawn(dice: random.Random, weights: Mapping[Thing, int]) -> Thing:
    return dice.choices(list(weights), list(weights.values()))[0]


def _locator(flight: Flight, number: int) -> str:
    """Returns a record locator that looks random and that no other party has."""
    place = list(TIMETABLE).index(flight.service.flight_number)
    serial = (flight.day.toordinal() * len(TIMETABLE) + place) * PARTIES_PER_FLIGHT + number
    scattered = serial * SCATTER % LOCATORS
    characters = []
    for _ in range(5):
        scattered, index = divmod(scattered, len(LOCATOR_CHARACTERS))
        characters.append(LOCATOR_CHARACTERS[index])
    return LOCATOR_LETTERS[scattered] + "".join(reversed(characters))
