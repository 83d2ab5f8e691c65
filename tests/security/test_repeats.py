"""Abuse of idempotency keys (attack 30)."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import uuid4

import httpx
import pytest

from services.auth import Role
from tests.security.belongings import fly
from tests.security.messages import NO_FLIGHT
from tests.security.system import System

FLOOD: Final = 60


async def hold(system: System, flight_id: str, seat_number: str, token: str, key: str, **body: str) -> httpx.Response:
    """Holds a seat with an idempotency key in the header."""
    return await system.http.post(
        f"/v1/flights/{flight_id}/seats/{seat_number}/hold",
        json={"passengerId": "P1", **body},
        headers={"authorization": f"Bearer {token}", "idempotency-key": key},
    )


async def test_a_key_is_bound_to_its_principal(system: System) -> None:
    """A caller with another caller's key neither gets nor spoils the other's response."""
    flight_id, key = await fly(system), str(uuid4())
    owner, thief = system.token(Role.CUSTOMER), system.token(Role.CUSTOMER)
    first = await hold(system, flight_id, "10A", owner, key)
    stolen = await hold(system, flight_id, "10A", thief, key)
    assert (first.status_code, stolen.status_code) == (200, 409)
    assert first.json()["holdId"] not in stolen.text
    other = await hold(system, flight_id, "11A", thief, key, passengerId="P2")
    assert other.status_code == 200
    assert (await hold(system, flight_id, "10A", owner, key)).json() == first.json()


async def test_a_key_is_bound_to_its_request(system: System) -> None:
    flight_id, key = await fly(system), str(uuid4())
    token = system.token(Role.AGENT)
    first = (await hold(system, flight_id, "10A", token, key)).json()
    headers = {"authorization": f"Bearer {token}", "idempotency-key": key}
    for answer in (
        await hold(system, flight_id, "10C", token, key),
        await hold(system, flight_id, "10A", token, key, passengerId="P2"),
        await system.http.post(f"/v1/holds/{first['holdId']}/cancel", json={}, headers=headers),
        await system.http.post(f"/v1/holds/{uuid4()}/confirm", json={}, headers=headers),
    ):
        assert answer.status_code == 409
        assert "IDEMPOTENCY_KEY_REUSED" in answer.text
    found = await system.http.get(f"/v1/holds/{first['holdId']}", headers=headers)
    assert found.json() == first


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize(
    "key", ["1", "k" * 10_240, "'; DROP TABLE idempotency; --", "{}", "00000000-0000-0000-0000-00000000000g"]
)
async def test_a_key_must_be_a_uuid(system: System, key: str) -> None:
    for header in (True, False):
        answer = await system.http.post(
            f"/v1/flights/{NO_FLIGHT}/seats/10A/hold",
            json={"passengerId": "P1", **({} if header else {"requestId": key})},
            headers={"authorization": f"Bearer {system.token(Role.AGENT)}"}
            | ({"idempotency-key": key} if header else {}),
        )
        assert answer.status_code == 400


@pytest.mark.usefixtures("nothing_changed")
async def test_two_keys_are_refused(system: System) -> None:
    answer = await hold(system, NO_FLIGHT, "10A", system.token(Role.AGENT), str(uuid4()), requestId=str(uuid4()))
    assert answer.status_code == 400


@pytest.mark.usefixtures("nothing_changed")
async def test_keys_of_failed_requests_are_not_stored(system: System) -> None:
    """Only the keys of effects are stored.

    Therefore an attacker can fill the table only by causing an effect per key.
    """
    token = system.token(Role.CUSTOMER)
    answers = await asyncio.gather(*(hold(system, NO_FLIGHT, "10A", token, str(uuid4())) for _ in range(FLOOD)))
    assert {answer.status_code for answer in answers} == {404}
