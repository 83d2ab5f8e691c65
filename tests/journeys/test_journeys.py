"""Both journeys, through JSON at the gateway: as they are, and with the broker gone in the middle."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import zxingcpp
from PIL import Image

from operations import journey, verify
from tests.callers import eventually
from tests.journeys.conftest import Airline

# The broker needs some seconds to start, and the services some to find it again.
PATIENCE = 5
AWAY_SECONDS = 3


async def nothing_is_violated(airline: Airline) -> bool:
    """Whether all that always holds does, now that everything is at rest."""
    connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
    try:
        findings = await verify.check(connection, None)
    finally:
        await connection.close()
    return not [finding for finding in findings if finding.violations]


async def test_two_passengers_travel(airline: Airline, capsys: pytest.CaptureFixture[str]) -> None:
    await journey.travel(airline.gateway_url)
    told = capsys.readouterr().out
    for step in ("SEAT_TAKEN", "90 USD", "COMPLETED", "waits for", "went back"):
        assert step in told
    bcbp = told.partition("boarding pass")[2].split("'")[1]
    with Image.open(airline.stack.home / journey.PICTURE) as picture:
        (barcode,) = zxingcpp.read_barcodes(picture)
    assert (barcode.text, len(bcbp)) == (bcbp, 60)
    await eventually(lambda: nothing_is_violated(airline), within_seconds=10)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("step", ["31 kg", "pay", "cancel"])
async def test_a_broker_that_goes_and_comes_back_spoils_no_journey(airline: Airline, step: str) -> None:
    starting: list[asyncio.Task[None]] = []

    async def come_back() -> None:
        await asyncio.sleep(AWAY_SECONDS)
        await airline.supervisor.start("rabbitmq")

    async def break_the_broker(passed: str) -> None:
        if passed == step:
            await airline.supervisor.stop("rabbitmq")
            starting.append(asyncio.create_task(come_back()))

    await journey.travel(airline.gateway_url, after=break_the_broker, patience=PATIENCE)
    await asyncio.gather(*starting)
    await eventually(lambda: nothing_is_violated(airline), within_seconds=30)
