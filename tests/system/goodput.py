"""`python -m tests.system.goodput`: how much work is done while a part fails, and how fast the product recovers.

Clients read a map, hold a seat and cancel the hold, in turn, through the gateway. They retry a call without a response
with its key, as docs/restarts.md says. A turn is good if it ends within GOOD_SECONDS after its due time. Goodput with
and without a fault is measured alternately on one stack, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import grpc
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from deploy.local import environment
from tests.callers import Caller
from tests.dates import new_flight_id
from tests.system.faults.act import BackendsKilled, Fault, Killed, Stopped, WorkerKilled, acting
from tests.system.faults.probe import NotServing, probing
from tests.system.faults.stack import REPOSITORY, SHORT_TTLS, RunningStack, StackError, running
from tests.waiting import PATIENCE_SECONDS, eventually, pause

GOOD_SECONDS: Final = 2.0
CALL_SECONDS: Final = 1.0
FIRST_REPEAT_SECONDS: Final = 0.05
LONGEST_REPEAT_SECONDS: Final = 0.5
REPEATED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
CLIENTS: Final = 8
SEATS: Final = [f"{row}{letter}" for row in range(1, 31) for letter in "ABCDEF"]
SETTLE_SECONDS: Final = 3.0
OUTAGE_SECONDS: Final = 60.0
POSTGRES_CRASHES: Final = 3
WORKER_KILLS: Final = 12
KILL_PAUSE_SECONDS: Final = 5.0


@dataclass(slots=True)
class Recovery:
    """A moment after which the first response to each client is awaited."""

    began: float
    answered: dict[int, float] = field(default_factory=dict)
    """By client: the time of the first response to a call that began after the moment."""


@dataclass(slots=True)
class Load:
    """Clients of one stack, each with a flight of its own."""

    stack: RunningStack
    per_second: float
    """Turns per second of all clients together; 0 for as many as possible."""
    ended: list[tuple[float, float]] = field(default_factory=list)
    """The due time and the end of each completed turn."""
    recoveries: list[Recovery] = field(default_factory=list)
    """The recoveries that are being measured."""
    repeated: Counter[str] = field(default_factory=Counter)
    """The number of retries by their cause."""
    unexpected: list[str] = field(default_factory=list)
    """Refusals that a client of this load must not get."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the clients within the block."""
        address = self.stack.addresses["SKYHIGH_GATEWAY_URL"].rpartition("/")[2]
        # A client that fails ends the block.
        async with AsyncExitStack() as channels, asyncio.TaskGroup() as group:
            clients = []
            for number in range(CLIENTS):
                channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
                await channels.enter_async_context(channel)
                flight_id = await self._new_flight()
                agent = Caller(SeatServiceStub(channel), f"desk {number}", self.stack.token("agent", f"desk-{number}"))
                clients.append(group.create_task(self._client(number, agent, flight_id)))
            try:
                yield
            finally:
                for client in clients:
                    client.cancel()

    async def _new_flight(self) -> str:
        flight_id = new_flight_id("GP")
        async with grpc.aio.insecure_channel(self.stack.environment["SKYHIGH_SEAT_ADDRESS"]) as channel:
            operations = Caller(SeatServiceStub(channel), "ops", self.stack.token("operations", "ops"))
            await operations.provision(flight_id)
        return flight_id

    async def _client(self, number: int, agent: Caller, flight_id: str) -> None:
        seats = itertools.cycle(SEATS)
        due = time.monotonic() + secrets.randbelow(1000) / 1000 / max(self.per_second, 1)
        while True:
            if self.per_second:
                # A late client does not catch up: the turns that it missed are missing from the goodput.
                due = max(due + CLIENTS / self.per_second, time.monotonic())
                await pause(max(0.0, due - time.monotonic()))
            else:
                due = time.monotonic()
            await self._turn(number, agent, flight_id, next(seats))
            self.ended.append((due, time.monotonic()))

    async def _turn(self, number: int, agent: Caller, flight_id: str, seat: str) -> None:
        await self._patiently(
            number, lambda: agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight_id), timeout=CALL_SECONDS)
        )
        request = pb.HoldSeatRequest(
            flight_id=flight_id,
            seat_number=seat,
            passenger_id=f"P-{secrets.token_hex(4)}",
            request_id=str(uuid4()),
        )
        hold = await self._patiently(number, lambda: agent.HoldSeat(request, timeout=CALL_SECONDS))
        if hold is not None:
            await self._patiently(
                number, lambda: agent.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id), timeout=CALL_SECONDS)
            )

    async def _patiently(self, number: int, call: Callable[[], Awaitable[Any]]) -> Any:
        """Returns the response, after retries if necessary.

        Returns None for a refusal, which is recorded.
        """
        wait_seconds = FIRST_REPEAT_SECONDS
        while True:
            began = time.monotonic()
            try:
                answer = await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in REPEATED:
                    self.unexpected.append(f"{error.code().name} {error.details()}")
                    return None
                self.repeated[f"{error.code().name} {error.details()}"[:120]] += 1
                await pause(wait_seconds)
                wait_seconds = min(2 * wait_seconds, LONGEST_REPEAT_SECONDS)
            else:
                self._note(number, began)
                return answer

    def _note(self, number: int, began: float) -> None:
        now = time.monotonic()
        for recovery in self.recoveries:
            if began >= recovery.began:
                recovery.answered.setdefault(number, now)

    def refusals(self) -> str:
        """Returns the unexpected refusals with their counts."""
        counted = Counter(self.unexpected)
        return "; ".join(f"{count} times {refusal}" for refusal, count in counted.items()) or "no refusal"

    async def good_per_second(self, seconds: float) -> float:
        """Returns the good turns per second among those that were due within the next seconds."""
        began = time.monotonic()
        await pause(seconds + GOOD_SECONDS)
        good = sum(began <= due < began + seconds and end - due <= GOOD_SECONDS for due, end in self.ended)
        return good / seconds

    async def seconds_to_answers(self, begin: Callable[[], Awaitable[None]]) -> list[float]:
        """Starts something.

        Returns for each client the seconds until the first response to a later call.
        """
        await begin()
        recovery = Recovery(time.monotonic())
        self.recoveries.append(recovery)

        async def all_answered() -> bool:
            return len(recovery.answered) == CLIENTS

        await eventually(all_answered, within_seconds=PATIENCE_SECONDS)
        self.recoveries.remove(recovery)
        return [answered - recovery.began for answered in recovery.answered.values()]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure and its limit."""

    name: str
    value: float
    unit: str
    bar: float
    at_least: bool
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure meets its limit."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "" if self.reached else "  BELOW THE BAR" if self.at_least else "  ABOVE THE BAR"
        return f"{self.name:52} {self.value:8.2f} {self.unit:3} {sign} {self.bar:g}{verdict}  {self.note}"


FAULTS: Final[Sequence[tuple[str, float, Callable[[], Fault]]]] = (
    ("goodput with Redis down ÷ without", 0.7, lambda: Stopped("redis")),
    ("goodput with RabbitMQ down ÷ without", 0.95, lambda: Stopped("rabbitmq")),
    (
        "goodput with one of two seat workers killed every 5 s",
        0.9,
        lambda: WorkerKilled("seat", secrets.randbits(32), every_seconds=5),
    ),
    ("goodput with database sessions ended every second", 0.8, lambda: BackendsKilled(every_seconds=1)),
)


async def goodput(load: Load, rounds: int, seconds: float) -> list[Figure]:
    """Measures goodput with each fault divided by goodput without it, alternately."""
    figures = []
    for name, bar, make in FAULTS:
        calm, faulty = [], []
        for _ in range(rounds):
            calm.append(await load.good_per_second(seconds))
            async with acting(make(), load.stack):
                faulty.append(await load.good_per_second(seconds))
            await _settled(load.stack)
        if not sum(calm):
            raise StackError(
                f"no turn was good without a fault: {len(load.ended)} ended, {load.refusals()}; "
                f"repeated {load.repeated.most_common(3)}"
            )
        ratio = sum(faulty) / sum(calm)
        note = f"{statistics.fmean(faulty):.1f} and {statistics.fmean(calm):.1f} good turns/s"
        figures.append(Figure(name, ratio, "", bar, at_least=True, note=note))
        _say(str(figures[-1]))
    return figures


async def worker_recovery(load: Load) -> Figure:
    """Measures the time from a worker's death to the first response to each client."""
    seconds: list[float] = []

    async def kill() -> None:
        workers = sorted(load.stack.workers("seat"))
        load.stack.send([secrets.choice(workers)], signal.SIGKILL)

    async def has_two() -> bool:
        return len(load.stack.workers("seat")) == 2

    for _ in range(WORKER_KILLS):
        await eventually(has_two)
        seconds += await load.seconds_to_answers(kill)
        await pause(KILL_PAUSE_SECONDS)
    seconds.sort()
    p99 = seconds[math.ceil(0.99 * len(seconds)) - 1]
    note = f"p50 {statistics.median(seconds) * 1000:.0f} ms, most {seconds[-1] * 1000:.0f} ms of {len(seconds)}"
    return Figure("seat worker killed → first good answer, p99", p99 * 1000, "ms", 500, at_least=False, note=note)


async def postgres_recovery(load: Load) -> Figure:
    """Measures the time from a crash of Postgres to the first response to each client's change."""
    most = []
    for _ in range(POSTGRES_CRASHES):

        async def crash() -> None:
            await Killed("postgres").begin(load.stack)

        most.append(max(await load.seconds_to_answers(crash)))
        await _settled(load.stack)
    note = f"the slowest client of each of {POSTGRES_CRASHES}: {', '.join(f'{each:.1f} s' for each in most)}"
    return Figure("Postgres killed → all clients answered", max(most), "s", 5, at_least=False, note=note)


async def outbox_drain(load: Load) -> Figure:
    """Measures how fast the events of an outage of RabbitMQ are published.

    This happens after the outage, while more events are written.
    """
    connection = await asyncpg.connect(load.stack.superuser_database_url)
    try:
        began = await connection.fetchval("SELECT clock_timestamp()")
        async with acting(Stopped("rabbitmq"), load.stack):
            await pause(OUTAGE_SECONDS)
        ended = await connection.fetchval("SELECT clock_timestamp()")

        async def is_published() -> bool:
            waiting = "SELECT count(*) FROM seat.outbox WHERE publish_time IS NULL AND create_time < $1"
            return not await connection.fetchval(waiting, ended)

        await eventually(is_published, within_seconds=2 * PATIENCE_SECONDS)
        row = await connection.fetchrow(
            """
            SELECT count(*) AS waited, extract(epoch FROM max(publish_time) - min(publish_time))::float8 AS seconds
            FROM seat.outbox WHERE create_time BETWEEN $1 AND $2 AND publish_time > $1
            """,
            began,
            ended,
        )
    finally:
        await connection.close()
    assert row is not None
    arrival = row["waited"] / (ended - began).total_seconds()
    drained = row["waited"] / max(row["seconds"], 0.001)
    note = f"{row['waited']} events in {row['seconds']:.1f} s; {arrival:.1f}/s arrived"
    name = f"outbox after {OUTAGE_SECONDS:g} s without RabbitMQ: drain ÷ arrival"
    return Figure(name, drained / arrival, "", 5, at_least=True, note=note)


async def _settled(stack: RunningStack) -> None:
    """Waits until the stack serves, and a little longer.

    Then the next measurement starts in normal operation.
    """
    async with probing(stack) as probe:
        await probe.seconds_to_serve(patience_seconds=PATIENCE_SECONDS)
    await pause(SETTLE_SECONDS)


MEASURES: Final = ("goodput", "worker", "postgres", "outbox")


def main() -> int:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.goodput", description=__doc__.partition("\n")[2])
    parser.add_argument("--rate", type=float, default=80, help="turns a second; 0 for as many as the clients can do")
    parser.add_argument("--rounds", type=int, default=3, help="turns of without and with each fault")
    parser.add_argument("--seconds", type=float, default=15, help="of each turn")
    parser.add_argument("--only", choices=MEASURES, action="append", help="one measure; repeatable")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="whose code runs; needs its .venv")
    arguments = parser.parse_args()
    environment.clean()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(_main(arguments))
    except (StackError, NotServing) as error:
        _say(f"goodput: {error}")
        return 1


async def _main(arguments: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="skyhigh-goodput-", dir="/var/tmp"))
    # No hold lapses while its client waits for a response.
    settings = {**SHORT_TTLS, "SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS": "600"}
    chosen = arguments.only or MEASURES
    figures: list[Figure] = []
    async with running(folder, 1, settings=settings, checkout=arguments.checkout, wired=False) as stack:
        load = Load(stack, arguments.rate)
        async with load.running():
            await _settled(stack)
            if "goodput" in chosen:
                figures += await goodput(load, arguments.rounds, arguments.seconds)
            for name, measure in (
                ("worker", worker_recovery),
                ("postgres", postgres_recovery),
                ("outbox", outbox_drain),
            ):
                if name in chosen:
                    figures.append(await measure(load))
                    _say(str(figures[-1]))
                    await _settled(stack)
        _say(f"{len(load.ended)} turns; {load.repeated.total()} calls repeated; unexpected: {load.refusals()}")
    return 0 if all(figure.reached for figure in figures) and not load.unexpected else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
