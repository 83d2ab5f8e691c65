"""No caller exceeds its limit, whatever gateways it uses and whatever headers it sends (GW-2)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from deploy.local.process import free_ports
from gateway.guard.settings import RateLimits
from gateway.limits import DEFAULTS
from tests.callers import Caller, Callers, refused
from tests.conftest import World
from tests.dates import flight_id
from tests.gateway.conftest import Others
from tests.limits.conftest import Edge, edge_of
from tests.waiting import eventually, until

LIMITS = {limit.limit_id: limit for limit in DEFAULTS}
HOLDS = LIMITS["hold-per-principal"]
# The flight does not exist: a call that passes the limits changes nothing and gets "not found".
FLIGHT = flight_id("SH404")
HOLD = seat_pb.HoldSeatRequest(flight_id=FLIGHT, seat_number="12A", passenger_id="P-1")
PATH = f"/v1/flights/{FLIGHT}/seats/12A/hold"
BODY = {"passengerId": "P-1"}
PASSED, REFUSED = "passed", "refused"
Answer = TypeVar("Answer")


async def storm(edge: Edge, caller: Caller, calls: int, **headers: str) -> tuple[Counter[str], float]:
    """Sends these calls at once, to all gateways in turn.

    Returns the results, and the seconds that they took. `N` in a header is replaced by a different number in each call.
    """

    async def one(stub: SeatServiceStub, number: int) -> str:
        forged = [(name.replace("_", "-"), value.replace("N", str(number % 250))) for name, value in headers.items()]
        try:
            await stub.HoldSeat(HOLD, metadata=(("authorization", f"Bearer {caller.token}"), *forged), timeout=30)
        except grpc.aio.AioRpcError as error:
            # On a busy machine a call that passed the limits may exceed its deadline.
            return {"RESOURCE_EXHAUSTED": REFUSED, "NOT_FOUND": PASSED, "DEADLINE_EXCEEDED": PASSED}[error.code().name]
        raise AssertionError("there is no such flight")

    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for port in edge.ports
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        stubs = [SeatServiceStub(channel) for channel in channels]
        begin = time.monotonic()
        answers = Counter(await asyncio.gather(*(one(stubs[number % len(stubs)], number) for number in range(calls))))
        return answers, time.monotonic() - begin


async def after_storms(
    edge: Edge, caller: Caller, call: Callable[[], Awaitable[Answer]], is_refusal: Callable[[Answer], bool]
) -> Answer:
    """Returns the refusal of a call that follows a storm.

    On a busy machine the bucket may get its next token during the storm; then the storm is repeated.
    """
    answers: list[Answer] = []

    async def refused_now() -> bool:
        await storm(edge, caller, HOLDS.burst + 10)
        answers.append(await call())
        return is_refusal(answers[-1])

    await eventually(refused_now)
    return answers[-1]


def allowed(seconds: float) -> int:
    """Returns the largest number of calls that may pass in so many seconds."""
    return HOLDS.burst + int(seconds * HOLDS.requests_per_minute / 60) + 1


async def test_of_1000_at_once_through_two_gateways_no_more_pass_than_the_limit(edge: Edge) -> None:
    answers, seconds = await storm(edge, edge.seats.customer(), 1000)
    assert HOLDS.burst <= answers[PASSED] <= allowed(seconds)
    assert answers[PASSED] + answers[REFUSED] == 1000


async def test_forged_headers_change_nothing(edge: Edge) -> None:
    answers, seconds = await storm(
        edge,
        edge.seats.customer(),
        200,
        x_forwarded_for="10.0.0.N",
        x_real_ip="10.0.0.N",
        x_skyhigh_role="operations",
        x_skyhigh_subject="N",
        x_skyhigh_client="10.0.0.N",
        x_envoy_external_address="10.0.0.N",
        forwarded="for=10.0.0.N",
    )
    assert HOLDS.burst <= answers[PASSED] <= allowed(seconds)


async def test_another_principal_has_its_own(edge: Edge) -> None:
    await storm(edge, edge.seats.customer(), 100)
    answers, _ = await storm(edge, edge.seats.customer(), HOLDS.burst)
    assert answers == {PASSED: HOLDS.burst}


async def test_without_redis_each_gateway_holds_the_limit(world: World, callers: Callers, others: Others) -> None:
    (closed,) = free_ports(1)
    async with edge_of(world, callers, others, envoys=2, SKYHIGH_REDIS_URL=f"redis://127.0.0.1:{closed}") as edge:
        answers, seconds = await storm(edge, edge.seats.customer(), 200)
        assert HOLDS.burst <= answers[PASSED] <= 2 * allowed(seconds)
        assert answers[PASSED] + answers[REFUSED] == 200


async def test_a_refusal_says_when_to_go_on(edge: Edge) -> None:
    caller = edge.seats.customer()
    refusal = await after_storms(
        edge, caller, lambda: edge.call(caller, "POST", PATH, BODY), lambda answer: answer.status_code == 429
    )
    told = Timestamp()
    told.GetCurrentTime()
    wait = int(refusal.headers["retry-after"])
    assert 1 <= wait <= 60 / HOLDS.requests_per_minute + 1
    (retry,) = [detail for detail in refusal.json()["details"] if detail["@type"].endswith("RetryInfo")]
    assert retry["retryDelay"] == f"{wait}s"
    assert {name for name in refusal.headers if name.startswith("x-ratelimit")} == {
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    }
    await until(told, seconds_after=wait)
    assert (await edge.call(caller, "POST", PATH, BODY)).status_code == 404


async def test_native_grpc_is_refused_as_json_is(edge: Edge) -> None:
    caller = edge.seats.customer()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.ports[1]}") as channel:

        async def hold() -> grpc.aio.AioRpcError:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await SeatServiceStub(channel).HoldSeat(HOLD, metadata=(("authorization", f"Bearer {caller.token}"),))
            return refusal.value

        refusal = await after_storms(
            edge, caller, hold, lambda error: error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        )
    said = {**dict(refusal.initial_metadata() or ()), **dict(refusal.trailing_metadata() or ())}
    assert int(said["retry-after"]) >= 1


async def test_an_answer_says_how_much_is_left(edge: Edge, flight: str) -> None:
    caller, maps = edge.seats.customer(), LIMITS["map-per-principal"]
    begin = time.monotonic()
    left = [int((await edge.map_of(caller, flight)).headers["x-ratelimit-remaining"]) for _ in range(10)]
    # Tokens that came meanwhile, and one that was due at the first call.
    refilled = 1 + (time.monotonic() - begin) * maps.requests_per_minute / 60
    for calls, each in enumerate(left, start=1):
        assert maps.burst - calls <= each <= min(maps.burst - 1, maps.burst - calls + refilled)


async def test_a_limit_is_changed_while_everything_runs(edge: Edge) -> None:
    operations, limit = edge.admin.operations("ops"), "hold-per-agent"
    before = LIMITS[limit]
    changed = await operations.SetLimit(
        pb.SetLimitRequest(limit_id=limit, requests_per_minute=60, burst=3, request_id=str(uuid4()))
    )
    assert (changed.burst, changed.mode, changed.updated_by) == (3, pb.Limit.ENFORCED, "operations:ops")
    try:

        async def holds() -> bool:
            answers, seconds = await storm(edge, edge.seats.agent(uuid4().hex), 20)
            return answers[PASSED] <= 3 + 1 + seconds

        await eventually(holds)
        await operations.SetLimit(
            pb.SetLimitRequest(limit_id=limit, requests_per_minute=60, burst=3, mode=pb.Limit.SHADOW)
        )

        async def passes() -> bool:
            answers, _ = await storm(edge, edge.seats.agent(uuid4().hex), 20)
            return answers[PASSED] == 20

        await eventually(passes)
    finally:
        await operations.SetLimit(
            pb.SetLimitRequest(
                limit_id=limit,
                requests_per_minute=before.requests_per_minute,
                burst=before.burst,
                mode=pb.Limit.ENFORCED,
            )
        )


async def test_limits_are_listed_and_only_operations_changes_them(edge: Edge) -> None:
    agent = edge.admin.agent()
    listed = (await agent.ListLimits(pb.ListLimitsRequest())).limits
    assert {limit.limit_id for limit in listed} == set(LIMITS)
    request = pb.SetLimitRequest(limit_id="hold-per-agent", requests_per_minute=1, burst=1)
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await agent.SetLimit(request)
    with refused("NOT_FOUND", "LIMIT_NOT_FOUND"):
        await edge.admin.operations().SetLimit(
            pb.SetLimitRequest(limit_id="no-such-limit", requests_per_minute=1, burst=1)
        )
    good: dict[str, Any] = {"limit_id": "hold-per-agent", "requests_per_minute": 1, "burst": 1}
    for wrong in ({"burst": 0}, {"requests_per_minute": 0}, {"requests_per_minute": -1}, {"mode": 9}):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await edge.admin.operations().SetLimit(pb.SetLimitRequest(**{**good, **wrong}))
        assert refusal.fields == list(wrong)


async def test_in_shadow_everything_passes_and_abuse_is_only_noted(
    world: World, callers: Callers, others: Others, flight: str
) -> None:
    async with edge_of(world, callers, others, rate_limits=RateLimits.SHADOW) as edge:
        caller = edge.seats.customer()
        assert (await storm(edge, caller, 50))[0] == {PASSED: 50}
        answers = await asyncio.gather(*(edge.map_of(caller, flight) for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}

        async def noted() -> bool:
            return [incident.block_id for incident in await edge.incidents(caller)] == [""]

        await eventually(noted)
        assert await edge.blocks(caller, ended=True) == []


async def test_only_envoys_token_may_spend_limits_and_blame(edge: Edge) -> None:
    async with grpc.aio.insecure_channel(edge.admin.address) as channel:
        ask: Any = channel.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")
        for caller in (edge.admin.customer(), edge.admin.operations()):
            with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
                await ask(b"", metadata=(("authorization", f"Bearer {caller.token}"),))
        with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
            await ask(b"")
        log: Any = channel.stream_unary("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs")
        with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
            await log(iter([b""]))
    async with httpx.AsyncClient() as http:
        path = f"{edge.urls[0]}/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
        assert (await http.post(path)).status_code == 404


async def test_a_web_page_is_refused_as_native_grpc_is(edge: Edge) -> None:
    caller = edge.seats.customer()
    body = HOLD.SerializeToString()

    async def hold() -> httpx.Response:
        return await edge.http.post(
            f"{edge.urls[0]}/skyhigh.seat.v1.SeatService/HoldSeat",
            content=b"\0" + len(body).to_bytes(4, "big") + body,
            headers={
                "authorization": f"Bearer {caller.token}",
                "content-type": "application/grpc-web+proto",
                "x-grpc-web": "1",
            },
        )

    exhausted = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    refusal = await after_storms(edge, caller, hold, lambda answer: answer.headers.get("grpc-status") == exhausted)
    assert int(refusal.headers["retry-after"]) >= 1


async def test_what_nothing_counts_says_nothing_of_limits(edge: Edge) -> None:
    answer = await edge.http.get(f"{edge.urls[0]}/nowhere")
    assert answer.status_code == 404
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
