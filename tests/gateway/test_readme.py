"""Each curl of the gateway's README prints what it shows when sent to a real edge.

Its tables agree with the code.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

import gateway
from booking_service.service import BOOKING_SERVICE
from checkin_service.service import CHECKIN_SERVICE
from gateway.guard import observations
from gateway.guard.settings import GatewayServiceSettings
from gateway.limits import ANY_CLASS, DEFAULTS, PUBLIC_CLASSES, SHARED, Key, of_call
from gateway.settings import GatewaySettings
from gateway.upstreams import UPSTREAMS
from services.auth import Role
from services.rpcs import CallClass
from services.settings import ServiceSettings
from tests.callers import Callers
from tests.checkin.airport import facts
from tests.dates import flight_id
from tests.gateway.conftest import Others
from tests.gateway.console import Shell, difference, examples
from tests.instances import database_with, running
from tests.limits.conftest import edge_of
from tests.waiting import PATIENCE_SECONDS, pause

if TYPE_CHECKING:
    from tests.conftest import World

PAUSE_SECONDS: Final = 0.5
TRIES: Final = round(PATIENCE_SECONDS / PAUSE_SECONDS)
README: Final = Path(gateway.__file__).with_name("README.md").read_text()
ORIGIN: Final = "https://app.skyhigh.example"
PNR, GIVEN_NAME, LAST_NAME = "U4GTZT", "Mason", "Smith"
# The response fields that later calls need, and the README's variable for each.
REMEMBERED: Final = {"customerId": "CUSTOMER", "blockId": "BLOCK", "token": "TOKEN"}
EXAMPLES: Final = list(examples(README))


@pytest.fixture(scope="module")
async def shell(world: World, callers: Callers, others: Others) -> AsyncIterator[Shell]:
    """Yields a shell for an edge as in the README, with its own database for limits and blocks."""
    flight = flight_id(f"SH{secrets.randbelow(10**9)}")
    databases = await database_with(world, "gateway", "checkin", "booking")
    others_are_at = {f"SKYHIGH_{name}_ADDRESS": others.address for name in ("FLIGHT", "PAYMENT", "WEIGHT", "SMTP")}
    variables = databases | others_are_at | {"SKYHIGH_SEAT_ADDRESS": callers.address}
    async with (
        running(world, CHECKIN_SERVICE, CheckInServiceStub, **variables) as checkin,
        running(
            world, BOOKING_SERVICE, BookingServiceStub, **variables, SKYHIGH_CHECKIN_ADDRESS=checkin.address
        ) as bookings,
        edge_of(
            world,
            callers,
            others,
            configured={
                "checkin_address": (checkin.address,),
                "booking_address": (bookings.address,),
                "gateway_allowed_origins": (ORIGIN,),
            },
            SKYHIGH_GATEWAY_BLOCK_SECONDS="600",
            SKYHIGH_GATEWAY_DATABASE_URL=databases["SKYHIGH_GATEWAY_DATABASE_URL"],
        ) as edge,
        # Without the client's default headers, which curl would not send.
        httpx.AsyncClient(timeout=20, headers={"accept": "*/*", "accept-encoding": "identity"}) as http,
    ):
        await callers.operations().provision(flight)
        passenger = pb.ManifestPassenger(passenger_id=f"{PNR}-1", pnr=PNR, given_name=GIVEN_NAME, last_name=LAST_NAME)
        manifest = pb.ImportManifestRequest(flight_id=flight, flight=facts(), passengers=[passenger])
        await checkin.operations().ImportManifest(manifest)
        known = {
            "GATEWAY": edge.urls[0],
            "FLIGHT": flight,
            "AGENT": edge.admin.agent("demo").token,
            "OPERATIONS": edge.admin.operations("demo").token,
            "PNR": PNR,
            "LAST_NAME": LAST_NAME,
        }
        yield Shell(http, known, REMEMBERED)


async def test_each_documented_call_gets_the_documented_response(shell: Shell) -> None:
    for example in EXAMPLES:
        differences = list[str]()
        for _ in range(TRIES):
            found = difference(example.printed, *await shell.run(example.command))
            if found is None:
                break
            differences.append(f"{example.command}{found}")
            # A block and a changed limit take a moment to reach Envoy. Faster retries would count as abuse.
            await pause(PAUSE_SECONDS)
        else:
            pytest.fail("\n".join(dict.fromkeys(differences)))


def test_every_call_on_the_page_is_an_example() -> None:
    assert README.count("curl ") == sum(example.command.startswith("curl ") for example in EXAMPLES) > 15


@pytest.mark.parametrize(
    ("printed", "status", "answer"),
    [
        ('{"a": "x", …}', 200, '{"a":"y","b":1}'),
        ('{"a": "x"}', 200, '{"a":"x","b":1}'),
        ('{"a": 1}', 200, '{"a":"1"}'),
        ('{"a": [1, …]}', 200, '{"a":[]}'),
        ('{"a": [1]}', 200, '{"a":[1,2]}'),
        ('{"a": "x"}', 404, '{"a":"x"}'),
        ("HTTP/1.1 200 OK\n…\n\n{}", 429, "HTTP/1.1 429 Too Many Requests\nb: 1\n\n{}"),
        ("HTTP/1.1 200 OK\na: 1\n…\n\n{}", 200, "HTTP/1.1 200 OK\nb: 1\n\n{}"),
        ("200\n…\n429\n", 200, "200\n200\n200\n"),
    ],
)
def test_a_differing_response_is_detected(printed: str, status: int, answer: str) -> None:
    assert difference(printed, status, answer)


def rows(heading: str) -> list[list[str]]:
    """Returns the rows of the tables whose first column has this heading."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for table in tables for row in table.splitlines()]


def shown_limit(call_class: str, key: Key, role: str) -> str:
    """Formats a limit as in the table."""
    limit = of_call(DEFAULTS, call_class, key, role)
    assert limit is not None
    return f"{limit.requests_per_minute:,}, {limit.burst:,}"


def test_the_documented_limits_equal_the_code() -> None:
    expected = []
    keys = [
        (call_class, key)
        for call_class in (*CallClass, ANY_CLASS)
        for key in Key
        if of_call(DEFAULTS, call_class, key, "")
    ]
    for call_class, key in keys:
        everybody, agents, machines = (
            {shown_limit(call_class, key, role) for role in roles}
            for roles in ((Role.PASSENGER, Role.CUSTOMER), (Role.AGENT,), (Role.OPERATIONS, Role.SERVICE))
        )
        if key is Key.PRINCIPAL:
            others = [*agents, *machines]
        elif call_class in {*PUBLIC_CLASSES, ANY_CLASS}:
            others = ["the same", "the same"]
        else:
            others = [*agents, "none"]
        counted = "by all together" if call_class in SHARED else "by each gateway"
        expected.append([call_class, key.lower(), *everybody, *others, counted])
    assert sorted([row[0], *row[2:]] for row in rows("class")) == sorted(expected)


def test_the_documented_classes_list_their_rpcs() -> None:
    named = {row[0]: row[1].split(", ") for row in rows("class") if row[1] != "the same"}
    general = {CallClass.READ, CallClass.WRITE, CallClass.WATCH, CallClass.SEARCH}
    own = {
        name: rpc.call_class
        for upstream in UPSTREAMS
        for name, rpc in upstream.exposed.items()
        if rpc.call_class and rpc.call_class not in general
    }
    assert {rpc for rpcs in named.values() for rpc in rpcs if " " not in rpc and rpc != "streams"} == own.keys()
    assert [rpc for rpc, call_class in own.items() if rpc not in named[call_class]] == []


def test_the_documented_abuse_rules_equal_the_code() -> None:
    settings = GatewayServiceSettings.model_fields
    names = ("map_burst", "map_scan", "hold_spins", "failed_logins", "hoarding_guests")
    thresholds = (settings[name].default for name in names)
    closed = {kind: ["address", "logins"] for kind in observations.LOGIN_ONLY}
    closed |= {kind: ["address", "nothing"] for kind in observations.WITHOUT_BLOCK}
    for row, kind, threshold in zip(rows("found"), observations.KINDS, thresholds, strict=True):
        assert row[0] == kind
        assert f"more than {threshold} " in row[1]
        assert row[2:] == closed.get(kind, ["principal", "everything"])
    assert f"a **block** of {settings['block_seconds'].default // 60} minutes" in README


def test_each_setting_is_documented_with_its_default() -> None:
    services, edges = GatewayServiceSettings.model_fields, GatewaySettings.model_fields
    every_services = ServiceSettings.model_fields.keys() - {"listen"}
    fields = [(f"SKYHIGH_{name.upper()}", field) for name, field in edges.items()]
    fields += [
        (str(field.validation_alias or f"SKYHIGH_GATEWAY_{name.upper()}"), field)
        for name, field in services.items()
        if name not in every_services
    ]
    for variable, field in fields:
        found = [row[1] for row in rows("variable") if f"`{variable}`" in row[0]]
        assert found, variable
        if isinstance(field.default, str | int | float):
            assert any(f"`{field.default}`" in defaults for defaults in found), variable
