"""A database that a version before the rename of gateway.rate_limit has migrated."""

from __future__ import annotations

import asyncpg

from gateway.guard.former_name import FORMER_PACKAGE, copy_migration_records
from gateway.guard.service import GATEWAY_SERVICE
from services import migrate
from tests.conftest import World


async def test_migrations_recorded_by_the_former_name_are_not_applied_again(world: World) -> None:
    name, package = GATEWAY_SERVICE.name, GATEWAY_SERVICE.package
    url = world.servers.database_url(name)
    await migrate.migrate(url, schema=name, package=package)
    connection = await asyncpg.connect(url, server_settings={"search_path": name})
    try:
        renamed = await connection.fetch(
            "UPDATE migrations SET name = replace(name, $1, $2) WHERE starts_with(name, $1) RETURNING name",
            f"{package}/",
            f"{FORMER_PACKAGE}/",
        )
        assert renamed
        for _ in range(2):
            await copy_migration_records(url, schema=name, package=package)
            assert await migrate.migrate(url, schema=name, package=package) == []
        kept = await connection.fetchval("SELECT count(*) FROM migrations WHERE starts_with(name, $1)", FORMER_PACKAGE)
        assert kept == len(renamed), "a process of the earlier version would apply its migrations again"
    finally:
        await connection.execute("DELETE FROM migrations WHERE starts_with(name, $1)", FORMER_PACKAGE)
        await connection.close()


async def test_copying_migration_records_does_nothing_on_a_new_database(world: World) -> None:
    url = world.servers.database_url()
    await copy_migration_records(url, schema="public", package=GATEWAY_SERVICE.package)
