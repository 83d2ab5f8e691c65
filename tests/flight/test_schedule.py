"""The schedule file, and the flights that it gives on any day."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib.resources import files
from itertools import pairwise
from math import acos, cos, radians, sin
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flight_service import schedule
from flight_service.aircraft import AIRCRAFT
from flight_service.flights import NewFlight
from flight_service.schedule import Leg
from operations.demo.airline import TIMETABLE
from services import airports
from services.airports import Airport

# The weekdays of 2082 are those of 2026, and the clocks change by today's rules. No test depends on the day of the run.
FIRST_DAY: Final = date(2082, 11, 1)
YEAR: Final = [FIRST_DAY + timedelta(days=n) for n in range(365)]
AFTER_YEAR: Final = FIRST_DAY + timedelta(days=365)
EARTH_RADIUS_KM: Final = 6371
# Range and speed of each aircraft type. The speeds allow for head and tail winds.
RANGE_KM: Final = {"AT72": 1_100, "E190": 2_700, "A320": 4_600, "B738": 4_800, "A321": 6_300, "B789": 14_000}
SPEED_KMH: Final = {"AT72": (380, 560), "B789": (780, 1000)}
JET_SPEED_KMH: Final = (580, 1000)
# Time for taxi, take-off, climb and approach, which cover little distance.
GROUND_TIME: Final = timedelta(minutes=20)
# A passenger who books now must still be able to check in.
SOONEST: Final = timedelta(minutes=70)
DAY: Final = timedelta(hours=24)
SHORTEST_CONNECTION, LONGEST_CONNECTION = timedelta(minutes=45), timedelta(hours=8)


def leg(origin: str, departs: str, *, destination: str = "LIS") -> Leg:
    """Returns a daily flight number."""
    block_time = timedelta(hours=3)
    return Leg("SH9999", origin, destination, time.fromisoformat(departs), block_time, "A320", "1", economy_cents=9900)


def airport(iata: str) -> Airport:
    """Returns an airport; fails if it is unknown."""
    found = airports.find(iata)
    assert found is not None, iata
    return found


@cache
def distance_km(origin: str, destination: str) -> float:
    """Returns the great-circle distance."""
    here, there = airport(origin), airport(destination)
    a, b = radians(here.latitude), radians(there.latitude)
    between = radians(there.longitude - here.longitude)
    return EARTH_RADIUS_KM * acos(sin(a) * sin(b) + cos(a) * cos(b) * cos(between))


def local(moment: datetime, iata: str) -> datetime:
    """Returns the local time at an airport, without a zone."""
    return moment.astimezone(airport(iata).zone).replace(tzinfo=None)


@cache
def clock_changes() -> list[date]:
    """Returns the days of the year on which clocks change at any of the airports."""
    zones = {airport(each.origin).zone for each in schedule.legs()}
    offsets = [{zone: datetime.combine(day, time(), zone).utcoffset() for zone in zones} for day in (*YEAR, AFTER_YEAR)]
    return [day for day, (before, after) in zip(YEAR, pairwise(offsets), strict=True) if before != after]


@cache
def days_that_differ() -> list[date]:
    """Returns an ordinary week, and the days before, of and after each clock change."""
    around = {day + timedelta(days=n) for day in clock_changes() for n in (-1, 0, 1)}
    return sorted({*YEAR[14:21], *around})


def flight_of(flight_number: str, day: date) -> NewFlight:
    """Returns the flight with this number on a day."""
    (found,) = (flight for flight in schedule.departures(day) if flight.flight_number == flight_number)
    return found


# The file.


def test_every_leg_satisfies_the_contract() -> None:
    for each in schedule.legs():
        assert each.aircraft_type in AIRCRAFT
        assert airport(each.origin) != airport(each.destination)
        assert re.fullmatch("SH[1-9][0-9]{3}", each.flight_number)
        # CreateFlight accepts this format.
        assert re.fullmatch("[A-Z]{0,2}[0-9]{0,3}[A-Z]?", each.gate)
        assert each.weekdays
        assert each.weekdays == "".join(sorted(set(each.weekdays) & set(schedule.EVERY_DAY)))


def test_flight_numbers_are_unique() -> None:
    numbers = Counter(each.flight_number for each in schedule.legs())
    assert set(numbers.values()) == {1}
    assert not set(numbers) & set(TIMETABLE)


def test_a_file_has_a_line_for_each_rotation() -> None:
    text = files("flight_service").joinpath("schedule.json").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if '"route"' in line]) == len(schedule.legs()) / 2
    for rotation in json.loads(text)["rotations"]:
        known = {"flights", "route", "aircraft", "departs", "minutes", "gates", "economy_cents", "days"}
        assert set(rotation) | {"days"} == known
        for pair in known - {"aircraft", "economy_cents", "days"}:
            assert len(rotation[pair]) == 2
        assert len(rotation.get("days", ("", ""))) == 2


def test_the_airline_serves_every_continent() -> None:
    touched = {each.origin for each in schedule.legs()}
    assert len(touched) >= 40
    regions = {airport(iata).zone.key.partition("/")[0] for iata in touched}
    assert regions >= {"Africa", "America", "Asia", "Australia", "Europe", "Indian", "Pacific"}
    # Hubs are airports with at least 12 destinations.
    places = Counter(origin for origin, _ in {(each.origin, each.destination) for each in schedule.legs()})
    assert len([iata for iata, count in places.items() if count >= 12]) >= 3


def test_every_outbound_leg_has_a_return_leg() -> None:
    ways = Counter((each.origin, each.destination) for each in schedule.legs())
    assert all(count == ways[(destination, origin)] for (origin, destination), count in ways.items())


def test_block_times_are_plausible() -> None:
    for each in schedule.legs():
        km = distance_km(each.origin, each.destination)
        assert km <= RANGE_KM[each.aircraft_type], each
        slowest, fastest = SPEED_KMH.get(each.aircraft_type, JET_SPEED_KMH)
        hours = (each.block_time - GROUND_TIME).total_seconds() / 3600
        # Below 500 km a flight consists of climb and approach, and its speed means little.
        assert km < 500 or slowest <= km / hours <= fastest, (each, km / hours)
        assert hours > 0.3
        assert each.block_time < DAY


def test_fares_fit_the_distance() -> None:
    for each in schedule.legs():
        km = distance_km(each.origin, each.destination)
        assert each.economy_cents % 100 == 0
        assert 5 <= each.economy_cents / km <= 25 or km < 500, each
        assert 2_900 <= each.economy_cents <= 150_000


def test_an_aircraft_can_always_fly_back() -> None:
    """The next departure back leaves 20 minutes on the ground, all year.

    Also when the clocks change at either end.
    """
    legs = schedule.legs()
    for there, back in zip(legs[::2], legs[1::2], strict=True):
        assert (back.origin, back.destination) == (there.destination, there.origin)
        for day in (each for each in days_that_differ() if there.flies_on(each)):
            arrival = there.flight_on(day).arrival_time
            days = (day + timedelta(days=n) for n in range(-1, 5))
            returns = [back.flight_on(each).departure_time for each in days if back.flies_on(each)]
            ready = min(departure for departure in returns if departure >= arrival + timedelta(minutes=20))
            assert ready - arrival < timedelta(days=4)


# The days.


def test_clocks_change_on_the_tested_days() -> None:
    assert len(clock_changes()) >= 10
    assert {day.isoweekday() for day in days_that_differ()} == set(range(1, 8))


def test_every_flight_departs_at_its_local_time() -> None:
    seen: set[str] = set()
    by_number = {each.flight_number: each for each in schedule.legs()}
    for day in days_that_differ():
        flights = schedule.departures(day)
        assert len(flights) >= 300
        assert all(before.departure_time <= after.departure_time for before, after in pairwise(flights))
        for flight in flights:
            planned = by_number[flight.flight_number]
            assert flight.flight_id == f"{planned.flight_number}-{day.isoformat()}"
            assert flight.flight_id not in seen
            seen.add(flight.flight_id)
            assert day.isoweekday() in map(int, planned.weekdays)
            assert flight.departure_date == day
            assert flight.departure_time.tzinfo is UTC
            assert timedelta(0) < flight.arrival_time - flight.departure_time == planned.block_time <= DAY
            shown = local(flight.departure_time, flight.origin)
            assert shown.date() == day
            assert shown.time() == planned.departs or not exists(day, planned)
            assert flight.seats == AIRCRAFT[flight.aircraft_type].cabins
            assert flight.fares["ECONOMY"] == planned.economy_cents


def exists(day: date, planned: Leg) -> bool:
    """Returns whether the local time of departure exists on that day."""
    asked = datetime.combine(day, planned.departs)
    through_utc = asked.replace(tzinfo=airport(planned.origin).zone).astimezone(UTC)
    return local(through_utc, planned.origin) == asked


def test_a_days_flights_never_change() -> None:
    assert schedule.departures(FIRST_DAY) == schedule.departures(FIRST_DAY)
    assert re.fullmatch("[0-9a-f]{16}", schedule.edition())


def test_some_flights_depart_on_some_weekdays_only() -> None:
    some = [each for each in schedule.legs() if each.weekdays != schedule.EVERY_DAY]
    assert some
    flown = {day: {flight.flight_number for flight in schedule.departures(day)} for day in YEAR[:14]}
    for each in some:
        assert {str(day.isoweekday()) for day in YEAR if each.flies_on(day)} == set(each.weekdays)
        for day, numbers in flown.items():
            assert (each.flight_number in numbers) == each.flies_on(day)


def test_a_flight_over_midnight_arrives_on_the_next_day() -> None:
    overnight = flight_of("SH1042", date(2082, 12, 1))
    assert (overnight.origin, overnight.destination) == ("LIS", "DSS")
    assert str(local(overnight.departure_time, "LIS")) == "2082-12-01 22:50:00"
    assert str(local(overnight.arrival_time, "DSS")) == "2082-12-02 02:50:00"


@pytest.mark.parametrize(
    ("flight_number", "ends", "departs", "arrives"),
    [
        # Eastward over the date line, a flight arrives before its local time of departure, or even on the day before.
        ("SH5018", ("SYD", "LAX"), "2082-12-01T11:20", "2082-12-01T05:55"),
        ("SH5030", ("AKL", "HNL"), "2082-12-01T23:30", "2082-12-01T08:55"),
        ("SH5028", ("AKL", "RAR"), "2082-12-01T08:30", "2082-11-30T13:35"),
        # Westward, a flight arrives on a later day.
        ("SH5019", ("LAX", "SYD"), "2082-12-01T11:05", "2082-12-02T20:50"),
        ("SH6030", ("LAX", "NRT"), "2082-12-01T12:05", "2082-12-02T15:55"),
    ],
)
def test_a_flight_over_the_date_line_has_local_dates(
    flight_number: str, ends: tuple[str, str], departs: str, arrives: str
) -> None:
    flight = flight_of(flight_number, date(2082, 12, 1))
    assert (flight.origin, flight.destination) == ends
    assert local(flight.departure_time, flight.origin).isoformat(timespec="minutes") == departs
    assert local(flight.arrival_time, flight.destination).isoformat(timespec="minutes") == arrives


@pytest.mark.parametrize(
    ("origin", "day", "departs", "expected"),
    [
        # New York, 8 March 2082: 02:00 becomes 03:00.
        ("JFK", "2082-03-08", "01:59", "2082-03-08T01:59-05:00"),
        ("JFK", "2082-03-08", "02:00", "2082-03-08T03:00-04:00"),
        ("JFK", "2082-03-08", "02:30", "2082-03-08T03:30-04:00"),
        ("JFK", "2082-03-08", "03:00", "2082-03-08T03:00-04:00"),
        # 1 November 2082: 02:00 becomes 01:00 again.
        ("JFK", "2082-11-01", "00:59", "2082-11-01T00:59-04:00"),
        ("JFK", "2082-11-01", "01:30", "2082-11-01T01:30-04:00"),
        ("JFK", "2082-11-01", "02:00", "2082-11-01T02:00-05:00"),
        # In the south the seasons are reversed, and Lord Howe Island changes by half an hour.
        ("SYD", "2082-10-04", "02:30", "2082-10-04T03:30+11:00"),
        ("SYD", "2082-04-05", "02:30", "2082-04-05T02:30+11:00"),
        ("LDH", "2082-10-04", "02:10", "2082-10-04T02:40+11:00"),
        # In Cairo the first hour of a day is skipped, and the last hour of a day occurs twice.
        ("CAI", "2082-04-24", "00:35", "2082-04-24T01:35+03:00"),
        ("CAI", "2082-10-29", "23:50", "2082-10-29T23:50+03:00"),
        # In Greenland the last hour of a day is skipped: a flight of that hour departs on the next day.
        ("GOH", "2082-03-28", "23:30", "2082-03-29T00:30-01:00"),
    ],
)
def test_a_flight_during_a_clock_change_has_correct_times(origin: str, day: str, departs: str, expected: str) -> None:
    flight = leg(origin, departs).flight_on(date.fromisoformat(day))
    shown = flight.departure_time.astimezone(airport(origin).zone)
    assert shown.isoformat(timespec="minutes") == expected
    assert flight.departure_date == shown.date()
    assert flight.flight_id == f"SH9999-{day}"


def test_the_schedule_has_flights_during_clock_changes() -> None:
    forward, back = flight_of("SH7026", date(2082, 4, 24)), flight_of("SH3003", date(2082, 10, 29))
    assert forward.origin == back.origin == "CAI"
    assert str(local(forward.departure_time, "CAI")) == "2082-04-24 01:35:00"
    assert back.departure_time == datetime(2082, 10, 29, 20, 50, tzinfo=UTC)


@given(
    st.sampled_from(["LIS", "JFK", "SYD", "LDH", "CAI", "GOH", "SCL", "KTM", "APW", "BEY", "HNL"]),
    st.dates(date(2082, 1, 1), date(2092, 12, 31)),
    st.times().map(lambda moment: moment.replace(second=0, microsecond=0)),
)
def test_local_times_are_correct_for_any_day_and_place(origin: str, day: date, departs: time) -> None:
    asked = datetime.combine(day, departs)
    departure = leg(origin, departs.isoformat()).flight_on(day).departure_time
    # All moments at which the local clocks show this time, for every offset from UTC.
    away = (timedelta(minutes=15 * quarters) for quarters in range(-12 * 4, 14 * 4 + 1))
    moments = [moment for each in away if local(moment := asked.replace(tzinfo=UTC) - each, origin) == asked]
    if moments:
        assert departure == min(moments)
    else:
        # The time is moved forward, by at most one hour.
        assert timedelta(0) < local(departure, origin) - asked <= timedelta(hours=1)


def test_an_unknown_airport_in_the_file_is_an_error() -> None:
    with pytest.raises(ValueError, match="SH9999: XXX is no airport"):
        leg("XXX", "10:00").flight_on(FIRST_DAY)


# Connections for passengers.

# Days before, on and after clock changes in Europe, America, Australia and Egypt, and two days without a clock change.
LOOKED_AT: Final = [
    *("2082-03-07", "2082-03-08", "2082-03-28", "2082-03-29", "2082-04-04", "2082-04-05", "2082-04-23"),
    *("2082-10-04", "2082-10-24", "2082-10-25", "2082-11-01", "2082-12-01", "2082-12-25", "2083-02-28"),
]


@pytest.mark.parametrize("day", LOOKED_AT)
def test_a_connection_within_24_hours_is_always_bookable(day: str) -> None:
    midnight = datetime.combine(date.fromisoformat(day), time(), UTC)
    near = [each for n in range(-1, 3) for each in schedule.departures(midnight.date() + timedelta(days=n))]
    for hour in range(24):
        now = midnight + timedelta(hours=hour)
        soon = [each for each in near if now + SOONEST < each.departure_time < now + DAY]
        found = {(first.origin, second.destination) for first, second in connections(soon)}
        assert len(found) >= 50, now


def connections(flights: list[NewFlight]) -> Iterator[tuple[NewFlight, NewFlight]]:
    """Yields each pair of flights that is a connection to another airport."""
    leaving: defaultdict[str, list[NewFlight]] = defaultdict(list)
    for each in flights:
        leaving[each.origin].append(each)
    for first in flights:
        for second in leaving[first.destination]:
            wait = second.departure_time - first.arrival_time
            if second.destination != first.origin and SHORTEST_CONNECTION <= wait <= LONGEST_CONNECTION:
                yield first, second
