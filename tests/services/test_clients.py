"""Calls to other services.

Covers the caller's identity, the meaning of a refusal, and which calls are retried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import REGISTRY
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub
from skyhigh.weight.v1 import weight_service_pb2

from deploy.local.process import free_ports
from services import tokens
from services.clients import PeerFault, PeerRefusal, ask, channel
from services.errors import Unavailable
from services.tokens import OwnToken
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.callers import Callers
    from tests.conftest import World

SEATS = "skyhigh.seat.v1.SeatService"
ECHO = "skyhigh.weight.v1.WeightService"
Answer = Callable[[int, Any], Awaitable[Any]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Serves one method; `answer` receives the number of the call and its context."""
    calls = 0

    async def weigh(request: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        return await answer(calls, context)

    handler = grpc.unary_unary_rpc_method_handler(
        weigh,
        weight_service_pb2.WeighBagsRequest.FromString,
        weight_service_pb2.WeighBagsResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, {"WeighBags": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def weigh(peer: grpc.aio.Channel) -> Any:
    call = peer.unary_unary(
        f"/{ECHO}/WeighBags",
        request_serializer=weight_service_pb2.WeighBagsRequest.SerializeToString,
        response_deserializer=weight_service_pb2.WeighBagsResponse.FromString,
    )
    return call(weight_service_pb2.WeighBagsRequest(reference="checkin/1"))


async def test_a_service_sends_its_token_and_reads_the_refusal(world: World, callers: Callers) -> None:
    token = OwnToken(world.token_files["checkin"])
    async with channel(callers.address, service=SEATS, token=token) as peer:
        stub: Any = SeatServiceStub(peer)
        with pytest.raises(PeerRefusal) as refusal:
            await ask(stub.GetHold(pb.GetHoldRequest(hold_id=str(uuid4()))))
    assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.NOT_FOUND, "HOLD_NOT_FOUND")


async def test_an_unreachable_service_is_unavailable(world: World) -> None:
    (port,) = free_ports(1)
    async with channel(f"127.0.0.1:{port}", service=ECHO, token=OwnToken(world.token_files["checkin"])) as peer:
        with pytest.raises(Unavailable):
            await ask(weigh(peer))


async def test_only_unavailable_is_tried_three_times(world: World) -> None:
    codes = {
        grpc.StatusCode.UNAVAILABLE: 3,
        grpc.StatusCode.INTERNAL: 1,
        grpc.StatusCode.ABORTED: 1,
        grpc.StatusCode.DEADLINE_EXCEEDED: 1,
    }
    for code, expected in codes.items():
        seen: list[int] = []

        async def refuse(call: int, context: Any, code: grpc.StatusCode = code, seen: list[int] = seen) -> Any:
            seen.append(call)
            await context.abort(code, "no")

        async with answering(refuse) as address, channel(address, service=ECHO) as peer:
            with pytest.raises((Unavailable, PeerFault)):
                await ask(weigh(peer))
        assert len(seen) == expected, code


async def test_a_successful_retry_is_a_success(world: World) -> None:
    async def flaky(call: int, context: Any) -> Any:
        if call == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return weight_service_pb2.WeighBagsResponse(measured_grams=[call])

    async with answering(flaky) as address, channel(address, service=ECHO) as peer:
        assert (await ask(weigh(peer))).measured_grams == [2]


async def test_an_unresponsive_callee_times_out() -> None:
    async def hang(call: int, context: Any) -> Any:
        await asyncio.Event().wait()

    async with answering(hang) as address, channel(address, service=ECHO, timeout_seconds=0.3) as peer:
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(Unavailable):
                await ask(weigh(peer))
        assert time.monotonic() - began >= 0.3


async def test_a_rotated_token_is_used_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    token = OwnToken(file)
    with pytest.raises(Unavailable):
        str(token)
    file.write_text("first\n")
    assert str(token) == "first"
    file.write_text("second\n")
    assert str(token) == "first", "the file is not read for each call"
    monkeypatch.setattr(tokens, "REREAD_SECONDS", 0)
    assert str(token) == "second"
    file.unlink()
    assert str(token) == "second", "a token that is known stays good while the file is away"


async def refused_with(code: grpc.StatusCode, reason: str) -> Exception:
    """Returns the error that a caller gets who gives THING_MISSING a meaning."""

    async def answer(_: int, context: Any) -> Any:
        details = rpc_status(code, reason).SerializeToString() if reason else b""
        await context.abort(code, "no", trailing_metadata=(("grpc-status-details-bin", details),) if details else ())

    async with answering(answer) as address, channel(address, service=ECHO) as peer:
        try:
            await ask(weigh(peer), {"THING_MISSING": lambda refusal: LookupError(refusal.reason)})
        except Exception as error:
            return error
    raise AssertionError


def rpc_status(code: grpc.StatusCode, reason: str) -> Any:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="skyhigh")
    status = status_pb2.Status(code=code.value[0], message="no")
    status.details.add().Pack(info)
    return status


@pytest.mark.parametrize(
    ("code", "reason", "meaning"),
    [
        (grpc.StatusCode.NOT_FOUND, "THING_MISSING", LookupError),
        (grpc.StatusCode.NOT_FOUND, "OTHER_THING_MISSING", PeerRefusal),
        (grpc.StatusCode.FAILED_PRECONDITION, "A_REASON_OF_NEXT_YEAR", PeerRefusal),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "COOLING_DOWN", PeerRefusal),
        (grpc.StatusCode.INTERNAL, "INTERNAL", PeerFault),
        (grpc.StatusCode.UNKNOWN, "", PeerFault),
        (grpc.StatusCode.UNIMPLEMENTED, "", PeerFault),
        # Without a reason, the status does not come from the contract.
        (grpc.StatusCode.NOT_FOUND, "", PeerFault),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", PeerFault),
        (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", PeerFault),
        (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", Unavailable),
        (grpc.StatusCode.CANCELLED, "", Unavailable),
    ],
)
async def test_each_status_of_a_peer_has_one_meaning(
    code: grpc.StatusCode, reason: str, meaning: type[Exception]
) -> None:
    assert type(await refused_with(code, reason)) is meaning


async def test_a_fault_has_code_and_reason_and_is_counted() -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("skyhigh_peer_faults_total", {"code": "INTERNAL", "reason": "INTERNAL"}) or 0

    before = counted()
    assert str(await refused_with(grpc.StatusCode.INTERNAL, "INTERNAL")) == "INTERNAL INTERNAL"
    assert str(await refused_with(grpc.StatusCode.UNKNOWN, "")) == "UNKNOWN without a reason"
    assert counted() == before + 1
