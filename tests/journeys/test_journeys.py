"""All journeys through JSON at the gateway.

They run without faults, and with an outage of the broker in the middle.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

import asyncpg
import httpx
import pytest
import zxingcpp
from PIL import Image
from typer.testing import CliRunner, Result

from deploy.local.process import free_ports
from operations import journeys
from operations.__main__ import app
from operations.journeys.steps import PICTURE
from operations.verify.check import check
from tests.journeys.conftest import Airline
from tests.waiting import eventually, pause

# Factor of the waiting times.
PATIENCE = 20
AWAY_SECONDS = 3


async def nothing_is_violated(airline: Airline) -> bool:
    """Returns whether all invariants hold, now that the system is at rest."""
    connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
    try:
        findings = await check(connection, None)
    finally:
        await connection.close()
    return not [finding for finding in findings if finding.violations]


async def test_a_customer_and_two_passengers_travel(airline: Airline, capsys: pytest.CaptureFixture[str]) -> None:
    await journeys.travel(airline.gateway_url)
    told = capsys.readouterr().out
    for step in ("the same booking", "record locator", "SEAT_TAKEN", "90.00 USD", "waits for"):
        assert step in told
    assert told.count("refunded") == 2
    # Two passes for the booking's two flights, one for the passenger with the heavy bags.
    passes = [line.split("'")[1] for line in told.splitlines() if line.startswith("  boarding pass ")]
    assert [len(bcbp) for bcbp in passes] == [60, 60, 60]
    assert passes[0][23:30] == passes[1][23:30] != passes[2][23:30], "one record locator on two flights"
    with Image.open(airline.stack.home / PICTURE) as picture:
        (barcode,) = zxingcpp.read_barcodes(picture)
    assert barcode.text == passes[-1]
    await eventually(lambda: nothing_is_violated(airline))


# The broker stops after each of these steps; by default in one journey, after one step of the booking and one at the
# airport.
STEPS: Final = ("pay booking", "31 kg", "book", "cancel booking", "pay", "cancel")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("steps", [(each,) for each in STEPS] if "SKYHIGH_TEST_ROUNDS" in os.environ else [STEPS[:2]])
async def test_a_broker_that_goes_and_comes_back_spoils_no_journey(airline: Airline, steps: tuple[str, ...]) -> None:
    broken: list[str] = []
    starting: list[asyncio.Task[None]] = []

    async def come_back() -> None:
        await pause(AWAY_SECONDS)
        await airline.supervisor.start("rabbitmq")

    async def break_the_broker(passed: str) -> None:
        if passed in steps:
            await asyncio.gather(*starting)
            await airline.supervisor.stop("rabbitmq")
            starting.append(asyncio.create_task(come_back()))
            broken.append(passed)

    try:
        await journeys.travel(airline.gateway_url, after=break_the_broker, patience=PATIENCE)
    finally:
        await asyncio.gather(*starting)
    assert broken == list(steps)
    await eventually(lambda: nothing_is_violated(airline))


async def skyhigh(*arguments: str) -> Result:
    """Runs the command beside the stack."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))


async def test_a_journey_that_fails_says_where_and_gives_everything_back(
    airline: Airline, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = f"{airline.stack.addresses['SKYHIGH_MOCK_WEIGHT_CONTROL_URL']}/behaviour"
    async with httpx.AsyncClient() as operator:
        await operator.put(behaviour, json={"mode": "down"})
        try:
            broken = await skyhigh("journey")
        finally:
            await operator.delete(behaviour)
    assert broken.exit_code == 1
    assert "9.5 kg" in broken.output
    assert "DEPENDENCY_UNAVAILABLE" in broken.output
    await eventually(lambda: nothing_is_violated(airline))
    monkeypatch.setenv("SKYHIGH_GATEWAY_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert "is unreachable" in (await skyhigh("journey")).output
    monkeypatch.setenv("SKYHIGH_GATEWAY_URL", "file:///etc")
    assert "is not an HTTP URL" in (await skyhigh("journey")).output


async def test_the_demo_airline_is_loaded_once(airline: Airline) -> None:
    again = await skyhigh("demo", "load")
    assert again.exit_code == 0, again.output
    flights = [line for line in again.stdout.splitlines() if "passengers" in line]
    assert len(flights) >= 12
    assert all(": 0 added, 0 changed" in line for line in flights)
