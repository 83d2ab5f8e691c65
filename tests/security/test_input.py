"""Hostile values in every field of every request, by gRPC and by JSON.

For attacks 3, 16 to 20 and 31. Invalid values are refused with INVALID_ARGUMENT; valid ones are stored as text and
never executed. No attack changes state, causes an internal error, or makes a service call another host.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, TypeVar
from uuid import uuid4

import grpc
import httpx
import pytest
from buf.validate import validate_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from services.auth import Role
from services.rpcs import Effect
from tests.callers import a_few_at_once
from tests.checkin.airport import new_pnr
from tests.security.belongings import Belongings, fly
from tests.security.hostile import BROKEN, CODE, NO_NUMBERS, SQL, TEXTS
from tests.security.messages import NO_FLIGHT, Path, fields_of, name_of, spoilt, spoilt_json, valid
from tests.security.system import RPCS, Rpc, System

Value = TypeVar("Value")
MARK: Final = "MARKMARK"
TEXT: Final = FieldDescriptor.TYPE_STRING
NUMBERS: Final = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
# The possible results of a call with invalid fields, or with ids that do not exist.
REFUSED: Final = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
# Its body is raw bytes: the service checks their signature, not their fields (tests/payment/test_receive_webhook.py).
RAW: Final = "ReceiveWebhook"
# Values tried for each field; the next field gets the next values. SKYHIGH_TEST_ROUNDS sets more.
ROUNDS: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "2"))


def some_of(values: tuple[Value, ...], turn: int) -> tuple[Value, ...]:
    """Returns the values for the field at this turn."""
    first = turn * ROUNDS % len(values)
    return (*values, *values)[first : first + min(ROUNDS, len(values))]


def places(*types: int) -> Iterator[tuple[Rpc, Path]]:
    """Yields each field of these types in each request."""
    for rpc in RPCS.values():
        if rpc.name != RAW:
            for path in fields_of(rpc.method.input_type, *types):
                yield rpc, path


def token_for(system: System, rpc: Rpc) -> str:
    """Returns a token of the most powerful role that may call the RPC."""
    order = (Role.SERVICE, Role.OPERATIONS, Role.AGENT, Role.CUSTOMER, Role.PASSENGER, Role.ANYBODY)
    return system.token(next(role for role in order if role in rpc.declaration.roles))


def reads(rpc: Rpc) -> bool:
    """Returns whether the RPC is a read, which may succeed with an empty result."""
    return rpc.declaration.effect is Effect.READ


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("values", [SQL, CODE, TEXTS], ids=["SQL", "code", "texts"])
async def test_a_text_field_is_never_executed(system: System, values: tuple[str, ...]) -> None:
    wrong: list[object] = []

    async def attack(rpc: Rpc, path: Path, value: str) -> None:
        answer = await system.ask(rpc, spoilt(valid(rpc.request()), path, value), token_for(system, rpc))
        if answer.code not in REFUSED and not (answer.code is grpc.StatusCode.OK and reads(rpc)):
            wrong.append((rpc.name, name_of(path), value, answer.code))

    await a_few_at_once(
        attack(rpc, path, value) for n, (rpc, path) in enumerate(places(TEXT)) for value in some_of(values, n)
    )
    assert wrong == []


@pytest.mark.usefixtures("nothing_changed")
async def test_a_text_field_in_json_is_never_executed(system: System) -> None:
    wrong: list[object] = []

    async def attack(rpc: Rpc, path: Path, value: str) -> None:
        fields = json_format.MessageToDict(valid(rpc.request()))
        answer = await system.ask_json(rpc, spoilt_json(fields, path, value), token_for(system, rpc))
        if not 400 <= answer.status_code < 500 and not (answer.status_code == 200 and reads(rpc)):
            wrong.append((rpc.name, name_of(path), value, answer.status_code))

    here = [(rpc, path) for rpc, path in places(TEXT) if rpc.binding]
    await a_few_at_once(
        attack(rpc, path, value)
        for n, (rpc, path) in enumerate(here)
        for values in (SQL, (*CODE, *TEXTS))
        for value in some_of(values, n)
    )
    assert wrong == []


@pytest.mark.usefixtures("nothing_changed")
async def test_bytes_that_are_not_utf_8_are_refused(system: System) -> None:
    wrong: list[object] = []

    async def attack(rpc: Rpc, path: Path, value: bytes) -> None:
        marked = spoilt(valid(rpc.request()), path, MARK).SerializeToString()
        body = marked.replace(MARK.encode(), value.ljust(len(MARK), b"A"))
        answer = await system.ask(rpc, body, token_for(system, rpc))
        if answer.code is not grpc.StatusCode.INVALID_ARGUMENT:
            wrong.append((rpc.name, name_of(path), value, answer.code))

    await a_few_at_once(
        attack(rpc, path, value) for n, (rpc, path) in enumerate(places(TEXT)) for value in some_of(BROKEN, n)
    )
    assert wrong == []


@pytest.mark.usefixtures("nothing_changed")
async def test_an_out_of_range_number_is_refused(system: System) -> None:
    wrong: list[object] = []

    async def attack(rpc: Rpc, path: Path, value: Any) -> None:
        fields = json_format.MessageToDict(valid(rpc.request()))
        answer = await system.ask_json(rpc, spoilt_json(fields, path, value), token_for(system, rpc))
        if answer.status_code != HTTPStatus.BAD_REQUEST:
            wrong.append((rpc.name, name_of(path), value, answer.status_code))

    await a_few_at_once(
        attack(rpc, path, value)
        for rpc, path in places(*NUMBERS)
        for value in NO_NUMBERS
        if rpc.binding and not is_number_there(rpc, path, value)
    )
    assert wrong == []


def is_number_there(rpc: Rpc, path: Path, value: Any) -> bool:
    """Returns whether the value is valid there.

    2^31 fits into 64 bits, and a query omits an empty list.
    """
    return (value == 2**31 and path[-1].type == FieldDescriptor.TYPE_INT64) or (value in ([], {}) and not rpc.has_body)


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("literal", ["NaN", "-Infinity", "1e309", "0x1F", "1.5e", "--1", "2147483648", "9" * 400])
async def test_an_invalid_json_number_is_refused(system: System, literal: str) -> None:
    path = f"/v1/checkins/{uuid4()}/baggage"
    body = f'{{"bags": [{{"weightGrams": {literal}}}]}}'
    headers = {"authorization": f"Bearer {system.token(Role.AGENT)}"}
    assert (await system.http.post(path, content=body, headers=headers)).status_code == 400


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 60_000, 400),
        (b'{"a":' * 12_000, 400),
        (b'{"seats":[' * 6_000, 400),
        (b'{"profile":' * 5_000 + b"{}" + b"}" * 5_000, 400),
        (b"[" * 100_000, 413),
    ],
    ids=["lists", "objects", "fields", "closed", "a hundred thousand"],
)
async def test_deep_json_does_not_crash_a_parser(system: System, body: bytes, status: int) -> None:
    headers = {"authorization": f"Bearer {system.token(Role.AGENT)}"}
    for path in ("/v1/holds", "/v1/bookings", "/v1/checkins", "/v1/flights/SH000/waitlist", "/v1/sessions"):
        answer = await system.http.post(path, content=body, headers=headers)
        assert answer.status_code == status, (path, answer.text)


@pytest.mark.usefixtures("nothing_changed")
async def test_deep_messages_do_not_crash_a_decoder(system: System) -> None:
    """A group nested 60,000 levels deep: each level costs the attacker one byte."""
    for rpc in RPCS.values():
        if rpc.name != RAW:
            answer = await system.ask(rpc, b"\x0b" * 60_000, token_for(system, rpc))
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, rpc.name


async def test_output_only_fields_cannot_be_written(system: System, belongings: Belongings) -> None:
    """Attack 3: fields that exist only in the response are not taken from a request."""
    forged = {
        "state": "CONFIRMED",
        "holdId": str(uuid4()),
        "bookingId": str(uuid4()),
        "expireTime": "2099-01-01T00:00:00Z",
        "extensionsLeft": 99,
        "version": 99,
        "holder": "customer:other",
        "price": {"currencyCode": "USD", "units": "0"},
        "total": {"currencyCode": "USD", "units": "1"},
        "pnr": "AAAAAA",
        "paymentAttempts": -5,
    }
    flight_id = belongings.strangers_own["flight_id"]
    headers = {"authorization": f"Bearer {belongings.stranger[Role.CUSTOMER]}"}
    path = f"/v1/flights/{flight_id}/seats/14A/hold"
    held = (await system.http.post(path, json={"passengerId": "C2", **forged}, headers=headers)).json()
    assert (held["state"], held["extensionsLeft"]) == ("HELD", 9)
    assert held["holdId"] != forged["holdId"]
    assert held["expireTime"] < "2099"
    fields = json_format.MessageToDict(valid(RPCS["CreateBooking"].request(), {"flight_id": flight_id}))
    booked = (await system.http.post("/v1/bookings", json=fields | forged, headers=headers)).json()
    assert (booked["state"], booked["pnr"], booked["paymentAttempts"]) == ("SEATS_RESERVED", "", 0)
    assert booked["bookingId"] != forged["bookingId"]
    assert booked["total"]["units"] == "10"


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("more", [{"owner": "customer:other"}, {"owner": "service:booking"}, {"managed": True}])
async def test_service_only_fields_cannot_be_written(
    system: System, belongings: Belongings, more: dict[str, Any]
) -> None:
    seats = [{"flightId": belongings.strangers_own["flight_id"], "seatNumber": "14C", "passengerId": "C3"}]
    headers = {"authorization": f"Bearer {belongings.stranger[Role.CUSTOMER]}"}
    answer = await system.http.post("/v1/holds", json={"seats": seats, **more}, headers=headers)
    assert answer.status_code == 403


@pytest.mark.usefixtures("nothing_changed")
async def test_a_body_cannot_override_the_path(system: System, belongings: Belongings) -> None:
    """The path names the resource, both for limits and logs and for the service."""
    flight_id = belongings.strangers_own["flight_id"]
    answer = await system.http.post(
        f"/v1/flights/{NO_FLIGHT}/seats/14D/hold",
        json={"flightId": flight_id, "seatNumber": "14D", "passengerId": "C4"},
        headers={"authorization": f"Bearer {belongings.stranger[Role.CUSTOMER]}"},
    )
    assert answer.status_code in (400, 404)


async def test_a_name_with_a_quote_is_stored_as_text(system: System, belongings: Belongings) -> None:
    flight_id, pnr, name = belongings.strangers_own["flight_id"], new_pnr(), "O'Brien'--"
    person = {"passengerId": "P7", "pnr": pnr, "givenName": "x' OR 'x", "lastName": name}
    headers = {"authorization": f"Bearer {system.token(Role.OPERATIONS)}"}
    imported = await system.http.post(
        f"/v1/flights/{flight_id}/manifest", json={"passengers": [person]}, headers=headers
    )
    assert imported.json()["added"] == 1
    session = (await system.http.post("/v1/sessions", json={"pnr": pnr, "lastName": name})).json()
    (passenger,) = session["trip"]["passengers"]
    assert (passenger["lastName"], passenger["givenName"]) == (name, person["givenName"])
    assert (await system.http.post("/v1/sessions", json={"pnr": pnr, "lastName": "O' OR 'a"})).status_code == 404


async def test_a_page_token_is_bound_to_its_query(system: System) -> None:
    """Attack 19."""
    flight_id = await fly(system)
    seats = system.callers["seat"]
    for _ in range(2):
        await seats.agent().cancel(await seats.agent().hold(flight_id, "16A", "P8"))

    async def events(seat_number: str, token: str = "", size: str = "1", subject: str = "desk") -> httpx.Response:
        return await system.http.get(
            f"/v1/flights/{flight_id}/seats/{seat_number}/events",
            params={"page_token": token, "page_size": size},
            headers={"authorization": f"Bearer {system.token(Role.AGENT, subject)}"},
        )

    token = (await events("16A")).json()["nextPageToken"]
    second = (await events("16A", token)).json()
    assert [event["version"] for event in second["events"]] == ["2"]
    assert len((await events("16A", size=str(2**31 - 1))).json()["events"]) == 4
    flipped = [token[:n] + ("A" if token[n] != "A" else "B") + token[n + 1 :] for n in range(0, len(token) - 4, 3)]
    raw = base64.urlsafe_b64encode(b"1").decode()
    for forged in (*flipped, token[:-4], token * 2, raw, "=", "A" * 512, "null", "-1"):
        assert (await events("16A", forged)).status_code == 400, forged
    assert (await events("16B", token)).status_code == 400, "of another seat"
    assert (await events("16A", token, subject="desk-2")).status_code == 400, "of another agent"
    for path in ("checkins", "waitlist"):
        answer = await system.http.get(
            f"/v1/flights/{flight_id}/{path}",
            params={"page_token": token},
            headers={"authorization": f"Bearer {system.token(Role.AGENT)}"},
        )
        assert answer.status_code == 400, path
    for size in ("-1", str(2**31), "1e3"):
        assert (await events("16A", size=size)).status_code == 400


def test_no_request_field_is_an_address() -> None:
    """Attack 31: no field makes a service fetch, call or redirect to an address."""
    suspects = re.compile(
        r"ur[il]|host|callback|redirect|endpoint|webhook|proxy|domain|server|path|file", re.IGNORECASE
    )
    named = {name_of(path) for _, path in places(TEXT) if suspects.search(path[-1].name)}
    # "profile" contains "file".
    assert {name for name in named if "profile" not in name} == set()
    for _, path in places(TEXT):
        rules = path[-1].GetOptions().Extensions[validate_pb2.field].string
        kinds = (rules.uri, rules.uri_ref, rules.hostname, rules.ip, rules.address, rules.host_and_port)
        assert not any(kinds), name_of(path)


@pytest.mark.usefixtures("nothing_changed")
async def test_no_service_connects_to_a_requested_address(system: System) -> None:
    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.read(100))
        writer.close()

    calls: list[bytes] = []
    server = await asyncio.start_server(called, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        bait = (f"http://127.0.0.1:{port}/", f"//127.0.0.1:{port}", f"bait@[127.0.0.1:{port}]")
        await a_few_at_once(
            system.ask(rpc, spoilt(valid(rpc.request()), path, value), token_for(system, rpc))
            for n, (rpc, path) in enumerate(places(TEXT))
            for value in some_of(bait, n)
        )
    assert calls == []
