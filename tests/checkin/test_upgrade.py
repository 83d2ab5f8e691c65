"""Migration 0005 on a system that runs already: all of its manifests are sent, and doubled seats are looked at."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

import asyncpg

from tests.instances import Database

if TYPE_CHECKING:
    from tests.conftest import World

MIGRATION: Final = "0005_entitlements.sql"
BEFORE: Final = """
    INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
                         opens_before, closes_before, boarding_before, gate)
    VALUES ('SH1', 'SH1', 'FRA', 'LIS', now(), now() + interval '2 hours', now()::date, '1 day', '1 hour', '40 min',
            '');
    INSERT INTO passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare,
                            special_services, contact_email)
    SELECT 'SH1', passenger_id, 'XK4T7Q', '', 'A', 'B', 'ADULT', 'ECONOMY', 'STANDARD', '{}', ''
    FROM unnest(ARRAY['P1', 'P2']) AS passenger_id;
    INSERT INTO check_ins (checkin_id, flight_id, passenger_id, pnr, state, allowance_grams, seat_number, hold_id,
                           sequence_number, complete_time)
    SELECT md5(passenger_id)::uuid, 'SH1', passenger_id, 'XK4T7Q', 'COMPLETED', 0, '5A', md5(passenger_id)::uuid,
           number, now() + number * interval '1 min'
    FROM (VALUES ('P1', 1), ('P2', 2)) AS doubled (passenger_id, number);
"""


async def migrate(connection: Database, *, until: str) -> None:
    """Applies the migrations of the chassis and of check-in, in a schema of its own, but not those from `until` on."""
    for package in ("services", "checkin_service"):
        folder = resources.files(package) / "migrations"
        for file in sorted(folder.iterdir(), key=lambda each: each.name):
            if file.name.endswith(".sql") and not (package == "checkin_service" and file.name >= until):
                await connection.execute(file.read_text())


async def test_a_running_system_sends_all_and_looks_at_doubled_seats(world: World) -> None:
    connection = await asyncpg.connect(world.servers.database_url())
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("CREATE SCHEMA before_0005; SET LOCAL search_path = before_0005")
        await migrate(connection, until=MIGRATION)
        await connection.execute(BEFORE)
        await connection.execute((resources.files("checkin_service") / "migrations" / MIGRATION).read_text())
        rows = await connection.fetch("SELECT passenger_id, revision, known_revision FROM entitlements ORDER BY 1")
        assert [tuple(row) for row in rows] == [("P1", 1, 0), ("P2", 1, 0)]
        assert await connection.fetchval("SELECT times_revision - known_times_revision FROM flights") == 1
        disputed = await connection.fetch("SELECT passenger_id FROM check_ins WHERE seat_disputed")
        assert [row["passenger_id"] for row in disputed] == ["P1"]
        timers = await connection.fetch(
            "SELECT name, subject FROM timers WHERE due_time <= clock_timestamp() ORDER BY name"
        )
        checkin_id = str(await connection.fetchval("SELECT checkin_id FROM check_ins WHERE seat_disputed"))
        assert [tuple(row) for row in timers] == [("look-at-seat", checkin_id), ("send-entitlements", "SH1")]
    finally:
        await transaction.rollback()
        await connection.close()
