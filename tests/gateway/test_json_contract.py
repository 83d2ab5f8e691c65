"""The contract as mobile apps see it: JSON through the gateway.

See docs/rules.md section 3, GW-1 and GW-4.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import httpx
import pytest
from google.protobuf import json_format
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from tests.dates import flight_id
from tests.gateway.conftest import Gateway, Mobile
from tests.waiting import PATIENCE_SECONDS, eventually, pause

MOST_RETRY_SECONDS = 5


def reason(answer: httpx.Response) -> str:
    """Returns the reason of an error, which has exactly one ErrorInfo."""
    (info,) = [detail for detail in answer.json()["details"] if detail["@type"].endswith("google.rpc.ErrorInfo")]
    assert info["domain"] == "skyhigh"
    reason: str = info["reason"]
    return reason


def violations(answer: httpx.Response) -> list[dict[str, str]]:
    """Returns the field violations of an error."""
    (found,) = [each for each in answer.json()["details"] if each["@type"].endswith("google.rpc.BadRequest")]
    fields: list[dict[str, str]] = found["fieldViolations"]
    return fields


async def state(mobile: Mobile, flight: str, seat_number: str) -> str:
    """Returns a seat's state on the map."""
    answer = await mobile("GET", f"/v1/flights/{flight}/seatmap")
    (found,) = [seat["state"] for seat in answer.json()["seats"] if seat["seatNumber"] == seat_number]
    return str(found)


async def test_a_seat_passes_through_all_its_states(gateway: Gateway, flight: str) -> None:
    passenger = gateway.passenger(f"P1:{flight}")
    held = await passenger("POST", f"/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P1"})
    assert held.status_code == 200
    hold = held.json()
    assert (hold["state"], hold["purpose"], hold["extensionsLeft"]) == ("HELD", "CHECK_IN", 9)
    assert [(seat["flightId"], seat["seatNumber"], seat["passengerId"]) for seat in hold["seats"]] == [
        (flight, "12A", "P1")
    ]

    refused = await gateway.agent()("POST", f"/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P2"})
    assert (refused.status_code, refused.json()["code"], reason(refused)) == (409, 10, "SEAT_TAKEN")

    extended = await passenger("POST", f"/v1/holds/{hold['holdId']}/extend", {})
    assert extended.json()["extensionsLeft"] == 8
    seats = [{"flightId": flight, "seatNumber": "12B", "passengerId": "P1"}]
    changed = await passenger("PUT", f"/v1/holds/{hold['holdId']}/seats", {"seats": seats})
    assert [seat["seatNumber"] for seat in changed.json()["seats"]] == ["12B"]
    confirmed = await passenger("POST", f"/v1/holds/{hold['holdId']}/confirm", {})
    assert confirmed.json()["state"] == "CONFIRMED"
    assert (await passenger("GET", f"/v1/holds/{hold['holdId']}")).json() == confirmed.json()
    cancelled = await passenger("POST", f"/v1/holds/{hold['holdId']}/cancel", {"reason": "CHANGED_MIND"})
    assert cancelled.json()["state"] == "CANCELLED"

    async def is_free() -> bool:
        return await state(passenger, flight, "12B") == "AVAILABLE"

    await eventually(is_free)
    events = (await gateway.agent()("GET", f"/v1/flights/{flight}/seats/12B/events")).json()["events"]
    assert [event["toState"] for event in events] == ["HELD", "CONFIRMED", "AVAILABLE"]
    assert events[-1]["reason"] == "CHANGED_MIND"
    assert [event["version"] for event in events] == ["1", "2", "3"]


async def test_of_200_concurrent_callers_one_gets_the_seat(
    gateway: Gateway, flight: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:

    phones = [gateway.passenger(f"P{n}:{flight}") for n in range(200)]
    for phone in phones:
        # One after the other: concurrent calls would all wait for the lock of one manifest.
        await phone.caller.listed()

    async def hold(n: int, phone: Mobile) -> httpx.Response:
        body = {"passengerId": f"P{n}", "requestId": str(uuid4())}
        while True:
            # The result of a call that timed out is unknown: a retry with the same key gets the one response.
            with suppress(httpx.TimeoutException):
                answer = await phone("POST", f"/v1/flights/{flight}/seats/7C/hold", body)
                if answer.status_code != 504:
                    return answer
            # At random moments: a slow machine would time out two hundred concurrent retries again and again.
            await pause(random.uniform(0, MOST_RETRY_SECONDS))

    # Unlike gather, a TaskGroup cancels the remaining callers after a failure.
    async with asyncio.TaskGroup() as callers:
        calls = [callers.create_task(hold(number, phone)) for number, phone in enumerate(phones)]
    answers = [call.result() for call in calls]
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 199}
    assert {reason(answer) for answer in answers if answer.status_code == 409} == {"SEAT_TAKEN"}
    assert await database.fetchval("SELECT count(*) FROM seat_events WHERE flight_id = $1", flight) == 1
    assert await database.fetchval("SELECT count(*) FROM hold_seats WHERE flight_id = $1", flight) == 1


async def test_a_foreign_and_a_missing_hold_look_the_same(
    gateway: Gateway, flight: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    owner, stranger = gateway.passenger(f"P1:{flight}"), gateway.passenger(f"P2:{flight}")
    hold = (await owner("POST", f"/v1/flights/{flight}/seats/9A/hold", {"passengerId": "P1"})).json()
    before = await database.fetch("SELECT hold_id, state, expire_time FROM holds WHERE hold_id = $1", hold["holdId"])
    seats = {"seats": [{"flightId": flight, "seatNumber": "9B", "passengerId": "P2"}]}
    for method, verb, body in (
        ("GET", "", None),
        ("POST", "/confirm", {}),
        ("POST", "/cancel", {}),
        ("POST", "/extend", {}),
        ("PUT", "/seats", seats),
    ):
        foreign = await stranger(method, f"/v1/holds/{hold['holdId']}{verb}", body)
        missing = await stranger(method, f"/v1/holds/{uuid4()}{verb}", body)
        assert (foreign.status_code, foreign.json()) == (missing.status_code, missing.json())
        assert (foreign.status_code, reason(foreign)) == (404, "HOLD_NOT_FOUND")
    after = await database.fetch("SELECT hold_id, state, expire_time FROM holds WHERE hold_id = $1", hold["holdId"])
    assert before == after


async def test_the_idempotency_key_may_be_a_header(gateway: Gateway, flight: str) -> None:
    agent, key = gateway.agent(), str(uuid4())
    path = f"/v1/flights/{flight}/seats/3A/hold"
    first = await agent("POST", path, {"passengerId": "P1"}, idempotency_key=key)
    again = await agent("POST", path, {"passengerId": "P1"}, idempotency_key=key)
    other = await agent("POST", path, {"passengerId": "P2"}, idempotency_key=key)
    assert first.status_code == 200
    assert first.json() == again.json()
    assert (other.status_code, reason(other)) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_the_json_map_equals_the_grpc_map(gateway: Gateway, flight: str) -> None:
    agent = gateway.agent()
    answer = await agent("GET", f"/v1/flights/{flight}/seatmap")
    assert answer.headers["content-type"] == "application/json"
    seat_map = await agent.caller.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
    assert json_format.Parse(answer.content, pb.SeatMap()) == seat_map
    known = await agent("GET", f"/v1/flights/{flight}/seatmap?known_version={seat_map.version}")
    assert known.json()["unchanged"] is True
    assert not known.json()["seats"]


async def test_native_grpc_reaches_public_methods_only(gateway: Gateway, flight: str) -> None:
    token = (("authorization", f"Bearer {gateway.callers.service().token}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub: Any = SeatServiceStub(channel)
        seat_map = await stub.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight), metadata=token)
        assert len(seat_map.seats) == 180
        for call in (
            stub.ClaimSeat(
                pb.ClaimSeatRequest(flight_id=flight, seat_number="1A", passenger_id="P", owner="passenger:X"),
                metadata=token,
            ),
            stub.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True), metadata=token),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call
            assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_hoarder_gets_a_retry_delay(gateway: Gateway, flight: str) -> None:
    phone = gateway.passenger(*(f"P{n}:{flight}" for n in range(10)))
    for n in range(9):
        assert (await phone("POST", f"/v1/flights/{flight}/seats/{n + 1}A/hold", {"passengerId": f"P{n}"})).is_success
    refused = await phone("POST", f"/v1/flights/{flight}/seats/20A/hold", {"passengerId": "P9"})
    assert (refused.status_code, reason(refused)) == (429, "TOO_MANY_HELD_SEATS")
    assert 0 < int(refused.headers["retry-after"]) <= 120


class Watch:
    """Reads the server-sent events of a map as they arrive."""

    def __init__(self, lines: Any) -> None:
        self._lines = lines

    async def next(self) -> dict[str, Any]:
        async for line in self._lines:
            if line.startswith("data: "):
                update: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return update
        raise AssertionError("the stream ended")


async def test_a_watch_sends_snapshot_and_changes_and_resumes(gateway: Gateway, flight: str) -> None:
    agent = gateway.agent()
    path = f"/v1/flights/{flight}/seatmap/watch"
    headers = {"authorization": f"Bearer {agent.caller.token}"}
    async with gateway.http.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        watch = Watch(answer.aiter_lines())
        first = await watch.next()
        seats = {seat["seatNumber"]: seat["state"] for seat in first["snapshot"]["seats"]}
        assert len(seats) == 180
        await agent.caller.hold(flight, "15A")
        # The event arrives while the stream is open, so no component buffers the response.
        async with asyncio.timeout(PATIENCE_SECONDS):
            change = await watch.next()
        assert change["changes"]["seats"] == [{"seatNumber": "15A", "state": "HELD"}]
        assert int(change["version"]) > int(first["version"])
    # The connection was closed. The changes since then come first, without a new snapshot.
    await agent.caller.hold(flight, "16A")
    async with gateway.http.stream("GET", f"{path}?known_version={change['version']}", headers=headers) as answer:
        missed = await Watch(answer.aiter_lines()).next()
    assert missed["changes"]["seats"] == [{"seatNumber": "16A", "state": "HELD"}]


BAD_HOLDS: list[tuple[str, Any]] = [
    ("/v1/flights/{flight}/seats/12I/hold", {"passengerId": "P1"}),
    ("/v1/flights/{flight}/seats/0A/hold", {"passengerId": "P1"}),
    ("/v1/flights/{flight}/seats/12A/hold", {}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": ""}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P" * 10_000}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P\u0000"}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": "\u0420\u0031"}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": 7.5}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P1", "purpose": "THEFT"}),
    ("/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P1", "requestId": "mine"}),
    ("/v1/flights/{flight}/seats/12A/hold?bogus=1", {"passengerId": "P1"}),
    ("/v1/flights/x/seats/12A/hold", {"passengerId": "P1"}),
    ("/v1/holds", {"seats": []}),
    ("/v1/holds", {"seats": [{"flightId": flight_id("SH101")}]}),
    ("/v1/holds", {"seats": "12A"}),
    ("/v1/holds", [1, 2]),
    ("/v1/holds/not-a-hold/confirm", {}),
]


async def test_a_malformed_field_is_a_400_and_changes_nothing(
    gateway: Gateway, flight: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    agent = gateway.agent()
    for path, body in BAD_HOLDS:
        answer = await agent("POST", path.format(flight=flight), body)
        assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD"), (path, body, answer.text)
        assert violations(answer)[0]["field"], (path, body)
    for query in ("known_version=-1", "known_version=NaN", "known_version=1e309", "knownVersion=x", "bogus=1"):
        answer = await agent("GET", f"/v1/flights/{flight}/seatmap?{query}")
        assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD"), query
    assert await database.fetchval("SELECT count(*) FROM seat_events WHERE flight_id = $1", flight) == 0


# An invalid call: its path and body, the field, and a part of the expected description.
BY_THE_SERVICE: list[tuple[str, str, Any, str, str]] = [
    ("POST", "/v1/flights/{flight}/seats/12A/hold", {}, "passengerId", "regex pattern"),
    (
        "POST",
        "/v1/holds",
        {"seats": [{"flightId": "SH1-1", "seatNumber": "12a", "passengerId": "P1"}]},
        "seats[0].seatNumber",
        "regex",
    ),
    ("GET", "/v1/flights/{flight}/seats/suggest?partySize=1&children=2", None, "children", "at most partySize"),
    ("GET", "/v1/flights/{flight}/seats/suggest?party_size=1&children=2", None, "children", "at most party_size"),
    ("GET", "/v1/flights/{flight}/seatmap?known_version=-1", None, "known_version", "greater than or equal"),
    ("GET", "/v1/flights/{flight}/seatmap?knownVersion=-1", None, "knownVersion", "greater than or equal"),
    ("POST", "/v1/flights/{flight}/seats/12A/hold", {"passengerId": "P1", "requestId": "1"}, "requestId", "UUID"),
]
BY_THE_EDGE: list[tuple[str, str, Any, str, str]] = [
    ("POST", "/v1/flights/{flight}/seats/12A/hold", {"passengerId": 7.5}, "passengerId", "passengerId: invalid"),
    ("POST", "/v1/bookings", {"passengers": [{"givenName": 7.5}]}, "passengers[0].givenName", "invalid value"),
    ("POST", "/v1/flights", {"departureTime": "yesterday"}, "departureTime", "invalid value"),
    ("GET", "/v1/flights/{flight}/seatmap?known_version=NaN", None, "known_version", "known_version: invalid"),
    ("GET", "/v1/flights/{flight}/seatmap?knownVersion=NaN", None, "knownVersion", "knownVersion: invalid"),
]


@pytest.mark.parametrize("wrong", BY_THE_SERVICE + BY_THE_EDGE)
async def test_a_wrong_field_has_its_json_name(
    gateway: Gateway, flight: str, wrong: tuple[str, str, Any, str, str]
) -> None:
    method, path, body, field, said = wrong
    answer = await gateway.agent()(method, path.format(flight=flight), body)
    assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD"), answer.text
    assert [each["field"] for each in violations(answer)] == [field]
    assert said in violations(answer)[0]["description"]
    assert said in answer.json()["message"]
    assert field in answer.json()["message"]


async def test_a_wrong_field_has_its_proto_name_for_grpc(gateway: Gateway, flight: str) -> None:
    token = (("authorization", f"Bearer {gateway.callers.agent().token}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub: Any = SeatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.HoldSeat(pb.HoldSeatRequest(flight_id=flight, seat_number="12A"), metadata=token)
    assert "passenger_id: does not match regex pattern" in str(refusal.value.details())


async def test_a_value_in_an_error_is_not_renamed(gateway: Gateway, flight: str) -> None:
    """Metadata keys and values are not field names and stay unchanged."""
    missing = await gateway.agent()("GET", f"/v1/flights/{flight_id('SH404')}/seatmap")
    (info,) = [each for each in missing.json()["details"] if each["@type"].endswith("ErrorInfo")]
    assert info["metadata"] == {"flight_id": flight_id("SH404")}
    unknown = await gateway.agent()("GET", f"/v1/flights/{flight}/seatmap?party_size=1")
    assert [each["field"] for each in violations(unknown)] == ["party_size"]


async def test_random_bytes_are_refused_and_change_nothing(
    gateway: Gateway, flight: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    agent = gateway.agent()
    path = f"/v1/flights/{flight}/seats/12A/hold"
    headers = {"authorization": f"Bearer {agent.caller.token}", "content-type": "application/json"}
    for body, status in (
        (b'{"passengerId": "P1"', 400),
        (b'{"passengerId": "\xff\xfe"}', 400),
        (b"[" * 10_000, 400),
        (b'{"passengerId": "' + b"P" * 70_000 + b'"}', 413),
    ):
        answer = await gateway.http.post(path, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        reason(answer)
    assert await database.fetchval("SELECT count(*) FROM seat_events WHERE flight_id = $1", flight) == 0
