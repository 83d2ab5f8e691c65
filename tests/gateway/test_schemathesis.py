"""Schemathesis over the whole document, against a real Envoy with every service behind it.

SKYHIGH_TEST_EXAMPLES sets the number of random requests per operation, and SKYHIGH_TEST_SEED their seed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from gateway.openapi.callers import ROLES
from gateway.openapi.examples import EXAMPLES
from tests.callers import Callers
from tests.dates import DAY
from tests.gateway.airline import Airline, whole_airline
from tests.gateway.fuzzing import Fuzzing

if TYPE_CHECKING:
    from tests.conftest import World

FEW: Final = 1
SECONDS_PER_EXAMPLE: Final = 20
EXAMPLES_EACH: Final = int(os.environ.get("SKYHIGH_TEST_EXAMPLES", FEW))
# The document's examples have a fixed date. Flight searches need one that is not in the past.
FLIGHT_ID: Final = EXAMPLES["flight_id"].replace(EXAMPLES["date"], DAY)
SEED: Final = int(os.environ.get("SKYHIGH_TEST_SEED", "1"))


@pytest.fixture(scope="module")
async def airline(world: World, callers: Callers) -> AsyncIterator[Airline]:
    """Yields the airline with the resources of the document's examples."""
    async with whole_airline(world, callers, SKYHIGH_CHECKIN_LOGIN_ANSWER_SECONDS="0") as airline:
        await _open_the_example_flight(airline, callers.operations().token)
        yield airline


@pytest.fixture(scope="module")
def tokens(callers: Callers) -> dict[str, str]:
    """Returns a token for each role; the passenger's is for the trip of the examples."""
    passenger = callers.passenger(f"{EXAMPLES['passenger_id']}:{FLIGHT_ID}", pnr=EXAMPLES["pnr"])
    others = [callers.customer(), callers.agent(), callers.operations(), callers.service()]
    return {str(caller.name.partition(":")[0]): caller.token for caller in (passenger, *others)}


async def _open_the_example_flight(airline: Airline, token: str) -> None:
    departure = datetime.now(UTC) + timedelta(hours=6)
    flight = {
        "flightNumber": EXAMPLES["flight_number"],
        "origin": EXAMPLES["origin"],
        "destination": EXAMPLES["destination"],
        "departureTime": departure.isoformat(),
        "arrivalTime": (departure + timedelta(hours=3)).isoformat(),
    }
    passenger = {
        "passengerId": EXAMPLES["passenger_id"],
        "pnr": EXAMPLES["pnr"],
        "givenName": EXAMPLES["given_name"],
        "lastName": EXAMPLES["last_name"],
    }
    sold = {"aircraftType": EXAMPLES["aircraft_type"], "price": {"currencyCode": "USD", "units": "90"}}
    async with httpx.AsyncClient(base_url=airline.url, headers={"authorization": f"Bearer {token}"}) as http:
        created = await http.post("/v1/flights", json={**flight, **sold, "flightId": FLIGHT_ID})
        assert created.status_code == 200, created.text
        path = f"/v1/flights/{FLIGHT_ID}/manifest"
        imported = await http.post(path, json={"flight": flight, "passengers": [passenger]})
        assert imported.status_code == 200, imported.text


@pytest.fixture(scope="module")
async def known(airline: Airline, callers: Callers) -> dict[str, str]:
    """Returns ids of existing resources, by the path variable's name."""
    flight_id, passenger_id = FLIGHT_ID, EXAMPLES["passenger_id"]
    agent, customer = (f"Bearer {caller.token}" for caller in (callers.agent(), callers.customer()))

    async with httpx.AsyncClient(base_url=airline.url, timeout=20) as http:

        async def post(path: str, token: str = agent, **body: Any) -> dict[str, Any]:
            answer = await http.post(path, json=body, headers={"authorization": token})
            assert answer.status_code == 200, answer.text
            made: dict[str, Any] = answer.json()
            return made

        seat = await post(f"/v1/flights/{flight_id}/seats/20A/hold", passengerId=passenger_id)
        checkin = await post("/v1/checkins", flightId=flight_id, passengerId=passenger_id, holdId=seat["holdId"])
        bags = [{"weightGrams": 31_000}]
        unpaid = await post(f"/v1/checkins/{checkin['checkinId']}/baggage", bags=bags)
        hold = await post(f"/v1/flights/{flight_id}/seats/20B/hold", passengerId="P2")
        entry = await post(f"/v1/flights/{flight_id}/waitlist", passengerId=passenger_id)
        names = {"givenName": EXAMPLES["given_name"], "lastName": EXAMPLES["last_name"]}
        booking = await post("/v1/bookings", customer, flightId=flight_id, passengers=[names])
    return {
        "hold_id": hold["holdId"],
        "checkin_id": checkin["checkinId"],
        "intent_id": unpaid["paymentIntentId"],
        "entry_id": entry["entryId"],
        "booking_id": booking["bookingId"],
    }


async def _fuzz(fuzzing: Fuzzing) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.gateway.fuzzing"),
        env={**os.environ, "FUZZING": json.dumps(asdict(fuzzing))},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    findings: dict[str, Any] = json.loads(output)
    return findings


@pytest.mark.timeout(1200 + SECONDS_PER_EXAMPLE * EXAMPLES_EACH)
async def test_the_edge_conforms_to_its_document(
    airline: Airline, tokens: dict[str, str], known: dict[str, str]
) -> None:
    assert tokens.keys() == set(ROLES)
    openapi = airline.folder / "dated-openapi.json"
    openapi.write_text((airline.folder / "openapi.json").read_text().replace(EXAMPLES["date"], DAY))
    fuzzing = Fuzzing(airline.url, str(openapi), examples=EXAMPLES_EACH, seed=SEED, tokens=tokens, known=known)
    found = await _fuzz(fuzzing)
    assert not found["failures"], "\n\n".join(found["failures"])
    operations = [
        f"{verb.upper()} {path}" for path, verbs in json.loads(openapi.read_text())["paths"].items() for verb in verbs
    ]
    assert found["statuses"].keys() >= set(operations)
    answered = [operation for operation in operations if "200" in found["statuses"][operation]]
    # An operation that was always refused counts as untested.
    assert len(answered) >= len(operations) / 2, set(operations) - set(answered)


async def test_a_header_name_unknown_to_grpc_is_no_defect(airline: Airline) -> None:
    async with httpx.AsyncClient(base_url=airline.url) as http:
        answer = await http.get("/v1/flights", headers={"it's": "allowed by HTTP", "so~is": "this"})
    assert answer.status_code == 200, answer.text
