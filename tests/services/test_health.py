"""A process reports NOT_SERVING while its database does not respond, and SERVING soon after."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.process import LOOPBACK
from services import wellness
from tests.instances import instance, own_database
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

Status = health_pb2.HealthCheckResponse


class Link:
    """A connection to Postgres that can hang: it accepts bytes and does not pass them on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.passes = asyncio.Event()
        self.passes.set()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_postgres, to_postgres = await asyncio.open_connection(LOOPBACK, self._port)
        try:
            await asyncio.gather(self._copy(reader, to_postgres), self._copy(from_postgres, writer))
        finally:
            to_postgres.close()
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.passes.wait()
                writer.write(data)
        writer.close()


async def test_health_follows_a_database_that_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wellness, "PROBE_SECONDS", 0.05)
    url = await own_database(world)
    link = Link(world.servers.ports.postgres)
    async with await asyncio.start_server(link.forward, LOOPBACK, 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        through = url.replace(f":{urlsplit(url).port}/", f":{port}/")
        async with (
            instance(world, database_url=through) as other,
            grpc.aio.insecure_channel(other.callers.address) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)

            async def serves() -> bool:
                return bool((await health.Check(health_pb2.HealthCheckRequest())).status == Status.SERVING)

            async def refuses() -> bool:
                return not await serves()

            await eventually(serves)
            link.passes.clear()
            await eventually(refuses)
            link.passes.set()
            await eventually(serves)
