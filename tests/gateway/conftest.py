"""Fixtures for calls through all parts: JSON at a real Envoy, the service, Postgres."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from gateway.render import write
from gateway.upstreams import UPSTREAMS
from tests.callers import Caller, Callers
from tests.conftest import World
from tests.gateway.edges import edge_settings


@dataclass(frozen=True, slots=True)
class Mobile:
    """A JSON caller with a token."""

    http: httpx.AsyncClient
    caller: Caller

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        await self.caller.listed()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(
            method, path, json=body, headers={"authorization": f"Bearer {self.caller.token}", **named}
        )


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running edge, and the service behind it."""

    port: int
    http: httpx.AsyncClient
    callers: Callers

    def passenger(self, *passengers: str) -> Mobile:
        """Returns a passenger's phone with a check-in session."""
        return Mobile(self.http, self.callers.passenger(*passengers))

    def agent(self) -> Mobile:
        """Returns an agent's terminal."""
        return Mobile(self.http, self.callers.agent(f"desk-{secrets.token_hex(3)}"))


class Echo(grpc.GenericRpcHandler):
    """Answers every call of the services that do not run here, and records it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes, dict[str, str | bytes]]] = []
        """The method, the body and the headers of each call."""
        self.answer = b""
        """The response to every call: an empty message by default, which is valid for each of our methods."""
        self.refuse = False
        """Whether every call is answered with NOT_FOUND."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Handles every method of our services."""
        method = str(handler_call_details.method)
        if not method.startswith("/skyhigh."):
            return None

        async def answer(request: bytes, context: Any) -> bytes:
            self.heard.append((method, request, dict(context.invocation_metadata())))
            if self.refuse:
                await context.abort(grpc.StatusCode.NOT_FOUND, "not found")
            return self.answer

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield await answer(request, context)

        if method.rpartition("/")[2].startswith("Watch"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


@dataclass(frozen=True, slots=True)
class Others:
    """The stand-in for the other services."""

    address: str
    echo: Echo


@pytest.fixture(scope="package")
async def others() -> AsyncIterator[Others]:
    """Yields a server that reports every service as healthy."""
    server = grpc.aio.server()
    echo = Echo()
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for upstream in UPSTREAMS:
        await healthy.set(upstream.name, health_pb2.HealthCheckResponse.SERVING)
    server.add_generic_rpc_handlers((echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Others(f"127.0.0.1:{port}", echo)
    await server.stop(None)


@pytest.fixture(scope="package")
async def gateway(world: World, callers: Callers, others: Others) -> AsyncIterator[Gateway]:
    """Yields an Envoy in front of the session's seat service and, for the other services, of an echo."""
    settings = edge_settings(world, others.address, seat_address=(callers.address,))
    process = envoy(write(settings, world.folder / "gateway"), port=settings.gateway_port)
    async with (
        Supervisor([process], logs=world.folder / "logs", restart=False),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{settings.gateway_port}",
            timeout=20,
            limits=httpx.Limits(max_connections=250, max_keepalive_connections=250),
        ) as http,
    ):
        yield Gateway(settings.gateway_port, http, callers)
