"""`python -m deploy.mocks.weight`: the airport's scales.

They return the declared weights, unless a switch changes that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from skyhigh.weight.v1 import weight_service_pb2 as pb
from skyhigh.weight.v1.weight_service_pb2_grpc import WeightServiceServicer, add_WeightServiceServicer_to_server

from deploy.mocks.behaviour import Behaviour, run_until_told, serving_http
from services import telemetry
from services.binding import bound
from services.settings import load

SERVICE: Final = pb.DESCRIPTOR.services_by_name["WeightService"].full_name

_log = telemetry.log("weight")


class WeightSettings(BaseSettings):
    """The addresses of the gRPC service and of the HTTP server for the switches."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_MOCK_WEIGHT_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50061"
    control: str = "127.0.0.1:50065"


class WeightBehaviour(BaseModel, extra="forbid"):
    """The switches of the scales."""

    mode: Literal["normal", "down", "hang"] = "normal"
    """`down` responds with UNAVAILABLE, `hang` never responds."""
    slow_seconds: float = Field(default=0, ge=0, le=600)
    offset_grams: int = Field(default=0, ge=-200_000, le=200_000)
    """Added to the weight of each bag; the result is at least 1 g."""


@dataclass(frozen=True, slots=True)
class Scales:
    """The running scales."""

    address: str
    control_url: str
    behaviour: Behaviour[WeightBehaviour]


class _Servicer(WeightServiceServicer):
    def __init__(self, behaviour: Behaviour[WeightBehaviour]) -> None:
        self._behaviour = behaviour

    async def WeighBags(self, request: pb.WeighBagsRequest, context: Any) -> pb.WeighBagsResponse:
        now = self._behaviour.now
        if now.mode == "down":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the scales are down")
        if now.mode == "hang":
            await asyncio.Event().wait()
        await asyncio.sleep(now.slow_seconds)
        return pb.WeighBagsResponse(
            measured_grams=[max(1, grams + now.offset_grams) for grams in request.declared_grams]
        )


@asynccontextmanager
async def serving(settings: WeightSettings) -> AsyncIterator[Scales]:
    """Runs the scales during the block."""
    behaviour = Behaviour(WeightBehaviour())
    # Otherwise two mocks could share a port, and each would get some of the calls.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_WeightServiceServicer_to_server(_Servicer(behaviour), server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)

    async def bind() -> int:
        return server.add_insecure_port(settings.listen)

    port = await bound(bind, settings.listen)
    async with serving_http(settings.control, behaviour.routes()) as control_url:
        await server.start()
        await healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        address = f"{settings.listen.rpartition(':')[0]}:{port}"
        _log.info("serving", address=address, control_url=control_url)
        try:
            yield Scales(address, control_url, behaviour)
        finally:
            await server.stop(None)


if __name__ == "__main__":
    telemetry.configure_logging("mock-weight", "info")
    run_until_told(serving(load(WeightSettings)))
