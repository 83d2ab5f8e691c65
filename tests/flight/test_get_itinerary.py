"""GetItinerary: an itinerary that a search found, with its current data."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import pytest
from skyhigh.flight.v1 import flight_service_pb2 as pb

from flight_service.flights import NewFlight
from tests.callers import refused
from tests.flight.airline import LONGEST, SHORTEST, Airline, after, flight, itinerary_id


async def get(airline: Airline, name: str, cabin: pb.Cabin.ValueType = pb.CABIN_UNSPECIFIED) -> pb.Itinerary:
    found: pb.Itinerary = await airline.anybody.GetItinerary(pb.GetItineraryRequest(itinerary_id=name, cabin=cabin))
    return found


@pytest.fixture
async def way(airline: Airline, day: date) -> tuple[NewFlight, NewFlight]:
    """Two connecting flights; the second one has no business cabin."""
    first = flight("LHR", "CDG", datetime.combine(day, time(7)), aircraft_type="A321")
    second = after(first, "BOM", SHORTEST)
    await airline.add(first, second)
    return first, second


async def test_the_itinerary_equals_the_search_result(
    airline: Airline, way: tuple[NewFlight, NewFlight], day: date
) -> None:
    (found,) = (await airline.search("LHR", "BOM", day)).itineraries
    assert await get(airline, found.itinerary_id) == found
    await airline.count(way[1], ECONOMY=2)
    now = await get(airline, found.itinerary_id)
    assert (now.available_seats, now.flights[1].available_seats) == (2, 2)
    assert (await airline.search("LHR", "BOM", day)).itineraries == [now]


async def test_a_missing_cabin_has_no_seat_and_no_price(airline: Airline, way: tuple[NewFlight, NewFlight]) -> None:
    found = await get(airline, itinerary_id(*way), pb.BUSINESS)
    assert (found.available_seats, found.HasField("total_price")) == (0, False)
    alone = await get(airline, itinerary_id(way[0]), pb.BUSINESS)
    assert (alone.available_seats, alone.total_price.units, alone.type) == (16, 300, pb.Itinerary.DIRECT)


async def test_an_itinerary_with_a_cancelled_flight_has_no_seats(
    airline: Airline, way: tuple[NewFlight, NewFlight]
) -> None:
    await airline.cancel(way[1].flight_id)
    found = await get(airline, itinerary_id(*way))
    assert (found.available_seats, found.flights[1].status) == (0, pb.Flight.CANCELLED)


async def test_a_departed_itinerary_is_still_found(airline: Airline) -> None:
    departed = flight("LHR", "CDG", datetime.now(UTC) - timedelta(hours=5))
    await airline.add(departed)
    assert (await get(airline, itinerary_id(departed))).flights[0].flight_id == departed.flight_id


async def test_flights_that_do_not_connect_are_not_found(airline: Airline, way: tuple[NewFlight, NewFlight]) -> None:
    first, second = way
    missed = after(first, "BOM", SHORTEST - timedelta(minutes=1))
    stranded = after(first, "BOM", LONGEST + timedelta(minutes=1))
    back = after(first, "LHR", SHORTEST)
    again = after(back, "BOM", SHORTEST)
    elsewhere = flight("FRA", "BOM", second.departure_time)
    unknown = after(first, "BOM", SHORTEST)
    await airline.add(missed, stranded, back, again, elsewhere)
    for flights in (
        [first, missed], [first, stranded], [first, back], [first, back, again], [first, elsewhere], [second, first],
        [first, first], [first, unknown], [unknown],
    ):  # fmt: skip
        with refused("NOT_FOUND", "ITINERARY_NOT_FOUND"):
            await get(airline, itinerary_id(*flights))
    good = itinerary_id(first, second)
    for name in (good.replace("CF_LHR", "CF_LGW"), good.replace("_BOM_", "_DEL_")):
        with refused("NOT_FOUND", "ITINERARY_NOT_FOUND"):
            await get(airline, name)


@pytest.mark.parametrize(
    "name", ["", "CF", "CF_LHR_CDG", "CF_LHR_CDG_", "XX_LHR_CDG_SH1-X", "CF_LHR_CDG_A_B_C", "CF_lhr_CDG_SH101",
             "CF_LHR_CDG" + "_SH101" * 5, "CF_LHR_CDG_SH101\n", "CF_LHR_CDG_" + "x" * 5000],
)  # fmt: skip
async def test_a_malformed_field_is_named(airline: Airline, name: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await get(airline, name)
    assert refusal.fields == ["itinerary_id"]
