"""Two Envoys side by side, which ask one gateway service, in front of one seat service."""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

from deploy.local.process import Process, free_ports, serves_grpc
from deploy.local.servers import envoy
from deploy.local.supervisor import Supervisor
from gateway.rate_limit.service import GATEWAY_SERVICE
from gateway.rate_limit.settings import RateLimits
from gateway.render import write
from tests.callers import Caller, Callers
from tests.gateway.conftest import Others, others
from tests.gateway.edges import edge_settings
from tests.seat.rules import new_flight_id
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

__all__ = ["others"]
BLOCK_SECONDS = 5


def reason(answer: httpx.Response) -> str:
    """Why a call was refused."""
    (info,) = [detail for detail in answer.json()["details"] if detail["@type"].endswith("ErrorInfo")]
    return str(info["reason"])


@dataclass(frozen=True, slots=True)
class Edge:
    """Envoys, what they ask, and what is behind them."""

    ports: tuple[int, ...]
    http: httpx.AsyncClient
    seats: Callers
    admin: Callers

    @property
    def urls(self) -> list[str]:
        """Where each Envoy listens."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    async def call(self, caller: Caller, method: str, path: str, body: Any = None, *, envoy: int = 0) -> httpx.Response:
        """Calls through one of the Envoys."""
        return await self.http.request(
            method, self.urls[envoy] + path, json=body, headers={"authorization": f"Bearer {caller.token}"}
        )

    async def map_of(self, caller: Caller, flight: str, *, envoy: int = 0) -> httpx.Response:
        """Reads a seat map."""
        return await self.call(caller, "GET", f"/v1/flights/{flight}/seatmap", envoy=envoy)

    async def hold(self, caller: Caller, flight: str, seat: str, *, envoy: int = 0) -> httpx.Response:
        """Holds a seat."""
        body = {"passengerId": f"P-{secrets.token_hex(4)}"}
        return await self.call(caller, "POST", f"/v1/flights/{flight}/seats/{seat}/hold", body, envoy=envoy)

    async def incidents(self, caller: Caller) -> list[pb.Incident]:
        """What was found of a caller."""
        found = await self.admin.agent().ListIncidents(pb.ListIncidentsRequest(source=caller.name))
        return list(found.incidents)

    async def blocks(self, caller: Caller, *, ended: bool = False) -> list[pb.Block]:
        """The blocks of a caller."""
        found = await self.admin.agent().ListBlocks(pb.ListBlocksRequest(source=caller.name, include_ended=ended))
        return list(found.blocks)


@asynccontextmanager
async def edge_of(
    world: World,
    seats: Callers,
    others: Others,
    *,
    envoys: int = 1,
    rate_limits: RateLimits = RateLimits.ON,
    configured: Mapping[str, Any] | None = None,
    **variables: str,
) -> AsyncIterator[Edge]:
    """Serves within the block.

    `configured` are fields of GatewaySettings, such as where a service is that is no echo; `variables` are environment
    variables of the gateway service.
    """
    variables = {
        "SKYHIGH_RATE_LIMITS": rate_limits,
        "SKYHIGH_GATEWAY_BLOCK_SECONDS": str(BLOCK_SECONDS),
        "SKYHIGH_GATEWAY_POLICY_POLL_SECONDS": "0.1",
        **variables,
    }
    # A process of its own: a storm of calls keeps this one too busy to answer Envoy in time.
    (service_port,) = free_ports(1)
    service = Process(
        name=f"limits-{service_port}",
        command=[sys.executable, "-m", GATEWAY_SERVICE.package],
        ready=serves_grpc(service_port, GATEWAY_SERVICE.descriptor.full_name),
        port=service_port,
        environment=world.environment(
            SKYHIGH_GATEWAY_LISTEN=f"127.0.0.1:{service_port}", SKYHIGH_GATEWAY_PROCESSES="1", **variables
        ),
    )
    async with Supervisor([service], logs=world.folder / "logs", restart=False):
        admin = Callers(f"127.0.0.1:{service_port}", world.keys, GatewayAdminStub)
        ports, admin_ports, processes = [], [], []
        for _ in range(envoys):
            settings = edge_settings(
                world,
                others.address,
                **{
                    "seat_address": (seats.address,),
                    "gateway_address": (admin.address,),
                    "gateway_token_file": world.token_files["gateway"],
                    "rate_limits": rate_limits,
                    **(configured or {}),
                },
            )
            port = settings.gateway_port
            process = envoy(write(settings, world.folder / f"edge-{port}"), port=port)
            processes.append(replace(process, name=f"edge-{port}"))
            ports.append(port)
            admin_ports.append(settings.gateway_admin_port)
        async with (
            Supervisor(processes, logs=world.folder / "logs", restart=False),
            httpx.AsyncClient(
                timeout=20, limits=httpx.Limits(max_connections=300, max_keepalive_connections=300)
            ) as http,
        ):
            for admin_port in admin_ports:
                await eventually(partial(_tells, http, admin_port), within_seconds=20)
            yield Edge(tuple(ports), http, seats, admin)
        await admin.close()


async def _tells(http: httpx.AsyncClient, admin_port: int) -> bool:
    """Whether this Envoy has reached the gateway service: until then it tells of no call."""
    stats = await http.get(f"http://127.0.0.1:{admin_port}/stats?filter=cluster.gateway-watch.membership_healthy")
    return stats.text.strip().endswith(": 1")


@pytest.fixture(scope="package")
async def edge(world: World, callers: Callers, others: Others) -> AsyncIterator[Edge]:
    """Two Envoys, with limits and short blocks."""
    async with edge_of(world, callers, others, envoys=2) as edge:
        yield edge


@pytest.fixture
async def flight(edge: Edge) -> str:
    """A flight with 180 free seats."""
    flight_id = new_flight_id()
    await edge.seats.operations().provision(flight_id)
    return flight_id
