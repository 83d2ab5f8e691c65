"""ListFlights and GetFlight."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from skyhigh.flight.v1 import flight_service_pb2 as pb

from tests.callers import refused
from tests.dates import new_flight_id
from tests.flight.airline import Airline, flight


async def listed(airline: Airline, **more: Any) -> list[pb.Flight]:
    """Returns the flights of all pages."""
    found: list[pb.Flight] = []
    token = ""
    while True:
        page = await airline.anybody.ListFlights(pb.ListFlightsRequest(page_token=token, **more))
        found += page.flights
        token = page.next_page_token
        if not token:
            return found


async def test_a_dates_flights_are_those_of_local_departure(airline: Airline, day: date) -> None:
    morning = flight("CXI", "HNL", datetime.combine(day, time(0)))
    night = flight("PPG", "HNL", datetime.combine(day, time(23, 59)))
    before = flight("CXI", "HNL", datetime.combine(day - timedelta(days=1), time(23, 59)))
    behind = flight("PPG", "HNL", datetime.combine(day + timedelta(days=1), time(0)))
    cancelled = flight("HNL", "CXI", datetime.combine(day, time(12)))
    await airline.add(night, behind, cancelled, morning, before)
    await airline.count(morning, ECONOMY=3)
    await airline.cancel(cancelled.flight_id)
    found = await listed(airline, date=str(day))
    assert [each.flight_id for each in found] == [each.flight_id for each in (morning, cancelled, night)]
    assert [each.status for each in found] == [pb.Flight.SCHEDULED, pb.Flight.CANCELLED, pb.Flight.SCHEDULED]
    assert found[0] == await airline.get(morning.flight_id)
    assert found[0].available_seats == 3
    assert [each.flight_id for each in await listed(airline, date=str(day), origin="PPG")] == [night.flight_id]
    assert [each.flight_id for each in await listed(airline, date=str(day), destination="CXI")] == [cancelled.flight_id]


async def test_flights_without_a_date_are_future_ones_in_order(airline: Airline) -> None:
    now = datetime.now(UTC)
    departed = flight("TRD", "BGO", now - timedelta(minutes=1))
    to_come = [flight("TRD", "BGO", now + timedelta(hours=1 + n // 3)) for n in range(20)]
    await airline.add(departed, *to_come)
    found = await listed(airline, origin="TRD", destination="BGO")
    in_order = sorted(to_come, key=lambda each: (each.departure_time, each.flight_id))
    assert [each.flight_id for each in found] == [each.flight_id for each in in_order]
    assert await listed(airline, origin="TRD", destination="BGO", page_size=3) == found
    today = {str(each) for each in (now.date(), now.date() - timedelta(days=1), now.date() + timedelta(days=1))}
    ids = {each.flight_id for day in today for each in await listed(airline, origin="TRD", date=day)}
    assert departed.flight_id in ids, "a day is told whole"


async def test_a_page_token_is_bound_to_its_list(airline: Airline, day: date) -> None:
    await airline.add(*(flight("LHR", "CDG", datetime.combine(day, time(9))) for _ in range(2)))
    request = pb.ListFlightsRequest(date=str(day), page_size=1)
    token = (await airline.anybody.ListFlights(request)).next_page_token
    for more in ({"origin": "LHR"}, {"destination": "CDG"}, {"date": str(day + timedelta(days=1))}):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await listed_from(airline, token, **({"date": str(day)} | more))
        assert refusal.fields == ["page_token"]


async def listed_from(airline: Airline, token: str, **more: Any) -> None:
    await airline.anybody.ListFlights(pb.ListFlightsRequest(page_token=token, **more))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"origin": "QQQ"}, "origin"),
        ({"destination": "QQQ"}, "destination"),
        ({"origin": "x"}, "origin"),
        ({"date": "2082-02-29"}, "date"),
        ({"date": "9999-12-31"}, "date"),
        ({"date": "soon"}, "date"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
    ],
)
async def test_a_malformed_field_is_named(airline: Airline, more: dict[str, Any], field: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airline.anybody.ListFlights(pb.ListFlightsRequest(**more))
    assert refusal.fields == [field]


async def test_an_unknown_flight_is_not_found(airline: Airline) -> None:
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND") as refusal:
        await airline.get(missing := new_flight_id())
    assert refusal.info.metadata == {"flight_id": missing}
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await airline.get("SH_999")
