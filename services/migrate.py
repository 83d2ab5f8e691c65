"""Applies forward-only migrations: numbered SQL files, each once, in one schema.

An applied file must not change; its digest is stored. Each file runs in one transaction, so that it is applied
completely or not at all, with a lock timeout of 5 s, so that it does not block calls for long.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import asyncpg

CHASSIS = "services"


async def migrate(url: str, *, schema: str, package: str) -> list[str]:
    """Applies the missing files of the chassis and the package; returns their names.

    The files are `migrations/*.sql`. Any number of processes may call it at once. Raises RuntimeError if an applied
    file was edited.
    """
    connection = await asyncpg.connect(
        url, server_settings={"search_path": schema, "lock_timeout": "5000", "statement_timeout": "60000"}
    )
    try:
        await connection.execute("SELECT pg_advisory_lock(hashtext($1))", f"migrate {schema}")
        await connection.execute(
            f"""
            CREATE TABLE IF NOT EXISTS {schema}.migrations (
                name       text PRIMARY KEY,
                digest     text NOT NULL,
                apply_time timestamptz NOT NULL DEFAULT now()
            )
            """
        )
        applied = {row["name"]: row["digest"] for row in await connection.fetch("SELECT name, digest FROM migrations")}
        return [
            name
            for source in (CHASSIS, package)
            for name, sql in _files(source)
            if await _apply(connection, name, sql, applied)
        ]
    finally:
        await connection.close()


def _files(package: str) -> list[tuple[str, str]]:
    folder = resources.files(package) / "migrations"
    return sorted(
        (f"{package}/{entry.name}", entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")
    )


async def _apply(connection: asyncpg.Connection[asyncpg.Record], name: str, sql: str, applied: dict[str, str]) -> bool:
    digest = hashlib.sha256(sql.encode()).hexdigest()
    if name in applied:
        if applied[name] != digest:
            raise RuntimeError(f"{name} was edited after it was applied; write a new migration")
        return False
    async with connection.transaction():
        await connection.execute(sql)
        await connection.execute("INSERT INTO migrations (name, digest) VALUES ($1, $2)", name, digest)
    return True
