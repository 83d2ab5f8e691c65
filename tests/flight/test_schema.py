"""The schema refuses rows that must not exist; frequent queries use indexes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, cast

import asyncpg
import pytest

from flight_service import counts, flights
from services import db
from services.db import Conn
from tests.flight.airline import Airline, flight
from tests.instances import Database
from tests.plans.test_hot_statements import Explaining


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("state = 'CANCELLED'", "cancelled_has_its_time_and_reason"),
        ("state = 'CANCELLED', cancel_time = now()", "cancelled_has_its_time_and_reason"),
        ("state = 'CANCELLED', cancel_reason = 'FOG'", "cancelled_has_its_time_and_reason"),
        ("cancel_time = now(), cancel_reason = 'FOG'", "cancelled_has_its_time_and_reason"),
        ("destination = origin", "flight_goes_somewhere_else"),
        ("arrival_time = departure_time", "flight_lasts_a_day_at_most"),
        ("arrival_time = departure_time + interval '24 hours 1 second'", "flight_lasts_a_day_at_most"),
        ("departure_date = departure_date + 2", "departure_date_is_a_local_one"),
        ("departure_date = departure_date - 2", "departure_date_is_a_local_one"),
        ("check_in_opens_before = check_in_closes_before", "check_in_opens_before_it_closes"),
    ],
)
async def test_a_flight_row_cannot_be_inconsistent(
    airline: Airline, day: date, flight_database: Database, change: str, constraint: str
) -> None:
    new = flight("LHR", "CDG", datetime.combine(day, time(9)))
    await airline.add(new)
    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await flight_database.execute(f"UPDATE flights SET {change} WHERE flight_id = $1", new.flight_id)
    assert refusal.value.constraint_name == constraint


async def test_a_days_revision_increases_with_each_change(
    airline: Airline, day: date, flight_database: Database
) -> None:
    async def revision() -> int:
        return cast("int", await flight_database.fetchval("SELECT revision FROM schedule_days WHERE day = $1", day))

    new = flight("LHR", "CDG", datetime.combine(day, time(12), UTC))
    seen = []
    for change in (
        airline.add(new),
        airline.add(flight("LHR", "CDG", new.departure_time)),
        airline.cancel(new.flight_id),
    ):
        await change
        seen.append(await revision())
    assert seen == sorted(set(seen))
    # The revision is far ahead, as after a clock was put back.
    await flight_database.execute("UPDATE schedule_days SET revision = revision + 1000000 WHERE day = $1", day)
    before = await revision()
    await airline.add(flight("LHR", "CDG", new.departure_time))
    assert await revision() == before + 1
    await airline.add(new)
    assert await revision() == before + 1, "a flight that was there already is no change"


async def _list_days(conn: Conn) -> None:
    for day in (date(2081, 1, 5), None):
        await flights.list_page(conn, origin="LHR", destination="", day=day, after=None, limit=51)


async def _read_days(conn: Conn) -> None:
    await flights.scheduled(conn, [date(2081, 1, 5), date(2081, 1, 6)])


async def _free_seats(conn: Conn) -> None:
    await counts.free_seats(conn, [f"PL{n}" for n in range(100)])


async def _find(conn: Conn) -> None:
    await flights.find_all(conn, [f"PL{n}" for n in range(4)])


@pytest.mark.parametrize("read", [_list_days, _read_days, _free_seats, _find])
async def test_no_query_scans_a_whole_table(
    airline: Airline, read: Callable[[Conn], Coroutine[Any, Any, None]]
) -> None:
    moment = datetime(2081, 1, 1, tzinfo=UTC)
    await airline.add(*(flight("LHR", "CDG", moment + timedelta(hours=n), flight_id=f"PLANS{n}") for n in range(1000)))
    async with db.transaction(airline.pool) as conn:
        explaining = Explaining(conn)
        await read(cast("Conn", explaining))
    assert explaining.plans
    for plan in explaining.plans:
        assert "Seq Scan" not in plan, plan
