"""Calls to other services: with our own token, the running trace, a deadline, and a retry of UNAVAILABLE only, because
only then nothing happened.

What another service answers instead of an answer is one of four: it is away (Unavailable), it refuses for a reason that
the caller names and has a meaning for (the caller's own error), it refuses for another reason of its contract
(PeerRefusal), or something is broken (PeerFault). Only a reason says that something was not found; a fault never does.
A step that meets the last two is tried again with a growing pause, and its timer shows why.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from services import call, telemetry, tls
from services.endpoints import grpc_target
from services.errors import Unavailable
from services.identity import Identity
from services.time_limits import FACTOR
from services.tls import RenewedChannel
from services.tokens import OwnToken

# Three tries within a second; a budget keeps a sick callee from being hit three times as hard.
_RETRY: Final = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# The callee could not be reached or did not answer in time; a repeat with the same request id tells what happened.
_AWAY: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_AWAY_REASONS: Final = ("", "DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED")
# Reasons, and none, that a call of ours does not get unless one of the two services has a defect.
_FAULTS: Final = frozenset(
    {"", "INTERNAL", "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_FIELD", "IDEMPOTENCY_KEY_REUSED"}
)

Answer = TypeVar("Answer")


class PeerRefusal(Exception):
    """Another service's refusal: its gRPC code, its reason and metadata of the contract, and how long to wait."""

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
    """Another service failed, or takes our call for a bad one: a defect, about which a person has to be told.

    It says nothing of what was asked for: neither that it is missing, nor that it did not change.
    """

    def __init__(self, refusal: PeerRefusal) -> None:
        super().__init__(f"{refusal.code.name} {refusal.reason or 'without a reason'}")
        self.code = refusal.code
        self.reason = refusal.reason


# What a caller makes of a reason that it knows.
Meanings = Mapping[str, Callable[[PeerRefusal], Exception]]


async def ask(answer: Awaitable[Answer], meanings: Meanings = MappingProxyType({})) -> Answer:
    """Awaits a call to another service.

    Raises what `meanings` has for the reason of a refusal; else PeerRefusal for a reason of a contract, PeerFault for
    what no reason explains, or Unavailable where the other service is away.
    """
    try:
        return await answer
    except grpc.aio.AioRpcError as error:
        refusal = _refusal(error)
        # The contract's own RESOURCE_EXHAUSTED has a reason; one without is gRPC's, of a callee that is overrun.
        if error.code() in _AWAY and refusal.reason in _AWAY_REASONS:
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

    It has no timeout: gRPC counts that one by processor ticks, from a start that it may misjudge by seconds.
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
    """Opens a channel to `host:port`, or to several by commas, for calls of one proto service.

    Each call shows the token and carries on the trace of the call that it is part of. Calls without a deadline get
    `timeout_seconds`. With an identity it is mutual TLS, and the callee must be called as the service's package is:
    `seat` for `skyhigh.seat.v1.SeatService`.
    """
    target = grpc_target(address)
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", service_config(service)),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", 30_000),
        # Services reach each other directly: gRPC would otherwise obey http_proxy, and no_proxy only for one address.
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
    """Says who calls, in which trace, for which address outside, and until when."""

    def __init__(self, token: OwnToken | None, timeout_seconds: float) -> None:
        self._token = token
        self._timeout_seconds = timeout_seconds

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        running = call.RUNNING.get(None)
        metadata = [("traceparent", telemetry.traceparent_or_new(running.traceparent if running else None))]
        if self._token is not None:
            metadata.append(("authorization", f"Bearer {self._token}"))
            # Limits by address count a client's calls, whichever service makes them for it.
            if address := running.outside_address() if running else "":
                metadata.append((call.CLIENT_HEADER, address))
        details = grpc.aio.ClientCallDetails(
            method=client_call_details.method,
            timeout=client_call_details.timeout or self._timeout_seconds,
            metadata=grpc.aio.Metadata(*(client_call_details.metadata or ()), *metadata),
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        return await continuation(details, request)
