"""Calls other services: token, trace, deadline, retries and error translation.

Only UNAVAILABLE is retried, because only then the callee changed nothing.

`ask` translates a failed call into one of four errors: Unavailable if the callee is down or too slow; the caller's own
error for a reason that the caller passes in `meanings`; PeerRefusal for another reason of the callee's contract;
PeerFault for a defect. Only a refusal with a reason says that a resource does not exist; a fault never does. A timer's
step that fails with one of the last two is retried with a growing pause, and the timer's row shows the error.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from services import running_call, telemetry, tls
from services.endpoints import grpc_target
from services.errors import Unavailable
from services.time_limits import FACTOR
from services.tls import RenewedChannel
from services.tls_identity import Identity
from services.tokens import OwnToken

# Three attempts within a second. The retry budget below (`retryThrottling`) keeps an overloaded callee from getting
# three times its load.
_RETRY: Final = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# The callee was unreachable or did not respond in time. A retry with the same request id finds out what happened.
_UNAVAILABLE: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_UNAVAILABLE_REASONS: Final = ("", "DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED")
# Reasons, and the missing reason, that our calls get only if one of the two services has a defect.
_FAULTS: Final = frozenset(
    {"", "INTERNAL", "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_FIELD", "IDEMPOTENCY_KEY_REUSED"}
)

Answer = TypeVar("Answer")


class PeerRefusal(Exception):
    """Another service's refusal: gRPC code, reason, metadata and time to wait."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        metadata: dict[str, str],
        *,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{code.name} {reason}")
        self.code = code
        self.reason = reason
        self.metadata = metadata
        self.retry_after_seconds = retry_after_seconds


class PeerFault(Exception):
    """Another service failed, or refused our call as invalid: a defect.

    A person has to look at it. It says nothing about the resource: neither that it is missing nor that it did not
    change.
    """

    def __init__(self, refusal: PeerRefusal) -> None:
        super().__init__(f"{refusal.code.name} {refusal.reason or 'without a reason'}")
        self.code = refusal.code
        self.reason = refusal.reason


# The caller's own error for each reason that it handles.
Meanings = Mapping[str, Callable[[PeerRefusal], Exception]]


async def ask(answer: Awaitable[Answer], meanings: Meanings = MappingProxyType({})) -> Answer:
    """Awaits a call to another service and returns its response.

    Raises the error that `meanings` has for the reason of a refusal. Otherwise raises Unavailable if the callee is down
    or too slow, PeerFault for a defect, and PeerRefusal for any other reason of the callee's contract.
    """
    try:
        return await answer
    except grpc.aio.AioRpcError as error:
        refusal = _refusal(error)
        # A RESOURCE_EXHAUSTED of a contract has a reason. One without a reason is gRPC's own and means an overloaded
        # callee.
        if error.code() in _UNAVAILABLE and refusal.reason in _UNAVAILABLE_REASONS:
            raise Unavailable from error
        if refusal.reason in meanings:
            raise meanings[refusal.reason](refusal) from error
        if refusal.reason in _FAULTS:
            telemetry.PEER_FAULTS.labels(error.code().name, refusal.reason).inc()
            raise PeerFault(refusal) from error
        raise refusal from error


def _refusal(error: grpc.aio.AioRpcError) -> PeerRefusal:
    trailers = dict(error.trailing_metadata() or ())
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(bytes(trailers.get("grpc-status-details-bin", b""))).details:
        for known in (info, retry):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    wait = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return PeerRefusal(error.code(), info.reason, dict(info.metadata), retry_after_seconds=wait)


def service_config(service: str) -> str:
    """Returns the gRPC service config for calls of one proto service.

    It has no timeout: gRPC measures that one in processor ticks, from a start time that it may misjudge by seconds.
    """
    return json.dumps(
        {
            "methodConfig": [{"name": [{"service": service}], "retryPolicy": _RETRY}],
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
            "loadBalancingConfig": [{"round_robin": {}}],
        }
    )


def channel(
    address: str,
    *,
    service: str,
    token: OwnToken | None = None,
    identity: Identity | None = None,
    timeout_seconds: float = 3 * FACTOR,
) -> grpc.aio.Channel:
    """Opens a channel to `host:port` for calls of one proto service.

    `address` may list several endpoints, separated by commas. Each call sends the token, the trace and the external
    client address of the running call. Calls without a deadline get `timeout_seconds`. With an identity the channel
    uses mutual TLS, and the callee's certificate must name the service of the package: `seat` for
    `skyhigh.seat.v1.SeatService`.
    """
    target = grpc_target(address)
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", service_config(service)),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", 30_000),
        # Services connect to each other directly. gRPC would otherwise use the proxy of http_proxy, and it applies
        # no_proxy only to a target with one address.
        ("grpc.enable_http_proxy", 0),
    ]
    interceptors = [_Introduction(token, timeout_seconds)]
    if identity is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    options.append(tls.expected_name(service.split(".")[1]))
    return RenewedChannel(
        identity,
        lambda credentials: grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors),
    )


class _Introduction(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds token, trace, external client address and deadline to each unary call."""

    def __init__(self, token: OwnToken | None, timeout_seconds: float) -> None:
        self._token = token
        self._timeout_seconds = timeout_seconds

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        running = running_call.RUNNING.get(None)
        metadata = [("traceparent", telemetry.traceparent_or_new(running.traceparent if running else None))]
        if self._token is not None:
            metadata.append(("authorization", f"Bearer {self._token}"))
            # Limits by client address count all calls made for a client, whichever service makes them.
            if address := running.outside_address() if running else "":
                metadata.append((running_call.CLIENT_HEADER, address))
        details = grpc.aio.ClientCallDetails(
            method=client_call_details.method,
            timeout=client_call_details.timeout or self._timeout_seconds,
            metadata=grpc.aio.Metadata(*(client_call_details.metadata or ()), *metadata),
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        return await continuation(details, request)
