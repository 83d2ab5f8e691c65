"""The requests that reach a service behind the edge during an attack, as an echo records them.

For attacks 6 and 32 of docs/security.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, suppress
from itertools import count
from typing import Any, Final
from uuid import uuid4

import grpc
import pytest

from tests.gateway.conftest import Gateway, Others
from tests.waiting import PATIENCE_SECONDS

# Concurrent calls, so many that the retries which Envoy always permits are few in comparison.
CALLS: Final = 400
CONNECTIONS: Final = 8
# Shorter than the edge's timeout for a read.
MOST_ANSWER_SECONDS: Final = 1.5
MOST_AMPLIFICATION: Final = 1.2
FORGED: Final = {
    "x-skyhigh-principal": "operations:root",
    "x-skyhigh-role": "operations",
    "x-skyhigh-subject": "root",
    "x-auth-role": "operations",
    "x-forwarded-client-cert": "By=spiffe://skyhigh/service;Subject=CN=booking",
    "x-forwarded-for": "203.0.113.66",
    "x-real-ip": "203.0.113.66",
    "x-envoy-upstream-rq-timeout-ms": "3600000",
    "x-envoy-max-retries": "100",
    "x-envoy-retry-on": "5xx",
    "x-envoy-original-path": "/v1/limits",
    "x-envoy-internal": "true",
    "x-skyhigh-id-bin": "AAAA",
}


async def test_forged_identity_headers_are_removed(gateway: Gateway, others: Others) -> None:
    agent = gateway.agent()
    path = f"/v1/checkins/{uuid4()}"
    await agent("GET", path, **{name.replace("-", "_"): value for name, value in FORGED.items()})
    heard = others.echo.heard[-1][2]
    assert {name for name, value in FORGED.items() if heard.get(name) == value} == set()
    assert heard["authorization"] == f"Bearer {agent.caller.token}"


async def test_a_line_break_in_a_header_adds_no_header(gateway: Gateway, others: Others) -> None:
    """A bare CR ends a line for some parsers and not for others (RFC 9112, 2.2)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    heard = len(others.echo.heard)
    try:
        writer.write(b"GET /v1/flights HTTP/1.1\r\nhost: edge\r\nx-a: b\rx-skyhigh-role: operations\r\n\r\n")
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await reader.read(4096)
    finally:
        writer.transport.abort()
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    for _, _, headers in others.echo.heard[heard:]:
        assert "x-skyhigh-role" not in headers
        assert "\r" not in str(headers.get("x-a", ""))


@pytest.fixture
def half_fails(others: Others, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Lets the echo refuse every other call of the first `CALLS`.

    Counts the calls that arrive, by method. The echo answers no call before all of them have arrived, and answers
    retries after all of them. Therefore the number of retries follows from the edge's settings, not from the speed of
    the machine.
    """
    arrived: Counter[str] = Counter()
    answered = count(1)
    all_arrived, all_answered = asyncio.Event(), asyncio.Event()

    def service(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = str(details.method)
        if not method.startswith("/skyhigh."):
            return None

        async def answer(request: bytes, context: Any) -> bytes:
            arrived[method] += 1
            if arrived[method] == CALLS:
                all_arrived.set()
            if arrived[method] > CALLS:
                await _wait(all_answered)
                return b""
            await _wait(all_arrived)
            number = next(answered)
            if number == CALLS:
                all_answered.set()
            if number % 2:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "out of breath")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    monkeypatch.setattr(others.echo, "service", service)
    return arrived


async def _wait(event: asyncio.Event) -> None:
    """Waits for the event, but not until the edge's timeout."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MOST_ANSWER_SECONDS):
            await event.wait()


async def burst(gateway: Gateway, method: str, calls: int = CALLS) -> set[str]:
    """Makes all calls by native gRPC over several connections; returns their statuses."""
    metadata = (("authorization", f"Bearer {gateway.callers.agent().token}"),)
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options))
            for _ in range(CONNECTIONS)
        ]

        async def one(number: int) -> str:
            call: Any = channels[number % CONNECTIONS].unary_unary(f"/skyhigh.checkin.v1.CheckInService/{method}")
            try:
                await call(b"", metadata=metadata, timeout=30)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return "OK"

        return set(await asyncio.gather(*(one(number) for number in range(calls))))


async def test_a_failing_service_gets_few_retries(gateway: Gateway, half_fails: Counter[str]) -> None:
    """Retries make an outage worse.

    Only one layer retries, and at most a fifth of the calls in flight.
    """
    outcomes = await burst(gateway, "GetCheckIn")
    assert {"OK", "UNAVAILABLE"} <= outcomes <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    (arrived,) = half_fails.values()
    assert CALLS < arrived <= CALLS * MOST_AMPLIFICATION


async def test_a_change_is_sent_to_a_failing_service_once(gateway: Gateway, half_fails: Counter[str]) -> None:
    outcomes = await burst(gateway, "CancelCheckIn")
    assert {"OK", "UNAVAILABLE"} <= outcomes <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert sum(half_fails.values()) == CALLS
