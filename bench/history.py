"""P18: whether the past holds of an owner make its next HoldSeat slower."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from bench.flights import PARTY, Party, holds_by, provision
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack

PAST_HOLDS: Final = 100_000
LIVE_HOLDS: Final = 5_000
OLD: Final = "old"
# More than the service does on two cores. So many holds need many flights, because a customer may hold only nine seats
# of a flight.
MOST_HOLDS_PER_SECOND: Final = 4_000

# Writes the rows that calls would have left: half of the past holds expired, half were cancelled, all more than a day
# ago. The live holds are on other flights.
FILL: Final = f"""
WITH hold AS (
    INSERT INTO holds (hold_id, owner, purpose, state, ttl, extensions_left, create_time, expire_time, end_time)
    SELECT gen_random_uuid(), $1, 'BOOKING'::hold_purpose, (ARRAY['EXPIRED', 'CANCELLED'])[1 + n % 2]::hold_state,
           interval '15 min', 9, at, at + interval '15 min', at + interval '16 min'
    FROM generate_series(1, {PAST_HOLDS}) AS n
    CROSS JOIN LATERAL (SELECT now() - interval '1 day' - n * interval '1 s' AS at) AS past
    UNION ALL
    SELECT gen_random_uuid(), $1, 'BOOKING', 'HELD', interval '6 hours', 9, now(), now() + interval '6 hours', NULL
    FROM generate_series(1, {LIVE_HOLDS})
    RETURNING hold_id, owner, state
), numbered AS (
    SELECT hold_id, owner, state, row_number() OVER (PARTITION BY state) AS n FROM hold
)
INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, owner, state)
SELECT hold_id, 'PAST' || n % 1000 || '-' || state, n || 'A', $1 || ' ' || n, owner,
       CASE state WHEN 'HELD' THEN 'HELD' ELSE 'RELEASED' END
FROM numbered
"""


async def owner_with_a_past(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P18: HoldSeat by an owner with past and live holds ÷ by an owner with none."""
    title = f"HoldSeat by {{}} with {PAST_HOLDS:,} past and {LIVE_HOLDS:,} live holds ÷ by one with none"
    kinds: dict[str, Callable[[str], str]] = {"customer": stack.signer.customer, "agent": stack.signer.agent}
    measures = {
        "customer": Measure("P18", title.format("a customer"), "holds/s", bar=0.9, goal=1),
        "agent": Measure("P18 agent", title.format("an agent"), "holds/s", bar=0.9, goal=1),
    }
    await stack.seat.empty()
    async with stack.seat.connection() as connection:
        for kind in kinds:
            await connection.execute(FILL, f"{kind}:{OLD}", timeout=120)
    for turn, seconds in enumerate(plan.turns()):
        for kind, token_of in kinds.items():
            measure = measures[kind]
            flight_ids, seat_numbers = await provision(
                stack, stack.seat, flights=2 * math.ceil(seconds * MOST_HOLDS_PER_SECOND / PARTY)
            )
            pids = {"seat service": stack.seat.pid, "Postgres": stack.pid("postgres")}
            rates: dict[str, float] = {}
            new = f"new{turn}"
            # The first call for a flight has to look up its layout, so each owner gets flights of its own. The owners
            # also take turns in being first.
            for name in (OLD, new) if turn % 2 else (new, OLD):
                flights = flight_ids[(name == OLD) :: 2]
                wanted = [Party(flight_id[:10], flight_id, tuple(seat_numbers[:PARTY])) for flight_id in flights]
                result = await metered(
                    stack.load,
                    measure if turn else None,
                    holds_by(token_of(name), wanted).write(stack.folder / "holds.calls"),
                    port=stack.seat.port,
                    seconds=seconds,
                    pids=pids if name == OLD else {f"{process} without a past": pid for process, pid in pids.items()},
                    ours=name == OLD,
                )
                rates[name] = result.per_second
            if turn:
                measure.ours.append(rates[OLD])
                measure.baseline.append(rates[new])
    for measure in measures.values():
        measure.note("nine seats of each of many flights; the tables are the same for both")
    return list(measures.values())
