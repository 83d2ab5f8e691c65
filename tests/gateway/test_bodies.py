"""JSON bodies at the edge: one reading only, and a size for each path (GW-6, docs/rules.md section 12)."""

from __future__ import annotations

import json

import pytest
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin

from gateway.exposure import LARGE_BODY_BYTES
from tests.gateway.conftest import Gateway, Others
from tests.gateway.test_json_contract import reason, violations

P = '{"givenName":"Jan","lastName":"Doe"}'


async def post(gateway: Gateway, path: str, body: str) -> tuple[int, str]:
    """Returns the status of an operations user's call, and the field that a refusal names."""
    token = gateway.callers.agent("desk").token
    answer = await gateway.http.post(
        path, content=body.encode(), headers={"authorization": f"Bearer {token}", "content-type": "application/json"}
    )
    if answer.status_code != 400:
        return answer.status_code, ""
    assert reason(answer) == "INVALID_FIELD"
    (violation,) = violations(answer)
    return 400, violation["field"]


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
async def test_a_body_with_two_readings_is_refused_with_its_field(
    gateway: Gateway, others: Others, body: str, field: str
) -> None:
    heard = len(others.echo.heard)
    assert await post(gateway, "/v1/bookings", body) == (400, field)
    assert len(others.echo.heard) == heard


async def test_a_strict_body_arrives_as_it_was_sent(gateway: Gateway, others: Others) -> None:
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


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/v1/flights/SH101-1/seatmap?known_version=1&known_version=2", "known_version"),
        ("GET", "/v1/flights/SH101-1/seatmap?known_version=1&knownVersion=2", "knownVersion"),
        ("GET", "/v1/flights/SH101-1/seatmap?known%5Fversion=1&known_version=1", "known_version"),
        ("GET", "/v1/flights/SH101-1/seatmap?flight_id=SH101-2", "flight_id"),
        ("GET", "/v1/flights/SH101-1/seatmap?flightId=SH101-1", "flightId"),
        ("GET", "/v1/search?source=FRA&source=LIS", "source"),
        ("POST", "/v1/bookings?flight_id=SH101-1", "flight_id"),
        ("POST", "/v1/bookings/A/cancel?bookingId=B", "bookingId"),
    ],
)
async def test_a_query_with_two_readings_is_refused_with_its_field(
    gateway: Gateway, others: Others, method: str, path: str, field: str
) -> None:
    heard = len(others.echo.heard)
    token = gateway.callers.agent("desk").token
    answer = await gateway.http.request(
        method, path, json={} if method == "POST" else None, headers={"authorization": f"Bearer {token}"}
    )
    assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD")
    assert [each["field"] for each in violations(answer)] == [field]
    assert len(others.echo.heard) == heard


async def test_a_list_in_a_query_has_many_values(gateway: Gateway, flight: str) -> None:
    token = gateway.callers.agent("desk").token
    query = "partySize=1&positions=WINDOW&positions=AISLE&cabin=ECONOMY"
    path = f"/v1/flights/{flight}/seats/suggest?{query}"
    assert (await gateway.http.get(path, headers={"authorization": f"Bearer {token}"})).status_code == 200


async def test_a_manifest_of_500_passengers_is_taken(gateway: Gateway, others: Others) -> None:
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


async def test_a_larger_manifest_is_not_taken(gateway: Gateway) -> None:
    body = json.dumps({"requestId": "x" * LARGE_BODY_BYTES})
    assert await post(gateway, "/v1/flights/SH101-1/manifest", body) == (413, "")


@pytest.mark.parametrize("path", ["/v1/bookings", "/v1/holds", "/v1/flights", "/v1/checkins"])
async def test_other_bodies_stay_at_64_kib(gateway: Gateway, path: str) -> None:
    assert await post(gateway, path, json.dumps({"requestId": "x" * 65_536})) == (413, "")
