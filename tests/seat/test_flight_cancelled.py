"""flight.cancelled.v1 closes a flight at once, then releases all its seats.

A transaction that waits for one of the seats also sees that the flight is closed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from google.protobuf import timestamp_pb2
from skyhigh.flight.v1 import events_pb2 as flight_events
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import handlers
from seat_service.flights import cancellations
from services import db
from services.db import Pool
from tests.aging import lapse_holds
from tests.callers import Caller, Callers, a_few_at_once, refused, seat
from tests.checkin.fakes import Broker
from tests.instances import Database, pooled
from tests.seat.rules import at_once, new_flight_id, outcomes, rows, violations
from tests.waiting import eventually, pause

if TYPE_CHECKING:
    from tests.conftest import World

ROUNDS = 12


@pytest.fixture(scope="module")
async def broker(world: World) -> AsyncIterator[Broker]:
    """Publishes events as other services do."""
    async with Broker.opened(world.servers.amqp_url()) as opened:
        yield opened


@pytest.fixture
async def pool(world: World) -> AsyncIterator[Pool]:
    """A pool with the settings of the service's pool."""
    async with pooled(world.servers.database_url("seat")) as opened:
        yield opened


@pytest.fixture
async def onward(operations: Caller) -> str:
    """Another flight, which is not cancelled."""
    flight_id = new_flight_id()
    await operations.provision(flight_id)
    return flight_id


def cancelled(flight: str, reason: str = "STRIKE") -> flight_events.FlightCancelled:
    """Returns the event that the flight service publishes."""
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    return flight_events.FlightCancelled(flight_id=flight, reason=reason, cancel_time=now)


async def tell(broker: Broker, database: Database, event: flight_events.FlightCancelled) -> None:
    """Publishes the event, and waits until a seat service has applied it."""

    async def noted(event_id: UUID) -> bool:
        return bool(await database.fetchval("SELECT true FROM inbox WHERE event_id = $1", event_id))

    await broker.tell("flight.cancelled.v1", event, noted)


async def close(pool: Pool, flight: str, *, after_seconds: float = 0) -> None:
    """Applies the event, as the consumer does."""
    await pause(after_seconds)
    async with db.transaction(pool) as conn:
        await handlers.on_flight_cancelled(conn, cancelled(flight))


async def empty(database: Database, flight: str) -> None:
    """Waits until all seats of the flight are AVAILABLE."""

    async def free() -> bool:
        taken = "SELECT count(*) FROM seats WHERE flight_id = $1 AND state <> 'AVAILABLE'"
        return not await database.fetchval(taken, flight)

    await eventually(free)


async def test_only_the_cancelled_flight_is_closed_and_emptied(
    callers: Callers, broker: Broker, flight: str, onward: str, database: Database
) -> None:
    customer, agent, booking = callers.customer(), callers.agent(), callers.service("booking")
    held = await customer.hold(flight, "20A")
    confirmed = await agent.confirm(await agent.hold(flight, "20B"))
    journey = await booking.hold_seats(seat(flight, "20C", "P1"), seat(onward, "20C", "P1"), managed=True)
    elsewhere = await customer.hold(onward, "21A")
    await tell(broker, database, cancelled(flight))
    await empty(database, flight)
    for hold in (held, confirmed, journey):
        assert (await agent.get(hold)).state == pb.Hold.CANCELLED
    assert (await customer.get(elsewhere)) == elsewhere
    told = await database.fetch(
        """
        SELECT DISTINCT flight_id, seat_number, to_state, actor, reason, transaction, outbox.body
        FROM seat_events JOIN outbox USING (event_id)
        WHERE flight_id = ANY($1) AND seat_events.reason = 'FLIGHT_CANCELLED' AND routing_key = 'seat.released.v1'
        """,
        [flight, onward],
    )
    assert {(row["flight_id"], row["seat_number"]) for row in told} == {
        (flight, "20A"),
        (flight, "20B"),
        (flight, "20C"),
        (onward, "20C"),
    }
    assert {(row["to_state"], row["actor"]) for row in told} == {("AVAILABLE", "flight")}
    released = [each for row in told for each in events_pb2.SeatReleased.FromString(row["body"]).seats]
    assert {each.reason for each in released} == {"FLIGHT_CANCELLED"}
    assert await violations(database, flight, onward) == []


async def test_a_cancelled_flight_accepts_no_hold(
    callers: Callers, pool: Pool, flight: str, onward: str, database: Database
) -> None:
    agent, service = callers.agent(), callers.service()
    held = await agent.hold(flight, "20A", "P1")
    lapsing = await agent.hold(onward, "20A", "P1")
    await close(pool, flight)
    await empty(database, flight)
    before = [await rows(database, each) for each in (flight, onward)]
    to_it = [seat(onward, "20A", "P1"), seat(flight, "21A", "P2")]
    calls: dict[str, Awaitable[Any]] = {
        "hold": callers.customer().hold(flight, "21A"),
        "hold several": agent.hold_seats(seat(onward, "21A"), seat(flight, "21A")),
        "claim": service.ClaimSeat(
            pb.ClaimSeatRequest(flight_id=flight, seat_number="21A", passenger_id="W1", owner="passenger:XK4T7Q")
        ),
        "change": agent.ChangeHoldSeats(pb.ChangeHoldSeatsRequest(hold_id=lapsing.hold_id, seats=to_it)),
        "change what was held": agent.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(hold_id=held.hold_id, seats=[seat(onward, "21A", "P2")])
        ),
        "extend": agent.ExtendHold(pb.ExtendHoldRequest(hold_id=held.hold_id)),
        "confirm": agent.confirm(held),
    }
    for call in calls.values():
        with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED") as refusal:
            await call
        assert refusal.info.metadata == {"flight_id": flight}
    # Cancelling a hold that the closing has ended succeeds as a repeat.
    assert (await agent.cancel(held)).state == pb.Hold.CANCELLED
    assert [await rows(database, each) for each in (flight, onward)] == before


async def test_a_cancelled_flight_is_the_first_refusal(
    callers: Callers, pool: Pool, flight: str, database: Database
) -> None:
    customer = callers.customer()
    await callers.agent().BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="20A", reason="BROKEN"))
    await customer.hold_seats(*(seat(flight, f"2{n}B") for n in range(9)))
    async with db.transaction(pool) as conn:
        await cancellations.close(conn, flight, reason="STRIKE", cancel_time=(await conn.fetchval("SELECT now()")))
        await conn.execute("DELETE FROM timers WHERE subject = $1", flight)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await customer.hold_seats(seat(flight, "20A"), seat(flight, "21A"))


@asynccontextmanager
async def in_the_middle_of_it(pool: Pool, database: Database, flight: str) -> AsyncIterator[None]:
    """Closes the flight; commits once another transaction waits for one of its seats."""
    async with db.transaction(pool) as conn:
        await handlers.on_flight_cancelled(conn, cancelled(flight))
        closer = await conn.fetchval("SELECT pg_backend_pid()")
        yield

        async def waits() -> bool:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
            return bool(await database.fetchval(blocked, closer))

        await eventually(waits)


@pytest.mark.parametrize("method", ["HoldSeat", "ClaimSeat", "ChangeHoldSeats", "ConfirmHold"])
async def test_concurrent_calls_are_refused_by_the_cancellation(
    callers: Callers, pool: Pool, flight: str, database: Database, method: str
) -> None:
    service = callers.service()
    hold = await service.hold(flight, "20A", "P1")
    request = {
        "HoldSeat": pb.HoldSeatRequest(flight_id=flight, seat_number="21A", passenger_id="P2"),
        "ClaimSeat": pb.ClaimSeatRequest(
            flight_id=flight, seat_number="21A", passenger_id="P2", owner="passenger:XK4T7Q", confirm=True
        ),
        "ChangeHoldSeats": pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, "21A", "P1")]),
        "ConfirmHold": pb.ConfirmHoldRequest(hold_id=hold.hold_id),
    }[method]
    async with in_the_middle_of_it(pool, database, flight):
        running = asyncio.ensure_future(getattr(service, method)(request))
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await running
    await empty(database, flight)
    assert await violations(database, flight) == []


async def test_concurrent_calls_leave_no_seat_after_the_cancellation(
    callers: Callers, second: Callers, pool: Pool, operations: Caller, database: Database
) -> None:
    dice = random.Random(8)
    # How long this machine takes for the calls of a round. The flight is closed at a random moment within that time.
    usual_seconds = 0.03
    agents = [callers.agent(), second.agent()]
    counted: dict[str, int] = {}
    for _ in range(ROUNDS):
        flight, onward = new_flight_id(), new_flight_id()
        for each in (flight, onward):
            await operations.provision(each)
        holds = [
            await agents[n % 2].hold_seats(seat(flight, f"{row}A", f"P{row}"), seat(onward, f"{row}A", f"P{row}"))
            for n, row in enumerate(range(14, 20))
        ]
        moves = [
            *(agents[n % 2].confirm(hold) for n, hold in enumerate(holds)),
            *(agents[n % 2].hold(flight, f"{20 + n}B") for n in range(6)),
            *(
                agents[n % 2].ChangeHoldSeats(
                    pb.ChangeHoldSeatsRequest(
                        hold_id=hold.hold_id, seats=[seat(flight, f"{14 + n}C", hold.seats[0].passenger_id)]
                    )
                )
                for n, hold in enumerate(holds)
            ),
        ]
        dice.shuffle(moves)
        moves.append(close(pool, flight, after_seconds=dice.uniform(0, usual_seconds)))
        began = time.monotonic()
        for outcome, count in outcomes(await at_once(*moves)).items():
            counted[outcome] = counted.get(outcome, 0) + count
        usual_seconds += (time.monotonic() - began - usual_seconds) / 2
        await empty(database, flight)
        assert await violations(database, flight, onward) == []
    assert counted.keys() <= {"OK", "FLIGHT_CANCELLED", "HOLD_CONFIRMED", "HOLD_CANCELLED"}
    # Without enough of both outcomes the test raced nothing.
    assert counted["FLIGHT_CANCELLED"] > ROUNDS
    assert counted["OK"] > 2 * ROUNDS


async def test_a_full_flight_is_emptied_in_batches(
    agent: Caller, pool: Pool, flight: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellations, "HOLDS_AT_ONCE", 20)
    numbers = [f"{row}{letter}" for row in range(1, 31) for letter in "ABCDEF"]
    await a_few_at_once(agent.hold(flight, number) for number in numbers)
    await close(pool, flight)
    await empty(database, flight)
    steps = await database.fetch(
        """
        SELECT transaction, count(*) AS seats FROM seat_events
        WHERE flight_id = $1 AND reason = 'FLIGHT_CANCELLED' GROUP BY transaction
        """,
        flight,
    )
    assert sum(row["seats"] for row in steps) == len(numbers)
    assert max(row["seats"] for row in steps) <= 20
    assert await violations(database, flight) == []


async def test_the_map_and_the_counts_show_the_cancellation(
    agent: Caller, pool: Pool, flight: str, database: Database
) -> None:
    await agent.confirm(await agent.hold(flight, "20A"))
    first = await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
    await close(pool, flight)

    async def shown() -> bool:
        now = await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
        return now.version > first.version and {each.state for each in now.seats} == {pb.Seat.AVAILABLE}

    await eventually(shown)

    async def announced() -> bool:
        version = "SELECT version FROM availability WHERE flight_id = $1"
        return bool((await database.fetchval(version, flight) or 0) > first.version)

    await eventually(announced)


async def test_seats_of_a_cancelled_flight_are_not_offered(
    callers: Callers, pool: Pool, flight: str, database: Database
) -> None:
    agent, service = callers.agent(), callers.service()
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await agent.confirm(await agent.hold(flight, "20A"))
    await agent.BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="21A", reason="BROKEN"))
    await close(pool, flight)
    await agent.UnblockSeat(pb.UnblockSeatRequest(flight_id=flight, seat_number="21A"))
    await empty(database, flight)
    assert (await rows(database, flight))["offers"] == []
    assert await violations(database, flight) == []


async def test_a_repeat_changes_nothing(
    broker: Broker, agent: Caller, pool: Pool, flight: str, database: Database
) -> None:
    await agent.hold(flight, "20A")
    await close(pool, flight)
    await empty(database, flight)
    query = "SELECT reason, cancel_time, close_time FROM cancelled_flights WHERE flight_id = $1"
    first, before = await database.fetchrow(query, flight), await rows(database, flight)
    await tell(broker, database, cancelled(flight, "FOG"))
    assert await database.fetchrow(query, flight) == first
    assert await rows(database, flight) == before


async def test_an_unknown_flight_is_closed_too(
    operations: Caller, agent: Caller, pool: Pool, database: Database
) -> None:
    flight = new_flight_id()
    await close(pool, flight)
    await operations.provision(flight)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await agent.hold(flight, "20A", request_id=str(uuid4()))
    assert (await rows(database, flight))["holds"] == []


async def test_a_lapsed_hold_expires_instead_of_being_cancelled(
    agent: Caller, pool: Pool, flight: str, database: Database
) -> None:
    hold = await agent.hold(flight, "20A")
    async with db.transaction(pool) as conn:
        # In the same transaction, so that the sweeper does not see the lapsed hold before the event is applied.
        await lapse_holds(conn, hold)
        await handlers.on_flight_cancelled(conn, cancelled(flight))
    await empty(database, flight)
    assert (await agent.get(hold)).state == pb.Hold.EXPIRED
    assert await violations(database, flight) == []
