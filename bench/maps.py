"""P3, P4 and P8: the rate and latency of seat-map reads."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from bench.flights import GET_SEAT_MAP, PARTY, answer_bytes, holds_by_agent, parties, provision
from bench.load import CallFile
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack

FLIGHTS: Final = 60
READERS: Final = 2_000
# P8 measures latency and not throughput, so this is a quarter of the rate that the service can serve.
READS_PER_SECOND: Final = 500
# Each hold changes the map of one flight.
HOLDS_PER_SECOND: Final = 50


async def reads(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P3: GetSeatMap ÷ a bare echo server that returns the same bytes."""
    measure = Measure("P3", "GetSeatMap ÷ bare echo of the same bytes", "maps/s", bar=0.6, goal=0.9)
    await stack.seat.empty()
    flight_ids, _ = await provision(stack, stack.seat, flights=FLIGHTS)
    calls = reads_of_many(stack, flight_ids).write(stack.folder / "reads.calls")
    request = pb.GetSeatMapRequest(flight_id=flight_ids[0]).SerializeToString()
    seat_map = await answer_bytes(stack.seat, GET_SEAT_MAP, request, stack.signer.agent("bench"))
    pids = {"seat service": stack.seat.pid}
    async with stack.echo_server(seat_map=seat_map) as echo:
        for turn, seconds in enumerate(plan.turns()):
            counted = measure if turn else None
            ours = await metered(
                stack.load, counted, calls, port=stack.seat.port, seconds=seconds, pids=pids, cycle=True
            )
            other = await metered(
                stack.load,
                counted,
                calls,
                port=echo.port,
                seconds=seconds,
                pids={"echo": echo.pid},
                cycle=True,
                ours=False,
            )
            if counted:
                measure.ours.append(ours.per_second)
                measure.baseline.append(other.per_second)
    measure.note(f"{FLIGHTS} flights, {READERS:,} passengers' tokens, {len(seat_map):,} bytes a map")
    return [measure]


async def reads_through_gateway(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P4: the map as JSON through the gateway ÷ GetSeatMap from the service.

    Also measures the gateway with rate limits ÷ without them.
    """
    measure = Measure("P4", "JSON map through the gateway ÷ GetSeatMap direct", "maps/s", bar=0.3, goal=0.6)
    limits = Measure("P4 limits", "JSON map through the gateway, limits on ÷ off", "maps/s", bar=0.8, goal=0.95)
    await stack.seat.empty()
    await stack.raise_address_limits()
    flight_ids, _ = await provision(stack, stack.seat, flights=FLIGHTS)
    direct = reads_of_many(stack, flight_ids).write(stack.folder / "reads.calls")
    through = reads_of_many(stack, flight_ids, as_json=True).write(stack.folder / "json_reads.calls")
    ours_pids = {"gateway": stack.pid("gateway"), "limits": stack.pid("limits"), "seat service": stack.seat.pid}
    json_bytes, calm_p50_ms, calm_p50_ms_off = 0, [], []
    async with stack.gateway_without_limits() as unlimited:
        for turn, seconds in enumerate(plan.turns()):
            counted = (measure, limits) if turn else (None, None)
            ours = await metered(
                stack.load, counted[0], through, port=stack.gateway_port, seconds=seconds, pids=ours_pids, cycle=True
            )
            off = await metered(
                stack.load,
                counted[1],
                through,
                port=unlimited.port,
                seconds=seconds,
                pids={"gateway, limits off": unlimited.pid},
                cycle=True,
                ours=False,
            )
            other = await metered(
                stack.load,
                counted[0],
                direct,
                port=stack.seat.port,
                seconds=seconds,
                pids={"seat service, direct": stack.seat.pid},
                cycle=True,
                ours=False,
            )
            calm, calm_off = [
                await stack.load.run(
                    through, port=port, seconds=seconds / 2, cycle=True, calls_per_second=READS_PER_SECOND
                )
                for port in (stack.gateway_port, unlimited.port)
            ]
            json_bytes = ours.answer_bytes // max(ours.calls, 1)
            if turn:
                measure.ours.append(ours.per_second)
                measure.baseline.append(other.per_second)
                limits.ours.append(ours.per_second)
                limits.baseline.append(off.per_second)
                calm_p50_ms.append(calm.latency_ms["p50"])
                calm_p50_ms_off.append(calm_off.latency_ms["p50"])
    measure.note(f"{json_bytes:,} bytes of JSON a map; both sides by HTTP/2 without TLS; limits and abuse detection on")
    limits.note(
        f"at {READS_PER_SECOND} maps/s: p50 {statistics.median(calm_p50_ms):.3g} ms with limits, "
        f"{statistics.median(calm_p50_ms_off):.3g} ms without; the limits of addresses are raised, because the load "
        "comes from one"
    )
    return [measure, limits]


async def reads_without_redis(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P8: GetSeatMap P95 with Redis killed ÷ with Redis up, while holds change the maps."""
    measure = Measure("P8", "GetSeatMap P95, Redis killed ÷ Redis up", "ms", bar=5, goal=1.5, smaller_is_better=True)
    await stack.seat.empty()
    flight_ids, seat_numbers = await provision(stack, stack.seat, flights=FLIGHTS)
    calls = reads_of_many(stack, flight_ids).write(stack.folder / "reads.calls")
    # Each turn takes the next parties, because no seat can be held twice.
    wanted = random.Random(1).sample(free := parties(flight_ids, seat_numbers), len(free))
    turn_parties = -(-math.ceil(plan.seconds * HOLDS_PER_SECOND) // PARTY)

    def next_changes() -> Path:
        taken, wanted[:turn_parties] = wanted[:turn_parties], []
        return holds_by_agent(stack, taken).write(stack.folder / "changes.calls")

    for turn, seconds in enumerate(plan.turns()):
        counted = measure if turn else None
        up = await _p95_while_changing(stack, counted, calls, next_changes(), seconds, ours=False)
        changes = next_changes()
        await stack.supervisor.kill("redis")
        try:
            killed = await _p95_while_changing(stack, counted, calls, changes, seconds, ours=True)
        finally:
            await stack.supervisor.start("redis")
        # The services reconnect to Redis with a delay.
        await asyncio.sleep(1)
        if counted:
            measure.ours.append(killed)
            measure.baseline.append(up)
    measure.note(
        f"{READS_PER_SECOND:,} maps and {HOLDS_PER_SECOND} holds a second on {FLIGHTS} flights; "
        "the first reads after the kill are counted"
    )
    return [measure]


async def _p95_while_changing(
    stack: BenchStack, measure: Measure | None, calls: Path, changes: Path, seconds: float, *, ours: bool
) -> float:
    side = "killed" if ours else "up"
    read, held = await asyncio.gather(
        metered(
            stack.load,
            measure,
            calls,
            port=stack.seat.port,
            seconds=seconds,
            pids={f"seat service, Redis {side}": stack.seat.pid},
            cycle=True,
            calls_per_second=READS_PER_SECOND,
            ours=ours,
        ),
        stack.load.run(changes, port=stack.seat.port, seconds=seconds, calls_per_second=HOLDS_PER_SECOND),
    )
    if measure is not None:
        measure.note(held.failures())
    return read.latency_ms["p95"]


def reads_of_many(stack: BenchStack, flight_ids: Sequence[str], *, as_json: bool = False) -> CallFile:
    """Returns seat-map reads of READERS passengers, each of a random flight."""
    choice = random.Random(1)
    calls = CallFile()
    for reader in range(READERS):
        flight_id = choice.choice(flight_ids)
        pnr = f"R{reader:05}"
        token = stack.signer.passengers(pnr, [f"{pnr}-1"], flight_id)
        if as_json:
            calls.add_get(f"/v1/flights/{flight_id}/seatmap", token=token)
        else:
            calls.add_grpc(GET_SEAT_MAP, pb.GetSeatMapRequest(flight_id=flight_id), token=token)
    return calls
