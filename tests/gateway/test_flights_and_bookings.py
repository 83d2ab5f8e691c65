"""The JSON of the flight and booking services through a real Envoy.

Covers the requests as they arrive, and the responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.type import money_pb2
from skyhigh.booking.v1 import booking_service_pb2 as booking_pb
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb

from tests.dates import DAY, NEXT_DAY, flight_id
from tests.gateway.conftest import Echo, Gateway, Others

FLIGHT: Final = flight_id("SH101")
ITINERARY: Final = f"CF_FRA_ATH_{FLIGHT}_{flight_id('SH202', NEXT_DAY)}"
FARE: Final = money_pb2.Money(currency_code="USD", units=129, nanos=500_000_000)
SEARCH: Final = f"/v1/search?source=FRA&destination=ATH&date={DAY}"


@contextmanager
def answering(others: Others, answer: Message) -> Iterator[Echo]:
    """Lets the echo behind the gateway return this response within the block."""
    others.echo.answer = answer.SerializeToString()
    try:
        yield others.echo
    finally:
        others.echo.answer = b""


def arrived(others: Others, kind: type[Message]) -> dict[str, Any]:
    """Returns the last request that arrived, without its unset fields."""
    return dict(json_format.MessageToDict(kind.FromString(others.echo.heard[-1][1])))


def reason(answer: httpx.Response) -> str:
    """Returns the reason of an error, which has exactly one ErrorInfo."""
    (info,) = [detail for detail in answer.json()["details"] if detail["@type"].endswith("google.rpc.ErrorInfo")]
    return str(info["reason"])


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {}),
        ("&seats=2&max_hops=1&sort=price", {"seats": 2, "maxHops": 1, "sort": "PRICE"}),
        ("&maxHops=3&sort=Departure&directOnly=true", {"maxHops": 3, "sort": "DEPARTURE", "directOnly": True}),
        ("&cabin=business&page_size=5&page_token=abc", {"cabin": "BUSINESS", "pageSize": 5, "pageToken": "abc"}),
        # An empty party must reach the service, which refuses it.
        ("&seats=0", {"seats": 0}),
    ],
)
async def test_a_search_is_forwarded_unchanged_without_a_token(
    gateway: Gateway, others: Others, query: str, fields: dict[str, Any]
) -> None:
    answer = await gateway.http.get(SEARCH + query)
    assert answer.status_code == 200, answer.text
    asked = {"source": "FRA", "destination": "ATH", "date": DAY}
    assert arrived(others, flight_pb.SearchFlightsRequest) == asked | fields


@pytest.mark.parametrize(
    "path",
    [
        f"{SEARCH}&seat=2",
        f"{SEARCH}&sort=cheapest",
        f"{SEARCH}&seats=two",
        f"{SEARCH}&seats=1.5",
        f"{SEARCH}&seats=99999999999",
        f"{SEARCH}&directOnly=maybe",
        "/v1/flights?orgin=FRA",
        f"/v1/flights/{FLIGHT}?fields=price",
        f"/v1/itineraries/{ITINERARY}?seats=2",
    ],
)
async def test_an_unknown_query_parameter_is_refused(gateway: Gateway, others: Others, path: str) -> None:
    heard = len(others.echo.heard)
    answer = await gateway.http.get(path)
    assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD"), answer.text
    assert len(others.echo.heard) == heard, "it reached the service"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", f"/v1/flights/{FLIGHT}", "GET"),
        ("PUT", "/v1/flights", "GET, POST"),
        ("GET", f"/v1/flights/{FLIGHT}/cancel", "POST"),
        ("POST", SEARCH, "GET"),
        ("POST", f"/v1/itineraries/{ITINERARY}", "GET"),
        ("GET", "/v1/sessions/guest", "POST"),
        ("GET", "/v1/bookings", "POST"),
        ("DELETE", "/v1/bookings/00000000-0000-4000-8000-000000000001", "GET"),
        ("POST", "/v1/bookings/00000000-0000-4000-8000-000000000001/seats", "PUT"),
        ("GET", "/v1/bookings/00000000-0000-4000-8000-000000000001/pay", "POST"),
        ("POST", "/v1/bookings/00000000-0000-4000-8000-000000000001/watch", "GET"),
    ],
)
async def test_a_wrong_verb_gets_the_allowed_ones(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    answer = await gateway.agent()(method, path, {} if method != "GET" else None)
    assert (answer.status_code, reason(answer), answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", allowed)


@pytest.mark.parametrize(
    ("method", "path", "rpc"),
    [
        ("POST", "/v1/sessions", "skyhigh.checkin.v1.CheckInService/CreateSession"),
        ("POST", "/v1/sessions/guest", "skyhigh.booking.v1.BookingService/CreateGuestSession"),
        ("GET", "/v1/flights", "skyhigh.flight.v1.FlightService/ListFlights"),
        ("POST", "/v1/flights", "skyhigh.flight.v1.FlightService/CreateFlight"),
        ("GET", f"/v1/flights/{FLIGHT}", "skyhigh.flight.v1.FlightService/GetFlight"),
        ("POST", f"/v1/flights/{FLIGHT}/cancel", "skyhigh.flight.v1.FlightService/CancelFlight"),
        ("POST", f"/v1/flights/{FLIGHT}/waitlist", "skyhigh.waitlist.v1.WaitlistService/JoinWaitlist"),
    ],
)
async def test_similar_paths_reach_different_methods(
    gateway: Gateway, others: Others, method: str, path: str, rpc: str
) -> None:
    answer = await gateway.agent()(method, path, {} if method != "GET" else None)
    assert answer.status_code == 200, answer.text
    assert others.echo.heard[-1][0] == f"/{rpc}"


async def test_a_found_itinerary_has_its_documented_fields(gateway: Gateway, others: Others) -> None:
    flight = flight_pb.Flight(
        flight_id=FLIGHT,
        flight_number="SH101",
        origin="FRA",
        destination="LIS",
        status=flight_pb.Flight.SCHEDULED,
        aircraft_type="A320",
        price=FARE,
        total_seats=180,
        cabins=[flight_pb.Flight.CabinFare(cabin=flight_pb.ECONOMY, price=FARE, total_seats=180)],
    )
    flight.departure_time.FromJsonString(f"{DAY}T18:30:00Z")
    flight.arrival_time.FromJsonString(f"{DAY}T21:40:00Z")
    flight.check_in_opens_before.FromSeconds(86_400)
    found = flight_pb.Itinerary(
        itinerary_id=ITINERARY,
        type=flight_pb.Itinerary.COMPUTED,
        flights=[flight, flight],
        total_price=FARE,
        duration_minutes=700,
        hops=1,
    )
    with answering(others, flight_pb.SearchFlightsResponse(itineraries=[found], total_size=1)):
        body = (await gateway.http.get(SEARCH)).json()
    assert body.keys() == {"itineraries", "nextPageToken", "totalSize"}
    (itinerary,) = body["itineraries"]
    assert itinerary["type"] == "COMPUTED"
    # Zero is present in the JSON too: no seat is left.
    assert (itinerary["hops"], itinerary["durationMinutes"], itinerary["availableSeats"]) == (1, 700, 0)
    assert itinerary["totalPrice"] == {"currencyCode": "USD", "units": "129", "nanos": 500_000_000}
    seen = itinerary["flights"][0]
    assert seen.keys() >= {
        *("flightId", "flightNumber", "origin", "destination", "departureTime", "arrivalTime", "status"),
        *("aircraftType", "price", "totalSeats", "availableSeats"),
    }
    assert (seen["status"], seen["departureTime"]) == ("SCHEDULED", f"{DAY}T18:30:00Z")
    assert (seen["checkInOpensBefore"], seen["cabins"][0]["cabin"]) == ("86400s", "ECONOMY")


async def test_a_booking_is_created_with_json(gateway: Gateway, others: Others) -> None:
    key = str(uuid4())
    asked = {
        "itineraryId": ITINERARY,
        "passengers": [{"givenName": "Zoë", "lastName": "Müller", "type": "ADULT"}],
        "seats": [{"flightId": FLIGHT, "seatNumber": "12A", "passengerIndex": 0}],
        "contactEmail": "zoe@passengers.example",
    }
    booked = booking_pb.Booking(
        booking_id=str(uuid4()),
        state=booking_pb.Booking.SEATS_RESERVED,
        passengers=[
            booking_pb.Passenger(passenger_id="P-1", given_name="Zoë", last_name="Müller", type=booking_pb.ADULT)
        ],
        seats=[booking_pb.BookedSeat(flight_id=FLIGHT, seat_number="12A", passenger_id="P-1")],
        total=FARE,
    )
    booked.expire_time.FromJsonString(f"{DAY}T08:15:00Z")
    with answering(others, booked):
        answer = await gateway.agent()("POST", "/v1/bookings", asked, idempotency_key=key)
    heard = arrived(others, booking_pb.CreateBookingRequest)
    # Passenger 0 is the first one. A message omits that value.
    assert heard["seats"] == [{"flightId": FLIGHT, "seatNumber": "12A"}]
    assert {name: heard[name] for name in ("itineraryId", "passengers", "contactEmail")} == {
        name: asked[name] for name in ("itineraryId", "passengers", "contactEmail")
    }
    assert others.echo.heard[-1][2]["idempotency-key"] == key
    body = answer.json()
    assert body.keys() >= {
        *("bookingId", "state", "passengers", "seats", "total", "expireTime", "paymentAttempts", "lastError", "pnr"),
    }
    assert (body["state"], body["expireTime"]) == ("SEATS_RESERVED", f"{DAY}T08:15:00Z")
    assert (body["paymentAttempts"], body["pnr"]) == (0, "")
    assert body["passengers"][0]["givenName"] == "Zoë"


async def test_a_booking_is_watched_as_server_sent_events(gateway: Gateway, others: Others) -> None:
    update = booking_pb.BookingUpdate(booking=booking_pb.Booking(state=booking_pb.Booking.CONFIRMED, pnr="XK4T7Q"))
    with answering(others, update):
        answer = await gateway.agent()("GET", f"/v1/bookings/{uuid4()}/watch")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("text/event-stream", "no-cache")
    (line,) = [line for line in answer.text.splitlines() if line]
    name, _, data = line.partition(": ")
    seen = json_format.Parse(data, booking_pb.BookingUpdate())
    assert (name, seen) == ("data", update)
