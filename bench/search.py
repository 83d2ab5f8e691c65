"""P11 and P12: how fast journeys are found, with their routes known, unknown, and without Redis."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from bench.load import CallFile
from bench.plan import Plan, metered
from bench.report import Measure
from bench.stack import BenchStack
from deploy.local.process import LOOPBACK

SEARCH_FLIGHTS: Final = "/skyhigh.flight.v1.FlightService/SearchFlights"
# So many pairs of airports are asked about once, to find questions with answers of one size.
SAMPLED: Final = 600
QUESTIONS: Final = 40
# P12 asks how long a search takes, not how many fit: a part of what the service can do.
SEARCHES_PER_SECOND: Final = 150
FRESH_PER_SECOND: Final = 1_500
ROLLED_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule that is searched."""

    airports: Sequence[str]
    days: Sequence[str]
    """Days that are rolled whole, tomorrow first."""

    def questions(self) -> list[pb.SearchFlightsRequest]:
        """Every question that can be asked about its days, in one random order."""
        found = [
            pb.SearchFlightsRequest(source=source, destination=destination, date=day)
            for day in self.days
            for source in self.airports
            for destination in self.airports
            if source != destination
        ]
        random.Random(1).shuffle(found)
        return found


async def schedule(stack: BenchStack) -> Schedule:
    """Waits until the flight service has rolled its schedule; returns what it has."""
    days = [(datetime.now(UTC) + timedelta(days=n)).date().isoformat() for n in (1, 2)]
    await _rolled(stack)
    airports: set[str] = set()
    async with _flights(stack) as channel:
        service: FlightServiceStub = FlightServiceStub(channel)
        token = ""
        while True:
            page = await service.ListFlights(pb.ListFlightsRequest(date=days[0], page_size=100, page_token=token))
            airports |= {flight.origin for flight in page.flights}
            token = page.next_page_token
            if not token:
                return Schedule(sorted(airports), days)


async def searches(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P11: searches against a server that returns the same bytes: routes known, never asked before, Redis dead."""
    rolled = await schedule(stack)
    everything = rolled.questions()
    asked, fresh = everything[:SAMPLED], everything[SAMPLED:]
    known, answer = await _alike(stack, asked)
    calls = _calls(known).write(stack.folder / "searches.calls")
    measures = {
        "cached": Measure("P11", "search, routes known ÷ bare echo of the same bytes", "searches/s", 0.1, 0.3),
        "uncached": Measure("P11 (uncached)", "search, never asked before ÷ the same echo", "searches/s", 0.02, 0.1),
        "killed": Measure("P11 (Redis down)", "search, Redis killed ÷ the same echo", "searches/s", 0.1, 0.3),
    }
    async with stack.echo_server(search=answer.SerializeToString()) as echo:
        for turn, seconds in enumerate(plan.turns()):
            new, fresh = fresh[: int(seconds * FRESH_PER_SECOND)], fresh[int(seconds * FRESH_PER_SECOND) :]
            fresh_calls = _calls(new).write(stack.folder / "fresh.calls")
            other = await stack.load.run(calls, port=echo.port, seconds=seconds, cycle=True)
            for name, measure in measures.items():
                counted = measure if turn else None
                result = await _searched(stack, counted, name, fresh_calls if name == "uncached" else calls, seconds)
                if counted:
                    counted.ours.append(result)
                    counted.baseline.append(other.per_second)
    for measure in measures.values():
        measure.note(
            f"{QUESTIONS} questions, {len(answer.itineraries)} itineraries and {answer.ByteSize():,} bytes each; "
            f"{len(rolled.airports)} airports"
        )
    return list(measures.values())


async def searches_without_redis(stack: BenchStack, plan: Plan) -> list[Measure]:
    """P12: the longest searches with Redis dead, against those with routes from the cache (FLT-3)."""
    measure = Measure("P12", "search P99, Redis killed ÷ Redis up", "ms", bar=5, goal=1.5, smaller_is_better=True)
    known, _ = await _alike(stack, (await schedule(stack)).questions()[:SAMPLED])
    calls = _calls(known).write(stack.folder / "searches.calls")
    for turn, seconds in enumerate(plan.turns()):
        counted = measure if turn else None
        up = await _p99(stack, None, calls, seconds)
        await stack.supervisor.kill("redis")
        try:
            killed = await _p99(stack, counted, calls, seconds)
        finally:
            await stack.supervisor.start("redis")
        await asyncio.sleep(1)
        if counted:
            counted.ours.append(killed)
            counted.baseline.append(up)
    measure.note(f"{SEARCHES_PER_SECOND} searches a second; the first ones after the kill are counted")
    return [measure]


async def _searched(stack: BenchStack, measure: Measure | None, name: str, calls: Path, seconds: float) -> float:
    pids = {f"flight service, {name}": stack.pid("flight")}
    port = stack.local.ports["flight"]
    if name != "killed":
        cycle = name == "cached"
        return (
            await metered(stack.load, measure, calls, port=port, seconds=seconds, pids=pids, cycle=cycle)
        ).per_second
    await stack.supervisor.kill("redis")
    try:
        return (await metered(stack.load, measure, calls, port=port, seconds=seconds, pids=pids, cycle=True)).per_second
    finally:
        await stack.supervisor.start("redis")


async def _p99(stack: BenchStack, measure: Measure | None, calls: Path, seconds: float) -> float:
    result = await metered(
        stack.load,
        measure,
        calls,
        port=stack.local.ports["flight"],
        seconds=seconds,
        pids={"flight service": stack.pid("flight")},
        cycle=True,
        calls_per_second=SEARCHES_PER_SECOND,
    )
    return result.latency_ms["p99"]


async def _alike(
    stack: BenchStack, questions: Sequence[pb.SearchFlightsRequest]
) -> tuple[list[pb.SearchFlightsRequest], pb.SearchFlightsResponse]:
    """Returns questions with long answers of about the same size, a tenth is longer, and one of those answers."""
    async with _flights(stack) as channel:
        service: FlightServiceStub = FlightServiceStub(channel)
        answers = [(question, await service.SearchFlights(question, timeout=10)) for question in questions]
    found = [(question, answer) for question, answer in answers if answer.itineraries]
    *_, long = statistics.quantiles((answer.ByteSize() for _, answer in found), n=10)
    found.sort(key=lambda pair: abs(pair[1].ByteSize() - long))
    return [question for question, _ in found[:QUESTIONS]], found[0][1]


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


def _flights(stack: BenchStack) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"{LOOPBACK}:{stack.local.ports['flight']}")


def _calls(questions: Sequence[pb.SearchFlightsRequest]) -> CallFile:
    calls = CallFile()
    for question in questions:
        calls.add_grpc(SEARCH_FLIGHTS, question)
    return calls
