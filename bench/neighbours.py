"""P15: the latency of other callers while one principal overloads the gateway."""

from __future__ import annotations

import asyncio
from typing import Final

from bench.flights import provision
from bench.load import CallFile, LoadResult
from bench.maps import FLIGHTS, reads_of_many
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack

# The constant rate of the other callers, and the rate of the one that overloads the gateway.
READS_PER_SECOND: Final = 200
STORM_PER_SECOND: Final = 1_000


async def neighbours(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P15: the P95 of the others during one customer's 1,000 calls/s ÷ without these.

    The gateway refuses nearly all calls of that customer.
    """
    measure = Measure("P15", "JSON map P95 beside a storm ÷ without", "ms", bar=1.5, goal=1.1, smaller_is_better=True)
    await stack.seat.empty()
    await stack.raise_address_limits()
    flight_ids, _ = await provision(stack, stack.seat, flights=FLIGHTS)
    reads = reads_of_many(stack, flight_ids, as_json=True).write(stack.folder / "json_reads.calls")
    storm = CallFile()
    storm.add_get(f"/v1/flights/{flight_ids[0]}/seatmap", token=stack.signer.customer("storm"))
    storm_calls = storm.write(stack.folder / "storm.calls")
    sent = refused = 0

    async def read(counted: Measure | None, seconds: float) -> LoadResult:
        return await metered(
            stack.load,
            counted,
            reads,
            port=stack.gateway_port,
            seconds=seconds,
            pids={},
            cycle=True,
            calls_per_second=READS_PER_SECOND,
        )

    for turn, seconds in enumerate(plan.turns()):
        quiet = await read(None, seconds)
        beside, stormed = await asyncio.gather(
            read(measure if turn else None, seconds),
            stack.load.run(
                storm_calls, port=stack.gateway_port, seconds=seconds, cycle=True, calls_per_second=STORM_PER_SECOND
            ),
        )
        if turn:
            measure.ours.append(beside.latency_ms["p95"])
            measure.baseline.append(quiet.latency_ms["p95"])
            sent, refused = sent + stormed.calls, refused + stormed.calls - stormed.ok
    measure.note(
        f"{READS_PER_SECOND} maps/s of many passengers; beside them one customer's {STORM_PER_SECOND:,} calls/s, "
        f"{refused:,} of {sent:,} refused"
    )
    return [measure]
