"""How a mock misbehaves: a few switches, read and turned over HTTP at `/behaviour` while it runs.

GET shows them, PUT turns those that it names, DELETE turns all back to normal.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

Switches = TypeVar("Switches", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Behaviour(Generic[Switches]):
    """The switches of one mock."""

    def __init__(self, normal: Switches) -> None:
        self._normal = normal
        self.now = normal.model_copy()

    def routes(self) -> list[web.RouteDef]:
        """Returns what serves them."""
        return [
            web.get("/behaviour", self._show),
            web.put("/behaviour", self._turn),
            web.delete("/behaviour", self._reset),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self.now.model_dump())

    async def _turn(self, request: web.Request) -> web.Response:
        try:
            turned = self._normal.__class__.model_validate(self.now.model_dump() | await request.json())
        except (ValueError, TypeError, ValidationError) as error:
            return web.json_response({"error": str(error)}, status=400)
        self.now = turned
        return await self._show(request)

    async def _reset(self, request: web.Request) -> web.Response:
        self.now = self._normal.model_copy()
        return await self._show(request)


@asynccontextmanager
async def serving_http(address: str, routes: list[web.RouteDef]) -> AsyncIterator[str]:
    """Serves routes at `host:port` within the block; port 0 takes a free one. Yields the URL."""
    application = web.Application(client_max_size=1 << 20)
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    try:
        bound = runner.addresses[0]
        yield f"http://{bound[0]}:{bound[1]}"
    finally:
        await runner.cleanup()


def run_until_told(serving: contextlib.AbstractAsyncContextManager[object]) -> None:
    """Runs a mock until SIGTERM or SIGINT."""

    async def run() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        async with serving:
            await stopping.wait()

    asyncio.run(run())
