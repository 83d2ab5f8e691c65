"""FLT-2: the search finds all itineraries and no others.

The tests compare it with a search that tries all flights for each leg.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skyhigh.flight.v1.flight_service_pb2 import SearchFlightsRequest

from flight_service import itineraries
from flight_service.flights import NewFlight
from flight_service.itineraries import Connections, Market
from flight_service.ranking import rank
from flight_service.timetable import Day, Timetable
from tests.flight.airline import LONGEST, SHORTEST, after, flight, ids, standing, ways

CONNECTIONS = Connections(SHORTEST, LONGEST)
# Zones from +14:00 to -11:00, both sides of the date line, one zone with a half hour, and two airports in one zone.
AIRPORTS = ("CXI", "AKL", "APW", "PPG", "HNL", "LAX", "BOM", "LHR", "CDG")
# A year in the far future: these tests read no clock.
NEW_YEAR = datetime(2082, 12, 31, tzinfo=UTC)
DAY = date(2082, 12, 31)


def timetable(flights: Sequence[NewFlight]) -> Timetable:
    """Returns the flights of the days that a search reads, as the database does."""
    first, last = CONNECTIONS.days_ahead(DAY)
    chosen = sorted(
        (standing(each) for each in flights if first <= each.departure_time.date() <= last),
        key=lambda each: (each.departure_time, each.flight_id),
    )
    days = sorted({each.departure_time.date() for each in chosen})
    by_day = [Day(day, 1, [each for each in chosen if each.departure_time.date() == day]) for day in days]
    return Timetable(NEW_YEAR, 1, by_day)


def found(flights: Sequence[NewFlight], source: str, destination: str) -> set[str]:
    routes = itineraries.routes(timetable(flights), Market(source, destination, DAY), CONNECTIONS)
    named = [itineraries.itinerary_id(route) for route in routes]
    assert len(set(named)) == len(named)
    return set(named)


@st.composite
def schedules(draw: st.DrawFn) -> list[NewFlight]:
    """Draws flights around a midnight in several time zones.

    Many connections have exactly the shortest or the longest time.
    """
    some = draw(st.lists(st.sampled_from(AIRPORTS), min_size=3, max_size=5, unique=True))
    pairs = st.sampled_from([(one, other) for one in some for other in some if one != other])
    # Times in quarters of an hour make connections of exactly 45 minutes or 8 hours common.
    quarters = st.integers(-4 * 30, 4 * 60)
    lengths = st.sampled_from([45, 60, 120, 435, 600, 1200, 1440])
    return [
        flight(*pair, NEW_YEAR + timedelta(minutes=15 * quarter + draw(st.sampled_from([0, 0, 0, 1]))), length)
        for pair, quarter, length in draw(st.lists(st.tuples(pairs, quarters, lengths), min_size=1, max_size=40))
    ]


@settings(max_examples=300, deadline=None)
@given(schedules(), st.data())
def test_exactly_the_valid_connections_are_found(flights: list[NewFlight], data: st.DataObject) -> None:
    some = sorted({each.origin for each in flights} | {each.destination for each in flights})
    source = data.draw(st.sampled_from(some))
    destination = data.draw(st.sampled_from([airport for airport in some if airport != source]))
    assert found(flights, source, destination) == ids(ways(flights, source, destination, DAY))


@pytest.mark.parametrize(
    ("wait", "connects"),
    [
        (SHORTEST - timedelta(microseconds=1), False),
        (SHORTEST, True),
        (LONGEST, True),
        (LONGEST + timedelta(microseconds=1), False),
    ],
)
def test_the_limits_of_the_connection_time_are_inclusive(wait: timedelta, connects: bool) -> None:
    first = flight("LHR", "CDG", NEW_YEAR)
    second = after(first, "BOM", wait)
    assert bool(found([first, second], "LHR", "BOM")) == connects
    assert itineraries.is_journey((standing(first), standing(second)), CONNECTIONS) == connects


def test_no_airport_occurs_twice() -> None:
    out = flight("LHR", "CDG", NEW_YEAR)
    back = after(out, "LHR", SHORTEST)
    again = after(back, "BOM", SHORTEST)
    assert found([out, back, again], "LHR", "BOM") == ids([(again,)])
    beyond = after(out, "BOM", SHORTEST)
    home = after(beyond, "CDG", SHORTEST)
    assert found([out, beyond, home], "LHR", "CDG") == ids([(out,)])


def test_an_itinerary_has_at_most_four_flights() -> None:
    way = [flight("LHR", "CDG", NEW_YEAR)]
    for airport in ("BOM", "HNL", "LAX", "AKL"):
        way.append(after(way[-1], airport, SHORTEST))
    assert found(way, "LHR", "LAX") == ids([tuple(way[:4])])
    assert found(way, "LHR", "AKL") == set()


def test_the_date_is_local_at_the_first_airport() -> None:
    """In Kiritimati it is the 31st while it is the 30th in London."""
    eve = flight("CXI", "HNL", datetime(2082, 12, 31, 0, 0))  # noqa: DTZ001
    assert eve.departure_time == datetime(2082, 12, 30, 10, tzinfo=UTC)
    late = flight("CXI", "HNL", datetime(2082, 12, 31, 23, 59))  # noqa: DTZ001
    before = flight("CXI", "HNL", datetime(2082, 12, 30, 23, 59))  # noqa: DTZ001
    next_year = flight("CXI", "HNL", datetime(2083, 1, 1, 0, 0))  # noqa: DTZ001
    assert found([eve, late, before, next_year], "CXI", "HNL") == ids([(eve,), (late,)])


def test_an_arrival_across_the_date_line_may_be_earlier() -> None:
    out = flight("APW", "PPG", datetime(2082, 12, 31, 9, 0), 35)  # noqa: DTZ001
    assert out.departure_date == DAY
    onward = after(out, "HNL", SHORTEST, 320)
    # In Pago Pago it is still the 30th.
    assert onward.departure_date == date(2082, 12, 30)
    assert found([out, onward], "APW", "HNL") == ids([(out, onward)])


def test_the_longest_possible_itinerary_is_found() -> None:
    """Four flights of a day each, with connections of 8 hours.

    The first flight departs in the last minute of the search's day, in one of the last zones.
    """
    way = [flight("PPG", "CXI", datetime(2082, 12, 31, 23, 59), 24 * 60)]  # noqa: DTZ001
    for airport in ("LHR", "CDG", "BOM"):
        way.append(after(way[-1], airport, LONGEST, 24 * 60))
    assert found(way, "PPG", "BOM") == ids([tuple(way)])


def test_itineraries_are_sorted_with_defined_ties() -> None:
    def one(departure: int, length: int, cents: int, flight_id: str) -> NewFlight:
        moment = NEW_YEAR + timedelta(minutes=departure)
        return flight("LHR", "CDG", moment, length, cents=cents, flight_id=flight_id)

    flights = [one(60, 90, 5_000, "D"), one(0, 80, 5_000, "B"), one(30, 80, 5_000, "C"), one(0, 80, 5_000, "A")]
    flights += [one(10, 70, 9_000, "F"), one(5, 200, 4_000, "E")]
    routes = itineraries.routes(timetable(flights), Market("LHR", "CDG", DAY), CONNECTIONS)

    def order(sort: SearchFlightsRequest.Sort.ValueType) -> str:
        return "".join(each.route[0].flight_id for each in rank(routes, cabin="ECONOMY", sort=sort))

    assert order(SearchFlightsRequest.PRICE) == "EABCDF"
    assert order(SearchFlightsRequest.DURATION) == "FABCDE"
    assert order(SearchFlightsRequest.DEPARTURE) == "ABEFCD"
    assert rank(routes, cabin="FIRST", sort=SearchFlightsRequest.PRICE) == []
