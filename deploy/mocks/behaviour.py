"""The switches of a mock, read and set over HTTP at `/behaviour` while it runs.

GET returns them, PUT sets those that its body names, DELETE sets all of them back to normal.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from services import telemetry
from services.binding import bound
from services.endpoints import Endpoint

Switches = TypeVar("Switches", bound=BaseModel)

_log = telemetry.log("behaviour")


class Behaviour(Generic[Switches]):
    """The switches of one mock. `turned` is called after an HTTP request has set some."""

    def __init__(self, normal: Switches, *, turned: Callable[[], None] = lambda: None) -> None:
        self._normal = normal
        self._turned = turned
        self.now = normal.model_copy()

    def routes(self) -> list[web.RouteDef]:
        """Returns the HTTP routes of the switches."""
        return [
            web.get("/behaviour", self._show),
            web.put("/behaviour", self._turn),
            web.delete("/behaviour", self._reset),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self.now.model_dump())

    async def _turn(self, request: web.Request) -> web.Response:
        try:
            switches = await request.json()
            # `now` is read after the body has arrived: a switch that counts down meanwhile must keep its new value.
            wanted = self._normal.__class__.model_validate(self.now.model_dump() | switches)
        except ValidationError as error:
            return problem(400, problems_of(error))
        except (ValueError, TypeError):
            return problem(400, "the body must be a JSON object of switches")
        return await self._become(wanted, request)

    async def _reset(self, request: web.Request) -> web.Response:
        return await self._become(self._normal.model_copy(), request)

    async def _become(self, wanted: Switches, request: web.Request) -> web.Response:
        self.now = wanted
        _log.info("behaviour", **wanted.model_dump())
        self._turned()
        return await self._show(request)


def problem(status: int, message: str) -> web.Response:
    """Returns an error response in the form that all mocks use."""
    return web.json_response({"error": message}, status=status)


def problems_of(error: ValidationError) -> str:
    """Returns one line that names each wrong field and the reason."""
    return "; ".join(": ".join((*filter(None, [".".join(map(str, e["loc"]))]), e["msg"])) for e in error.errors())


@asynccontextmanager
async def serving_http(address: str, routes: list[web.RouteDef]) -> AsyncIterator[str]:
    """Serves routes at `host:port` during the block; port 0 takes a free one. Yields the URL."""
    application = web.Application(client_max_size=1 << 20)
    application.add_routes(routes)
    # aiohttp waits for this time twice: for the requests, then for their connections.
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    server = Endpoint.parse(address)
    await bound(lambda: web.TCPSite(runner, server.host, server.port).start(), address)
    try:
        served = runner.addresses[0]
        yield f"http://{served[0]}:{served[1]}"
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
