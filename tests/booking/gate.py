"""A gate before a service: it passes calls on, and holds some back, on their way in or with their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc

# What the service looks at; all else belongs to the connection.
PASSED_ON: Final = ("authorization", "traceparent", "idempotency-key")


class Stop:
    """Calls of a method that name something are stopped; those that are `answered` have had their effect."""

    def __init__(self, method: str, names: str, *, answered: bool) -> None:
        self.method = method
        self.names = names.encode()
        self.answered = answered
        self.reached = asyncio.Event()
        self.waiting = 0

    async def hold(self) -> None:
        """Holds a call until its caller has gone."""
        self.reached.set()
        self.waiting += 1
        try:
            await asyncio.Future()
        finally:
            self.waiting -= 1


class Gate(grpc.GenericRpcHandler):
    """Stands before the service at `target`."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._stops: list[Stop] = []
        self.address = ""
        self.away = False
        """Whether nobody is reached through it."""

    def stop(self, method: str, names: str, *, answered: bool) -> Stop:
        """Stops calls of a method whose requests hold this text, before they arrive or before their answers."""
        stop = Stop(method, names, answered=answered)
        self._stops.append(stop)
        return stop

    def open(self) -> None:
        """Stops nothing any more. Who waits goes on waiting, until it is gone."""
        self._stops.clear()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Returns what handles any method, bytes in and bytes out."""
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
        """Closes the way to the service."""
        await self._channel.close()


@asynccontextmanager
async def gate(target: str) -> AsyncIterator[Gate]:
    """Opens a gate before the service at `host:port` within the block."""
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
