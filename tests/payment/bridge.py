"""Passes webhooks on as the gateway does.

The raw body becomes an HttpBody, headers become metadata, and gRPC codes become HTTP statuses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from aiohttp import web
from google.api import httpbody_pb2

from tests.callers import Callers

STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.UNAVAILABLE: 503,
}
# These headers belong to the connection, not to the call.
DROPPED: Final = {"host", "content-length", "connection", "accept-encoding", "user-agent", "te"}


@asynccontextmanager
async def bridge(callers: Callers) -> AsyncIterator[str]:
    """Runs the bridge within the block; yields the URL for webhooks."""

    async def receive(request: web.Request) -> web.Response:
        body = httpbody_pb2.HttpBody(content_type=request.content_type, data=await request.read())
        headers = tuple((name.lower(), value) for name, value in request.headers.items() if name.lower() not in DROPPED)
        try:
            await callers.anybody("none").ReceiveWebhook(body, metadata=headers)
        except grpc.aio.AioRpcError as error:
            return web.Response(status=STATUSES.get(error.code(), 500))
        return web.json_response({})

    application = web.Application()
    application.add_routes([web.post("/v1/payments/webhook", receive)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/payments/webhook"
    finally:
        await runner.cleanup()
