"""Migrations of a system that is in use.

0005: all passengers are sent to the seat service, and seats with two check-ins are looked up. 0008: passengers whose
booking includes a seat are sent again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import TYPE_CHECKING, Final

import asyncpg

from tests.instances import Database

if TYPE_CHECKING:
    from tests.conftest import World

ENTITLEMENTS: Final = "0005_entitlements.sql"
SEATS_OF_BOOKINGS: Final = "0008_seats_of_bookings.sql"
PASSENGERS: Final = """
    INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
                         opens_before, closes_before, boarding_before, gate)
    VALUES ('SH1', 'SH1', 'FRA', 'LIS', now(), now() + interval '2 hours', now()::date, '1 day', '1 hour', '40 min',
            '');
    INSERT INTO passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare,
                            special_services, contact_email)
    SELECT 'SH1', passenger_id, 'XK4T7Q', '', 'A', 'B', 'ADULT', 'ECONOMY', 'STANDARD', '{}', ''
    FROM unnest(ARRAY['P1', 'P2']) AS passenger_id;
"""
DOUBLED: Final = """
    INSERT INTO check_ins (checkin_id, flight_id, passenger_id, pnr, state, allowance_grams, seat_number, hold_id,
                           sequence_number, complete_time)
    SELECT md5(passenger_id)::uuid, 'SH1', passenger_id, 'XK4T7Q', 'COMPLETED', 0, '5A', md5(passenger_id)::uuid,
           number, now() + number * interval '1 min'
    FROM (VALUES ('P1', 1), ('P2', 2)) AS doubled (passenger_id, number);
"""
KNOWN: Final = """
    UPDATE passengers SET booking = repeat('a', 16) WHERE passenger_id = 'P1';
    UPDATE entitlements SET known_revision = revision;
    DELETE FROM timers;
"""


async def migrate(connection: Database, *, until: str) -> None:
    """Applies the migrations of chassis and check-in, in their own schema.

    Check-in's migrations from `until` on are left out.
    """
    for package in ("services", "checkin_service"):
        folder = resources.files(package) / "migrations"
        for file in sorted(folder.iterdir(), key=lambda each: each.name):
            if file.name.endswith(".sql") and not (package == "checkin_service" and file.name >= until):
                await connection.execute(file.read_text())


@asynccontextmanager
async def before(world: World, migration: str, *rows: str) -> AsyncIterator[Database]:
    """Yields a connection to a schema with these rows, before a migration.

    `apply` applies the migration.
    """
    connection = await asyncpg.connect(world.servers.database_url())
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("CREATE SCHEMA before_it; SET LOCAL search_path = before_it")
        await migrate(connection, until=migration)
        for each in rows:
            await connection.execute(each)
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def apply(connection: Database, migration: str) -> None:
    """Applies a migration."""
    await connection.execute((resources.files("checkin_service") / "migrations" / migration).read_text())


async def test_a_migration_sends_entitlements_and_checks_doubled_seats(world: World) -> None:
    async with before(world, ENTITLEMENTS, PASSENGERS, DOUBLED) as connection:
        await apply(connection, ENTITLEMENTS)
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


async def test_a_migration_sends_which_bookings_include_seats(world: World) -> None:
    async with before(world, SEATS_OF_BOOKINGS, PASSENGERS, KNOWN) as connection:
        await apply(connection, SEATS_OF_BOOKINGS)
        to_send = await connection.fetch("SELECT passenger_id FROM entitlements WHERE known_revision < revision")
        assert [row["passenger_id"] for row in to_send] == ["P1"]
        timers = await connection.fetch("SELECT name, subject FROM timers")
        assert [tuple(row) for row in timers] == [("send-entitlements", "SH1")]
