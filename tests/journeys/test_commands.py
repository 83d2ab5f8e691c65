"""`skyhigh flights` and `bookings` beside the whole stack, and the effects of a cancelled flight."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from operations.__main__ import app
from operations.gateway_client import Gateway
from operations.tokens import mint
from operations.verify.check import check
from operations.verify.figures import money
from tests.dates import day
from tests.journeys.conftest import Airline
from tests.waiting import eventually

PAST = day(-400)
PASSENGERS = [{"givenName": "Ada", "lastName": "Byron"}, {"givenName": "Grace", "lastName": "Hopper"}]


async def skyhigh(*arguments: str, code: int = 0) -> str:
    """Runs the command beside the stack; returns what it printed."""
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


@dataclass(frozen=True, slots=True)
class Route:
    """Two connecting flights that only this test uses, five days from now."""

    number: int
    day: datetime

    @property
    def flight_ids(self) -> list[str]:
        return [f"ZZ{self.number + n}-{self.day:%Y-%m-%d}" for n in range(2)]

    @property
    def itinerary_id(self) -> str:
        return f"CF_KEF_FAO_{'_'.join(self.flight_ids)}"

    def requests(self) -> list[dict[str, Any]]:
        """Returns the requests that add the flights to the schedule."""
        legs = (("KEF", "ZRH", 8), ("ZRH", "FAO", 14))
        return [
            {
                "flightNumber": f"ZZ{self.number + n}",
                "origin": origin,
                "destination": destination,
                "departureTime": f"{self.day + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}",
                "arrivalTime": f"{self.day + timedelta(hours=hour + 4):%Y-%m-%dT%H:%M:%SZ}",
                "aircraftType": "AT72",
                "price": {"currencyCode": "USD", "units": "50"},
            }
            for n, (origin, destination, hour) in enumerate(legs)
        ]


@pytest.fixture
async def route(airline: Airline) -> Route:
    """Creates flights that no other test uses."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    route = Route(secrets.randbelow(9000) + 100, midnight + timedelta(days=5))
    operations = Gateway(airline.gateway_url, mint("operations", "test"))
    for request in route.requests():
        answer = await operations.send("/v1/flights", request)
        assert answer.status == 200, answer
    return route


async def customer_of(airline: Airline) -> Gateway:
    """Returns a new customer."""
    session = await Gateway(airline.gateway_url).send("/v1/sessions/guest", {})
    return Gateway(airline.gateway_url, session.body["token"])


async def test_flights_are_found_listed_and_shown(airline: Airline, route: Route) -> None:
    first, second = route.flight_ids
    found = await skyhigh("flights", "search", "kef", "fao", "--date", f"{route.day:%Y-%m-%d}", "--sort", "duration")
    (line,) = [line for line in found.splitlines() if route.itinerary_id in line]
    assert line.startswith(f"computed  KEF ZZ{route.number} ZRH ZZ{route.number + 1} FAO")
    # Iceland uses UTC all year, and Portugal in winter.
    assert "08:00 GMT (+00:00)" in line
    assert "10h00" in line
    assert "100.00 USD" in line
    listed = await skyhigh("flights", "list", "--origin", "zrh", "--date", f"{route.day:%Y-%m-%d}", "-n", "5000")
    assert [line for line in listed.splitlines() if line.startswith(f"{second} ")]
    shown = await skyhigh("flights", "show", first)
    assert f"{first}  SCHEDULED" in shown
    assert shown.splitlines()[-1].split() == ["ECONOMY", "50.00", "USD", "70", "70"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["flights", "show", "NOSUCH-1"], "NOT_FOUND"),
        (["flights", "cancel", "NOSUCH-1"], "NOT_FOUND"),
        (["flights", "search", "FRA", "FRA"], "destination"),
        (["flights", "search", "FRA", "LIS", "--date", PAST], "date"),
        (["bookings", "show", "7d"], "'7d' is not a UUID"),
        (["bookings", "show", "00000000-0000-4000-8000-000000000000"], "NOT_FOUND"),
    ],
)
async def test_what_is_not_there_is_named(airline: Airline, arguments: list[str], told: str) -> None:
    assert told in await skyhigh(*arguments, code=1)


async def test_nothing_to_show_is_said(airline: Airline) -> None:
    assert "No flight was found." in await skyhigh("flights", "list", "--origin", "KEF", "--date", PAST)
    search = ("flights", "search", "KEF", "FAO", "--date", day(300))
    assert "No itinerary from KEF to FAO" in await skyhigh(*search)


async def paid_booking(airline: Airline, route: Route) -> tuple[Gateway, str]:
    """Books both flights for two passengers, pays, and waits for CONFIRMED.

    Returns the customer and the path.
    """
    customer = await customer_of(airline)
    booked = await customer.send("/v1/bookings", {"itineraryId": route.itinerary_id, "passengers": PASSENGERS})
    assert booked.body["state"] == "SEATS_RESERVED", booked
    path = f"/v1/bookings/{booked.body['bookingId']}"
    await customer.send(f"{path}/pay", {"paymentCode": "00000"})

    async def confirmed() -> bool:
        return bool((await customer.get(path)).body["state"] == "CONFIRMED")

    await eventually(confirmed)
    return customer, path


@pytest.mark.timeout(180)
async def test_a_cancelled_flight_takes_its_bookings_with_it_and_gives_the_money_back(
    airline: Airline, route: Route
) -> None:
    customer, path = await paid_booking(airline, route)
    other = await (await customer_of(airline)).send(
        "/v1/bookings", {"flightId": route.flight_ids[1], "passengers": PASSENGERS[:1]}
    )
    assert other.body["state"] == "SEATS_RESERVED", other

    told = await skyhigh("flights", "cancel", route.flight_ids[1], "--reason", "STRIKE")
    assert told == f"{route.flight_ids[1]} is CANCELLED: STRIKE.\n"

    async def all_is_given_back() -> bool:
        booking = (await customer.get(path)).body
        cancelled = booking["state"] == "CANCELLED" and booking["cancelReason"] == "FLIGHT_CANCELLED"
        return cancelled and bool(booking.get("refundTime"))

    await eventually(all_is_given_back)
    agent = Gateway(airline.gateway_url, mint("agent", "test"))

    async def seats_are_free() -> bool:
        maps = [(await agent.get(f"/v1/flights/{flight_id}/seatmap")).body for flight_id in route.flight_ids]
        return all(seat["state"] == "AVAILABLE" for each in maps for seat in each["seats"])

    await eventually(seats_are_free)
    refused = await (await customer_of(airline)).send(
        "/v1/bookings", {"itineraryId": route.itinerary_id, "passengers": PASSENGERS}
    )
    assert refused.reason in {"FLIGHT_CANCELLED", "ITINERARY_NOT_FOUND"}
    shown = await skyhigh("bookings", "show", path.rpartition("/")[2])
    assert "FLIGHT_CANCELLED" in shown
    assert "Grace Hopper" in shown
    assert "CONFIRMED           CANCELLED" in shown

    async def nothing_is_violated() -> bool:
        connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
        try:
            findings = await check(connection, None)
        finally:
            await connection.close()
        return not [finding for finding in findings if finding.violations]

    await eventually(nothing_is_violated)


async def test_the_money_is_added_up(airline: Airline, route: Route) -> None:
    await paid_booking(airline, route)
    connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
    try:
        figures = await money(connection)
    finally:
        await connection.close()
    assert figures
    for each in figures:
        assert each.taken == each.fares + each.fees + each.given_back > 0
        assert str(each).startswith("money: ")
