"""SEAT-18 in the waitlist and at check-in.

A call does not read the history of its flight or of the day.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from checkin_service.check_ins import start
from checkin_service.peers import Seat
from checkin_service.sessions.login_limits import LoginLimits
from checkin_service.steps import starting
from services import db
from services.db import Conn
from tests.conftest import World
from tests.dates import new_flight_id
from tests.instances import database_with
from tests.plans.costing import Costing, pool_of
from waitlist_service import entries, released_seats
from waitlist_service.matching import FreedSeat
from waitlist_service.open_waitlists import OpenWaitlists

PAST = 10_000

PAST_ENTRIES = """
INSERT INTO entries (entry_id, flight_id, number, passenger_id, owner, type, cabin, special_services, positions,
                     seat_numbers, state, end_time)
SELECT gen_random_uuid(), $1, n, 'P' || n, 'passenger:PAST', 'ADULT', 'ECONOMY', '{}', '{}', '{}', 'LEFT', now()
FROM generate_series(1, $2::int) AS n
"""
PAST_CHECK_INS = """
INSERT INTO check_ins (checkin_id, flight_id, passenger_id, pnr, state, allowance_grams, seat_number, hold_id,
                       cancel_time, cancel_reason)
SELECT gen_random_uuid(), $1, 'P' || n % 300, 'PAST', 'CANCELLED', 0, '1A', gen_random_uuid(), now(), 'PASSENGER'
FROM generate_series(1, $2::int) AS n
"""


@asynccontextmanager
async def costing_in(world: World, service: str) -> AsyncIterator[Costing]:
    """Yields a service's connection in a transaction that is rolled back.

    Its database was never analyzed.
    """
    url = (await database_with(world, service))[f"SKYHIGH_{service.upper()}_DATABASE_URL"]
    pool = await db.connect(url, schema=service, size=2)
    try:
        async with pool.acquire() as conn:
            transaction = conn.transaction()
            await transaction.start()
            yield Costing(conn)
            await transaction.rollback()
    finally:
        await pool.close()


@pytest.fixture
async def waiting(world: World) -> AsyncIterator[Costing]:
    async with costing_in(world, "waitlist") as costing:
        yield costing


@pytest.fixture
async def checking_in(world: World) -> AsyncIterator[Costing]:
    async with costing_in(world, "checkin") as costing:
        yield costing


async def test_waiting_costs_the_same_on_a_flight_that_many_have_left(waiting: Costing) -> None:
    flight = new_flight_id("WL")
    conn = cast("Conn", waiting)
    await waiting.conn.execute("INSERT INTO flights (flight_id, open, last_number) VALUES ($1, true, $2)", flight, PAST)
    await waiting.conn.execute(PAST_ENTRIES, flight, PAST)
    assert not await entries.has_live_entries(conn, flight)
    new = entries.NewEntry(flight, "PW", "passenger:WAITS", "ADULT", "ECONOMY", (), (), (), "", "")
    entry = await entries.join(conn, new, actor="passenger:WAITS")
    assert (await entries.shown(conn, entry)).position == 1
    assert await entries.has_live_entries(conn, flight)
    numbers, _ = await released_seats._page(conn, flight, 0, 20)
    assert numbers == [PAST + 1]
    await OpenWaitlists(pool_of(waiting), cast("Any", None)).close_if_empty(flight)
    assert await waiting.conn.fetchval("SELECT open FROM flights WHERE flight_id = $1", flight)
    assert await entries.live(conn, flight, after_number=0, limit=200) == [entry]
    assert await entries.offered(conn, flight, limit=200) == []
    assert await entries.endable(conn, flight, limit=200) == [entry]
    other = replace(entry.facts, special_services=("WCHC",))
    assert await entries.update_facts(conn, entry, other) is not None
    assert await entries.end(conn, [entry], actor="checkin", reason="CHECK_IN_CLOSED") == set()
    assert not await entries.has_live_entries(conn, flight)
    again = await entries.join(conn, new, actor="passenger:WAITS")
    assert again.number == PAST + 2
    await entries.end_all(conn, flight, actor="flight", reason="FLIGHT_CANCELLED")
    assert not await entries.has_live_entries(conn, flight)
    waiting.expect_bounded()


async def test_a_planner_without_statistics_looks_entries_up_by_their_ids(waiting: Costing) -> None:
    flight = new_flight_id("WL")
    conn = cast("Conn", waiting)
    await waiting.conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await waiting.conn.execute("INSERT INTO flights (flight_id, open) VALUES ($1, true)", flight)
    hold, soon = uuid4(), await waiting.conn.fetchval("SELECT now() + interval '1 min'")
    for ordinal, seat_number in enumerate(("1A", "1B", "1C")):
        new = entries.NewEntry(flight, seat_number, "passenger:W", "ADULT", "ECONOMY", (), (), (), "", "")
        entry = await entries.join(conn, new, actor="passenger:W")
        entry_id = entry.entry_id
        freed = FreedSeat(seat_number, ordinal, "ECONOMY", "WINDOW")
        await released_seats._write_matches(conn, flight, {entry_id: freed}, {seat_number})
        ((found, _),) = (await entries.matched(conn, [entry_id], mode="OFFER")).values()
        assert found.claim_id is not None
        assert await entries.is_matched(conn, found)
        if seat_number == "1A":
            assert await entries.update_facts(conn, found, found.facts) is not None
            assert await entries.remove_match(conn, found)
            assert await entries.leave(conn, entry_id, owner=None, actor="passenger:W")
            continue
        assert await entries.decide(conn, [(found, b"request")]) == {entry_id}
        assert await entries.update_facts(conn, found, found.facts) is None, "its claim is under way"
        assert await entries.offer(conn, entry_id, claim_id=found.claim_id, hold_id=hold, expire_time=soon)
        if seat_number == "1B":
            withdrawn = await entries.withdraw(conn, [entry_id], to="LEFT", owner=None, actor="W", reason="LEFT")
            assert withdrawn == [entry_id]
            assert await entries.finish_withdrawal(conn, await entries.find(conn, entry_id, owner=None))
            continue
        assert await entries.begin_accept(conn, entry_id, owner=None, actor="agent:a")
        (assigned,) = await entries.assign(conn, [entries.Claimed(found, hold, seat_number, "passenger:W")])
        assert assigned is not None
    assert len(waiting.plans) > 20
    waiting.expect_look_ups("entries")


async def test_checking_in_costs_the_same_after_many_cancellations(checking_in: Costing) -> None:
    flight = new_flight_id("CI")
    conn = cast("Conn", checking_in)
    await checking_in.conn.execute(
        """
        INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time,
                             departure_date, opens_before, closes_before, boarding_before, gate)
        SELECT $1, 'SH1', 'FRA', 'LHR', at, at + interval '2 h', at::date, '24 h', '1 h', '40 min', ''
        FROM (SELECT now() + interval '6 h' AS at) AS departure
        """,
        flight,
    )
    await checking_in.conn.execute(
        """
        INSERT INTO passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare,
                                special_services, contact_email)
        VALUES ($1, 'P1', 'PAST', '', 'A', 'B', 'ADULT', 'ECONOMY', 'STANDARD', '{}', '')
        """,
        flight,
    )
    await checking_in.conn.execute(PAST_CHECK_INS, flight, PAST)
    former = await checking_in.conn.fetchval(
        "SELECT hold_id FROM check_ins WHERE passenger_id = 'P1' AND flight_id = $1 LIMIT 1", flight
    )
    request = cast("Any", SimpleNamespace(flight_id=flight, passenger_id="P1"))
    assert await starting._had_seat_before(conn, request, Seat("1A", former, None))
    new = Seat("1B", uuid4(), None)
    assert not await starting._had_seat_before(conn, request, new)
    asked = {"flight_id": flight, "passenger_id": "P1", "pnr": "PAST", "allowance_grams": 0, "actor": "passenger:PAST"}
    assert await start.start(conn, **cast("Any", asked), seat=Seat("1A", former, None)) is None
    assert await start.start(conn, **cast("Any", asked), seat=new) is not None
    checking_in.expect_bounded()


async def test_tries_to_log_in_cost_the_same_however_many_there_were(checking_in: Costing) -> None:
    limits = LoginLimits(pool_of(checking_in), per_pnr=5, per_address=20, window=timedelta(minutes=10))
    await checking_in.conn.execute(
        """
        INSERT INTO login_tries (key, most, tries)
        SELECT 'pnr:' || n, 5, CASE WHEN n % 1000 = 0 THEN '{}' ELSE ARRAY[now() - n % 3 * interval '9 min'] END
        FROM generate_series(1, $1::int) AS n
        """,
        PAST,
    )
    await limits.record(pnr="ABCDEF", address="192.0.2.1")
    assert await limits.forget_old(cast("Conn", checking_in), limit=20) == 20
    checking_in.expect_bounded()
    old = await limits.forget_old(checking_in.conn, limit=PAST)
    assert PAST // 3 - 20 <= old < PAST // 2
    assert await limits.forget_old(checking_in.conn, limit=PAST) == 0
