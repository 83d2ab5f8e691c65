"""The whole way: JSON at a real Envoy, the service, Postgres."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from deploy.local.process import free_ports
from deploy.local.servers import envoy
from deploy.local.supervisor import Supervisor
from gateway.render import GatewaySettings, write
from tests.callers import ISSUER, Caller, Callers
from tests.conftest import World


@dataclass(frozen=True, slots=True)
class Mobile:
    """A JSON caller with a token."""

    http: httpx.AsyncClient
    caller: Caller

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
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
        """A check-in session on a phone."""
        return Mobile(self.http, self.callers.passenger(*passengers))

    def agent(self) -> Mobile:
        """An agent's terminal."""
        return Mobile(self.http, self.callers.agent(f"desk-{secrets.token_hex(3)}"))


@pytest.fixture(scope="session")
async def gateway(world: World, callers: Callers) -> AsyncIterator[Gateway]:
    """An Envoy in front of the session's seat service."""
    port, admin_port = free_ports(2)
    folder = world.folder / "gateway"
    settings = GatewaySettings(
        gateway_port=port,
        gateway_admin_port=admin_port,
        seat_address=(callers.address,),
        jwks=world.keys.jwks,
        token_issuer=ISSUER,
    )
    process = envoy(write(settings, folder), port=port)
    async with (
        Supervisor([process], logs=world.folder / "logs", restart=False),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=20,
            limits=httpx.Limits(max_connections=250, max_keepalive_connections=250),
        ) as http,
    ):
        yield Gateway(port, http, callers)
