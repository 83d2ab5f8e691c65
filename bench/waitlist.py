"""P5: the time from a seat's release to its assignment, beside a bare event.

The bare event goes through the same broker.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

import aio_pika
import asyncpg
import grpc
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2_grpc

from bench.flights import provision
from bench.plan import Plan
from bench.report import Measure
from bench.stack import BenchStack
from deploy.local.process import LOOPBACK
from services import amqp

SEATS_PER_FLIGHT: Final = 150
QUANTILES: Final = {"p50": 50, "p95": 95, "p99": 99}
PATIENCE_SECONDS: Final = 30
QUEUE: Final = "bench.p5"

# Confirms the seats, each in a hold of its own, and writes the rows that calls of HoldSeat and ConfirmHold would write.
CONFIRM_ALL: Final = """
WITH taken AS (
    UPDATE seat.seats SET state = 'CONFIRMED', hold_id = gen_random_uuid(), version = version + 2, update_time = now()
    WHERE flight_id = ANY($1) AND ordinal < $2 AND state = 'AVAILABLE'
    RETURNING flight_id, seat_number, version, hold_id
), held AS (
    INSERT INTO seat.holds
        (hold_id, owner, purpose, state, ttl, extensions_left, create_time, expire_time, confirm_time)
    SELECT hold_id, 'agent:bench', 'CHECK_IN', 'CONFIRMED', '1 hour', 9, now() - interval '1 s',
           now() + interval '1 hour', now()
    FROM taken
), seated AS (
    INSERT INTO seat.hold_seats (hold_id, flight_id, seat_number, passenger_id, state)
    SELECT hold_id, flight_id, seat_number, 'X' || seat_number, 'CONFIRMED' FROM taken
), ledger AS (
    INSERT INTO seat.seat_events
        (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, event_time)
    SELECT flight_id, seat_number, step.version, step.from_state::seat.seat_state, step.to_state::seat.seat_state,
           hold_id, 'agent:bench', step.to_state, now()
    FROM taken
    CROSS JOIN (VALUES (1, 'AVAILABLE', 'HELD'), (2, 'HELD', 'CONFIRMED')) AS step (version, from_state, to_state)
)
SELECT hold_id FROM taken
"""
# Adds as many waiting entries as seats, each for any seat, and writes the rows that calls of JoinWaitlist would write.
JOIN_ALL: Final = """
WITH opened AS (
    INSERT INTO waitlist.flights (flight_id, last_number, open, revision, told_revision)
    SELECT flight_id, $2, true, 1, 1 FROM unnest($1::text[]) AS flight_id
    RETURNING flight_id
), known AS (
    INSERT INTO waitlist.seats (flight_id, seat_number, ordinal, cabin, position)
    SELECT flight_id, seat_number, ordinal, 'ECONOMY', 'AISLE' FROM seat.seats WHERE flight_id = ANY($1)
), joined AS (
    INSERT INTO waitlist.entries
        (entry_id, flight_id, number, passenger_id, owner, type, cabin, special_services, positions, seat_numbers,
         contact_email, contact_name)
    SELECT gen_random_uuid(), flight_id, n, 'W' || n, 'passenger:BENCHX', 'ADULT', 'ECONOMY', '{}', '{}', '{}', '',
           'Ada'
    FROM opened CROSS JOIN generate_series(1, $2) AS n
    RETURNING entry_id
), checked AS (
    INSERT INTO checkin.flights
        (flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date, opens_before,
         closes_before, boarding_before, gate)
    SELECT flight_id, 'SH1', 'FRA', 'LIS', now() + interval '1 day', now() + interval '26 h', current_date,
           interval '24 h', interval '1 h', interval '40 min', ''
    FROM opened
), listed AS (
    INSERT INTO checkin.passengers
        (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare, special_services,
         contact_email)
    SELECT flight_id, 'W' || n, 'BENCHX', '', 'Ada', 'Byron', 'ADULT', 'ECONOMY', 'STANDARD', '{}', ''
    FROM opened CROSS JOIN generate_series(1, $2) AS n
), recorded AS (
    INSERT INTO waitlist.entry_events (entry_id, version, to_state, actor, reason)
    SELECT entry_id, 1, 'WAITING', 'bench', 'JOINED' FROM joined
)
UPDATE seat.flights SET waitlist_open = true, waitlist_revision = 1, offer_window = '1 minute' WHERE flight_id = ANY($1)
"""
# The time from the transaction that released the seat to the one that assigned it, both by the database's clock.
LAGS: Final = """
SELECT extract(epoch FROM entries.end_time - freed.event_time)::float8 * 1000 AS milliseconds
FROM waitlist.entries
JOIN LATERAL (
    SELECT event_time FROM seat.seat_events
    WHERE seat_events.flight_id = entries.flight_id AND seat_events.seat_number = entries.seat_number
      AND to_state = 'OFFERED'
    ORDER BY version DESC LIMIT 1
) AS freed ON true
WHERE entries.flight_id = ANY($1) AND entries.state = 'ASSIGNED'
"""


async def release_to_assigned(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P5: the p99 from a seat's release to its assignment, at 200 and at 50 releases/s."""
    measures = []
    for rate, name in ((200, "P5"), (50, "P5 (50/s)")):
        measure = Measure(
            name, f"release → waitlist assigned, p99 at {rate}/s", "ms", 1000, 150, smaller_is_better=True
        )
        ours, bare = [], []
        for turn, seconds in enumerate(plan.turns()):
            baseline = await _bare_events(stack, rate=rate, seconds=seconds)
            lags = await _assignments(stack, rate=rate, seconds=seconds, measure=measure)
            # The first turn warms up.
            if turn:
                ours.append(_quantiles(lags))
                bare.append(_quantiles(baseline))
                measure.ours.append(ours[-1]["p99"])
        measure.note(f"ours: {_medians(ours)}; a bare event, published with confirms and consumed: {_medians(bare)}")
        measures.append(measure)
    return measures


async def _assignments(stack: BenchStack, *, rate: int, seconds: float, measure: Measure) -> list[float]:
    total = int(rate * seconds)
    flights, _ = await provision(stack, stack.seat, flights=-(-total // SEATS_PER_FLIGHT))
    connection = await stack.superuser("skyhigh")
    try:
        rows = await connection.fetch(CONFIRM_ALL, flights, SEATS_PER_FLIGHT)
        await connection.execute(JOIN_ALL, flights, SEATS_PER_FLIGHT)
        await connection.execute("ANALYZE seat.seats, seat.holds, seat.hold_seats, waitlist.entries, waitlist.seats")
        await _cancel_holds(stack, [str(row["hold_id"]) for row in rows][:total], rate=rate)
        lags = await _all_assigned(connection, flights, total)
        if len(lags) < total:
            measure.note(f"of {total} seats {len(lags)} were assigned within {PATIENCE_SECONDS} s")
        await connection.execute("UPDATE waitlist.entries SET state = 'LEFT', end_time = now() WHERE state = 'WAITING'")
    finally:
        await connection.close()
    return lags


async def _cancel_holds(stack: BenchStack, hold_ids: Sequence[str], *, rate: int) -> None:
    metadata = [("authorization", f"Bearer {stack.signer.agent('bench')}")]
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.seat.port}") as channel:
        seats: seat_service_pb2_grpc.SeatServiceStub = seat_service_pb2_grpc.SeatServiceStub(channel)

        async def cancel(hold_id: str) -> None:
            await seats.CancelHold(pb.CancelHoldRequest(hold_id=hold_id), metadata=metadata, timeout=10)

        await _paced((cancel(hold_id) for hold_id in hold_ids), rate=rate)


async def _all_assigned(connection: asyncpg.Connection, flights: Sequence[str], total: int) -> list[float]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        rows = await connection.fetch(LAGS, list(flights))
        if len(rows) >= total or time.monotonic() > deadline:
            return [row["milliseconds"] for row in rows]
        await asyncio.sleep(0.3)


async def _bare_events(stack: BenchStack, *, rate: int, seconds: float) -> list[float]:
    """Returns the lags of bare events in milliseconds, which the broker alone causes.

    Each is a persistent message to a quorum queue, published with confirm, consumed and acknowledged.
    """
    total = int(rate * seconds)
    lags: list[float] = []
    done = asyncio.Event()
    async with await aio_pika.connect(stack.local.servers.amqp_url()) as connection:
        consuming = await connection.channel()
        await consuming.set_qos(prefetch_count=32)
        queue = await consuming.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(amqp.EVENTS, routing_key=QUEUE)

        async def receive(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            lags.append((time.monotonic() - float(message.body)) * 1000)
            await message.ack()
            if len(lags) == total:
                done.set()

        await queue.consume(receive)
        publishing = await connection.channel(publisher_confirms=True)
        exchange = await publishing.get_exchange(amqp.EVENTS, ensure=False)

        async def publish() -> None:
            body = str(time.monotonic()).encode()
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(message, routing_key=QUEUE)

        await _paced((publish() for _ in range(total)), rate=rate)
        await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)
        await queue.delete(if_unused=False, if_empty=False)
    return lags


async def _paced(calls: Iterable[Awaitable[None]], *, rate: int) -> None:
    """Starts `rate` calls per second, without a wait for earlier ones.

    Raises the first error of a call at the end.
    """
    began = time.monotonic()
    running = []
    for n, call in zip(itertools.count(), calls, strict=False):
        await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
        running.append(asyncio.ensure_future(call))
    await asyncio.gather(*running)


def _quantiles(lags: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(lags, n=100, method="inclusive")
    return {name: cuts[percent - 1] for name, percent in QUANTILES.items()}


def _medians(rounds: Sequence[dict[str, float]]) -> str:
    return ", ".join(f"{name} {statistics.median(each[name] for each in rounds):.1f} ms" for name in QUANTILES)
