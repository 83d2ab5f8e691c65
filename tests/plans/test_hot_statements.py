"""The frequent statements keep their plans.

These are look-ups by key, and updates that stay within their page.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds import passenger_seats
from seat_service.holds.cancel import cancel
from seat_service.holds.confirm import confirm
from seat_service.holds.extend import extend
from seat_service.holds.hold import hold
from seat_service.holds.releases import release_passenger
from seat_service.layouts.cabin_layouts import load_layouts
from seat_service.manifests import departures, manifest_copy
from seat_service.maps import seat_map
from seat_service.requests import AskedSeat, Effects, HoldRequest, Limits, OnHold, OnPassenger
from seat_service.rules import entitlements
from services import db
from services.db import Conn
from tests.callers import Caller, listed_passenger
from tests.conftest import World
from tests.dates import new_flight_id
from tests.instances import database_with, instance

LIMITS = Limits(held_seats=9, lapses_allowed=10, lapses_window=timedelta(minutes=15), cool_down=timedelta(minutes=1))


# A scan of a table whose size grows all the time.
GROWING = re.compile(r"Scan .*on (seats|holds|hold_seats|seat_events|idempotency|passengers|departures)\b")


class Explaining:
    """A connection that runs each statement and keeps its plan."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self.plans: list[str] = []

    async def _explain(self, query: str, arguments: tuple[Any, ...]) -> None:
        savepoint = self._conn.transaction()
        await savepoint.start()
        rows = await self._conn.fetch(f"EXPLAIN {query}", *arguments)
        await savepoint.rollback()
        self.plans.append("\n".join(row[0] for row in rows))

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        await self._explain(query, arguments)
        return await self._conn.fetch(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        await self._explain(query, arguments)
        return await self._conn.fetchval(query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> str:
        await self._explain(query, arguments)
        return await self._conn.execute(query, *arguments)


@pytest.fixture
async def explaining(world: World) -> AsyncIterator[Explaining]:
    """Yields a connection of a service's pool in a transaction that is rolled back."""
    pool = await db.connect(world.servers.database_url("seat"), schema="seat", size=2)
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        yield Explaining(conn)
        await transaction.rollback()
    await pool.close()


@pytest.fixture
async def explaining_new(world: World) -> AsyncIterator[tuple[Explaining, str]]:
    """Yields the same for a planner without statistics, and a flight.

    A planner has none on the first day and after a restore.
    """
    url = (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]
    async with instance(world, database_url=url) as airline:
        flight = new_flight_id("PL")
        await airline.callers.operations().provision(flight)
        async with airline.pool.acquire() as conn:
            transaction = conn.transaction()
            await transaction.start()
            yield Explaining(conn), flight
            await transaction.rollback()


def whole(plan: str) -> list[str]:
    """Returns the scans of growing tables in a plan that do not look up an id."""
    lines = plan.splitlines()
    return [
        line
        for line, behind in zip(lines, [*lines[1:], ""], strict=True)
        if GROWING.search(line) and not re.search(r"(Index|Recheck) Cond: .*_id = ", behind)
    ]


def wants(flight: str, seat_number: str) -> HoldRequest:
    return HoldRequest(
        seats=(AskedSeat(flight, seat_number, f"P-{secrets.token_hex(4)}"),),
        owner=f"passenger:{secrets.token_hex(3)}",
        actor="agent:plans",
        purpose=pb.Hold.CHECK_IN,
        ttl=timedelta(minutes=2),
        extensions=9,
        limits=LIMITS,
    )


async def test_hold_confirm_and_cancel_read_no_table_whole(explaining: Explaining, flight: str) -> None:
    conn = cast("Conn", explaining)
    requests = [wants(flight, f"{row}A") for row in range(1, 21)]
    held = [answer for answer in await hold(conn, requests, effects=Effects()) if isinstance(answer, pb.Hold)]
    assert len(held) == len(requests)

    on = [OnHold(UUID(hold.hold_id), None, "agent:plans", reason="PLANS") for hold in held]
    await confirm(conn, on, effects=Effects())
    await cancel(conn, on, effects=Effects())
    assert len(explaining.plans) >= 10
    for plan in explaining.plans:
        assert "Seq Scan" not in plan, plan
        assert "Bitmap Heap Scan on seats" not in plan, plan
    assert sum("seats_pkey" in plan for plan in explaining.plans) >= 4
    assert any("one_held_seat_per_passenger" in plan for plan in explaining.plans)


async def test_a_planner_without_statistics_reads_nothing_whole(explaining_new: tuple[Explaining, str]) -> None:
    explaining, flight = explaining_new
    conn = cast("Conn", explaining)
    requests = [wants(flight, f"{row}A") for row in range(1, 6)]
    held = [answer for answer in await hold(conn, requests, effects=Effects()) if isinstance(answer, pb.Hold)]
    on = [OnHold(UUID(hold.hold_id), None, "agent:plans", reason="PLANS") for hold in held]
    for transition in (extend, confirm, cancel):
        answers = await transition(conn, on, effects=Effects())
        assert all(isinstance(answer, pb.Hold) for answer in answers)
    assert len(explaining.plans) >= 12
    for plan in explaining.plans:
        assert whole(plan) == [], plan


async def test_one_passengers_release_reads_no_table_whole(explaining: Explaining, flight: str) -> None:
    conn = cast("Conn", explaining)
    requests = [wants(flight, f"{row}A") for row in range(1, 21)]
    held = [answer for answer in await hold(conn, requests, effects=Effects()) if isinstance(answer, pb.Hold)]
    explaining.plans.clear()
    released = await release_passenger(
        conn,
        [
            OnPassenger(
                UUID(hold.hold_id),
                None,
                "service:plans",
                reason="PLANS",
                flight_id=flight,
                passenger_id=hold.seats[0].passenger_id,
            )
            for hold in held
        ],
        effects=Effects(),
    )
    assert {hold.state for hold in released if isinstance(hold, pb.Hold)} == {pb.Hold.CANCELLED}
    # A batch needs as many statements as a single hold, regardless of its size.
    assert len(explaining.plans) <= 9
    for plan in explaining.plans:
        assert "Seq Scan" not in plan, plan
        assert "Bitmap Heap Scan on seats" not in plan, plan


async def test_passengers_seats_are_looked_up_by_the_partial_indexes(explaining: Explaining, flight: str) -> None:
    asked = [pb.FindPassengerSeatsRequest.FlightPassenger(flight_id=flight, passenger_id=f"P{n}") for n in range(200)]
    await passenger_seats.find(cast("Conn", explaining), asked)
    (plan,) = explaining.plans
    for index in ("one_held_seat_per_passenger", "one_confirmed_seat_per_passenger", "holds_pkey"):
        assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Bitmap" not in plan, plan


async def test_the_manifest_is_read_and_written_by_its_keys(explaining_new: tuple[Explaining, str]) -> None:
    explaining, flight = explaining_new
    conn = cast("Conn", explaining)
    numbers = [f"{row}A" for row in range(15, 25)]
    requests = [
        replace(wants(flight, number), owner="passenger:XK4T7Q", actor="service:plans", limits=None)
        for number in numbers
    ]
    await hold(conn, requests, effects=Effects())
    entries = tuple(
        manifest_copy.entry(
            listed_passenger(flight, request.seats[0].passenger_id, "XK4T7Q", ended=n % 2 == 0, revision=1)
        )
        for n, request in enumerate(requests)
    )
    times = (departures.Departure(flight, datetime.now(UTC) + timedelta(hours=2), 1),)
    layouts = load_layouts()
    await departures.set_departures(conn, [departures.Departures(times)], effects=Effects())
    change = manifest_copy.ManifestChange(entries, "service:plans")
    (response,) = await manifest_copy.sync(conn, [change], layouts=layouts, effects=Effects())
    assert isinstance(response, pb.SyncPassengersResponse)
    assert len(response.freed_seats) == len(numbers) / 2
    assert await manifest_copy.review(conn, flight, layouts=layouts, effects=Effects()) == manifest_copy.Verdict([], {})
    assert len(await entitlements.party(conn, flight, pnr="XK4T7Q", passenger_ids=[])) == len(numbers) / 2
    for plan in explaining.plans:
        assert whole(plan) == [], plan
        assert "Seq Scan" not in plan, plan
    for index in ("passengers_pkey", "passengers_of_locator", "departures_pkey", "one_confirmed_seat_per_passenger"):
        assert any(index in plan for plan in explaining.plans), index


async def test_a_map_is_read_by_its_flight(explaining: Explaining, flight: str) -> None:
    (snapshot,) = await seat_map.load(cast("Conn", explaining), [flight])
    assert len(snapshot.states) == 180
    (plan,) = explaining.plans
    assert "seats_pkey" in plan
    assert "Seq Scan" not in plan


async def test_the_sweeper_takes_what_is_due_by_the_index_of_what_is_due(explaining: Explaining) -> None:
    await explaining.fetch(
        """
        SELECT hold_id FROM holds WHERE state = 'HELD' AND expire_time <= statement_timestamp()
        ORDER BY expire_time LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
        """
    )
    assert "holds_due" in explaining.plans[0]


async def test_updates_of_seats_stay_within_their_page(
    agent: Caller, flight: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    indexed = await database.fetchval(
        "SELECT count(*) FROM pg_index WHERE indrelid = 'seats'::regclass AND NOT indisprimary"
    )
    assert indexed == 0, "an index on what a hold changes would end HOT updates"
    options = await database.fetchval("SELECT reloptions::text FROM pg_class WHERE oid = 'seats'::regclass")
    assert "fillfactor" in options
