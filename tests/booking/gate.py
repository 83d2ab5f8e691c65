"""A proxy in front of a service, which can hold calls back.

It holds a call before the service receives it, or before the client receives the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc

# The service reads this metadata; all other metadata belongs to the connection.
PASSED_ON: Final = ("authorization", "traceparent", "idempotency-key")


class Stop:
    """Holds the calls of a method whose requests contain a text.

    If `answered`, the service has already processed the call.
    """

    def __init__(self, method: str, names: str, *, answered: bool) -> None:
        self.method = method
        self.names = names.encode()
        self.answered = answered
        self.reached = asyncio.Event()
        self.waiting = 0

    async def hold(self) -> None:
        """Holds a call until its client has gone."""
        self.reached.set()
        self.waiting += 1
        try:
            await asyncio.Future()
        finally:
            self.waiting -= 1


class Gate(grpc.GenericRpcHandler):
    """Forwards calls to the service at `target`."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._stops: list[Stop] = []
        self.address = ""
        self.away = False
        """If True, the gate refuses every call as UNAVAILABLE."""

    def stop(self, method: str, names: str, *, answered: bool) -> Stop:
        """Holds calls of a method whose requests contain this text.

        If `answered`, the gate holds the response instead of the request.
        """
        stop = Stop(method, names, answered=answered)
        self._stops.append(stop)
        return stop

    def open(self) -> None:
        """Holds no further calls. Held calls stay held until their client has gone."""
        self._stops.clear()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Returns the handler of any method; requests and responses are bytes."""
        return grpc.unary_unary_rpc_method_handler(partial(self._pass_on, details.method))

    async def _pass_on(self, path: str, request: bytes, context: Any) -> bytes:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the gate is closed")
        method = path.rpartition("/")[2]
        fitting = [each for each in self._stops if each.method == method and each.names in request]
        stop = min(fitting, key=lambda each: each.waiting, default=None)
        if stop is not None and not stop.answered:
            await stop.hold()
        metadata = [(key, value) for key, value in context.invocation_metadata() if key in PASSED_ON]
        try:
            answer: bytes = await self._call(path)(request, metadata=metadata, timeout=context.time_remaining())
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        if stop is not None:
            await stop.hold()
        return answer

    def _call(self, path: str) -> Any:
        return self._channel.unary_unary(path)

    async def close(self) -> None:
        """Closes the channel to the service."""
        await self._channel.close()


@asynccontextmanager
async def gate(target: str) -> AsyncIterator[Gate]:
    """Runs a gate before the service at `host:port` within the block."""
    opened = Gate(target)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((opened,))
    opened.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield opened
    finally:
        await server.stop(None)
        await opened.close()
