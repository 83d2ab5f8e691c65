"""SEAT-18: a statement's cost does not grow with the history of its owner, flight or service.

The tables hold a long history and were never analyzed. The tests measure rows and buffers, neither of which depends on
how busy the machine is; a statement that reads the history needs thousands.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast
from uuid import UUID

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.cancel import cancel
from seat_service.holds.change import change
from seat_service.holds.confirm import confirm
from seat_service.holds.extend import extend
from seat_service.holds.hold import hold
from seat_service.holds.releases import release_passenger
from seat_service.requests import AskedSeat, ChangeRequest, Effects, HoldRequest, Limits, OnHold, OnPassenger
from services.db import Conn
from tests.callers import seat
from tests.conftest import World
from tests.dates import new_flight_id
from tests.instances import Instance, database_with, instance
from tests.plans.costing import Costing, nodes

PAST_HOLDS = 100_000
LIVE_HOLDS = 5_000
PAST_OF_FLIGHT = 1_000
PAST_EVENTS = 200_000
LIMITS = Limits(held_seats=9, lapses_allowed=5, lapses_window=timedelta(minutes=15), cool_down=timedelta(minutes=1))
OWNER = "customer:history"
AGENT = "agent:history"
ADDRESS = "203.0.113.1"


@dataclass(frozen=True)
class History:
    """A seat service whose tables hold the history of years."""

    airline: Instance
    flight: str


FILL = f"""
WITH past AS (
    INSERT INTO holds (hold_id, owner, purpose, state, ttl, extensions_left, create_time, expire_time, end_time,
                       address)
    SELECT gen_random_uuid(), owner, 'CHECK_IN', (ARRAY['EXPIRED', 'CANCELLED'])[1 + n % 2]::hold_state,
           interval '2 minutes', 9, now() - interval '1 day' - n * interval '1 second',
           now() - interval '1 day' - (n - 120) * interval '1 second',
           now() - interval '1 day' - (n - 121) * interval '1 second',
           CASE WHEN owner = '{OWNER}' THEN '{ADDRESS}' END
    FROM generate_series(1, {PAST_HOLDS}) AS n CROSS JOIN unnest(ARRAY['{OWNER}', '{AGENT}']) AS owner
    RETURNING hold_id, owner
), numbered AS (
    SELECT hold_id, owner, row_number() OVER () AS n FROM past
), live AS (
    INSERT INTO holds (hold_id, owner, purpose, ttl, extensions_left, create_time, expire_time, address)
    SELECT gen_random_uuid(), owner, 'CHECK_IN', interval '1 hour', 9, now(), now() + interval '1 hour',
           CASE WHEN owner = '{OWNER}' THEN '{ADDRESS}' END
    FROM generate_series(1, {LIVE_HOLDS}) AS n CROSS JOIN unnest(ARRAY['{OWNER}', '{AGENT}']) AS owner
    RETURNING hold_id, owner
)
INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, state, owner, address)
SELECT hold_id, CASE WHEN n <= {PAST_OF_FLIGHT} THEN $1 ELSE 'PAST-' || n % 1000 END, (1 + n % 30) || 'A', 'P' || n,
       'RELEASED', owner, CASE WHEN owner = '{OWNER}' THEN '{ADDRESS}' END
FROM numbered
UNION ALL
SELECT hold_id, 'LIVE-' || row_number() OVER () / 5, (1 + row_number() OVER () % 5) || 'A',
       'P' || row_number() OVER (), 'HELD', owner, CASE WHEN owner = '{OWNER}' THEN '{ADDRESS}' END
FROM live
"""


@pytest.fixture(scope="module")
async def history(world: World) -> AsyncIterator[History]:
    """Writes a long history in bulk, to a database that serves calls before and after."""
    url = (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]
    async with instance(world, database_url=url) as airline:
        flight = new_flight_id("HI")
        await airline.callers.operations().provision(flight)
        # The planner has no statistics of these tables. In production a service's plans may be older than its rows too.
        for table in ("holds", "hold_seats", "seat_events", "seats"):
            await airline.database.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        desk = airline.callers.agent("history")
        confirmed = await desk.hold(flight, "30A")
        await desk.confirm(confirmed)
        await desk.cancel(await desk.hold(flight, "30B"))
        await airline.database.execute(FILL, flight, timeout=120)
        await airline.database.execute(
            """
            INSERT INTO seat_events
                (flight_id, seat_number, version, from_state, to_state, actor, reason, event_time)
            SELECT CASE WHEN n % 200 = 0 THEN $1 ELSE 'PAST-' || n % 1000 END, '1A', 1000 + n, 'AVAILABLE', 'BLOCKED',
                   'agent:history', 'BLOCKED', now() - interval '1 day'
            FROM generate_series(1, $2::int) AS n
            """,
            flight,
            PAST_EVENTS,
            timeout=120,
        )
        yield History(airline, flight)


@pytest.fixture
async def costing(history: History) -> AsyncIterator[Costing]:
    """Yields the service's connection in a transaction that is rolled back."""
    async with history.airline.pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        yield Costing(conn)
        await transaction.rollback()


def wants(flight: str, seat_number: str, owner: str) -> HoldRequest:
    return HoldRequest(
        seats=(AskedSeat(flight, seat_number, f"P-{secrets.token_hex(4)}"),),
        owner=owner,
        actor=owner,
        purpose=pb.Hold.CHECK_IN,
        ttl=timedelta(minutes=2),
        extensions=9,
        limits=LIMITS if owner == OWNER else None,
        address=ADDRESS if owner == OWNER else "",
        address_limits=replace(LIMITS, held_seats=27, lapses_allowed=30),
    )


async def held(conn: Costing, request: HoldRequest) -> pb.Hold:
    (answer,) = await hold(cast("Conn", conn), [request], effects=Effects())
    assert isinstance(answer, pb.Hold), answer
    return answer


@pytest.mark.parametrize("owner", [OWNER, AGENT])
async def test_a_hold_costs_the_same_after_a_hundred_thousand(history: History, costing: Costing, owner: str) -> None:
    await held(costing, wants(history.flight, "1A", owner))
    costing.expect_bounded()


async def test_who_is_not_bound_is_not_judged(history: History, costing: Costing) -> None:
    await held(costing, wants(history.flight, "1A", AGENT))
    (judging,) = [node for _, plan in costing.plans for node in nodes(plan) if node.get("Function Name") == "hoarding"]
    assert judging["Actual Loops"] == 0

    costing.plans.clear()
    await held(costing, wants(history.flight, "1B", OWNER))
    (judging,) = [node for _, plan in costing.plans for node in nodes(plan) if node.get("Function Name") == "hoarding"]
    assert judging["Actual Loops"] == 1


@pytest.mark.parametrize("owner", [OWNER, AGENT])
async def test_all_that_is_done_with_a_hold_costs_the_same(history: History, costing: Costing, owner: str) -> None:
    conn = cast("Conn", costing)
    first = await held(costing, wants(history.flight, "2A", owner))
    on = OnHold(UUID(first.hold_id), owner, owner, reason="PLANS")
    for transition in (extend, confirm, cancel):
        (answer,) = await transition(conn, [on], effects=Effects())
        assert isinstance(answer, pb.Hold), answer
    second = await held(costing, wants(history.flight, "2B", owner))
    on = OnHold(UUID(second.hold_id), owner if owner == OWNER else None, owner, reason="PLANS")
    asked = AskedSeat(history.flight, "2C", second.seats[0].passenger_id)
    (changed,) = await change(conn, [ChangeRequest(on, (asked,), LIMITS, LIMITS)], effects=Effects())
    assert isinstance(changed, pb.Hold), changed
    passenger = OnPassenger(
        UUID(second.hold_id),
        None,
        "service:plans",
        reason="PLANS",
        flight_id=history.flight,
        passenger_id=second.seats[0].passenger_id,
    )
    (released,) = await release_passenger(conn, [passenger], effects=Effects())
    assert isinstance(released, pb.Hold), released
    assert len(costing.plans) >= 20
    costing.expect_bounded()


async def test_the_limits_still_count_what_is_held_and_what_lapsed(history: History, costing: Costing) -> None:
    for n in range(LIMITS.held_seats):
        await held(costing, wants(history.flight, f"{10 + n}A", OWNER))
    (full,) = await hold(cast("Conn", costing), [wants(history.flight, "20A", OWNER)], effects=Effects())
    assert getattr(full, "reason", None) == "TOO_MANY_HELD_SEATS"
    await costing.conn.execute(
        """
        UPDATE holds SET state = 'EXPIRED', create_time = now() - interval '3 minutes',
                         expire_time = now() - interval '1 second', end_time = now()
        WHERE hold_id IN (SELECT hold_id FROM hold_seats WHERE flight_id = $1 AND owner = $2 AND state = 'HELD')
        """,
        history.flight,
        OWNER,
    )
    (cooling,) = await hold(cast("Conn", costing), [wants(history.flight, "20A", OWNER)], effects=Effects())
    assert getattr(cooling, "reason", None) == "COOLING_DOWN"
    costing.expect_bounded()


async def test_the_limit_of_an_address_costs_the_same_and_still_counts(history: History, costing: Costing) -> None:
    for n in range(27):
        guest = replace(wants(history.flight, f"{4 + n // 6}{'ABCDEF'[n % 6]}", OWNER), owner=f"customer:guest-{n}")
        await held(costing, guest)
    full_address = replace(wants(history.flight, "20A", OWNER), owner="customer:guest-27")
    (full,) = await hold(cast("Conn", costing), [full_address], effects=Effects())
    assert getattr(full, "metadata", None) == {"limit": "27", "counted_by": "ADDRESS"}
    await costing.conn.execute(
        """
        UPDATE holds SET state = 'EXPIRED', create_time = now() - interval '3 minutes',
                         expire_time = now() - interval '1 second', end_time = now()
        WHERE hold_id IN (SELECT hold_id FROM hold_seats
                          WHERE address = $1 AND state = 'HELD' ORDER BY hold_id LIMIT 30)
        """,
        ADDRESS,
    )
    (cooling,) = await hold(cast("Conn", costing), [full_address], effects=Effects())
    assert getattr(cooling, "reason", None) == "COOLING_DOWN"
    costing.expect_bounded()


async def test_a_call_after_all_that_is_answered(history: History) -> None:
    customer = history.airline.callers.customer("history")
    hold = await customer.hold_seats(seat(history.flight, "25A"))
    changed = await customer.ChangeHoldSeats(
        pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(history.flight, "25B", hold.seats[0].passenger_id)])
    )
    assert changed.seats[0].seat_number == "25B"
    assert (await customer.cancel(changed)).state == pb.Hold.CANCELLED
