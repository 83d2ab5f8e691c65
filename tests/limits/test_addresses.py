"""No address exceeds its limit, however many principals use it (GW-2)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

from deploy.local.process import free_ports
from gateway.limits import ADDRESS_ROLES, DEFAULTS, PUBLIC_CLASSES, Key, Limit, of_call
from services.auth import Role
from tests.callers import Caller, Callers
from tests.conftest import World
from tests.dates import flight_id
from tests.gateway.conftest import Others
from tests.limits.conftest import Edge, edge_of, reason, set_limit
from tests.waiting import eventually

LIMITS = {limit.limit_id: limit for limit in DEFAULTS}
# The flight does not exist: a call that passes the limits changes nothing and gets "not found".
FLIGHT = flight_id("SH404")
HOLD = ("POST", f"/v1/flights/{FLIGHT}/seats/12A/hold", {"passengerId": "P-1"})
# One call of each class that needs a token.
CALLS: dict[str, tuple[str, str, Any]] = {
    "map": ("GET", f"/v1/flights/{FLIGHT}/seatmap", None),
    "hold": HOLD,
    "read": ("GET", "/v1/holds/00000000-0000-4000-8000-000000000000", None),
    "write": ("POST", "/v1/holds/00000000-0000-4000-8000-000000000000/extend", {}),
    "watch": ("GET", f"/v1/flights/{FLIGHT}/seatmap/watch", None),
}
BURST = 5
NONE: Mapping[str, str] = MappingProxyType({})
FORGED = {
    "x-forwarded-for": "10.0.0.1",
    "x-real-ip": "10.0.0.2",
    "x-skyhigh-client": "10.0.0.3",
    "x-envoy-external-address": "10.0.0.4",
    "forwarded": "for=10.0.0.5",
}


def new_address() -> str:
    """Returns an address of this machine that no other test uses."""
    return f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(200) + 1}.{secrets.randbelow(200) + 2}"


@asynccontextmanager
async def calls_from(edge: Edge, address: str = "", *, envoy: int = 0) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client with this address, or with a new one."""
    transport = httpx.AsyncHTTPTransport(local_address=address or new_address())
    async with httpx.AsyncClient(base_url=edge.urls[envoy], transport=transport, timeout=20) as http:
        yield http


async def ask(
    http: httpx.AsyncClient, caller: Caller, call: tuple[str, str, Any], headers: Mapping[str, str] = NONE
) -> str:
    """Calls once; returns the reason of the refusal."""
    method, path, body = call
    answer = await http.request(method, path, json=body, headers={"authorization": f"Bearer {caller.token}", **headers})
    return reason(answer)


async def by_many(
    http: httpx.AsyncClient,
    callers: Callers,
    call: tuple[str, str, Any],
    *,
    calls: int = 20,
    headers: Mapping[str, str] = NONE,
) -> tuple[int, float]:
    """Lets each of `calls` new guests call once.

    Returns how many calls passed the limits, and the seconds that they took.
    """
    began = time.monotonic()
    answers = Counter(
        await asyncio.gather(*(ask(http, callers.customer(), call, headers) for _ in range(calls))),
    )
    assert answers.keys() <= {"RATE_LIMITED", "FLIGHT_NOT_FOUND", "HOLD_NOT_FOUND"}, answers
    return calls - answers["RATE_LIMITED"], time.monotonic() - began


@asynccontextmanager
async def lowered(edge: Edge, limit: Limit) -> AsyncIterator[None]:
    """Lowers the limit within the block to one call per second and BURST at once."""
    await set_limit(edge.admin, limit, requests_per_minute=60, burst=BURST)
    try:
        yield
    finally:
        await set_limit(edge.admin, limit, requests_per_minute=1_000_000, burst=100_000)


def allowed(seconds: float) -> int:
    return BURST + int(seconds) + 1


async def holds_limit(edge: Edge, call: tuple[str, str, Any], headers: Mapping[str, str] = NONE) -> bool:
    """Returns whether no more calls of a new address pass than the lowered limit permits."""
    async with calls_from(edge) as http:
        passed, seconds = await by_many(http, edge.seats, call, headers=headers)
    return BURST <= passed <= allowed(seconds)


def test_every_class_has_a_limit_of_addresses() -> None:
    for call_class in {limit.call_class for limit in DEFAULTS}:
        assert of_call(DEFAULTS, call_class, Key.ADDRESS, "")
    for role in ADDRESS_ROLES:
        for call_class in CALLS:
            address, principal = (of_call(DEFAULTS, call_class, key, role) for key in (Key.ADDRESS, Key.PRINCIPAL))
            assert address is not None
            assert principal is not None
            # Ten agents of an office, or fifty passengers of an airport, reach their own limits before that of the
            # address.
            assert address.requests_per_minute >= 10 * principal.requests_per_minute
            assert address.burst >= 2 * principal.burst
    assert not PUBLIC_CLASSES & CALLS.keys()


@pytest.mark.parametrize("call_class", CALLS)
async def test_many_guests_of_one_address_share_its_limit(edge: Edge, call_class: str) -> None:
    async with lowered(edge, LIMITS[f"{call_class}-per-address"]):
        await eventually(partial(holds_limit, edge, CALLS[call_class]))
        # Headers of the client do not change its address.
        await eventually(partial(holds_limit, edge, CALLS[call_class], FORGED))


async def test_agents_of_an_office_have_a_limit_of_their_own(edge: Edge) -> None:
    async with lowered(edge, LIMITS["hold-per-agent-address"]):

        async def refused() -> bool:
            async with calls_from(edge) as http:
                agents = [edge.seats.agent(secrets.token_hex(4)) for _ in range(20)]
                answers = await asyncio.gather(*(ask(http, agent, HOLD) for agent in agents))
                # Guests of the same address have a limit of their own.
                passed, _ = await by_many(http, edge.seats, HOLD)
            assert passed == 20
            return "RATE_LIMITED" in answers

        await eventually(refused)


async def test_machines_of_ours_are_not_counted_by_address(edge: Edge) -> None:
    async with lowered(edge, LIMITS["map-per-address"]), calls_from(edge) as http:
        await eventually(partial(holds_limit, edge, CALLS["map"]))
        for role in (Role.OPERATIONS, Role.SERVICE):
            callers = [edge.seats._caller(role, secrets.token_hex(4)) for _ in range(20)]
            answers = await asyncio.gather(*(ask(http, caller, CALLS["map"]) for caller in callers))
            assert "RATE_LIMITED" not in answers


async def test_two_gateways_share_the_limit_of_an_address(edge: Edge) -> None:
    async with lowered(edge, LIMITS["hold-per-address"]):

        async def shared() -> bool:
            address, began, passed = new_address(), time.monotonic(), 0
            for envoy in range(len(edge.ports)):
                async with calls_from(edge, address, envoy=envoy) as http:
                    passed += (await by_many(http, edge.seats, HOLD))[0]
            return BURST <= passed <= allowed(time.monotonic() - began)

        await eventually(shared)


async def test_without_redis_each_gateway_holds_the_limit_of_an_address(
    world: World, callers: Callers, others: Others
) -> None:
    (closed,) = free_ports(1)
    async with (
        edge_of(world, callers, others, SKYHIGH_REDIS_URL=f"redis://127.0.0.1:{closed}") as edge,
        lowered(edge, LIMITS["hold-per-address"]),
    ):
        await eventually(partial(holds_limit, edge, HOLD))


async def test_a_principal_over_its_limit_takes_nothing_from_its_address(edge: Edge) -> None:
    holds = LIMITS["hold-per-address"]
    own = LIMITS["hold-per-principal"]
    enough = replace(holds, burst=own.burst + BURST)
    await set_limit(edge.admin, holds, requests_per_minute=600, burst=enough.burst)
    try:

        async def left() -> bool:
            async with calls_from(edge) as http:
                greedy = edge.seats.customer()
                await asyncio.gather(*(ask(http, greedy, HOLD) for _ in range(3 * own.burst)))
                passed, _ = await by_many(http, edge.seats, HOLD, calls=BURST)
            return passed == BURST

        await eventually(left)
    finally:
        await set_limit(edge.admin, holds, requests_per_minute=1_000_000, burst=100_000)


async def test_guests_of_one_address_who_hoard_are_an_incident(edge: Edge, flight: str) -> None:
    """Twenty guests request nine seats each: three get them, and the address is an incident."""
    letters = "ABCDEF"
    numbers = [f"{row}{letter}" for row in range(1, 31) for letter in letters]
    address = new_address()
    async with calls_from(edge, address) as http:

        async def group(seats: list[str]) -> str:
            body = {
                "purpose": "BOOKING",
                "seats": [
                    {"flightId": flight, "seatNumber": number, "passengerId": f"P-{secrets.token_hex(4)}"}
                    for number in seats
                ],
            }
            headers = {"authorization": f"Bearer {edge.seats.customer().token}", **FORGED}
            answer = await http.post("/v1/holds", json=body, headers=headers)
            return "HELD" if answer.status_code == 200 else reason(answer)

        groups = [numbers[n : n + 9] for n in range(0, len(numbers), 9)]
        answers = Counter(await asyncio.gather(*(group(seats) for seats in groups)))
        assert answers == {"HELD": 3, "TOO_MANY_HELD_SEATS": 17}
        source = f"address:{address}"

        async def found() -> bool:
            listed = await edge.admin.agent().ListIncidents(pb.ListIncidentsRequest(source=source))
            return [incident.kind for incident in listed.incidents] == [pb.Incident.ADDRESS_HOARDING]

        await eventually(found)
        (incident,) = (await edge.admin.agent().ListIncidents(pb.ListIncidentsRequest(source=source))).incidents
        assert (incident.count > incident.threshold, incident.block_id) == (True, "")
        assert set(incident.evidence) == {"seat.HoldSeats"}, "no guest is named"
        assert not (await edge.admin.agent().ListBlocks(pb.ListBlocksRequest(source=source))).blocks
        # Other guests of the address can still read maps and hold seats of other flights.
        assert await ask(http, edge.seats.customer(), HOLD) == "FLIGHT_NOT_FOUND"
