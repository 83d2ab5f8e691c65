"""The services that Envoy calls, in its own protocols.

They are rate limits v3, access log v3 and extension configurations v3.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, struct_pb2
from google.protobuf.json_format import ParseDict
from skyhigh.gateway.v1 import envoy_pb2

from gateway.guard import abuse, observations, telemetry
from gateway.guard.abuse import Finding
from gateway.guard.gcra import Rate, SharedLimits
from gateway.guard.policy import Policy, Resource
from gateway.guard.settings import GatewayServiceSettings
from gateway.guard.windows import Exceeded, Windows
from gateway.limits import SHARED, Key, Limit, Mode, address_limit, of_call
from services import db
from services.cache import UNREACHABLE
from services.db import Pool
from services.errors import Unavailable
from services.outbox import Relay
from services.telemetry import log

OK, OVER_LIMIT = 1, 2
TYPED_EXTENSION_CONFIG: Final = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
TYPED_STRUCT: Final = "type.googleapis.com/xds.type.v3.TypedStruct"

_log = log("envoy")


class EnvoyApi:
    """The three services that Envoy calls."""

    def __init__(
        self,
        *,
        pool: Pool,
        policy: Policy,
        shared: SharedLimits,
        windows: Windows,
        relay: Relay,
        settings: GatewayServiceSettings,
    ) -> None:
        self._pool = pool
        self._policy = policy
        self._shared = shared
        self._windows = windows
        self._relay = relay
        self._settings = settings

    def register(self, server: grpc.aio.Server) -> None:
        """Registers the services under Envoy's names."""
        server.add_registered_method_handlers(
            "envoy.service.ratelimit.v3.RateLimitService",
            {
                "ShouldRateLimit": grpc.unary_unary_rpc_method_handler(
                    self.should_rate_limit, envoy_pb2.ShouldRateLimitRequest.FromString
                )
            },
        )
        server.add_registered_method_handlers(
            "envoy.service.accesslog.v3.AccessLogService",
            {
                # Envoy expects one response at most. A client-streaming call has the same form on the wire.
                "StreamAccessLogs": grpc.stream_stream_rpc_method_handler(
                    self.stream_access_logs, envoy_pb2.StreamAccessLogsMessage.FromString
                )
            },
        )
        server.add_registered_method_handlers(
            "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
            {
                "StreamExtensionConfigs": grpc.stream_stream_rpc_method_handler(
                    self.stream_extension_configs, envoy_pb2.DiscoveryRequest.FromString
                )
            },
        )

    async def should_rate_limit(
        self, request: envoy_pb2.ShouldRateLimitRequest, context: Any
    ) -> envoy_pb2.ShouldRateLimitResponse:
        """Counts a call by each of its descriptors.

        Responds OVER_LIMIT if a limit refuses it.

        Raises Unavailable if Redis is unavailable: then only Envoy's own shield limits calls.
        """
        limited = [
            (limit, source)
            for descriptor in request.descriptors
            if (found := self._limit({entry.key: entry.value for entry in descriptor.entries})) is not None
            for limit, source in (found,)
        ]
        if not limited:
            return envoy_pb2.ShouldRateLimitResponse(overall_code=OK)
        rates = [
            Rate(f"{limit.limit_id}:{source}", limit.requests_per_minute, limit.burst) for limit, source in limited
        ]
        try:
            verdict = await self._shared.take(rates, calls=max(1, request.hits_addend))
        except UNREACHABLE as error:
            raise Unavailable from error
        if verdict.refused_by is None:
            return envoy_pb2.ShouldRateLimitResponse(overall_code=OK)
        limit, _ = limited[verdict.refused_by]
        refused = self._policy.enforced and limit.mode is Mode.ENFORCED
        telemetry.OVER_LIMIT.labels(limit.limit_id, "refused" if refused else "shadow").inc()
        if not refused:
            return envoy_pb2.ShouldRateLimitResponse(overall_code=OK)
        answer = envoy_pb2.ShouldRateLimitResponse(overall_code=OVER_LIMIT)
        answer.response_headers_to_add.add(key="retry-after", value=str(math.ceil(verdict.wait_seconds)))
        return answer

    def _limit(self, entries: Mapping[str, str]) -> tuple[Limit, str] | None:
        """Returns the limit and the source of a descriptor.

        None if there is no limit, or if each gateway counts the class by itself.
        """
        call_class = entries.get("class", "")
        if call_class not in SHARED:
            return None
        if "subject" in entries:
            limit = of_call(self._policy.limits, call_class, Key.PRINCIPAL, entries["role"])
            source = f"{entries['role']}:{entries['subject']}"
        else:
            role = entries.get("role", "")
            limit = address_limit(self._policy.limits, call_class, role)
            source = entries.get("masked_remote_address", "")
        return (limit, source) if limit else None

    async def stream_access_logs(
        self, messages: AsyncIterator[envoy_pb2.StreamAccessLogsMessage], context: Any
    ) -> AsyncIterator[envoy_pb2.StreamAccessLogsResponse]:
        """Detects abuse in the calls of Envoy's access log, until Envoy ends the stream."""
        async for message in messages:
            seen = observations.observations(message.http_logs.log_entry, self._settings)
            if not seen:
                continue
            try:
                exceeded = await self._windows.observe(seen)
                for each in exceeded:
                    await self._act(each)
            except (*UNREACHABLE, *db.UNREACHABLE, Unavailable) as error:
                # These entries are lost. Envoy's shield still limits calls, and abuse that continues is detected once
                # Redis and Postgres are available again.
                _log.warning("abuse detection skipped log entries, a dependency is unavailable", error=repr(error))
        yield envoy_pb2.StreamAccessLogsResponse()

    async def _act(self, exceeded: Exceeded) -> None:
        """Records an abuse incident and blocks its source.

        It blocks only if limits are enforced, and not for the kinds in WITHOUT_BLOCK.
        """
        window = exceeded.window
        finding = Finding(
            kind=window.kind,
            source=window.source,
            count=exceeded.count,
            threshold=window.threshold,
            window=timedelta(seconds=window.seconds),
            scope="LOGIN" if window.kind in observations.LOGIN_ONLY else "EVERYTHING",
            evidence=observations.evidence(exceeded.evidence),
        )
        blocks = self._policy.enforced and window.kind not in observations.WITHOUT_BLOCK
        block_for = timedelta(seconds=self._settings.block_seconds) if blocks else None
        async with db.transaction(self._pool) as conn:
            written = await abuse.record(conn, finding, block_for=block_for)
        if written:
            _log.warning("abuse detected", kind=finding.kind, count=finding.count, blocked=block_for is not None)
            telemetry.INCIDENTS.labels(finding.kind).inc()
            self._relay.wake()
            self._policy.wake()

    async def stream_extension_configs(
        self, requests: AsyncIterator[envoy_pb2.DiscoveryRequest], context: Any
    ) -> AsyncIterator[envoy_pb2.DiscoveryResponse]:
        """Sends the filter to which Envoy subscribes, at once and after each change."""
        first = await anext(aiter(requests))
        name = first.resource_names[0]
        listening = asyncio.create_task(_hear(requests, name))
        version = ""
        try:
            while not listening.done():
                changed = asyncio.create_task(self._policy.other_than(name, version))
                await asyncio.wait((changed, listening), return_when=asyncio.FIRST_COMPLETED)
                if not changed.done():
                    changed.cancel()
                    break
                resource = changed.result()
                version = resource.version
                yield _answer(name, resource)
        finally:
            listening.cancel()


async def _hear(requests: AsyncIterator[envoy_pb2.DiscoveryRequest], name: str) -> None:
    """Logs each filter that Envoy rejects.

    Reads Envoy's acknowledgements until it ends the stream.
    """
    async for request in requests:
        if request.HasField("error_detail"):
            _log.error("Envoy rejected a filter", filter=name, error=request.error_detail.message)


def _answer(name: str, resource: Resource) -> envoy_pb2.DiscoveryResponse:
    struct = envoy_pb2.TypedStruct(
        type_url=resource.filter.type_url, value=ParseDict(resource.filter.value, struct_pb2.Struct())
    )
    typed = any_pb2.Any(type_url=TYPED_STRUCT, value=struct.SerializeToString())
    config = envoy_pb2.TypedExtensionConfig(name=name, typed_config=typed)
    return envoy_pb2.DiscoveryResponse(
        version_info=resource.version,
        resources=[any_pb2.Any(type_url=TYPED_EXTENSION_CONFIG, value=config.SerializeToString())],
        type_url=TYPED_EXTENSION_CONFIG,
        nonce=resource.version,
    )
