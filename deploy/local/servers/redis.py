"""The private Redis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.local.process import LOOPBACK, Process, answers
from deploy.local.secrets import Secrets, write_private
from deploy.local.servers.programs import program


@dataclass(frozen=True, slots=True)
class Redis:
    """A Redis of one stack."""

    folder: Path
    port: int
    secrets: Secrets

    @property
    def url(self) -> str:
        """Its URL, for all services."""
        return f"redis://:{self.secrets['redis']}@{LOOPBACK}:{self.port}/0"

    def process(self) -> Process:
        """Returns Redis, without persistence. When it is full, it evicts the least recently used keys."""
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
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
            write_private(self.folder / "redis.conf", configuration.encode())

        return Process(
            name="redis",
            command=[program("redis-server", "redis-server"), "redis.conf"],
            ready=answers(self.port, ask=b"PING\r\n", expect=[b"+PONG", b"-NOAUTH"]),
            port=self.port,
            folder=self.folder,
            prepare=prepare,
        )
