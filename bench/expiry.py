"""P6: how late seats are released if 100,000 holds lapse within one second."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Final

import asyncpg

from bench.flights import provision
from bench.plan import Plan
from bench.processes import cpu_seconds
from bench.report import Measure
from bench.stack import BenchStack

FLIGHTS: Final = 1_000
HOLDS_PER_FLIGHT: Final = 100
# The holds lapse this long after the statement has begun, because all rows must be written before.
LEAD_SECONDS: Final = 20
PATIENCE_SECONDS: Final = 180
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "last": 1.0}

# Writes the rows that 100,000 calls of HoldSeat would have written.
HOLD_ALL: Final = """
WITH due AS (SELECT now() + make_interval(secs => $2) AS start), taken AS (
    UPDATE seats SET state = 'HELD', hold_id = gen_random_uuid(), version = version + 1, update_time = now()
    WHERE flight_id = ANY($1) AND ordinal < $3 AND state = 'AVAILABLE'
    RETURNING flight_id, seat_number, version, hold_id
), held AS (
    INSERT INTO holds (hold_id, owner, purpose, ttl, extensions_left, create_time, expire_time)
    SELECT hold_id, 'passenger:' || flight_id || seat_number, 'CHECK_IN', make_interval(secs => $2), 9, now(),
           start + make_interval(secs => random())
    FROM taken CROSS JOIN due
), seated AS (
    INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, owner)
    SELECT hold_id, flight_id, seat_number, 'P' || seat_number, 'passenger:' || flight_id || seat_number FROM taken
)
INSERT INTO seat_events
    (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, event_time)
SELECT flight_id, seat_number, version, 'AVAILABLE', 'HELD', hold_id, 'passenger:' || flight_id || seat_number, 'HELD',
       now()
FROM taken
"""

# The ledger has the id of the event of each release; the outbox has the time at which the broker confirmed the event.
LAGS: Final = """
SELECT count(*) AS holds, count(publish_time) AS told,
       percentile_cont($1::float8[]) WITHIN GROUP (ORDER BY extract(epoch FROM end_time - expire_time)) AS freed,
       percentile_cont($1::float8[]) WITHIN GROUP (ORDER BY extract(epoch FROM publish_time - expire_time)) AS announced
FROM holds
JOIN seat_events ON seat_events.hold_id = holds.hold_id AND from_state = 'HELD'
LEFT JOIN outbox USING (event_id)
WHERE holds.state = 'EXPIRED'
"""


async def mass_expiry(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P6: the p99.9 of the time from a hold's end to the announcement of its free seat."""
    total = FLIGHTS * HOLDS_PER_FLIGHT
    measure = Measure(
        "P6", f"{total:,} holds due in one second: freed and announced after, p99.9", "s", 5, 2, smaller_is_better=True
    )
    pids = {"seat service": stack.seat.pid, "Postgres": stack.pid("postgres"), "RabbitMQ": stack.pid("rabbitmq")}
    lags: dict[str, dict[str, list[float]]] = {"freed": {}, "announced": {}}
    for _ in range(plan.rounds):
        await stack.seat.empty()
        flight_ids, _ = await provision(stack, stack.seat, flights=FLIGHTS)
        async with stack.seat.connection() as connection:
            began = time.monotonic()
            await connection.execute(HOLD_ALL, flight_ids, float(LEAD_SECONDS), HOLDS_PER_FLIGHT)
            await connection.execute("ANALYZE holds, hold_seats, seat_events")
            if time.monotonic() - began > LEAD_SECONDS:
                raise RuntimeError(f"the holds took longer than {LEAD_SECONDS} s to write")
            before = {name: cpu_seconds(pid) for name, pid in pids.items()}
            await _until_announced(connection)
            for name, pid in pids.items():
                measure.cpu_us.setdefault(name, []).append((cpu_seconds(pid) - before[name]) * 1e6 / total)
            row = await connection.fetchrow(LAGS, list(QUANTILES.values()))
        assert row is not None
        if row["holds"] != total or row["told"] != total:
            measure.note(f"of {total:,} holds {row['holds']:,} lapsed and {row['told']:,} were announced")
        measure.ours.append(row["announced"][list(QUANTILES).index("p99.9")])
        for what, seen in lags.items():
            for name, value in zip(QUANTILES, row[what], strict=True):
                seen.setdefault(name, []).append(value)
    for what, by_quantile in lags.items():
        medians = (f"{name} {statistics.median(values):.2f} s" for name, values in by_quantile.items())
        measure.note(f"{what} after: {', '.join(medians)}")
    measure.note("CPU is per hold; nothing else was asked of the stack meanwhile")
    return [measure]


async def _until_announced(connection: asyncpg.Connection) -> None:
    deadline = time.monotonic() + LEAD_SECONDS + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        # A long pause, because these queries take CPU of the measured machine.
        await asyncio.sleep(1)
        standing = await connection.fetchval("SELECT EXISTS (SELECT FROM holds WHERE state = 'HELD')")
        if not standing and not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM outbox WHERE publish_time IS NULL)"
        ):
            return
    raise RuntimeError(f"not all holds lapsed and were announced within {PATIENCE_SECONDS} s")
