"""`skyhigh waitlist` with the session's real service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest
import typer
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb
from typer.testing import CliRunner

from operations.commands import waitlist as command
from tests.callers import ISSUER, Callers
from tests.dates import flight_id
from tests.waitlist.conftest import Flight

if TYPE_CHECKING:
    from tests.conftest import World

NOWHERE: Final = flight_id("SH000")
app = typer.Typer()
command.register(app)


@pytest.fixture(autouse=True)
def stack(world: World, waitlist: Callers, callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the command use the session's service."""
    monkeypatch.setenv("SKYHIGH_HOME", str(world.folder))
    monkeypatch.setenv("SKYHIGH_TOKEN_ISSUER", ISSUER)
    monkeypatch.setenv("SKYHIGH_WAITLIST_ADDRESS", waitlist.address)
    monkeypatch.setenv("SKYHIGH_SEAT_ADDRESS", callers.address)


async def skyhigh(*arguments: str, code: int = 0) -> str:
    """Runs the command; returns its output."""
    result = await asyncio.to_thread(CliRunner().invoke, app, ["waitlist", *arguments])
    assert result.exit_code == code, result.output
    return result.output


async def test_a_waitlist_is_printed_in_order_of_joining(full: Flight) -> None:
    first, second = full.waiter(), full.waiter()
    served = await first.join("20A")
    await second.join("30F", positions=("WINDOW", "AISLE"))
    await full.free("20A")
    await first.becomes(served, "ASSIGNED")

    header, *lines = (await skyhigh("show", full.flight_id)).splitlines()
    assert header.split() == ["POSITION", "PASSENGER", "STATE", "SEAT", "PREFERENCES", "JOINED", "ENTRY"]
    assert lines[0].split()[:5] == ["-", first.passenger_id, "ASSIGNED", "20A", "20A"]
    assert lines[1].split()[:4] == ["1", second.passenger_id, "WAITING", "-"]
    assert "window or aisle; 30F" in lines[1]
    assert len(lines) == 2


async def test_show_says_that_a_waitlist_has_no_entries(full: Flight) -> None:
    assert await skyhigh("show", full.flight_id) == f"The waitlist of {full.flight_id} has no entries.\n"


async def test_show_of_an_unknown_flight_ends_with_1(waitlist: Callers) -> None:
    assert "the seat service responded with NOT_FOUND" in await skyhigh("show", NOWHERE, code=1)


async def test_a_mode_is_set(full: Flight) -> None:
    assert "offered to waiting passengers" in await skyhigh("mode", full.flight_id, "offer")
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    assert (await waiter.becomes(entry, "OFFERED")).state == pb.WaitlistEntry.OFFERED
    assert "assigned to waiting passengers at once" in await skyhigh("mode", full.flight_id, "auto")


async def test_a_refusal_ends_the_command(waitlist: Callers) -> None:
    assert await skyhigh("show", "?", code=1) is not None
    await skyhigh("mode", NOWHERE, "sometimes", code=2)
