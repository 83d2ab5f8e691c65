"""SearchFlights: FLT-2 at the RPC."""

from __future__ import annotations

import os
import random
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import pytest
from skyhigh.flight.v1 import flight_service_pb2 as pb

from flight_service.flights import NewFlight
from tests.callers import refused
from tests.flight.airline import LONGEST, SHORTEST, Airline, after, flight, ids, itinerary_id, ways

Search = pb.SearchFlightsRequest
# SKYHIGH_TEST_ROUNDS raises the number of searches.
SEARCHES: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "250"))


def at(day: date, hour: int, minute: int = 0) -> datetime:
    """Returns a local time of the day."""
    return datetime.combine(day, time(hour, minute))


async def test_direct_flights_and_connections_are_complete(airline: Airline, day: date) -> None:
    direct = flight("LHR", "BOM", at(day, 9), 540, cents=45_050, gate="A12")
    first = flight("LHR", "CDG", at(day, 7), 75, cents=8_001)
    second = after(first, "BOM", SHORTEST, 525, cents=30_000, aircraft_type="A321")
    await airline.add(direct, first, second)
    await airline.count(second, ECONOMY=7, BUSINESS=2)

    answer = await airline.search("LHR", "BOM", day)
    cheap, dear = answer.itineraries
    assert (answer.total_size, answer.next_page_token) == (2, "")
    assert cheap.itinerary_id == itinerary_id(first, second)
    assert (cheap.type, cheap.hops, cheap.duration_minutes) == (pb.Itinerary.COMPUTED, 1, 75 + 45 + 525)
    assert (cheap.total_price.currency_code, cheap.total_price.units, cheap.total_price.nanos) == (
        "USD", 380, 10_000_000,
    )  # fmt: skip
    assert cheap.available_seats == 7
    assert (dear.type, dear.hops, dear.available_seats) == (pb.Itinerary.DIRECT, 0, 180)
    told = dear.flights[0]
    assert told == await airline.get(direct.flight_id)
    assert (told.flight_id, told.flight_number, told.gate) == (direct.flight_id, direct.flight_number, "A12")
    assert (told.origin_time_zone, told.destination_time_zone) == ("Europe/London", "Asia/Kolkata")
    assert told.departure_time.ToDatetime(UTC) == direct.departure_time
    assert (told.departure_date, told.layout_id, told.total_seats) == (str(day), "A320-180Y", 180)
    assert (told.price.units, told.price.nanos) == (450, 500_000_000)
    business, economy = cheap.flights[1].cabins
    assert [business.cabin, economy.cabin] == [pb.BUSINESS, pb.ECONOMY]
    assert [business.available_seats, economy.available_seats, cheap.flights[1].available_seats] == [2, 7, 9]
    assert cheap.flights[1].price == economy.price


async def test_every_flight_needs_seats_for_the_whole_party(airline: Airline, day: date) -> None:
    first = flight("LHR", "CDG", at(day, 7), aircraft_type="A321")
    second = after(first, "BOM", SHORTEST, aircraft_type="A321")
    no_business = after(first, "BOM", SHORTEST, aircraft_type="A320")
    await airline.add(first, second, no_business)
    await airline.count(first, ECONOMY=5, BUSINESS=3)
    await airline.count(second, ECONOMY=2, BUSINESS=9)
    both, one = ids([(first, second), (first, no_business)]), ids([(first, no_business)])
    assert await airline.found("LHR", "BOM", day) == both
    assert await airline.found("LHR", "BOM", day, seats=2) == both
    assert await airline.found("LHR", "BOM", day, seats=3) == one
    assert await airline.found("LHR", "BOM", day, seats=6) == set()
    assert await airline.found("LHR", "BOM", day, seats=3, cabin=pb.BUSINESS) == both - one
    (itinerary,) = await airline.search_all("LHR", "BOM", day, cabin=pb.BUSINESS)
    assert itinerary.available_seats == 3
    assert itinerary.total_price.units == 2 * 300
    assert await airline.found("LHR", "BOM", day, seats=4, cabin=pb.BUSINESS) == set()
    assert await airline.found("LHR", "BOM", day, cabin=pb.FIRST) == set()


async def test_the_number_of_connections_is_limited(airline: Airline, day: date) -> None:
    way = [flight("LHR", "CDG", at(day, 1))]
    for airport in ("FRA", "VIE", "ATH"):
        way.append(after(way[-1], airport, SHORTEST))
    two = (way[0], after(way[0], "VIE", SHORTEST), way[3])
    one = (way[0], after(way[0], "ATH", SHORTEST))
    direct = flight("LHR", "ATH", at(day, 20))
    await airline.add(*way, two[1], one[1], direct)
    everything = [(direct,), one, two, tuple(way)]
    assert await airline.found("LHR", "ATH", day) == ids(everything)
    assert await airline.found("LHR", "ATH", day, max_hops=3) == ids(everything)
    assert await airline.found("LHR", "ATH", day, max_hops=2) == ids(everything[:3])
    assert await airline.found("LHR", "ATH", day, max_hops=1) == ids(everything[:2])
    assert await airline.found("LHR", "ATH", day, direct_only=True) == ids(everything[:1])


async def test_flights_whose_sale_ended_are_not_found(airline: Airline) -> None:
    """A flight is sold until its check-in closes, by default 60 min before departure."""
    now = datetime.now(UTC)
    soon = flight("KEF", "OSL", now + timedelta(minutes=59))
    later = flight("KEF", "OSL", now + timedelta(minutes=62))
    early_end = flight("KEF", "OSL", now + timedelta(hours=3), check_in_closes_before=timedelta(hours=4))
    late_end = flight("KEF", "OSL", now + timedelta(minutes=30), check_in_closes_before=timedelta(minutes=20))
    onward = after(later, "CPH", timedelta(hours=2), check_in_closes_before=timedelta(hours=12))
    await airline.add(soon, later, early_end, late_end, onward)
    days = {now.date(), now.date() + timedelta(days=1)}
    sold = {each for day in days for each in await airline.found("KEF", "OSL", day)}
    assert sold == ids([(later,), (late_end,)])
    assert not any([await airline.found("KEF", "CPH", day) for day in days])


async def test_results_are_sorted_as_requested(airline: Airline, day: date) -> None:
    slow = flight("LHR", "CDG", at(day, 8), 120, cents=5_000)
    dear = flight("LHR", "CDG", at(day, 9), 60, cents=9_000)
    early = flight("LHR", "CDG", at(day, 6), 90, cents=9_000)
    await airline.add(slow, dear, early)
    for sort, order in {
        Search.SORT_UNSPECIFIED: [slow, dear, early],
        Search.PRICE: [slow, dear, early],
        Search.DURATION: [dear, early, slow],
        Search.DEPARTURE: [early, slow, dear],
    }.items():
        answer = await airline.search("LHR", "CDG", day, sort=sort)
        assert [each.itinerary_id for each in answer.itineraries] == [itinerary_id(each) for each in order]


async def test_pages_have_no_gap_or_repeat_during_changes(airline: Airline, day: date) -> None:
    many = [flight("LHR", "CDG", at(day, 6) + timedelta(minutes=n // 2), cents=10_000 + n // 3) for n in range(40)]
    await airline.add(*many)
    whole = [each.itinerary_id for each in await airline.search_all("LHR", "CDG", day)]
    assert len(whole) == 40
    in_sevens = [each.itinerary_id for each in await airline.search_all("LHR", "CDG", day, page_size=7)]
    assert in_sevens == whole

    by_id = {itinerary_id(each): each for each in many}
    page = await airline.search("LHR", "CDG", day, page_size=10)
    # Removed: two itineraries of the first page, among them its last, and one of a later page. Added: one of the first
    # page.
    gone = [whole[3], whole[9], whole[12]]
    for each in gone[:2]:
        await airline.count(by_id[each], ECONOMY=0)
    await airline.cancel(by_id[gone[2]].flight_id)
    await airline.add(flight("LHR", "CDG", at(day, 5), cents=1_000))
    rest: list[str] = []
    while page.next_page_token:
        page = await airline.search("LHR", "CDG", day, page_size=10, page_token=page.next_page_token)
        rest += [each.itinerary_id for each in page.itineraries]
        assert page.total_size == 38
    assert rest == [each for each in whole[10:] if each not in gone]


async def test_a_page_size_has_a_default_and_a_limit(airline: Airline, day: date) -> None:
    await airline.add(*(flight("LHR", "CDG", at(day, 6), 60 + n) for n in range(101)))
    assert len((await airline.search("LHR", "CDG", day)).itineraries) == 50
    answer = await airline.search("LHR", "CDG", day, page_size=1000)
    assert (len(answer.itineraries), answer.total_size) == (100, 101)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airline.search("LHR", "CDG", day, page_size=-1)
    assert refusal.fields == ["page_size"]


async def test_a_page_token_is_bound_to_its_search(airline: Airline, day: date) -> None:
    await airline.add(flight("LHR", "CDG", at(day, 6)), flight("LHR", "CDG", at(day, 7)))
    token = (await airline.search("LHR", "CDG", day, page_size=1)).next_page_token
    good = await airline.search("LHR", "CDG", day, page_size=5, page_token=token, sort=Search.PRICE, seats=1)
    assert len(good.itineraries) == 1
    others: list[tuple[str, str, date, dict[str, Any]]] = [
        ("CDG", "LHR", day, {}),
        ("LHR", "CDG", day + timedelta(days=1), {}),
    ]
    others += [("LHR", "CDG", day, more) for more in (
        {"seats": 2}, {"max_hops": 1}, {"direct_only": True}, {"sort": Search.DURATION}, {"cabin": pb.BUSINESS},
    )]  # fmt: skip
    for source, destination, when, more in others:
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await airline.search(source, destination, when, page_token=token, **more)
        assert refusal.fields == ["page_token"]
    for nonsense in ("x", token[:-2], "ü", "A" * 600):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await airline.search("LHR", "CDG", day, page_token=nonsense)
        assert refusal.fields == ["page_token"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"source": "QQQ"}, "source"),
        ({"source": "lhr"}, "source"),
        ({"source": ""}, "source"),
        ({"source": "LHRX"}, "source"),
        ({"destination": "QQQ"}, "destination"),
        ({"destination": "LHR"}, "destination"),
        ({"date": "2082-02-30"}, "date"),
        ({"date": "2019-12-31"}, "date"),
        ({"date": "0000-01-01"}, "date"),
        ({"date": "0001-01-01"}, "date"),
        ({"date": "9999-12-31"}, "date"),
        ({"date": "tomorrow"}, "date"),
        ({"date": "2082-1-1"}, "date"),
        ({"date": ""}, "date"),
        ({"seats": 0}, "seats"),
        ({"seats": 10}, "seats"),
        ({"seats": -1}, "seats"),
        ({"max_hops": 0}, "max_hops"),
        ({"max_hops": 4}, "max_hops"),
        ({"sort": 9}, "sort"),
        ({"cabin": 9}, "cabin"),
    ],
)
async def test_a_malformed_field_is_named(airline: Airline, day: date, more: dict[str, Any], field: str) -> None:
    request: dict[str, Any] = {"source": "LHR", "destination": "CDG", "date": str(day)} | more
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airline.anybody.SearchFlights(pb.SearchFlightsRequest(**request))
    assert refusal.fields == [field]


async def test_today_is_the_local_date_at_the_source(airline: Airline) -> None:
    """In Kiritimati a day ends 25 hours before it ends in Pago Pago."""
    now = datetime.now(UTC)
    east, west = (now + timedelta(hours=14)).date(), (now - timedelta(hours=11)).date()
    await airline.search("CXI", "PPG", east)
    await airline.search("PPG", "CXI", west)
    for source, destination, today in (("CXI", "PPG", east), ("PPG", "CXI", west)):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await airline.search(source, destination, today - timedelta(days=1))
        assert refusal.fields == ["date"]


async def test_unknown_dates_and_airports_have_no_results(airline: Airline, day: date) -> None:
    await airline.add(flight("LHR", "CDG", at(day, 6)))
    assert await airline.found("LHR", "CDG", date(9998, 1, 1)) == set()
    assert await airline.found("LHR", "XKH", day) == set()
    assert await airline.found("XKH", "LHR", day) == set()


async def test_searches_return_what_brute_force_finds(airline: Airline, day: date) -> None:
    """Flights around the date line, random seats and cabins; the order counts too."""
    chance = random.Random(4)
    airports = ["AKL", "APW", "HNL", "LAX", "NRT", "SYD", "LHR"]
    types = ["A320", "A320", "A321", "B789"]
    schedule: list[NewFlight] = []
    facts: dict[str, Any]
    for n in range(320):
        origin, destination = chance.sample(airports, 2)
        moment = at(day - timedelta(days=1), 12).replace(tzinfo=UTC) + timedelta(minutes=15 * chance.randrange(4 * 84))
        length = chance.choice([60, 75, 195, 300, 600, 900])
        cents, aircraft_type = 5_000 + 500 * chance.randrange(60), chance.choice(types)
        facts = {"cents": cents, "aircraft_type": aircraft_type, "flight_id": f"BF{n}-{day}"}
        schedule.append(flight(origin, destination, moment, length, **facts))
    await airline.add(*schedule)
    free = {
        each.flight_id: {cabin: chance.choice([0, 2, 9, seats, seats]) for cabin, seats in each.seats.items()}
        for each in schedule
    }
    await airline.count_all(free)

    answers = 0
    for _ in range(SEARCHES):
        source, destination = chance.sample(airports, 2)
        when = day + timedelta(days=chance.randrange(2))
        seats, hops = chance.randint(1, 9), chance.randint(1, 3)
        cabin, sort = chance.choice(["ECONOMY", "ECONOMY", "BUSINESS"]), chance.choice([1, 2, 3])
        expected = sorted(
            [
                (_first(way, cabin, sort), _minutes(way), way[0].departure_time, itinerary_id(*way))
                for way in ways(schedule, source, destination, when, hops=hops)
                if all(free[each.flight_id].get(cabin, 0) >= seats for each in way)
            ]
        )
        found = await airline.search_all(
            source, destination, when,
            seats=seats, max_hops=hops, cabin=pb.Cabin.Value(cabin), sort=sort, page_size=100,
        )  # fmt: skip
        assert [each.itinerary_id for each in found] == [name for *_, name in expected]
        answers += len(found)
    assert answers > 5 * SEARCHES, "too few to mean anything"


def _minutes(way: tuple[NewFlight, ...]) -> int:
    return int((way[-1].arrival_time - way[0].departure_time).total_seconds()) // 60


def _first(way: tuple[NewFlight, ...], cabin: str, sort: int) -> float:
    price = sum(each.fares[cabin] for each in way)
    return (price, _minutes(way), way[0].departure_time.timestamp())[sort - 1]


async def test_a_connection_outside_the_time_limits_is_not_found(airline: Airline, day: date) -> None:
    first = flight("LHR", "CDG", at(day, 7))
    good = [after(first, "BOM", wait) for wait in (SHORTEST, LONGEST)]
    bad = [after(first, "BOM", wait) for wait in (SHORTEST - timedelta(minutes=1), LONGEST + timedelta(minutes=1))]
    await airline.add(first, *good, *bad)
    assert await airline.found("LHR", "BOM", day) == ids((first, each) for each in good)
