"""Guessing PNR and name through the gateway.

The limits hold, and neither time nor body reveals what was right.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncpg
import httpx
import pytest
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

from checkin_service.settings import CheckInSettings
from gateway.limits import DEFAULTS
from operations.connections import Metadata, ask
from operations.demo import passengers
from tests.journeys.conftest import Airline
from tests.waiting import eventually

LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"
# The full attack has 10,000 guesses; these are fifteen times as many as the limits permit.
GUESSES = int(os.environ.get("SKYHIGH_TEST_GUESSES", "300"))
AT_ONCE = 60
PER_PNR, PER_ADDRESS = 5, 20
LOGIN_ANSWER_SECONDS = CheckInSettings.model_fields["login_answer_seconds"].default


@dataclass
class Answers:
    """The responses to guesses."""

    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    bodies: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    """The duration of each response that was not a refusal of the limits."""


async def guess(airline: Airline, address: str, pairs: list[tuple[str, str]], answers: Answers) -> None:
    """Tries pairs one after another from an address of this machine's loopback network."""
    # Without TLS, because loading httpx's certificates for each client takes longer than all its guesses.
    transport = httpx.AsyncHTTPTransport(local_address=address, verify=False)
    async with httpx.AsyncClient(base_url=airline.gateway_url, transport=transport, timeout=20) as client:
        for pnr, name in pairs:
            began = time.perf_counter()
            answer = await client.post("/v1/sessions", json={"pnr": pnr, "lastName": name})
            reason = answer.json()["details"][0]["reason"]
            answers.statuses[answer.status_code, reason] += 1
            if answer.status_code == 404:
                answers.bodies.add(answer.text)
                answers.seconds.append(time.perf_counter() - began)


def nobody() -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(6))


@pytest.fixture(scope="module")
async def gateway_lets_pass(airline: Airline) -> AsyncIterator[None]:
    """Raises the gateway's own limit of an address, which would hide that of the check-in service."""
    (default,) = [limit for limit in DEFAULTS if limit.limit_id == "login-per-address"]
    await set_login_limit(airline, requests_per_minute=1_000_000, burst=100_000)
    yield
    await set_login_limit(airline, requests_per_minute=default.requests_per_minute, burst=default.burst)


async def set_login_limit(airline: Airline, *, requests_per_minute: int, burst: int) -> None:
    """Changes the limit of an address; returns when the gateway applies it."""
    request = pb.SetLimitRequest(limit_id="login-per-address", requests_per_minute=requests_per_minute, burst=burst)

    async def set_limit(admin: GatewayAdminStub, metadata: Metadata) -> None:
        await admin.SetLimit(request, metadata=metadata)

    await ask("gateway", GatewayAdminStub, set_limit)
    async with httpx.AsyncClient(base_url=airline.gateway_url) as client:

        async def holds() -> bool:
            answer = await client.post("/v1/sessions", json={})
            assert answer.status_code == 400
            return answer.headers["x-ratelimit-limit"].startswith(f"{request.burst}")

        await eventually(holds)


@pytest.fixture(autouse=True)
async def forgotten(airline: Airline, gateway_lets_pass: None) -> AsyncIterator[None]:
    """Deletes all counted tries before and after each test.

    The journeys log in from the same address.
    """
    await forget(airline)
    yield
    await forget(airline)


async def forget(airline: Airline) -> None:
    """Deletes all counted tries."""
    connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
    try:
        await connection.execute("DELETE FROM checkin.login_tries")
    finally:
        await connection.close()


async def test_from_one_address_no_more_than_its_limit_is_looked_at(airline: Airline) -> None:
    answers = Answers()
    pairs = [(nobody(), "Smith") for _ in range(GUESSES // AT_ONCE)]
    await asyncio.gather(*(guess(airline, "127.0.0.1", pairs, answers) for _ in range(AT_ONCE)))
    assert answers.statuses[404, "TRIP_NOT_FOUND"] == PER_ADDRESS
    assert set(answers.statuses) == {(404, "TRIP_NOT_FOUND"), (429, "TOO_MANY_TRIES")}
    assert len(answers.bodies) == 1


async def test_from_many_addresses_a_pnr_is_tried_no_more_than_its_limit(airline: Airline) -> None:
    answers = Answers()
    persons = await passengers.candidates(4)
    targets = [(person.pnr, "Wrongname") for person in persons]
    pairs = [targets[n % len(targets)] for n in range(GUESSES // AT_ONCE)]
    await asyncio.gather(*(guess(airline, f"127.0.7.{n + 1}", pairs, answers) for n in range(AT_ONCE)))
    assert answers.statuses[404, "TRIP_NOT_FOUND"] == PER_PNR * len(targets)
    assert set(answers.statuses) == {(404, "TRIP_NOT_FOUND"), (429, "TOO_MANY_TRIES")}


async def test_a_wrong_name_and_a_wrong_pnr_are_one_answer_in_one_time(airline: Airline) -> None:
    answers = Answers()
    persons = await passengers.candidates(15)
    pairs = [pair for person in persons for pair in ((person.pnr, "Wrongname"), (nobody(), "Smith"))]
    await asyncio.gather(*(guess(airline, f"127.0.9.{n + 1}", pairs[n * 10 : n * 10 + 10], answers) for n in range(3)))
    assert answers.statuses == {(404, "TRIP_NOT_FOUND"): len(pairs)}
    assert len(answers.bodies) == 1
    # A look-up takes a hundredth of this time. tests/security/test_timing.py checks that the rest reveals nothing.
    assert min(answers.seconds) >= LOGIN_ANSWER_SECONDS
