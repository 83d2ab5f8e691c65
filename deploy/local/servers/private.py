"""The private Postgres, Redis and RabbitMQ of one stack.

They have their own ports and data folder, and do not touch the machine's servers. `make up` and the tests run the same
servers; only the tests trade durability for speed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.process import Process, free_ports
from deploy.local.secrets import Secrets
from deploy.local.servers.postgres import OWNER, Postgres
from deploy.local.servers.rabbitmq import RabbitMQ
from deploy.local.servers.redis import Redis


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

    @property
    def postgres(self) -> Postgres:
        """The database."""
        return Postgres(
            self.folder / "postgres", self.ports.postgres, self.secrets, self.services, durable=self.durable
        )

    @property
    def redis(self) -> Redis:
        """The cache."""
        return Redis(self.folder / "redis", self.ports.redis, self.secrets)

    @property
    def rabbitmq(self) -> RabbitMQ:
        """The broker."""
        return RabbitMQ(
            self.folder / "rabbitmq",
            port=self.ports.amqp,
            distribution_port=self.ports.amqp_distribution,
            epmd_port=self.ports.epmd,
            secrets=self.secrets,
            services=self.services,
        )

    def processes(self) -> list[Process]:
        """Returns the processes of all servers; their order does not matter."""
        return [self.postgres.process(), self.redis.process(), self.rabbitmq.epmd(), self.rabbitmq.process()]

    def remove(self) -> None:
        """Removes the data of servers that have stopped."""
        for name in ("postgres", "redis", "rabbitmq"):
            folder = self.folder / name
            shutil.rmtree(folder.resolve(), ignore_errors=True)
            folder.unlink(missing_ok=True)

    def database_url(self, role: str = OWNER) -> str:
        """Returns the URL of the database for `role`."""
        return self.postgres.url(role)

    def amqp_url(self, user: str = OWNER) -> str:
        """Returns the URL of the virtual host for `user`."""
        return self.rabbitmq.url(user)

    @property
    def redis_url(self) -> str:
        """The URL of Redis, for all services."""
        return self.redis.url
