"""The private Postgres, and the roles and schemas of the services."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.local.process import LOOPBACK, NotReadyError, Process
from deploy.local.secrets import Secrets, write_private
from deploy.local.servers.folders import create_folder_of
from deploy.local.servers.programs import MissingServerError, group_of, postgres_programs, unprivileged

if TYPE_CHECKING:
    import asyncpg

DATABASE: Final = "skyhigh"
OWNER: Final = "skyhigh"
"""The owner of the database. As a member of each service's role, it can read all data."""

# For two cores and a few GiB of memory that all processes share. Durability is Postgres' default: a commit is on disk.
POSTGRES_SETTINGS: Final = {
    # Enough for the default pools (8 connections) of 20 processes of each service, and for people. An unused connection
    # costs a few kilobytes.
    "max_connections": "1200",
    "shared_buffers": "512MB",
    "effective_cache_size": "2GB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "random_page_cost": "1.1",
    "jit": "off",
    "log_lock_waits": "on",
    "log_min_messages": "warning",
}
# For tests, which do not need their data after a crash.
FLEETING_POSTGRES_SETTINGS: Final = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "128MB"}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A Postgres of one stack; each service has its own role and schema."""

    folder: Path
    port: int
    secrets: Secrets
    services: Sequence[str]
    """The names of the services, which are also the names of their roles and schemas."""
    durable: bool = True
    """False only if a crash of the machine may lose the data."""

    def url(self, role: str = OWNER) -> str:
        """Returns the URL of the database for `role`."""
        return f"postgresql://{role}:{self.secrets[f'postgres/{role}']}@{LOOPBACK}:{self.port}/{DATABASE}"

    def process(self) -> Process:
        """Returns Postgres; when it is ready, it has the database, roles and schemas."""
        user = unprivileged("postgres")
        settings = POSTGRES_SETTINGS | ({} if self.durable else FLEETING_POSTGRES_SETTINGS)
        settings |= {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        return Process(
            name="postgres",
            # The data folder is relative to the working folder, because `user` may have no access to a folder above it.
            command=[
                _program("postgres"),
                "-D",
                "data",
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            ready=self._answers,
            port=self.port,
            user=user,
            folder=self.folder,
            # Postgres' "fast" shutdown: it ends the sessions instead of waiting for them.
            stop_signal=signal.SIGINT,
            stop_seconds=30,
            prepare=lambda: asyncio.to_thread(self._create_cluster, user),
            settle=self._provision,
        )

    async def _answers(self) -> bool:
        import asyncpg

        try:
            await (await self._connect_as_superuser("postgres")).close()
        except asyncpg.PostgresError as error:
            raise NotReadyError(str(error)) from error
        return True

    async def _connect_as_superuser(self, database: str) -> asyncpg.Connection:
        import asyncpg

        return await asyncpg.connect(
            host=LOOPBACK,
            port=self.port,
            user="postgres",
            password=self.secrets["postgres/postgres"],
            database=database,
            timeout=5,
        )

    async def _provision(self) -> None:
        connection = await self._connect_as_superuser("postgres")
        try:
            await ensure_role(connection, OWNER, self.secrets[f"postgres/{OWNER}"])
            # Tests create a database for each of their workers.
            await connection.execute(f"ALTER ROLE {OWNER} CREATEDB")
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        finally:
            await connection.close()
        connection = await self._connect_as_superuser(DATABASE)
        try:
            passwords = {service: self.secrets[f"postgres/{service}"] for service in self.services}
            await provision_schemas(connection, passwords, owner=OWNER)
        finally:
            await connection.close()

    def _create_cluster(self, user: str | None) -> None:
        folder = create_folder_of(user, self.folder)
        if (folder / "data").exists():
            return
        part = folder / "part"
        password = folder / "password"
        try:
            write_private(password, self.secrets["postgres/postgres"].encode())
            if user is not None:
                shutil.chown(password, user)
            shutil.rmtree(part, ignore_errors=True)
            subprocess.run(
                [
                    _program("initdb"),
                    f"--pgdata={part}",
                    "--username=postgres",
                    f"--pwfile={password}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                    "--data-checksums",
                    *([] if self.durable else ["--no-sync"]),
                ],
                check=True,
                user=user,
                group=group_of(user),
                extra_groups=None if user is None else [],
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
        finally:
            password.unlink(missing_ok=True)
        # The rename comes last, so that an interruption at any time leaves a complete cluster or none.
        part.rename(folder / "data")


async def ensure_role(connection: asyncpg.Connection, name: str, password: str) -> None:
    """Creates a role that can log in, or sets the password of an existing role."""
    exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
    verb = "ALTER" if exists else "CREATE"
    await connection.execute(f"{verb} ROLE {name} LOGIN PASSWORD '{password}'")


async def provision_schemas(
    connection: asyncpg.Connection, passwords: dict[str, str], *, owner: str | None = None
) -> None:
    """Creates the role and the schema of each service in the connected database. Idempotent.

    A service's role gets no other rights. `owner` becomes a member of each role; if it is None, the connected role
    does. Raises asyncpg.InsufficientPrivilegeError if the connected role may not do that.
    """
    async with connection.transaction():
        database = await connection.fetchval("SELECT quote_ident(current_database())")
        member = owner or await connection.fetchval("SELECT quote_ident(current_user)")
        await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
        for service, password in passwords.items():
            await ensure_role(connection, service, password)
            await connection.execute(f"GRANT {service} TO {member}")
            await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {service}")
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {service} AUTHORIZATION {service}")
            await connection.execute(f"ALTER ROLE {service} SET search_path = {service}")


def _program(name: str) -> str:
    folder = postgres_programs()
    if folder is None:
        raise MissingServerError("postgresql is not installed")
    return str(folder / name)
