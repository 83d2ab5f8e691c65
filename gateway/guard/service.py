"""Builds the gateway service from its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from skyhigh.gateway.v1 import envoy_pb2, gateway_admin_pb2
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import add_GatewayAdminServicer_to_server

from gateway.guard import limits
from gateway.guard.envoy_api import EnvoyApi
from gateway.guard.gcra import SharedLimits
from gateway.guard.policy import Policy
from gateway.guard.servicer import GatewayServicer
from gateway.guard.settings import GatewayServiceSettings
from gateway.guard.windows import Windows
from gateway.limits import DEFAULTS
from services import cache, db
from services.app import Parts, Service
from services.db import Pool
from services.outbox import Relay
from services.paging import PageTokens
from services.transitions import Transitions

NAME: Final = "gateway"
# Envoy's first message of a stream describes itself, with the names of all its extensions: 60 KB.
LARGEST_MESSAGE_BYTES: Final = 1024 * 1024
# Half of Envoy's timeout for the response (gateway/envoy.yaml).
REDIS_TIMEOUT_SECONDS: Final = 0.5


@asynccontextmanager
async def build(settings: GatewayServiceSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Connects the parts of one process; closes them when the `async with` block ends."""
    redis = cache.connect(settings.redis_url, timeout_seconds=REDIS_TIMEOUT_SECONDS)
    relay = Relay(pool, settings.amqp_url, source="skyhigh/gateway")
    policy = Policy(pool, rate_limits=settings.rate_limits, poll_seconds=settings.policy_poll_seconds)

    def wake_after_commit() -> None:
        relay.wake()
        policy.wake()

    servicer = GatewayServicer(
        pool=pool,
        transitions=Transitions(pool, tell=wake_after_commit),
        page_tokens=PageTokens(settings.page_token_key),
    )
    envoy = EnvoyApi(
        pool=pool,
        policy=policy,
        shared=SharedLimits(redis),
        windows=Windows(redis),
        relay=relay,
        settings=settings,
    )

    def register(server: grpc.aio.Server) -> None:
        add_GatewayAdminServicer_to_server(servicer, server)
        envoy.register(server)

    async with db.transaction(pool) as conn:
        await limits.ensure(conn, DEFAULTS)
    await policy.read()
    try:
        yield Parts(register=register, background={"relay": relay.run, "policy": policy.run})
    finally:
        await redis.aclose()


GATEWAY_SERVICE: Final = Service(
    name=NAME,
    package="gateway.guard",
    settings=GatewayServiceSettings,
    descriptor=gateway_admin_pb2.DESCRIPTOR.services_by_name["GatewayAdmin"],
    build=build,
    largest_message_bytes=LARGEST_MESSAGE_BYTES,
    others=tuple(envoy_pb2.DESCRIPTOR.services_by_name.values()),
)
