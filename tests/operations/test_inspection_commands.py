"""`skyhigh seats` and `events`: against the session's real service and broker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb
from typer.testing import CliRunner

from operations.__main__ import app
from operations.commands.seats import cabin_lines
from operations.event_bodies import message_type, readable
from tests.callers import ISSUER, Caller, Callers
from tests.dates import flight_id
from tests.instances import Database
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture(autouse=True)
def stack(world: World, callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the session's servers the commands' stack."""
    for name, value in {
        "SKYHIGH_HOME": str(world.folder),
        "SKYHIGH_TOKEN_ISSUER": ISSUER,
        "SKYHIGH_DATABASE_URL": world.servers.database_url(),
        "SKYHIGH_AMQP_URL": world.servers.amqp_url(),
        "SKYHIGH_SEAT_ADDRESS": callers.address,
    }.items():
        monkeypatch.setenv(name, value)


async def skyhigh(*arguments: str, code: int = 0) -> str:
    """Runs the command beside the service; returns what it printed."""
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


async def test_the_cabin_is_drawn_with_a_letter_for_each_state(flight: str, agent: Caller) -> None:
    await agent.hold(flight, "1A")
    await agent.confirm(await agent.hold(flight, "1B"))
    await agent.BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="1F", reason="BROKEN"))

    async def drawn() -> bool:
        return " 1  H C A   A A B\n" in await skyhigh("seats", flight)

    await eventually(drawn)
    output = await skyhigh("seats", flight)
    assert output.startswith(f"{flight}  A320-180Y  version 5  ")
    assert "    A B C   D E F\n" in output
    assert output.endswith("A available 177   H held 1   C confirmed 1   O offered 0   B blocked 1   all 180\n")


def test_a_seat_that_the_layout_lacks_leaves_its_place_empty() -> None:
    cabin = pb.SeatMap.Cabin(rows=[9, 10], letters=["A", "C", "D"], aisles=["C"])
    lines = cabin_lines(cabin, {"9A": "HELD", "9D": "UNHEARD_OF", "10C": "AVAILABLE"})
    assert [line.plain for line in lines] == ["    A C   D", " 9  H     U", "10    A"]


async def test_a_seat_shows_all_that_happened_to_it(flight: str, agent: Caller) -> None:
    for _ in range(51):
        hold = await agent.hold(flight, "2A")
        await agent.cancel(hold, reason="CHANGED_MIND")
    lines = (await skyhigh("seats", flight, "2a")).splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", *map(str, range(1, 103))]
    assert lines[-1].split()[2:] == ["HELD", "AVAILABLE", "CHANGED_MIND", agent.name, hold.hold_id, "-"]
    assert "has no transitions" in await skyhigh("seats", flight, "2B")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([flight_id("SH999")], f"NOT_FOUND: flight {flight_id('SH999')} not found"),
        (["{flight}", "99Z"], "NOT_FOUND: flight {flight} has no seat 99Z"),
        (["{flight}", "12I"], "'12I' is not a seat number such as 12A"),
    ],
)
async def test_a_seat_that_is_not_there_is_named(flight: str, arguments: list[str], told: str) -> None:
    output = await skyhigh("seats", *(argument.format(flight=flight) for argument in arguments), code=1)
    assert told.format(flight=flight) in output


async def test_recent_events_are_read_from_the_outbox(flight: str, agent: Caller) -> None:
    hold = await agent.hold(flight, "3A", "P1")
    await agent.cancel(hold, reason="CHANGED_MIND")
    lines = (await skyhigh("events", "--key", "seat.released.v1", "--count", "500")).splitlines()
    (event,) = [event for event in map(json.loads, lines) if event["body"]["flightId"] == flight]
    assert event["key"] == "seat.released.v1"
    (seat,) = event["body"]["seats"]
    assert seat == {
        "seatNumber": "3A",
        "version": "2",
        "state": "AVAILABLE",
        "holdId": hold.hold_id,
        "passengerId": "P1",
        "reason": "CHANGED_MIND",
    }


async def test_followed_events_come_over_the_broker(flight: str, agent: Caller, database: Database) -> None:
    following = asyncio.create_task(
        skyhigh("events", "--follow", "--key", "seat.confirmed.v1", "--count", "1", "--seconds", "60")
    )

    async def followed() -> bool:
        # Events that were published before the command declared its queue do not reach it.
        hold = await agent.confirm(await agent.hold(flight, "4A"))
        await agent.cancel(hold)
        return following.done()

    await eventually(followed)
    event = json.loads(await following)
    assert (event["source"], event["key"], event["body"]["flightId"]) == ("skyhigh/seat", "seat.confirmed.v1", flight)
    assert await database.fetchval("SELECT count(*) FROM outbox WHERE event_id::text = $1", event["id"]) == 1


async def test_following_ends_when_it_is_told_to() -> None:
    assert await skyhigh("events", "--follow", "--key", "nothing.like.this", "--seconds", "0.2") == ""
    assert "only allowed with --follow" in await skyhigh("events", "--seconds", "1", code=2)


def test_every_event_of_the_contract_is_readable() -> None:
    keys = {"seat.released.v1": "SeatReleased", "seat.confirmed.v1": "SeatConfirmed"}
    keys["seat.availability.v1"] = "SeatAvailability"
    assert set(keys.values()) == set(events_pb2.DESCRIPTOR.message_types_by_name)
    for key, name in keys.items():
        kind = message_type(key)
        assert kind is not None
        assert kind.DESCRIPTOR.name == name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("booking.confirmed.v1", "BookingConfirmed"),
        ("booking.cancelled.v1", "BookingCancelled"),
        ("flight.cancelled.v1", "FlightCancelled"),
    ],
)
def test_events_of_bookings_and_flights_are_readable(key: str, name: str) -> None:
    kind = message_type(key)
    assert kind is not None
    assert kind.DESCRIPTOR.name == name


@pytest.mark.parametrize(
    "key", ["", "seat", "seat.unheard.v1", "nobody.released.v1", "../x.y.v1", "seat.released.v1.x"]
)
def test_what_cannot_be_read_shows_only_its_size(key: str) -> None:
    assert readable(key, b"secret") == {"unknownBytes": 6}
    assert readable("seat.released.v1", b"\xff") == {"unreadableBytes": 1}
