"""One run: a stack, a seed played on it with faults, rest, and every check of what the clients saw."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.system import checks, generator, players, rest, truth
from tests.system.airline import Airline
from tests.system.faults.play import Played, play
from tests.system.faults.schedule import KINDS, Kind, schedule
from tests.system.faults.stack import REPOSITORY, SHORT_TTLS, RunningStack, attached, running
from tests.system.history import History
from tests.system.players import Stack
from tests.system.report import Outcome
from tests.waiting import pause

# Connections of some seconds make journeys of flights that leave within a minute.
LIFE_SETTINGS: Final[Mapping[str, str]] = {
    "SKYHIGH_FLIGHT_SHORTEST_CONNECTION_MINUTES": "0",
    "SKYHIGH_FLIGHT_HORIZON_DAYS": "0",
    "SKYHIGH_CHECKIN_LOGIN_TRIES_PER_PNR": "30000",
    "SKYHIGH_CHECKIN_LOGIN_TRIES_PER_ADDRESS": "30000",
    "SKYHIGH_CHECKIN_LOGIN_ANSWER_SECONDS": "0.02",
    "SKYHIGH_CHECKIN_SESSION_TTL_SECONDS": "90",
    "SKYHIGH_CHECKIN_WATCHES_PER_PRINCIPAL": "100",
    "SKYHIGH_GATEWAY_FAILED_LOGINS": "1000000",
}
SETTINGS: Final[Mapping[str, str]] = {
    **SHORT_TTLS,
    **LIFE_SETTINGS,
    players.PATIENCE_VARIABLE: players.PATIENCE,
}
# A check-in, a booking or an entry may live on for so long after what it depended on (rule 11.14).
AFTER_DEPARTURE_SECONDS: Final = 6.0
LONGEST_DEPARTURE_SECONDS: Final = 160.0
READY_SECONDS: Final = 90.0
REST_SECONDS: Final = rest.LONGEST_SECONDS * float(players.PATIENCE)
# What only background work brings about may be late on a busy machine; what is wrong stays wrong.
VERIFY_TRIES: Final = 4
VERIFY_PAUSE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Plan:
    """What a run is to be."""

    seed: int
    seconds: float
    operations: int | None = None
    with_faults: bool = False
    kinds: Sequence[Kind] = KINDS
    """The faults that may happen."""
    folder: Path | None = None
    """Where the stack and the history are; the stack's own home if it is attached."""
    attach: Path | None = None
    """The home of a running stack to play on, instead of a new one."""
    checkout: Path = REPOSITORY
    """Whose services run."""
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)
    """Variables of a stack that the run starts."""
    keep_data: bool = False
    generator: generator.Generator | None = None
    departures: bool = True
    """Whether to wait until the last flight has left."""
    beside: Callable[[RunningStack], Awaitable[None]] | None = None
    """Runs while the clients play, and is cancelled when they end."""

    @property
    def replay(self) -> str:
        """The command that plays the same again."""
        words = [f"make chaos SEED={self.seed} MINUTES={self.seconds / 60:g}"]
        if not self.with_faults:
            words.append("FAULTS=none")
        if self.checkout != REPOSITORY:
            words.append("CHECKOUT=…")
        return " ".join(words)


async def run(plan: Plan) -> Outcome:
    """Plays a plan and checks what came out."""
    folder = plan.folder or plan.attach
    assert folder is not None
    async with _stack(plan) as stack:
        with History(folder / "history.jsonl", seed=plan.seed, seconds=plan.seconds, given=dict(stack.given)) as record:
            began = time.monotonic()
            airline, faults = await _play(plan, stack, record)
            play_seconds = time.monotonic() - began
            if plan.departures:
                await _departures(airline)
            rest_seconds, unrest = None, ""
            try:
                rest_seconds = await rest.at_rest(stack.environment, within_seconds=REST_SECONDS)
                record.mark("rest", "nothing is left to be done")
            except rest.UnrestError as error:
                unrest = str(error)
        found = await truth.read(
            stack.database_url,
            keys={operation.request_id for operation in record if operation.request_id},
            provider_url="" if plan.with_faults else stack.environment.get("SKYHIGH_MOCK_PROVIDER_URL", ""),
        )
        violations = await asyncio.to_thread(checks.run, record, found)
        code, text = await _verified(stack)
    return Outcome(
        seed=plan.seed,
        replay=plan.replay,
        history=record,
        play_seconds=play_seconds,
        rest_seconds=rest_seconds,
        unrest=unrest,
        violations=violations,
        verify_code=code,
        verify_text=text,
        faults=faults,
    )


@asynccontextmanager
async def _stack(plan: Plan) -> AsyncIterator[RunningStack]:
    if plan.attach is not None:
        yield attached(plan.attach, checkout=plan.checkout)
        return
    assert plan.folder is not None
    async with running(
        plan.folder,
        plan.seed,
        settings=plan.settings,
        checkout=plan.checkout,
        wired=plan.with_faults,
        keep_data=plan.keep_data,
    ) as stack:
        yield stack


def clients_view(stack: RunningStack) -> Stack:
    """The stack as the clients of a run reach it."""
    issuer, audience = stack.given.get("SKYHIGH_TOKEN_ISSUER"), stack.given.get("SKYHIGH_TOKEN_AUDIENCE")
    return Stack(stack.addresses, stack.home, issuer or players.ISSUER, audience or players.AUDIENCE)


async def _play(plan: Plan, stack: RunningStack, record: History) -> tuple[Airline, list[Played]]:
    """Runs the clients and the faults of the seed side by side. All faults are undone when it returns."""
    played: list[Played] = []
    async with asyncio.TaskGroup() as group:
        playing = group.create_task(
            generator.play(
                clients_view(stack),
                plan.seed,
                record,
                seconds=plan.seconds,
                operations=plan.operations,
                generator=plan.generator,
            )
        )
        if plan.with_faults:
            group.create_task(
                play(
                    stack,
                    schedule(plan.seed, plan.seconds, plan.kinds),
                    until=time.monotonic() + plan.seconds,
                    played=played,
                    changed=lambda each: record.mark("undone" if each.ended else "fault", str(each.planned)),
                )
            )
        if plan.beside is not None:
            beside = asyncio.ensure_future(plan.beside(stack))
            playing.add_done_callback(lambda _: beside.cancel())
            group.create_task(_cancelled(beside))
    if plan.with_faults:
        await _ready(stack)
    return playing.result(), played


async def _cancelled(task: asyncio.Future[None]) -> None:
    """Waits until a task is cancelled; an error of the task ends the run."""
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _ready(stack: RunningStack) -> None:
    """Waits until every process of the stack is ready again."""
    deadline = time.monotonic() + READY_SECONDS
    while stack.unready() and time.monotonic() < deadline:
        await pause(0.2)


async def _departures(airline: Airline) -> None:
    """Waits until the last flight of the run has left, and what must end then has had its time."""
    last = max((flight.departure for flight in airline.flights.values()), default=0.0)
    await pause(min(LONGEST_DEPARTURE_SECONDS, max(0.0, last + AFTER_DEPARTURE_SECONDS - time.time())))


async def _verified(stack: RunningStack) -> tuple[int, str]:
    """What `skyhigh verify` ends with and prints, once that is nothing or has not changed for a while."""
    code, text = await stack.skyhigh("verify")
    for _ in range(VERIFY_TRIES - 1):
        if code == 0:
            break
        await pause(VERIFY_PAUSE_SECONDS)
        code, text = await stack.skyhigh("verify")
    return code, text
