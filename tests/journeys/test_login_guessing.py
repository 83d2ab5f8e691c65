"""Guessing PNR and name through the gateway: the limits hold, and neither time nor body tells what was right."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

import asyncpg
import httpx
import pytest
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

from operations import demo
from operations.abuse import Metadata, ask
from tests.journeys.conftest import Airline
from tests.waiting import eventually

LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"
# The whole attack has 10,000; these are enough to meet each limit a hundred times.
GUESSES = int(os.environ.get("SKYHIGH_TEST_GUESSES", "1500"))
AT_ONCE = 60
PER_PNR, PER_ADDRESS = 5, 20


@dataclass
class Answers:
    """What guesses were answered."""

    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    bodies: set[str] = field(default_factory=set)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"right pnr": [], "wrong pnr": []})


async def guess(airline: Airline, address: str, pairs: list[tuple[str, str, str]], answers: Answers) -> None:
    """Tries pairs one after another from an address of this machine's own network."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    async with httpx.AsyncClient(base_url=airline.gateway_url, transport=transport, timeout=20) as client:
        for kind, pnr, name in pairs:
            began = time.perf_counter()
            answer = await client.post("/v1/sessions", json={"pnr": pnr, "lastName": name})
            reason = answer.json()["details"][0]["reason"]
            answers.statuses[answer.status_code, reason] += 1
            if answer.status_code == 404:
                answers.bodies.add(answer.text)
                answers.seconds[kind].append(time.perf_counter() - began)


def nobody() -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(6))


@pytest.fixture(scope="module")
async def gateway_lets_pass(airline: Airline) -> None:
    """The gateway's own limit of an address, which the check-in service's would hardly show behind, is out of reach."""
    request = pb.SetLimitRequest(limit_id="login-per-address", requests_per_minute=1_000_000, burst=100_000)

    async def set_limit(admin: GatewayAdminStub, metadata: Metadata) -> None:
        await admin.SetLimit(request, metadata=metadata)

    await ask(set_limit)
    async with httpx.AsyncClient(base_url=airline.gateway_url) as client:

        async def holds() -> bool:
            answer = await client.post("/v1/sessions", json={})
            assert answer.status_code == 400
            return answer.headers["x-ratelimit-limit"].startswith(f"{request.burst}")

        await eventually(holds)


@pytest.fixture(autouse=True)
async def forgotten(airline: Airline, gateway_lets_pass: None) -> None:
    """Everybody's tries are forgotten."""
    connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
    try:
        await connection.execute("DELETE FROM checkin.login_tries")
    finally:
        await connection.close()


async def test_from_one_address_no_more_than_its_limit_is_looked_at(airline: Airline) -> None:
    answers = Answers()
    pairs = [("wrong pnr", nobody(), "Smith") for _ in range(GUESSES // AT_ONCE)]
    await asyncio.gather(*(guess(airline, "127.0.0.1", pairs, answers) for _ in range(AT_ONCE)))
    assert answers.statuses[404, "TRIP_NOT_FOUND"] == PER_ADDRESS
    assert set(answers.statuses) == {(404, "TRIP_NOT_FOUND"), (429, "TOO_MANY_TRIES")}
    assert len(answers.bodies) == 1


async def test_from_many_addresses_a_pnr_is_tried_no_more_than_its_limit(airline: Airline) -> None:
    answers = Answers()
    persons = await demo.candidates(4)
    targets = [("right pnr", person.pnr, "Wrongname") for person in persons]
    pairs = [targets[n % len(targets)] for n in range(GUESSES // AT_ONCE)]
    await asyncio.gather(*(guess(airline, f"127.0.7.{n + 1}", pairs, answers) for n in range(AT_ONCE)))
    assert answers.statuses[404, "TRIP_NOT_FOUND"] == PER_PNR * len(targets)
    assert set(answers.statuses) == {(404, "TRIP_NOT_FOUND"), (429, "TOO_MANY_TRIES")}


async def test_a_wrong_name_and_a_wrong_pnr_are_one_answer_in_one_time(airline: Airline) -> None:
    answers = Answers()
    persons = await demo.candidates(15)
    pairs = [
        pair
        for person in persons
        for pair in (("right pnr", person.pnr, "Wrongname"), ("wrong pnr", nobody(), "Smith"))
    ]
    await asyncio.gather(*(guess(airline, f"127.0.9.{n + 1}", pairs[n * 10 : n * 10 + 10], answers) for n in range(3)))
    assert answers.statuses == {(404, "TRIP_NOT_FOUND"): len(pairs)}
    assert len(answers.bodies) == 1
    right, wrong = (statistics.median(answers.seconds[kind]) for kind in ("right pnr", "wrong pnr"))
    # Both are answered a tenth of a second after they came; a look-up takes a hundredth of that.
    assert abs(right - wrong) < 0.01
