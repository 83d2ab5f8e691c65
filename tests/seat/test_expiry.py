"""Holds expire by the database's clock (SEAT-3, SEAT-10).

The seat of a lapsed hold is free at once for the next caller, and the sweeper releases it soon for all readers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import aio_pika
import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds import sweeper
from seat_service.holds.expire import expire
from seat_service.requests import Effects
from services import db
from tests.aging import lapse_holds
from tests.callers import Callers, seat
from tests.dates import new_flight_id
from tests.instances import Database, Instance, instance, own_database
from tests.seat.rules import (
    a_decided_hold_does_not_expire,
    a_lapsed_hold_gives_way,
    at_once,
    lapsed_holds_are_freed_and_living_ones_kept,
    outcomes,
    rows,
    violations,
)
from tests.waiting import PATIENCE_SECONDS, eventually

if TYPE_CHECKING:
    from tests.conftest import World

# Number of races that run at the same time.
AT_ONCE: Final = 24


async def test_a_lapsed_seat_can_be_held_at_once(unswept: Instance, unswept_flight: str) -> None:
    first, taker = unswept.callers.customer(), unswept.callers.customer()
    lapsed = await first.hold(unswept_flight, "20A")
    await lapse_holds(unswept.database, lapsed)
    hold = await taker.hold(unswept_flight, "20A")
    events = (await rows(unswept.database, unswept_flight))["events"]
    assert [(str(event["hold_id"]), event["to_state"], event["reason"]) for event in events] == [
        (lapsed.hold_id, "HELD", "HELD"),
        (lapsed.hold_id, "AVAILABLE", "EXPIRED"),
        (hold.hold_id, "HELD", "HELD"),
    ]
    assert await violations(unswept.database, unswept_flight) == []


async def test_the_next_owner_keeps_a_lapsed_seat(unswept: Instance, unswept_flight: str) -> None:
    await a_lapsed_hold_gives_way(unswept.callers, unswept.database, unswept_flight)


async def test_of_many_callers_one_gets_the_lapsed_seat(unswept: Instance, unswept_flight: str) -> None:
    lapsed = await unswept.callers.customer().hold(unswept_flight, "20A")
    await lapse_holds(unswept.database, lapsed)
    results = await at_once(
        *(unswept.callers.customer().hold(unswept_flight, "20A", purpose=pb.Hold.BOOKING) for _ in range(50))
    )
    assert outcomes(results) == {"OK": 1, "SEAT_TAKEN": 49}
    assert await violations(unswept.database, unswept_flight) == []


async def test_a_full_sweep_is_followed_at_once_by_another(
    world: World, unswept: Instance, unswept_flight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SEATS_PER_SWEEP", 6)
    flight, agent = unswept_flight, unswept.callers.agent()
    holds = [await agent.hold_seats(*(seat(flight, f"{row}{letter}") for letter in "ABC")) for row in range(14, 24)]
    await lapse_holds(unswept.database, *holds)

    async def all_free() -> bool:
        taken = "SELECT count(*) FROM seats WHERE flight_id = $1 AND state <> 'AVAILABLE'"
        return not await unswept.database.fetchval(taken, flight)

    # The sweeper runs at the start. If it paused after a full sweep, the pause would be an hour.
    async with instance(world, database_url=unswept.database_url, SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS="3600"):
        await eventually(all_free)
    transactions = await unswept.database.fetchval(
        "SELECT count(DISTINCT transaction) FROM seat_events WHERE flight_id = $1 AND reason = 'EXPIRED'", flight
    )
    assert transactions >= 5
    assert await violations(unswept.database, flight) == []


async def test_holding_one_seat_of_a_lapsed_hold_expires_it(unswept: Instance, unswept_flight: str) -> None:
    lapsed = await unswept.callers.customer().hold_seats(seat(unswept_flight, "20A"), seat(unswept_flight, "20B"))
    await lapse_holds(unswept.database, lapsed)
    await unswept.callers.customer().hold(unswept_flight, "20A")
    states = {row["seat_number"]: row["state"] for row in (await rows(unswept.database, unswept_flight))["seats"]}
    assert (states["20A"], states["20B"]) == ("HELD", "AVAILABLE")
    assert await violations(unswept.database, unswept_flight) == []


async def test_several_lapsed_holds_are_expired_for_one_request(unswept: Instance, unswept_flight: str) -> None:
    numbers = [f"{row}A" for row in range(20, 29)]
    lapsed = [await unswept.callers.customer().hold(unswept_flight, number) for number in numbers]
    await lapse_holds(unswept.database, *lapsed)
    taker = unswept.callers.customer()
    hold = await taker.hold_seats(*(seat(unswept_flight, number) for number in numbers))
    assert hold.state == pb.Hold.HELD
    assert await violations(unswept.database, unswept_flight) == []


async def test_a_passenger_whose_hold_lapsed_holds_another_seat(unswept: Instance, unswept_flight: str) -> None:
    customer = unswept.callers.customer()
    await lapse_holds(unswept.database, await customer.hold(unswept_flight, "20A", "P1"))
    await customer.hold(unswept_flight, "21A", "P1")
    assert await violations(unswept.database, unswept_flight) == []


async def test_a_lapsed_and_a_held_seat_are_refused_together(unswept: Instance, unswept_flight: str) -> None:
    callers = unswept.callers
    await callers.agent().hold(unswept_flight, "20B", purpose=pb.Hold.BOOKING)
    await lapse_holds(unswept.database, await callers.customer().hold(unswept_flight, "20A"))
    results = await at_once(callers.agent().hold_seats(seat(unswept_flight, "20A"), seat(unswept_flight, "20B")))
    assert outcomes(results) == {"SEAT_TAKEN": 1}
    assert await violations(unswept.database, unswept_flight) == []


async def test_the_sweeper_expires_lapsed_holds_only_within_five_seconds(
    brief: Callers, flight: str, database: Database
) -> None:
    await lapsed_holds_are_freed_and_living_ones_kept(brief, database, flight)


async def test_an_expiry_publishes_an_event_within_five_seconds(brief: Callers, flight: str, world: World) -> None:
    connection = await aio_pika.connect(world.servers.amqp_url())
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("skyhigh.events", routing_key="seat.released.v1")
        hold = await brief.customer().hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
        async with asyncio.timeout(PATIENCE_SECONDS), queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                event = events_pb2.SeatReleased.FromString(message.body)
                if event.flight_id == flight:
                    break
    assert {(each.seat_number, each.reason, each.hold_id) for each in event.seats} == {
        ("20A", "EXPIRED", hold.hold_id),
        ("20B", "EXPIRED", hold.hold_id),
    }
    assert 0 <= event.release_time.ToNanoseconds() - hold.expire_time.ToNanoseconds() < 5e9
    assert message.headers["cloudEvents:type"] == "seat.released.v1"
    assert message.headers["cloudEvents:id"] == message.message_id


async def test_concurrent_sweepers_expire_each_hold_once(unswept: Instance, unswept_flight: str) -> None:
    holds = [
        await unswept.callers.agent().hold(unswept_flight, f"{row}{letter}")
        for row in range(14, 20)
        for letter in "ABCDEF"
    ]
    await lapse_holds(unswept.database, *holds)

    async def sweep() -> int:
        async with db.transaction(unswept.pool) as conn:
            return await expire(conn, [UUID(hold.hold_id) for hold in holds], actor="test", effects=Effects())

    assert sum(await asyncio.gather(*(sweep() for _ in range(4)))) == len(holds)
    assert await violations(unswept.database, unswept_flight) == []


async def test_a_hold_decided_after_the_read_does_not_expire(unswept: Instance, unswept_flight: str) -> None:
    await a_decided_hold_does_not_expire(unswept.callers, unswept.pool, unswept_flight)


@pytest.fixture
async def racing(world: World) -> AsyncIterator[tuple[Instance, Instance]]:
    """Two instances on one database, with short sweep intervals and high limits."""
    variables: dict[str, Any] = {
        "SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS": "0.01",
        "SKYHIGH_SEAT_LAPSES_ALLOWED": "100000",
        "SKYHIGH_SEAT_HELD_SEATS_LIMIT": "1000",
    }
    url = await own_database(world)
    async with (
        instance(world, database_url=url, **variables) as one,
        instance(world, database_url=url, **variables) as two,
    ):
        yield one, two


async def test_holds_raced_at_their_end_never_have_two_owners(
    racing: tuple[Instance, Instance],
) -> None:
    """Confirm, cancel, extend and a taker race at each hold's end. Two sweepers run."""
    here, there, pool = racing[0].callers, racing[1].callers, racing[0].pool
    dice = random.Random(10)
    flights = [new_flight_id() for _ in range(6)]
    for flight in flights:
        await here.operations().provision(flight)
    owners = [here.customer(f"owner-{n}") for n in range(10)]
    takers = [there.customer(f"taker-{n}") for n in range(10)]
    there_owners = [there.customer(f"owner-{n}") for n in range(10)]
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    # How long this machine takes for the calls of a race. The end of each hold is moved to a random moment within about
    # that time.
    usual_seconds = 0.1

    async def meet(n: int, hold: pb.Hold) -> None:
        nonlocal usual_seconds
        place = hold.seats[0]
        moves: dict[str, Any] = {
            "confirm": lambda: here.agent(f"desk-{n % 10}").confirm(hold),
            "cancel": lambda: there_owners[n % 10].cancel(hold),
            "extend": lambda: there_owners[n % 10].ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id)),
            "take": lambda: takers[n % 10].hold(place.flight_id, place.seat_number),
        }
        chosen = dice.sample(sorted(moves), k=dice.choice([2, 3]))
        async with db.session(pool) as conn:
            await lapse_holds(conn, hold, left=timedelta(seconds=dice.uniform(0, 1.5 * usual_seconds)))
        began = time.monotonic()
        for move, result in zip(chosen, await at_once(*(moves[move]() for move in chosen)), strict=True):
            counted[move].update(outcomes([result]))
        usual_seconds += (time.monotonic() - began - usual_seconds) / AT_ONCE

    places = [(flight, f"{row}{letter}") for flight in flights for row in range(1, 29) for letter in "ABCDEF"]
    assert len(places) >= 1000

    async def meet_each(lane: int) -> None:
        for n in range(lane, len(places), AT_ONCE):
            await meet(n, await owners[n % 10].hold(*places[n]))

    # If all races ran at once, a slow machine would process most calls after the end of the hold.
    await asyncio.gather(*(meet_each(lane) for lane in range(AT_ONCE)))
    assert counted["confirm"].keys() <= {"OK", "HOLD_EXPIRED", "HOLD_CANCELLED"}
    assert counted["cancel"].keys() <= {"OK", "HOLD_EXPIRED"}
    assert counted["extend"].keys() <= {"OK", "HOLD_EXPIRED", "HOLD_CANCELLED", "HOLD_CONFIRMED"}
    assert counted["take"].keys() <= {"OK", "SEAT_TAKEN"}
    # Each call must have won and lost some races; otherwise the test raced nothing.
    assert all(counted[name]["OK"] > 20 and len(counted[name]) > 1 for name in counted), counted
    database = racing[0].database
    assert await violations(database, *flights) == []

    async def at_rest() -> bool:
        left = await database.fetch("SELECT hold_id::text FROM holds WHERE state = 'HELD' AND expire_time > now()")
        await lapse_holds(database, *(pb.Hold(hold_id=row["hold_id"]) for row in left))
        return not await database.fetchval("SELECT count(*) FROM holds WHERE state = 'HELD'")

    await eventually(at_rest)
    assert await violations(database, *flights) == []
