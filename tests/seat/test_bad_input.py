"""Bad input is refused with the field's name, and changes nothing.

The rule is docs/rules.md section 12.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from skyhigh.seat.v1 import seat_service_pb2 as pb

from deploy.local.secrets import SigningKeys
from services import telemetry
from tests.callers import Caller, Callers, listed_passenger, read, refused, seat
from tests.dates import flight_id
from tests.instances import Database
from tests.seat.rules import written

if TYPE_CHECKING:
    from tests.conftest import World

SERVICE: Final = "skyhigh.seat.v1.SeatService"
FLIGHT: Final = flight_id()
UUID: Final = str(uuid4())

# Malformed values by kind of field.
BAD: Final[dict[str, list[str]]] = {
    "flight_id": [
        "",
        "SH",
        "S" * 41,
        "S" * 10_240,
        "SH101 2026",
        "SH101/2026",
        "SH101\n",
        "SH101\x00",
        "SH1\x0701",
        "ＳＨ１０１",  # noqa: RUF001
        "SН101-2026",  # a Cyrillic letter  # noqa: RUF001
        "SH101‐2026",  # a non-ASCII hyphen  # noqa: RUF001
        "SH101\u202e2026",
        "'; DROP TABLE seats; --",
        "../../etc/passwd",
    ],
    "seat_number": [
        "",
        "0A",
        "00A",
        "012A",
        "12",
        "A",
        "A12",
        "12I",
        "12O",
        "12a",
        "12AA",
        "1234A",
        "-1A",
        "1.5A",
        "NaN",
        " 12A",
        "12A ",
        "12A\n",
        "12A\x00",
        "12\x00A",
        "12А",  # Cyrillic  # noqa: RUF001
        "１２A",  # noqa: RUF001
        "1²A",
        "١٢A",  # noqa: RUF001
        "12A" * 3_500,
    ],
    "passenger_id": ["", "P 1", "P/1", "P\x00", "P\n", "Pé", "P" * 65, "P" * 10_240, "P1;--"],
    "hold_id": ["", "1", "no-uuid", UUID[:-1], UUID + "0", UUID.replace("-", "_"), UUID + "\n", "0" * 10_240],
    "layout_id": ["", "A3", "A320 180Y", "A" * 41, "../A320", "A320\x00"],
    "reason": ["\n", " X", "A\x00B", "A\x1b[31m", "A" * 121, "A" * 10_240, "Grund für", "<script>"],
    "owner": ["root", "operations:ops", "passenger:", "passenger:a b", "passenger:" + "A" * 65, "customer:\x00"],
    "request_id": ["1", "no-uuid", "0" * 10_240, UUID + "\x00"],
}
# A valid request of each method. The tests replace one field at a time with a malformed value.
GOOD: Final[dict[str, Any]] = {
    "ProvisionSeats": pb.ProvisionSeatsRequest(flight_id=FLIGHT, layout_id="A320-180Y", request_id=UUID),
    "GetSeatMap": pb.GetSeatMapRequest(flight_id=FLIGHT),
    "GetSeatMapJson": pb.GetSeatMapJsonRequest(flight_id=FLIGHT),
    "SuggestSeats": pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=1),
    "HoldSeat": pb.HoldSeatRequest(
        flight_id=FLIGHT, seat_number="20A", passenger_id="P1", request_id=UUID, owner="customer:c"
    ),
    "HoldSeats": pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A", "P1")], request_id=UUID, owner="customer:c"),
    "GetHold": pb.GetHoldRequest(hold_id=UUID),
    "ExtendHold": pb.ExtendHoldRequest(hold_id=UUID, request_id=UUID),
    "ChangeHoldSeats": pb.ChangeHoldSeatsRequest(hold_id=UUID, seats=[seat(FLIGHT, "20A", "P1")], request_id=UUID),
    "ConfirmHold": pb.ConfirmHoldRequest(hold_id=UUID, request_id=UUID, owner="customer:c"),
    "CancelHold": pb.CancelHoldRequest(hold_id=UUID, reason="R", request_id=UUID),
    "BlockSeat": pb.BlockSeatRequest(flight_id=FLIGHT, seat_number="20A", reason="R", request_id=UUID),
    "UnblockSeat": pb.UnblockSeatRequest(flight_id=FLIGHT, seat_number="20A", reason="R", request_id=UUID),
    "ListSeatEvents": pb.ListSeatEventsRequest(flight_id=FLIGHT, seat_number="20A"),
    "ClaimSeat": pb.ClaimSeatRequest(
        flight_id=FLIGHT, seat_number="20A", passenger_id="P1", owner="customer:c", request_id=UUID
    ),
    "ReturnSeat": pb.ReturnSeatRequest(flight_id=FLIGHT, seat_number="20A", request_id=UUID),
    "ReleasePassengerSeat": pb.ReleasePassengerSeatRequest(
        hold_id=UUID, flight_id=FLIGHT, passenger_id="P1", reason="R", request_id=UUID
    ),
    "FindPassengerSeats": pb.FindPassengerSeatsRequest(
        passengers=[pb.FindPassengerSeatsRequest.FlightPassenger(flight_id=FLIGHT, passenger_id="P1")]
    ),
    "SetWaitlistOpen": pb.SetWaitlistOpenRequest(flight_id=FLIGHT, open=True, request_id=UUID),
}
ROLE: Final = {"ProvisionSeats": "operations"} | dict.fromkeys(
    ("ClaimSeat", "ReturnSeat", "ReleasePassengerSeat", "FindPassengerSeats", "SetWaitlistOpen", "SyncPassengers"),
    "service",
)
OPTIONAL: Final = {
    ("HoldSeat", "owner"),
    ("HoldSeats", "owner"),
    ("ConfirmHold", "owner"),
    ("CancelHold", "reason"),
    ("UnblockSeat", "reason"),
    ("ReleasePassengerSeat", "reason"),
}
# Repeated fields, and the fields of their elements.
LISTED: Final = {
    "seats": ("flight_id", "seat_number", "passenger_id"),
    "passengers": ("flight_id", "passenger_id"),
}


def spoilt(method: str) -> list[tuple[str, Any, str]]:
    """Returns requests with one malformed string each.

    Each item is the path of the field, the request and the malformed value.
    """
    requests = []
    for name in (field.name for field in GOOD[method].DESCRIPTOR.fields):
        for value in BAD.get(name, []):
            if value or (method, name) not in OPTIONAL:
                request = type(GOOD[method])()
                request.CopyFrom(GOOD[method])
                setattr(request, name, value)
                requests.append((name, request, value))
        for inner in LISTED.get(name, ()):
            for value in BAD[inner]:
                request = type(GOOD[method])()
                request.CopyFrom(GOOD[method])
                setattr(getattr(request, name)[0], inner, value)
                requests.append((f"{name}[0].{inner}", request, value))
    return requests


@pytest.fixture
async def nothing_changed(database: Database) -> AsyncIterator[None]:
    """Fails the test if it wrote rows or if a call ended as INTERNAL."""
    before = await written(database), defects()
    yield
    assert (await written(database), defects()) == before


def defects() -> float:
    """Returns how many calls ended as INTERNAL."""
    samples = (sample for metric in telemetry.CALLS.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.labels.get("code") == "INTERNAL")


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("method", sorted(GOOD))
async def test_a_malformed_field_is_named(callers: Callers, method: str) -> None:
    caller = getattr(callers, ROLE.get(method, "agent"))()
    for field, request, value in spoilt(method):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await getattr(caller, method)(request)
        assert refusal.fields == [field], value
        assert field in refusal.message
        # The response does not repeat the 10 kB of the request.
        assert len(refusal.status.SerializeToString()) < 2_000, field


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetSeatMap", pb.GetSeatMapRequest(flight_id=FLIGHT, known_version=-1), "known_version"),
        ("GetSeatMapJson", pb.GetSeatMapJsonRequest(flight_id=FLIGHT, known_version=-(2**63)), "known_version"),
        ("HoldSeat", pb.HoldSeatRequest(flight_id=FLIGHT, seat_number="20A", passenger_id="P", purpose=99), "purpose"),  # type: ignore[arg-type]
        ("HoldSeat", pb.HoldSeatRequest(flight_id=FLIGHT, seat_number="20A", passenger_id="P", purpose=-1), "purpose"),  # type: ignore[arg-type]
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A")], purpose=99), "purpose"),  # type: ignore[arg-type]
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(FLIGHT, f"2{n}A") for n in range(10)]), "seats"),
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(f"SH10{n}", "20A") for n in range(5)]), "seats"),
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A"), seat(FLIGHT, "20A")]), "seats"),
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A", "P"), seat(FLIGHT, "20B", "P")]), "seats"),
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A", type=99)]), "seats[0].profile.type"),
        ("HoldSeats", pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A", cabin=99)]), "seats[0].profile.cabin"),
        (
            "HoldSeats",
            pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A", special_services=["INFT", "inft"])]),
            "seats[0].profile.special_services[1]",
        ),
        (
            "HoldSeats",
            pb.HoldSeatsRequest(seats=[seat(FLIGHT, "20A", special_services=["WCHR"] * 9)]),
            "seats[0].profile.special_services",
        ),
        ("ChangeHoldSeats", pb.ChangeHoldSeatsRequest(hold_id=UUID), "seats"),
        ("FindPassengerSeats", pb.FindPassengerSeatsRequest(), "passengers"),
        ("SetWaitlistOpen", pb.SetWaitlistOpenRequest(flight_id=FLIGHT, revision=-1), "revision"),
        *(
            ("SyncPassengers", pb.SyncPassengersRequest(passengers=[wrong]), f"passengers[0].{field}")
            for field, wrong in {
                "flight_id": listed_passenger("?", "P1", "XK4T7Q"),
                "passenger_id": listed_passenger(FLIGHT, "P 1", "XK4T7Q"),
                "pnr": listed_passenger(FLIGHT, "P1", "XK4T7"),
                "revision": listed_passenger(FLIGHT, "P1", "XK4T7Q", revision=-1),
                "profile.special_services[0]": listed_passenger(FLIGHT, "P1", "XK4T7Q", special_services=["x"]),
            }.items()
        ),
        (
            "SyncPassengers",
            pb.SyncPassengersRequest(flights=[pb.SyncPassengersRequest.FlightTimes(flight_id=FLIGHT, revision=1)]),
            "flights[0].departure_time",
        ),
        *(
            (
                "SyncPassengers",
                pb.SyncPassengersRequest(
                    flights=[
                        pb.SyncPassengersRequest.FlightTimes(flight_id=FLIGHT, revision=1, departure_time=impossible)
                    ]
                ),
                "flights[0].departure_time",
            )
            for impossible in (Timestamp(seconds=10**15), Timestamp(nanos=-1))
        ),
        (
            "ProvisionSeats",
            pb.ProvisionSeatsRequest(
                flight_id=FLIGHT, layout_id="A320-180Y", departure_time=Timestamp(seconds=-(10**12))
            ),
            "departure_time",
        ),
        (
            "SuggestSeats",
            pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=2, passenger_ids=["P 1"]),
            "passenger_ids[0]",
        ),
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=0), "party_size"),
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=10), "party_size"),
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=9, children=9), "children"),
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=2, children=-1), "children"),
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=2, cabin=99), "cabin"),  # type: ignore[arg-type]
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=2, positions=[1, 99]), "positions[1]"),  # type: ignore[list-item]
        ("SuggestSeats", pb.SuggestSeatsRequest(flight_id=FLIGHT, party_size=2, positions=[1] * 4), "positions"),  # type: ignore[list-item]
        ("ListSeatEvents", pb.ListSeatEventsRequest(flight_id=FLIGHT, seat_number="20A", page_size=-1), "page_size"),
        (
            "ListSeatEvents",
            pb.ListSeatEventsRequest(flight_id=FLIGHT, seat_number="20A", page_token="A" * 10_240),
            "page_token",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_changed")
async def test_a_value_out_of_range_is_named(callers: Callers, method: str, request_: Any, field: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await getattr(getattr(callers, ROLE.get(method, "agent"))(), method)(request_)
    assert refusal.fields == [field]


async def test_all_wrong_fields_are_named_at_once(agent: Caller) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.hold("?", "12I", "P 1", purpose=99)
    assert set(refusal.fields) == {"flight_id", "seat_number", "passenger_id", "purpose"}


@pytest.mark.usefixtures("nothing_changed")
async def test_a_seat_of_no_aircraft_is_not_found(agent: Caller, operations: Caller, demo: str) -> None:
    for number in ("99Z", "31A", "12G", "999Z"):
        for method in ("HoldSeat", "BlockSeat", "UnblockSeat", "ListSeatEvents"):
            request = type(GOOD[method])()
            request.CopyFrom(GOOD[method])
            request.flight_id, request.seat_number = demo, number
            if method == "HoldSeat":
                request.owner = ""
            with refused("NOT_FOUND", "SEAT_NOT_FOUND"):
                await getattr(agent, method)(request)


@pytest.fixture(scope="module")
async def demo(callers: Callers) -> str:
    """A flight that exists before the calls."""
    flight_id = f"SH{secrets.token_hex(4)}"
    await callers.operations().provision(flight_id)
    return flight_id


async def raw(callers: Callers, token: str, method: str, body: bytes, **metadata: str) -> None:
    """Sends these bytes as a request."""
    async with grpc.aio.insecure_channel(callers.address) as channel:
        headers = {"authorization": f"Bearer {token}", **metadata}
        call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        await call(body, metadata=tuple(headers.items()), timeout=20)


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("method", sorted(GOOD))
async def test_bytes_that_are_no_message_are_malformed(callers: Callers, method: str) -> None:
    token = getattr(callers, ROLE.get(method, "agent"))().token
    good = GOOD[method].SerializeToString()
    for body in (
        b"\xff",
        b"\xff" * 100,
        secrets.token_bytes(7) + b"\xff\xff",
        good[:-1],
        good.replace(FLIGHT.encode(), b"\xc3\x28" + FLIGHT.encode()[2:]).replace(
            UUID.encode(), b"\xff\xfe" + b"0" * 34
        ),
    ):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await raw(callers, token, method, body)
        assert refusal.fields


@pytest.mark.usefixtures("nothing_changed")
async def test_unknown_fields_of_a_newer_client_are_ignored(callers: Callers, demo: str) -> None:
    known = pb.GetSeatMapRequest(flight_id=demo).SerializeToString()
    unknown_field = b"\xfa\x06\x03abc"
    await raw(callers, callers.agent().token, "GetSeatMap", known + unknown_field)


async def test_a_message_over_the_limit_is_refused(callers: Callers, agent: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw(callers, agent.token, "HoldSeat", b"\x0a\x80\x80\x08" + b"A" * (1 << 17))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unimplemented(callers: Callers, agent: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw(callers, agent.token, "DeleteAllSeats", b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Tokens


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: dict[str, Any] | str, claims: dict[str, Any], sign: Any = lambda _: b"") -> str:
    """Returns a token whose signature is empty or made by `sign`."""
    head = header if isinstance(header, str) else json.dumps(header)
    signed = f"{b64(head.encode())}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def bad_tokens(callers: Callers, world: World, folder: Path) -> dict[str, str]:
    """Returns invalid tokens; each key says what is wrong with its token."""
    claims = callers.claims("agent", "desk")
    good = world.keys.sign(claims)
    head, body, signature = good.split(".")
    public = world.keys.jwks.read_bytes()
    kid = json.loads(public)["keys"][0]["kid"]
    foreign = SigningKeys(folder)
    now = int(time.time())

    def hs256(secret: bytes) -> Any:
        return lambda signed: hmac.new(secret, signed, hashlib.sha256).digest()

    def signed(**changed: Any) -> str:
        return world.keys.sign({name: value for name, value in {**claims, **changed}.items() if value is not None})

    return {
        "no token": "",
        "garbage": "garbage",
        "two parts": f"{head}.{body}",
        "no signature": f"{head}.{body}.",
        "cut signature": good[:-10],
        "another's signature": f"{head}.{body}.{b64(secrets.token_bytes(64))}",
        "changed body": f"{head}.{b64(json.dumps({**claims, 'role': 'service'}).encode())}.{signature}",
        "foreign key": foreign.sign(claims),
        "alg none": forged({"alg": "none"}, claims),
        "alg None": forged({"alg": "None", "kid": kid}, claims),
        "HS256 with the public key": forged({"alg": "HS256", "kid": kid}, claims, hs256(public)),
        "HS256 with an empty key": forged({"alg": "HS256"}, claims, hs256(b"")),
        "ES256 without a signature": forged({"alg": "ES256", "kid": kid}, claims),
        "a key of its own": forged(
            {"alg": "ES256", "kid": "mine", "jwk": json.loads(foreign.jwks.read_text())["keys"][0]}, claims
        ),
        "a key from elsewhere": forged({"alg": "ES256", "jku": "https://127.0.0.1:1/jwks.json"}, claims),
        "critical extension": forged({"alg": "ES256", "kid": kid, "crit": ["exp"]}, claims),
        "deep header": forged("[" * 3_000, claims),
        "deep claims": f"{head}.{b64(b'[' * 3_000)}.{signature}",
        "header of a wrong type": forged("[]", claims),
        "expired": signed(exp=now - 1),
        "not yet valid": signed(nbf=now + 3600),
        "without an end": signed(exp=None),
        "an end that is no number": signed(exp="never"),
        "wrong audience": signed(aud="others"),
        "without an audience": signed(aud=None),
        "wrong issuer": signed(iss="https://evil.example"),
        "without an issuer": signed(iss=None),
        "without a subject": signed(sub=None),
        "empty subject": signed(sub=""),
        "long subject": signed(sub="A" * 65),
        "subject of a wrong type": signed(sub=7),
        "unknown role": signed(role="root"),
        "role of a wrong type": signed(role=["agent"]),
        "without a role": signed(role=None),
        "passengers of a wrong type": signed(role="passenger", passengers="all"),
        "passengers without a flight": signed(role="passenger", passengers=[{"id": "P1"}]),
        "huge": f"{head}.{b64(b'A' * 8_000)}.{signature}",
    }


@pytest.mark.usefixtures("nothing_changed")
async def test_an_invalid_token_is_refused_by_every_method(
    callers: Callers, world: World, tmp_path: Path, demo: str
) -> None:
    request = pb.HoldSeatRequest(flight_id=demo, seat_number="20A", passenger_id="P1")
    statuses = set()
    for what, token in bad_tokens(callers, world, tmp_path).items():
        try:
            await callers.anybody(token).HoldSeat(request)
        except grpc.aio.AioRpcError as error:
            refusal = read(error)
            assert (refusal.code.name, refusal.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED"), what
            statuses.add(refusal.status.SerializeToString())
        else:
            raise AssertionError(f"accepted: {what}")
    # All refusals are equal: they do not reveal what is wrong with the token.
    assert len(statuses) == 1


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("scheme", ["", "Basic ", "Token ", "bearer"])
async def test_a_token_needs_the_bearer_prefix(callers: Callers, agent: Caller, demo: str, scheme: str) -> None:
    with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
        body = pb.GetSeatMapRequest(flight_id=demo).SerializeToString()
        await raw(callers, agent.token, "GetSeatMap", body, authorization=f"{scheme}{agent.token}")


@pytest.mark.usefixtures("nothing_changed")
async def test_every_method_without_a_token_is_unauthenticated(callers: Callers) -> None:
    async with grpc.aio.insecure_channel(callers.address) as channel:
        for method in GOOD:
            with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
                await channel.unary_unary(f"/{SERVICE}/{method}")(GOOD[method].SerializeToString(), timeout=20)


async def test_an_oversized_token_is_refused_by_the_transport(callers: Callers) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await callers.anybody("A" * 100_000).GetSeatMap(GOOD["GetSeatMap"])
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
