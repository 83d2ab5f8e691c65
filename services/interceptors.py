"""Guards every method: token, role, validation, deadline and error status.

The guard wraps each method once, when it is registered, and does in this order: token, authorization, decoding,
validation, deadline, the method itself, and its refusal as google.rpc.Status. A chain of gRPC interceptors would be
composed again for each call (decision 12).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from services import db, running_call, telemetry
from services.addresses import Network
from services.auth import ANYBODY, Principal, TokenVerifier
from services.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidArgument,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from services.rpcs import DeclarationError, Effect, Rpc
from services.running_call import Call
from services.validation import validate
from services.watch import WatchPlaces

# The callee stops a little before the caller's deadline, so that the caller receives an error with a reason instead of
# its own timeout.
DEADLINE_MARGIN_SECONDS: Final = 0.02
# A stream ends if its client does not read a message within this time, so that the server keeps no messages for it.
SLOW_READER_SECONDS: Final = 20

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_log = telemetry.log("call")


class GuardedServer:
    """Registers a service's methods on a server, each with a guard around it.

    Only a method with a declaration (services/rpcs.py) can be registered. Health and reflection, which return no
    customer data, are registered on the server itself.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        *,
        rpcs: Mapping[str, Rpc],
        verifier: TokenVerifier,
        watches_per_principal: int,
        proxies: Sequence[Network] = (),
    ) -> None:
        self._server = server
        self._rpcs = rpcs
        self._verifier = verifier
        self._places = WatchPlaces(per_principal=watches_per_principal)
        self._proxies = proxies

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Does nothing.

        The generated code registers the same methods again through `add_registered_method_handlers`.
        """

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        """Registers the guarded methods. Raises DeclarationError if one has no declaration."""
        guarded = {method: self._guard(method, handler) for method, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, guarded),))

    def _guard(self, method: str, handler: _Handler) -> _Handler:
        # The guard decodes the request, because gRPC would report a decoding failure of its own as a server error.
        if method not in self._rpcs:
            raise DeclarationError(f"{method}: is served without a declaration")
        guard = _Guard(method, self._rpcs[method], self._verifier, self._places, handler, proxies=self._proxies)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(guard.listen, handler.request_deserializer, _serialize)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(guard.stream, None, _serialize)
        return grpc.unary_unary_rpc_method_handler(guard.unary, None, _serialize)


def _serialize(answer: Message | bytes) -> bytes:
    # A method may return serialized bytes: a seat map is read far more often than it changes.
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


class _Guard:
    """One method with its guard."""

    def __init__(
        self,
        method: str,
        rpc: Rpc,
        verifier: TokenVerifier,
        places: WatchPlaces,
        handler: _Handler,
        *,
        proxies: Sequence[Network],
    ) -> None:
        self._method = method
        self._proxies = proxies
        self._rpc = rpc
        self._verifier = verifier
        self._places = places
        self._decode = cast("Callable[[bytes], Message]", handler.request_deserializer)
        self._unary = cast("Callable[[Message, _Context], Awaitable[Message | bytes]]", handler.unary_unary)
        self._stream = cast("Callable[[Message, _Context], AsyncIterator[Message]]", handler.unary_stream)
        self._listen = cast(
            "Callable[[AsyncIterator[Message], _Context], AsyncIterator[Message]]", handler.stream_stream
        )
        self._seconds = telemetry.CALL_SECONDS.labels(method)
        self._ok = telemetry.CALLS.labels(method, "OK")

    async def unary(self, body: bytes, context: _Context) -> Message | bytes:
        started = time.perf_counter()
        try:
            request = await self._admit(body, context)
            async with asyncio.timeout(self._time_left(context)):
                answer = await self._unary(request, context)
        except asyncio.CancelledError:
            telemetry.CALLS.labels(self._method, "CANCELLED").inc()
            raise
        except Exception as error:
            return await self._refuse(error, context)
        self._ok.inc()
        self._seconds.observe(time.perf_counter() - started)
        return answer

    async def stream(self, body: bytes, context: _Context) -> None:
        try:
            request = await self._admit(body, context)
            principal = running_call.running().principal
            with self._places.taken_by(principal.name):
                await self._send_until_expired(principal, self._stream(request, context), context)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await self._refuse(error, context)
        self._ok.inc()

    async def listen(self, requests: AsyncIterator[Message], context: _Context) -> None:
        """Serves a bidirectional stream between our own services, such as a gateway's.

        Its messages are not validated.
        """
        try:
            await self._authorize(context)
            await self._send(self._listen(requests, context), context)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await self._refuse(error, context)
        self._ok.inc()

    async def _send_until_expired(
        self, principal: Principal, messages: AsyncIterator[Message], context: _Context
    ) -> None:
        """Sends the messages. Raises Unauthenticated when the caller's token expires.

        The token is checked only when the stream begins, and a stream has no time limit of its own.
        """
        try:
            async with asyncio.timeout(principal.expire_time - time.time()) as limit:
                await self._send(messages, context)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unauthenticated from error

    async def _send(self, messages: AsyncIterator[Message], context: _Context) -> None:
        async for message in messages:
            try:
                async with asyncio.timeout(SLOW_READER_SECONDS):
                    await context.write(message)
            except TimeoutError as error:
                raise ResourceExhausted(
                    "SLOW_READER",
                    f"the client did not read a message within {SLOW_READER_SECONDS} s; open the watch again",
                    retry_after_seconds=1,
                ) from error

    async def _admit(self, body: bytes, context: _Context) -> Message:
        await self._authorize(context)
        try:
            request = self._decode(body)
        except DecodeError as error:
            raise InvalidArgument.of(
                FieldViolation("request", "must be a message of this method's request type, with text in UTF-8")
            ) from error
        keyed = self._rpc.effect is Effect.MUTATION
        validate(request, sent_as=running_call.running().take_key(request) if keyed else {})
        return request

    async def _authorize(self, context: _Context) -> None:
        """Verifies the caller's token and role, and sets `running_call.RUNNING`.

        Raises Unauthenticated or PermissionDenied. Two `authorization` headers count as no token. Two different
        idempotency keys are joined to one text that is no valid UUID. Otherwise the caller and the service could each
        use another one.
        """
        authorization = traceparent = idempotency_header = None
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                authorization = value if authorization is None else ""
            elif key == "traceparent":
                traceparent = value
            elif key == running_call.IDEMPOTENCY_HEADER and value != idempotency_header:
                idempotency_header = value if idempotency_header is None else f"{idempotency_header!s}, {value!s}"
        if self._rpc.public:
            principal = ANYBODY
        else:
            principal = await self._verifier.principal(cast("str | None", authorization))
        if principal.role not in self._rpc.roles:
            raise PermissionDenied
        running_call.RUNNING.set(
            Call(
                self._method,
                principal,
                telemetry.traceparent_or_new(cast("str | None", traceparent)),
                cast("str | None", idempotency_header),
                context,
                self._proxies,
            )
        )

    def _time_left(self, context: _Context) -> float | None:
        longest = self._rpc.time_limit_seconds
        remaining: float | None = context.time_remaining()
        if remaining is None or longest is None:
            return longest
        return min(longest, max(0.0, remaining - DEADLINE_MARGIN_SECONDS))

    async def _refuse(self, error: Exception, context: _Context) -> bytes:
        refusal = _as_refusal(error)
        telemetry.CALLS.labels(self._method, refusal.code.name).inc()
        if isinstance(refusal, Internal | Unavailable):
            running = running_call.RUNNING.get(None)
            with structlog.contextvars.bound_contextvars(
                method=self._method, trace_id=telemetry.trace_id(running.traceparent) if running else None
            ):
                _log.error(
                    "call failed",
                    error=repr(error),
                    exc_info=error if isinstance(refusal, Internal) else None,
                )
        metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", refusal.status().SerializeToString())]
        if refusal.retry_after_seconds is not None:
            metadata.append(("retry-after", str(max(1, math.ceil(refusal.retry_after_seconds)))))
        await context.abort(refusal.code, refusal.message, trailing_metadata=tuple(metadata))
        return b""


def _as_refusal(error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case TimeoutError():
            return DeadlineExceeded()
        case _ if isinstance(error, (*db.UNREACHABLE, *db.CONFLICTS)):
            return Unavailable()
        case _:
            return Internal()
