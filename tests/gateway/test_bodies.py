"""JSON bodies and queries at the edge (GW-6, docs/rules.md section 12).

Each has one meaning only, and a size limit per path.
"""

from __future__ import annotations

import json

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin

from checkin_service.service import CHECKIN_SERVICE
from tests.gateway.conftest import Gateway, Others
from tests.gateway.test_json_contract import reason, violations

P = '{"givenName":"Jan","lastName":"Doe"}'


async def send(gateway: Gateway, verb: str, path: str, body: str = "") -> tuple[int, str]:
    """Calls as an agent; returns the status, and the field that a refusal names."""
    token = gateway.callers.agent("desk").token
    answer = await gateway.http.request(
        verb,
        path,
        content=body.encode(),
        headers={"authorization": f"Bearer {token}", **({"content-type": "application/json"} if body else {})},
    )
    if answer.status_code != 400:
        return answer.status_code, ""
    assert reason(answer) == "INVALID_FIELD"
    (violation,) = violations(answer)
    return 400, violation["field"]


async def post(gateway: Gateway, path: str, body: str) -> tuple[int, str]:
    """Sends a JSON body as `send` does."""
    return await send(gateway, "POST", path, body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (f'{{"passengers":[{P},null]}}', "passengers[1]"),
        (f'{{"passengers":[[{P}]]}}', "passengers[0]"),
        (f'{{"passengers":{P}}}', "passengers"),
        ('{"passengers":"Doe"}', "passengers"),
        (f'{{"passengers":["Doe",{P}]}}', "passengers[0]"),
        ('{"passengers":[{"givenName":"Jan","givenName":"Kim"}]}', "passengers[0].givenName"),
        ('{"passengers":[{"givenName":"Jan","given_name":"Kim"}]}', "passengers[0].givenName"),
        ('{"flightId":"A","flightId":"B"}', "flightId"),
        (r'{"flightId":"A","flight\u0049d":"B"}', "flightId"),
        ('{"flightId":"A","flight_id":"A"}', "flightId"),
        ('{"flightId":["A"]}', "flightId"),
        ('{"flightId":{"a":"A"}}', "flightId"),
        ('{"seats":[{"flightId":"A"},null]}', "seats[1]"),
        ('{"unknown":{"a":1,"a":2}}', "unknown.a"),
        ('[{"flightId":"A"}]', "body"),
        ('"A"', "body"),
        ("null", "body"),
        ('{"flightId":"A"}{"flightId":"B"}', "body"),
        ('{"flightId":"A",}', "body"),
        ("{'flightId':'A'}", "body"),
        ('{flightId:"A"}', "body"),
        ('{"flightId":"A" "contactEmail":"B"}', "body"),
        ('{"flightId":"\t"}', "body"),
        ('{"flightId":"\\x"}', "body"),
        ('{"cabin":01}', "body"),
        ('{"cabin":NaN}', "body"),
        ('{"a":' + "[" * 40, "a[0]"),
        ('{"a":' + '{"a":' * 10_000, "body"),
        ('{"flightId":"A"', "body"),
    ],
)
async def test_an_ambiguous_body_is_refused_with_its_field(
    gateway: Gateway, others: Others, body: str, field: str
) -> None:
    heard = len(others.echo.heard)
    assert await post(gateway, "/v1/bookings", body) == (400, field)
    assert len(others.echo.heard) == heard


async def test_a_strict_body_is_forwarded_unchanged(gateway: Gateway, others: Others) -> None:
    body = {
        "flightId": 'A\\"{[\n\u00e9\U0001f600',
        "passengers": [{"givenName": "Jan", "lastName": "Doe"}, {"given_name": "Kim", "last_name": "Roe", "type": 1}],
        "seats": [],
        "contactEmail": None,
        "unknown": [1, -2.5e3, True, {"a": {}}],
    }
    for text in (json.dumps(body, indent=2), json.dumps(body, ensure_ascii=False)):
        assert await post(gateway, "/v1/bookings", text) == (200, "")
        arrived = booking.CreateBookingRequest.FromString(others.echo.heard[-1][1])
        assert arrived.flight_id == body["flightId"]
        assert [each.given_name for each in arrived.passengers] == ["Jan", "Kim"]


async def test_a_body_that_contradicts_its_path_is_refused(gateway: Gateway) -> None:
    assert await post(gateway, "/v1/bookings/A/cancel", '{"bookingId":"B"}') == (400, "bookingId")
    assert await post(gateway, "/v1/bookings/A/cancel", '{"bookingId":"A"}') == (200, "")


async def test_a_manifest_of_500_passengers_is_accepted(gateway: Gateway, others: Others) -> None:
    passengers = [
        {
            "passengerId": f"XK4T7Q-{n:04}",
            "pnr": "XK4T7Q",
            "givenName": "Zoë Marie-Antoinette",
            "lastName": "Müller-Lüdenscheidt",
            "cabin": "PREMIUM_ECONOMY",
            "specialServices": ["WCHR", "BLND"],
            "contactEmail": f"zoe.mueller-luedenscheidt.{n:04}@passengers.example",
        }
        for n in range(500)
    ]
    body = json.dumps({"passengers": passengers})
    assert len(body) > 2 * 65_536
    assert await post(gateway, "/v1/flights/SH101-1/manifest", body) == (200, "")
    arrived = checkin.ImportManifestRequest.FromString(others.echo.heard[-1][1])
    assert (arrived.flight_id, len(arrived.passengers)) == ("SH101-1", 500)


async def test_a_larger_manifest_is_refused(gateway: Gateway) -> None:
    body = json.dumps({"requestId": "x" * CHECKIN_SERVICE.rpcs()["ImportManifest"].max_body_bytes})
    assert await post(gateway, "/v1/flights/SH101-1/manifest", body) == (413, "")


@pytest.mark.parametrize("path", ["/v1/bookings", "/v1/holds", "/v1/flights", "/v1/checkins"])
async def test_other_bodies_are_limited_to_64_kib(gateway: Gateway, path: str) -> None:
    assert await post(gateway, path, json.dumps({"requestId": "x" * 65_536})) == (413, "")


@pytest.mark.parametrize("path", ["/v1/bookings/", "/v1//bookings//", "/v1/bookings?", "/v1/./bookings"])
async def test_no_spelling_of_the_path_avoids_the_check(gateway: Gateway, others: Others, path: str) -> None:
    heard = len(others.echo.heard)
    assert await post(gateway, path, f'{{"passengers":[{P},null]}}') == (400, "passengers[1]")
    assert len(others.echo.heard) == heard


@pytest.mark.parametrize(
    "content_type",
    [
        "application/grpcx",
        "application/grpc;x",
        "application/grpc x",
        "application/grpc, application/json",
        "text/plain",
    ],
)
async def test_no_content_type_avoids_the_check(gateway: Gateway, others: Others, content_type: str) -> None:
    """The transcoder reads each of these as JSON.

    An error has the format that the content type begins to name.
    """
    heard = len(others.echo.heard)
    token = gateway.callers.agent("desk").token
    headers = {"authorization": f"Bearer {token}", "content-type": content_type}
    answer = await gateway.http.post("/v1/bookings", content=f'{{"passengers":[{P},null]}}'.encode(), headers=headers)
    assert (answer.status_code, "passengers[1]: must not be null" in answer.text) == (400, True)
    assert len(others.echo.heard) == heard


async def test_a_trailing_slash_does_not_avoid_the_check(gateway: Gateway) -> None:
    assert await post(gateway, "/v1/bookings/A/cancel/", '{"bookingId":"B"}') == (400, "bookingId")
    assert await post(gateway, "/v1/bookings/A/cancel/", '{"bookingId":"A"}') == (200, "")


@pytest.mark.parametrize(
    ("verb", "path", "field"),
    [
        ("GET", "/v1/bookings/A?bookingId=B", "bookingId"),
        ("GET", "/v1/bookings/A?booking_id=A", "booking_id"),
        ("GET", "/v1/bookings/A/?bookingId=B", "bookingId"),
        ("GET", "/v1/bookings/A?booking%49d=B", "bookingId"),
        ("GET", "/v1/bookings/A/watch?bookingId=B", "bookingId"),
        ("GET", "/v1/flights?origin=OPO&origin=LIS", "origin"),
        ("GET", "/v1/flights/SH101-1/seatmap?known_version=1&knownVersion=2", "knownVersion"),
        ("GET", "/v1/flights/SH101-1/seatmap?known%5Fversion=1&known_version=1", "known_version"),
        ("GET", "/v1/flights?pageSize=1&page_size=2", "page_size"),
        ("GET", "/v1/flights?=LIS", "query"),
        ("GET", "/v1/search?source=OPO&destination=JFK&seats=1&seats=2", "seats"),
        ("POST", "/v1/bookings?contactEmail=jan@example.org", "contactEmail"),
        ("POST", "/v1/bookings/A/cancel?reason=STRIKE", "reason"),
        ("POST", "/v1/bookings/A/cancel?bookingId=B", "bookingId"),
        ("POST", "/v1/bookings/A/pay/?request_id=B", "request_id"),
        ("PUT", "/v1/bookings/A/seats?seats.seatNumber=12A", "seats.seatNumber"),
        ("POST", "/v1/payments/webhook?data=QQ", "data"),
    ],
)
async def test_an_ambiguous_query_is_refused_with_its_field(
    gateway: Gateway, others: Others, verb: str, path: str, field: str
) -> None:
    heard = len(others.echo.heard)
    assert await send(gateway, verb, path, "{}" if verb != "GET" else "") == (400, field)
    assert len(others.echo.heard) == heard


async def test_distinct_and_list_parameters_are_accepted(gateway: Gateway, flight: str) -> None:
    assert await send(gateway, "GET", "/v1/flights?origin=OPO&pageSize=2&&") == (200, "")
    wishes = "partySize=2&positions=WINDOW&positions=AISLE&excludedSeats=1A&excluded_seats=1B"
    assert await send(gateway, "GET", f"/v1/flights/{flight}/seats/suggest?{wishes}") == (200, "")
