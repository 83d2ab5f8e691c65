"""Fixtures with two Envoys that share one gateway service, in front of one seat service."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

from deploy.local.process import Process, free_ports, serves_grpc
from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from gateway.guard.service import GATEWAY_SERVICE
from gateway.guard.settings import RateLimits
from gateway.limits import ANY_CLASS, DEFAULTS, PUBLIC_CLASSES, Key, Limit
from gateway.render import write
from tests.callers import Caller, Callers, a_few_at_once
from tests.dates import new_flight_id
from tests.gateway.conftest import Others, others
from tests.gateway.edges import edge_settings
from tests.instances import running
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

__all__ = ["others"]
# Longer than any test takes; the test of a block's end changes the end instead.
BLOCK_SECONDS = 600
# Low thresholds, so that few calls suffice. Only the tests of these findings cancel holds or fail to log in.
HOLD_SPINS, FAILED_LOGINS = 3, 5


def reason(answer: httpx.Response) -> str:
    """Returns the reason of a refusal."""
    (info,) = [detail for detail in answer.json()["details"] if detail["@type"].endswith("ErrorInfo")]
    return str(info["reason"])


@dataclass(frozen=True, slots=True)
class Edge:
    """Envoys, their gateway service, and the services behind them."""

    ports: tuple[int, ...]
    http: httpx.AsyncClient
    seats: Callers
    admin: Callers

    @property
    def urls(self) -> list[str]:
        """The URL of each Envoy."""
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

    async def customer_reads(self, flights: Sequence[str], *, within_seconds: float, at_once: int) -> Caller:
        """Returns a new customer who has read these maps within this time.

        On a slow machine, retries with another customer.
        """
        customers: list[Caller] = []

        async def in_time() -> bool:
            customers.append(self.seats.customer())
            began = time.monotonic()
            await a_few_at_once((self.map_of(customers[-1], flight) for flight in flights), at_once=at_once)
            return time.monotonic() - began < within_seconds

        await eventually(in_time)
        return customers[-1]

    async def incidents(self, caller: Caller) -> list[pb.Incident]:
        """Returns the incidents of a caller."""
        found = await self.admin.agent().ListIncidents(pb.ListIncidentsRequest(source=caller.name))
        return list(found.incidents)

    async def blocks(self, caller: Caller, *, ended: bool = False) -> list[pb.Block]:
        """Returns the blocks of a caller."""
        found = await self.admin.agent().ListBlocks(pb.ListBlocksRequest(source=caller.name, include_ended=ended))
        return list(found.blocks)


@asynccontextmanager
async def edge_of(
    world: World,
    seats: Callers,
    others: Others,
    *,
    envoys: int = 1,
    own_process: bool = False,
    rate_limits: RateLimits = RateLimits.ON,
    shared_address: bool = True,
    configured: Mapping[str, Any] | None = None,
    **variables: str,
) -> AsyncIterator[Edge]:
    """Runs the edge within the block.

    `own_process` runs the gateway service in a process of its own: during a storm of calls this process is too busy to
    answer Envoy in time. `shared_address` raises the limits of addresses, because the calls of most tests come from
    127.0.0.1 and test other limits. `configured` are fields of GatewaySettings, such as the address of a real service;
    `variables` are environment variables of the gateway service.
    """
    variables = {
        "SKYHIGH_RATE_LIMITS": rate_limits,
        "SKYHIGH_GATEWAY_BLOCK_SECONDS": str(BLOCK_SECONDS),
        "SKYHIGH_GATEWAY_HOLD_SPINS": str(HOLD_SPINS),
        "SKYHIGH_GATEWAY_FAILED_LOGINS": str(FAILED_LOGINS),
        "SKYHIGH_GATEWAY_POLICY_POLL_SECONDS": "0.1",
        **variables,
    }
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if own_process:
            admin = await enter(_own_process(world, **variables))
        else:
            admin = await enter(running(world, GATEWAY_SERVICE, GatewayAdminStub, **variables))
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
        await enter(Supervisor(processes, logs=world.folder / "logs", restart=False))
        connections = httpx.Limits(max_connections=300, max_keepalive_connections=300)
        http = await enter(httpx.AsyncClient(timeout=20, limits=connections))
        for admin_port in admin_ports:
            await eventually(partial(_tells, http, admin_port))
        if shared_address and rate_limits is RateLimits.ON:
            for limit in DEFAULTS:
                if limit.key is Key.ADDRESS and limit.call_class not in {*PUBLIC_CLASSES, ANY_CLASS}:
                    await set_limit(admin, limit, requests_per_minute=1_000_000, burst=100_000)
        yield Edge(tuple(ports), http, seats, admin)


async def set_limit(admin: Callers, limit: Limit, *, requests_per_minute: int, burst: int) -> None:
    """Changes a limit."""
    request = pb.SetLimitRequest(limit_id=limit.limit_id, requests_per_minute=requests_per_minute, burst=burst)
    await admin.operations().SetLimit(request)


@asynccontextmanager
async def _own_process(world: World, **variables: str) -> AsyncIterator[Callers]:
    """Runs the gateway service as a process within the block; yields its callers."""
    (port,) = free_ports(1)
    service = Process(
        name=f"limits-{port}",
        command=[sys.executable, "-m", GATEWAY_SERVICE.package],
        ready=serves_grpc(port, GATEWAY_SERVICE.descriptor.full_name),
        port=port,
        environment=world.environment(
            SKYHIGH_GATEWAY_LISTEN=f"127.0.0.1:{port}", SKYHIGH_GATEWAY_PROCESSES="1", **variables
        ),
    )
    async with Supervisor([service], logs=world.folder / "logs", restart=False):
        admin = Callers(f"127.0.0.1:{port}", world.keys, GatewayAdminStub)
        yield admin
        await admin.close()


async def _tells(http: httpx.AsyncClient, admin_port: int) -> bool:
    """Returns whether this Envoy has reached the gateway service.

    Before that it reports no calls.
    """
    stats = await http.get(f"http://127.0.0.1:{admin_port}/stats?filter=cluster.gateway-watch.membership_healthy")
    return stats.text.strip().endswith(": 1")


@pytest.fixture(scope="package")
async def edge(world: World, callers: Callers, others: Others) -> AsyncIterator[Edge]:
    """Yields two Envoys with limits and blocks."""
    async with edge_of(world, callers, others, envoys=2, own_process=True) as edge:
        yield edge


@pytest.fixture
async def flight(edge: Edge) -> str:
    """Returns a flight with 180 free seats."""
    flight_id = new_flight_id()
    await edge.seats.operations().provision(flight_id)
    return flight_id
