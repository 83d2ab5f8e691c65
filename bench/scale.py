"""P9: whether holds are slower in a database with many flights."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Final

from bench.flights import Party, holds_by_agent, provision
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack, SeatServer

SMALL_FLIGHTS: Final = 100
LARGE_FLIGHTS: Final = 50_000
# 180 seats on most flights and 286 on these make ten million.
WIDE_FLIGHTS: Final = 9_434
WIDE: Final = "B789-3C"
LARGE_SEATS: Final = 10_000_000
# The number of seats of the small side.
HOLDS_PER_TURN: Final = 18_000

Place = tuple[str, str]
"""Flight and seat number."""


async def many_flights(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P9: holds/s with 10,000,000 seats ÷ with 18,000, in two databases of one Postgres."""
    measure = Measure(
        "P9", f"HoldSeat with {LARGE_SEATS:,} seats ÷ with {HOLDS_PER_TURN:,}", "holds/s", bar=0.8, goal=0.95
    )
    async with stack.second_seat_server("large") as large:
        began = time.monotonic()
        seats, places = await _fill(stack, large, sample=(plan.rounds + 1) * HOLDS_PER_TURN)
        measure.note(
            f"{seats:,} seats on {LARGE_FLIGHTS:,} flights, made in {time.monotonic() - began:.0f} s; "
            "the small side gets new flights for each round"
        )
        for turn, seconds in enumerate(plan.turns()):
            counted = measure if turn else None
            chosen = places[turn * HOLDS_PER_TURN : (turn + 1) * HOLDS_PER_TURN]
            ours = await _hold(stack, large, counted, chosen, seconds=seconds)
            await stack.seat.forget_flights()
            flight_ids, seat_numbers = await provision(stack, stack.seat, flights=SMALL_FLIGHTS)
            few = [(flight_id, seat_number) for flight_id in flight_ids for seat_number in seat_numbers]
            other = await _hold(stack, stack.seat, counted, few, seconds=seconds)
            if counted:
                measure.ours.append(ours)
                measure.baseline.append(other)
    return [measure]


async def _hold(
    stack: BenchStack, server: SeatServer, measure: Measure | None, places: Sequence[Place], *, seconds: float
) -> float:
    """Holds each place in a call of its own, for another passenger; returns holds/s."""
    side = "small" if server == stack.seat else "large"
    wanted = [Party(f"P{n:05}", flight_id, (seat_number,)) for n, (flight_id, seat_number) in enumerate(places)]
    calls = holds_by_agent(stack, wanted).write(stack.folder / "holds.calls")
    result = await metered(
        stack.load,
        measure,
        calls,
        port=server.port,
        seconds=seconds,
        pids={f"seat service, {side}": server.pid, f"Postgres, {side}": stack.pid("postgres")},
        ours=side == "large",
    )
    return result.per_second


async def _fill(stack: BenchStack, server: SeatServer, sample: int) -> tuple[int, list[Place]]:
    """Provisions the flights; returns the number of seats and a random sample of them."""
    narrow, narrow_numbers = await provision(stack, server, flights=LARGE_FLIGHTS - WIDE_FLIGHTS)
    wide, wide_numbers = await provision(stack, server, flights=WIDE_FLIGHTS, layout_id=WIDE)
    narrow_seats = len(narrow) * len(narrow_numbers)
    seats = narrow_seats + len(wide) * len(wide_numbers)

    def place(n: int) -> Place:
        if n < narrow_seats:
            return narrow[n // len(narrow_numbers)], narrow_numbers[n % len(narrow_numbers)]
        n -= narrow_seats
        return wide[n // len(wide_numbers)], wide_numbers[n % len(wide_numbers)]

    return seats, [place(n) for n in random.Random(1).sample(range(seats), sample)]
