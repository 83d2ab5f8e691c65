"""P11 and P12: the rate and latency of searches.

They are measured with routes in the cache, with routes to compute, and without Redis.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from bench.load import CallFile, LoadResult
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack
from deploy.local.process import LOOPBACK

SEARCH_FLIGHTS: Final = "/skyhigh.flight.v1.FlightService/SearchFlights"
# So few searches that every process soon has their routes in its cache.
KNOWN: Final = 400
# More than the service does on two cores. A turn with unknown routes sends no search twice; it ends early if none is
# left.
MOST_SEARCHES_PER_SECOND: Final = 1_500
# P12 measures latency and not throughput, so this is a part of the rate that the service can serve.
SEARCHES_PER_SECOND: Final = 150
ASKED_AT_ONCE: Final = 32
ROLLED_SECONDS: Final = 120
# Long enough for a call to reach each process.
TIMETABLE_SECONDS: Final = 0.4
# Longer than the pause after which the service tries Redis again.
REDIS_BACK_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Schedule:
    """The part of the schedule that is searched."""

    days: Sequence[str]
    """Days with all their flights in the schedule, tomorrow first."""
    flight_ids: Sequence[str]
    """The flights of these days."""
    airports: Sequence[str]

    def questions(self) -> list[pb.SearchFlightsRequest]:
        """Returns a search for each pair of airports and each day, in a fixed random order."""
        found = [
            pb.SearchFlightsRequest(source=source, destination=destination, date=day)
            for day in self.days
            for source in self.airports
            for destination in self.airports
            if source != destination
        ]
        random.Random(1).shuffle(found)
        return found


@dataclass(frozen=True, slots=True)
class Questions:
    """Different searches, each of which finds an itinerary, as files of calls."""

    known: Path
    """A few of the searches, to be sent repeatedly."""
    every: Path
    """All of the searches, to be sent once each."""
    another: Path
    """A search that is not among them."""
    answer: bytes
    """The response whose size is closest to the mean."""
    remark: str


async def schedule(stack: BenchStack) -> Schedule:
    """Waits until the flight service has rolled its schedule; returns two days of it."""
    days = [(datetime.now(UTC) + timedelta(days=n)).date().isoformat() for n in (1, 2)]
    await _rolled(stack)
    flights: list[pb.Flight] = []
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports['flight']}") as channel:
        service: FlightServiceStub = FlightServiceStub(channel)
        for day in days:
            request = pb.ListFlightsRequest(date=day, page_size=100)
            while True:
                page = await service.ListFlights(request)
                flights += page.flights
                request.page_token = page.next_page_token
                if not request.page_token:
                    break
    airports = {airport for flight in flights for airport in (flight.origin, flight.destination)}
    return Schedule(days, [flight.flight_id for flight in flights], sorted(airports))


async def answers(
    stack: BenchStack, questions: Sequence[pb.SearchFlightsRequest]
) -> list[tuple[pb.SearchFlightsRequest, pb.SearchFlightsResponse]]:
    """Sends the searches, some at a time; returns those that find an itinerary, with it."""
    room = asyncio.Semaphore(ASKED_AT_ONCE)
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports['flight']}") as channel:
        service: FlightServiceStub = FlightServiceStub(channel)

        async def ask(question: pb.SearchFlightsRequest) -> pb.SearchFlightsResponse:
            async with room:
                return await service.SearchFlights(question, timeout=10)

        found = await asyncio.gather(*(ask(question) for question in questions))
    return [(question, answer) for question, answer in zip(questions, found, strict=True) if answer.itineraries]


async def searches(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P11: searches per second ÷ a bare echo server that returns as many bytes.

    Three measures: routes in the cache, routes to compute, and routes to compute with Redis killed.
    """
    measures = {
        "known": Measure("P11", "search, routes known ÷ bare echo of as many bytes", "searches/s", 0.1, 0.3),
        "unknown": Measure("P11 (unknown)", "search, routes unknown ÷ the same echo", "searches/s", 0.05, 0.2),
        "Redis down": Measure(
            "P11 (Redis down)", "search, routes unknown and Redis killed ÷ the same echo", "searches/s", 0.05, 0.2
        ),
    }
    questions = await _questions(stack, int(plan.seconds * MOST_SEARCHES_PER_SECOND))
    async with stack.echo_server(search=questions.answer) as echo:
        for turn, seconds in enumerate(plan.turns()):
            counted = {name: measure if turn else None for name, measure in measures.items()}
            other = await stack.load.run(questions.known, port=echo.port, seconds=seconds, cycle=True)
            found = {"known": await _search(stack, counted["known"], questions.known, seconds, cycle=True)}
            await _forget_routes(stack, questions)
            found["unknown"] = await _search(stack, counted["unknown"], questions.every, seconds)
            await _forget_routes(stack, questions)
            async with _without_redis(stack):
                found["Redis down"] = await _search(stack, counted["Redis down"], questions.every, seconds)
            for name, measure in counted.items():
                if measure:
                    measure.ours.append(found[name].per_second)
                    measure.baseline.append(other.per_second)
    for measure in measures.values():
        measure.note(questions.remark)
    return list(measures.values())


async def searches_without_redis(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P12: search P99 with Redis killed and routes unknown ÷ with routes known (FLT-3).

    Also measures the P95 with Redis up and routes unknown.
    """
    killed = Measure(
        "P12", "search P99, Redis killed, routes unknown ÷ Redis up, routes known", "ms", 5, 1.5, smaller_is_better=True
    )
    unknown = Measure("P12 (unknown)", "search P95, routes unknown", "ms", 100, 20, smaller_is_better=True)
    questions = await _questions(stack, int(plan.seconds * SEARCHES_PER_SECOND) + KNOWN)
    rate = SEARCHES_PER_SECOND
    for turn, seconds in enumerate(plan.turns()):
        counted = turn > 0
        known = await _search(stack, None, questions.known, seconds, cycle=True, rate=rate)
        await _forget_routes(stack, questions)
        new = await _search(stack, unknown if counted else None, questions.every, seconds, rate=rate)
        await _forget_routes(stack, questions)
        async with _without_redis(stack):
            away = await _search(stack, killed if counted else None, questions.every, seconds, rate=rate)
        if counted:
            killed.ours.append(away.latency_ms["p99"])
            killed.baseline.append(known.latency_ms["p99"])
            unknown.ours.append(new.latency_ms["p95"])
    killed.note(f"{rate} searches a second; the first ones after the kill are counted; {questions.remark}")
    unknown.note(f"{rate} searches a second; {questions.remark}")
    return [killed, unknown]


async def _search(
    stack: BenchStack,
    measure: Measure | None,
    calls: Path,
    seconds: float,
    *,
    cycle: bool = False,
    rate: float | None = None,
) -> LoadResult:
    return await metered(
        stack.load,
        measure,
        calls,
        port=stack.local.ports["flight"],
        seconds=seconds,
        pids={"flight service": stack.pid("flight"), "Postgres": stack.pid("postgres")},
        cycle=cycle,
        calls_per_second=rate,
    )


async def _questions(stack: BenchStack, wanted: int) -> Questions:
    """Returns `wanted` searches that find an itinerary, or fewer if there are no more."""
    rolled = await schedule(stack)
    unasked = rolled.questions()
    found: list[tuple[pb.SearchFlightsRequest, pb.SearchFlightsResponse]] = []
    while unasked and len(found) <= wanted:
        found += await answers(stack, unasked[:wanted])
        unasked = unasked[wanted:]
    (another, _), *found = found[: wanted + 1]
    size = statistics.mean(answer.ByteSize() for _, answer in found)
    typical = min((answer for _, answer in found), key=lambda answer: abs(answer.ByteSize() - size))
    itineraries = statistics.mean(len(answer.itineraries) for _, answer in found)
    asked = [question for question, _ in found]
    return Questions(
        known=_write(stack, "known", asked[:KNOWN]),
        every=_write(stack, "every", asked),
        another=_write(stack, "another", [another]),
        answer=typical.SerializeToString(),
        remark=(
            f"{len(asked):,} questions with an answer, {KNOWN} of them known, {itineraries:.1f} itineraries and "
            f"{size:,.0f} bytes in the mean; {len(rolled.airports)} airports"
        ),
    )


def _write(stack: BenchStack, name: str, questions: Sequence[pb.SearchFlightsRequest]) -> Path:
    calls = CallFile()
    for question in questions:
        calls.add_grpc(SEARCH_FLIGHTS, question)
    return calls.write(stack.folder / f"searches-{name}.calls")


async def _forget_routes(stack: BenchStack, questions: Questions) -> None:
    """Invalidates all cached routes, and makes each process read the timetable again.

    It raises the revision of each day of the schedule, as a new flight would, and sends a search that is not measured.
    """
    connection = await stack.superuser("skyhigh")
    try:
        await connection.execute("UPDATE flight.schedule_days SET revision = revision + 1")
    finally:
        await connection.close()
    await stack.load.run(questions.another, port=stack.local.ports["flight"], seconds=TIMETABLE_SECONDS, cycle=True)


@asynccontextmanager
async def _without_redis(stack: BenchStack) -> AsyncIterator[None]:
    await stack.supervisor.kill("redis")
    try:
        yield
    finally:
        await stack.supervisor.start("redis")
        await asyncio.sleep(REDIS_BACK_SECONDS)


async def _rolled(stack: BenchStack) -> None:
    connection = await stack.superuser("skyhigh")
    try:
        deadline = time.monotonic() + ROLLED_SECONDS
        while await connection.fetchval(
            """
            SELECT count(*) FILTER (WHERE complete_time IS NULL) > 0 OR count(*) < 3 FROM flight.schedule_rolls
            """
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the schedule is not rolled after {ROLLED_SECONDS} s")
            await asyncio.sleep(0.5)
    finally:
        await connection.close()
