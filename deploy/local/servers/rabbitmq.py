"""The private RabbitMQ, its port mapper, and the permissions of its users."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.process import LOOPBACK, Process, answers
from deploy.local.secrets import Secrets, write_private
from deploy.local.servers.folders import create_plain_folder
from deploy.local.servers.programs import program

ONE_WORD_PATH: Final = re.compile(r"/[\w./@:,=+#-]+")
VIRTUAL_HOST: Final = "skyhigh"
OWNER: Final = "skyhigh"
"""The owner of the virtual host."""
EVENTS: Final = "skyhigh.events"
DEAD: Final = "skyhigh.dead"
EXCHANGES: Final = (EVENTS, DEAD)
# The first word of a service's routing keys, for services whose routing keys do not begin with their name.
TOPICS: Final = {"gateway": "abuse"}


@dataclass(frozen=True, slots=True)
class RabbitMQ:
    """A RabbitMQ of one stack; each service has its own user."""

    folder: Path
    port: int
    distribution_port: int
    epmd_port: int
    secrets: Secrets
    services: Sequence[str]
    """The names of the services, which are also the names of their users."""

    def url(self, user: str = OWNER) -> str:
        """Returns the URL of the virtual host for `user`."""
        return f"amqp://{user}:{self.secrets[f'rabbitmq/{user}']}@{LOOPBACK}:{self.port}/{VIRTUAL_HOST}"

    def epmd(self) -> Process:
        """Returns the port mapper that RabbitMQ needs.

        It is private, so that the machine's own port mapper is neither used nor started.
        """
        return Process(
            name="epmd",
            command=[
                program("epmd", "rabbitmq-server"),
                "-port",
                str(self.epmd_port),
                "-address",
                LOOPBACK,
            ],
            # NAMES_REQ of the protocol: the length, then the letter n. The response begins with the port.
            ready=answers(
                self.epmd_port, ask=b"\x00\x01n", expect=[self.epmd_port.to_bytes(length=4, byteorder="big")]
            ),
            port=self.epmd_port,
        )

    def process(self) -> Process:
        """Returns RabbitMQ; it starts with its virtual host, exchanges and users."""
        return Process(
            name="rabbitmq",
            command=[_rabbitmq_program()],
            # The broker responds to the header of the protocol with Connection.Start, a method frame on channel 0.
            ready=answers(self.port, ask=b"AMQP\x00\x00\x09\x01", expect=[b"\x01\x00\x00"]),
            port=self.port,
            after=("epmd",),
            environment={
                # Otherwise RabbitMQ's script starts Erlang as a child, which survives if the script is killed.
                "RUNNING_UNDER_SYSTEMD": "true",
                # All paths are relative to the working folder, because the scripts do not quote paths. Erlang looks for
                # its cookie in HOME.
                "HOME": ".",
                "ERL_EPMD_ADDRESS": LOOPBACK,
                "ERL_EPMD_PORT": str(self.epmd_port),
                "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
                "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
                "RABBITMQ_CONF_ENV_FILE": "rabbitmq-env.conf",
                "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
                "RABBITMQ_MNESIA_BASE": "data",
                "RABBITMQ_LOG_BASE": "log",
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_NODENAME": f"skyhigh-{self.port}@localhost",
                "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
                "RABBITMQ_NODE_PORT": str(self.port),
                "RABBITMQ_DIST_PORT": str(self.distribution_port),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                    ["-kernel inet_dist_use_interface {127,0,0,1}", *self._whose_broker()]
                ),
            },
            folder=self.folder,
            stop_seconds=30,
            prepare=lambda: asyncio.to_thread(self._configure),
        )

    def _whose_broker(self) -> list[str]:
        """Returns arguments that show in a process list to which stack the broker belongs.

        Erlang ignores them. They are left out if the path of the folder is not one plain word: RabbitMQ's script splits
        its arguments at spaces, and Erlang takes a word that begins with a sign for an option.
        """
        return [f"-skyhigh_folder {self.folder.parent}"] if ONE_WORD_PATH.fullmatch(str(self.folder.parent)) else []

    def _configure(self) -> None:
        create_plain_folder(self.folder)
        write_private(self.folder / "definitions.json", json.dumps(self._definitions(), indent=1).encode())
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, self.secrets["erlang"].encode())
            # Erlang refuses a cookie that other users may read. It creates its own cookies with this mode.
            cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].\n")
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
        (self.folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))

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


def _rabbitmq_program() -> str:
    # Debian's command in the PATH is a wrapper that changes the user and writes into the machine's log folder.
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(debian) if debian.exists() else program("rabbitmq-server", "rabbitmq-server")


def _rabbitmq_password_hash(password: str) -> str:
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
