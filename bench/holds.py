"""P1 and P2: how many seats per second can be held."""

from __future__ import annotations

import math
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from bench.flights import (
    HOLD_SEAT,
    PARTY,
    Party,
    answer_bytes,
    holds_by_agent,
    holds_by_passengers,
    list_passengers,
    parties,
    party_holds_by_agent,
    provision,
)
from bench.pgbench import Pgbench
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack

SEATS: Final = 180
# More than the service does on two cores. A turn gets flights for so many seats, and ends early if no seat is left.
MOST_HOLDS_PER_SECOND: Final = 8_000
MOST_SEATS_PER_SECOND: Final = 25_000


async def unary_holds(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P1: HoldSeat by many passengers' sessions, and by one agent ÷ a bare echo server."""
    by_passengers = Measure("P1", "HoldSeat by passengers ÷ bare echo", "holds/s", bar=0.35, goal=0.6)
    by_agent = Measure("P1 agent", "HoldSeat by one agent ÷ bare echo", "holds/s", bar=0.35, goal=0.6)
    await stack.seat.empty()
    async with stack.echo_server(hold=await _a_hold(stack)) as echo:
        for turn, seconds in enumerate(plan.turns()):
            for measure, calls_of in ((by_passengers, holds_by_passengers), (by_agent, holds_by_agent)):
                counted = measure if turn else None
                wanted = await _free_seats(stack, seconds, MOST_HOLDS_PER_SECOND)
                calls = calls_of(stack, wanted).write(stack.folder / "holds.calls")
                pids = {"seat service": stack.seat.pid, "Postgres": stack.pid("postgres")}
                ours = await metered(stack.load, counted, calls, port=stack.seat.port, seconds=seconds, pids=pids)
                other = await metered(
                    stack.load, counted, calls, port=echo.port, seconds=seconds, pids={"echo": echo.pid}, ours=False
                )
                if counted:
                    measure.ours.append(ours.per_second)
                    measure.baseline.append(other.per_second)
    by_passengers.note(f"{PARTY} calls by each principal, whose token is new to the service")
    by_agent.note("one token")
    return [by_passengers, by_agent]


async def many_seats_per_call(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P2: HoldSeats with nine seats per call ÷ pgbench with one hold per transaction.

    pgbench writes the same rows for each hold.
    """
    measure = Measure("P2", "HoldSeats with 9 seats ÷ pgbench, one hold per transaction", "seats/s", bar=1, goal=2)
    await stack.seat.empty()
    pgbench = await Pgbench.prepare(stack, turns=plan.rounds + 1, seconds=plan.seconds)
    for turn, seconds in enumerate(plan.turns()):
        counted = measure if turn else None
        wanted = await _free_seats(stack, seconds, MOST_SEATS_PER_SECOND)
        calls = party_holds_by_agent(stack, wanted).write(stack.folder / "holds.calls")
        pids = {"seat service": stack.seat.pid, "Postgres": stack.pid("postgres")}
        ours = await metered(stack.load, counted, calls, port=stack.seat.port, seconds=seconds, pids=pids)
        other = await pgbench.holds_per_second(seconds)
        if counted:
            measure.ours.append(ours.per_second * PARTY)
            measure.baseline.append(other)
    measure.note("pgbench: 8 clients, prepared, one statement of five writes; CPU is per call of nine seats")
    return [measure]


async def _free_seats(stack: BenchStack, seconds: float, per_second: int) -> list[Party]:
    flights = math.ceil(seconds * per_second / SEATS)
    wanted = parties(*await provision(stack, stack.seat, flights=flights))
    await list_passengers(stack.seat, wanted)
    return wanted


async def _a_hold(stack: BenchStack) -> bytes:
    flight_ids, seat_numbers = await provision(stack, stack.seat, flights=1)
    request = pb.HoldSeatRequest(flight_id=flight_ids[0], seat_number=seat_numbers[0], passenger_id="P1")
    return await answer_bytes(stack.seat, HOLD_SEAT, request.SerializeToString(), stack.signer.agent("bench"))
