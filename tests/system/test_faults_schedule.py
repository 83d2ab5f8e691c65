"""The schedule of faults.

It is the same for the same seed, bounded, and has calm seconds and a way to recover.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from tests.system.faults.act import Disturbed, Fault, RollingRestart, Unsuitable
from tests.system.faults.play import play
from tests.system.faults.proxy import BOTH, Conditions
from tests.system.faults.schedule import CALM_SECONDS, KINDS, Kind, Planned, groups, overlaps, schedule
from tests.system.faults.stack import CLIENTS, RunningStack, server_name

MINUTE = 60
SEEDS = range(40)
KIND = {kind.name: kind for kind in KINDS}
BASE = 20_000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_makes_the_same_schedule_each_time(seed: int) -> None:
    first = [str(each) for each in schedule(seed, 10 * MINUTE)]
    assert first == [str(each) for each in schedule(seed, 10 * MINUTE)]
    assert first != [str(each) for each in schedule(seed + 1, 10 * MINUTE)]


@pytest.mark.parametrize("seed", SEEDS)
def test_overlapping_faults_leave_a_working_stack(seed: int) -> None:
    planned = schedule(seed, 10 * MINUTE)
    for one, other in overlaps(planned):
        assert not (KIND[one.kind].stops_work and KIND[other.kind].stops_work), (one, other)
        assert not one.fault.parts & other.fault.parts, (one, other)
        assert KIND[one.kind].joins or KIND[other.kind].joins, (one, other)
    assert all(len(group) <= 2 for group in groups(planned))


@pytest.mark.parametrize("seed", SEEDS)
def test_calm_seconds_follow_each_group_and_end_the_run(seed: int) -> None:
    seconds = 5 * MINUTE
    grouped = groups(schedule(seed, seconds))
    ends = [max(each.ends_at_seconds for each in group) for group in grouped]
    begins = [group[0].at_seconds for group in grouped[1:]]
    for end, begin in zip(ends, [*begins, seconds], strict=True):
        assert begin - end >= CALM_SECONDS[0]


def test_a_disturbance_prints_its_wires_and_conditions() -> None:
    fault = Disturbed("[a-z]+>redis", Conditions(latency_seconds=0.1, black_hole=BOTH))
    assert str(fault) == "[a-z]+>redis: latency_seconds=0.1 black_hole=answers+requests"


def test_every_kind_occurs_once_before_any_repeats() -> None:
    kinds = [each.kind for each in schedule(5, 60 * MINUTE)]
    assert set(kinds) == set(KIND)
    # A second fault that does not fit is dropped, and a kind that may join another fault can be drawn early for that.
    assert max(map(kinds.count, KIND)) - min(map(kinds.count, KIND)) <= 6


def test_a_minute_holds_several_faults() -> None:
    assert sum(len(schedule(seed, MINUTE)) for seed in SEEDS) / len(SEEDS) > 3


def test_a_run_that_is_too_short_has_no_fault() -> None:
    assert schedule(1, 1) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_wires_of_each_kind_are_wires_of_a_stack(kind: Kind) -> None:
    fault = kind.make(random.Random(1))
    if isinstance(fault, Disturbed):
        assert stack_with(*WIRES).wires(fault.wires)


WIRES = (
    "booking>postgres",
    "booking>redis",
    "booking>rabbitmq",
    "booking>seat.0",
    "limits>redis",
    "payment>mock-provider",
    f"{CLIENTS}>gateway",
    f"{CLIENTS}>seat",
)


def stack_with(*wires: str) -> RunningStack:
    """Returns an imitation of a stack with these proxies."""
    return cast("RunningStack", Wired(dict.fromkeys(wires, "proxy")))


@dataclass
class Wired:
    """The proxies of a stack."""

    proxies: dict[str, Any]
    wires = RunningStack.wires


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (10, "postgres"),
        (12, "rabbitmq"),
        (51, "seat"),
        (62, "mock-provider"),
        (120, "seat.0"),
        (121, "seat.1"),
        (200, "flight.0"),
    ],
)
def test_a_port_has_the_name_of_its_server(offset: int, name: str) -> None:
    assert server_name(BASE + offset, BASE) == name


@dataclass
class Noted(Fault):
    """A fault that records its beginning and its end."""

    name: str
    log: list[str]
    fails: type[Exception] | None = None
    hangs: bool = False
    _began: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({self.name})

    async def begin(self, stack: RunningStack) -> None:
        self.log.append(f"{self.name} begins")
        self._began.set()
        if self.fails is not None:
            raise self.fails("no such part")
        if self.hangs:
            await asyncio.Event().wait()

    async def end(self, stack: RunningStack) -> None:
        self.log.append(f"{self.name} ends")

    async def began(self) -> None:
        """Waits until the fault has begun."""
        await self._began.wait()


def at(seconds: float, fault: Fault, *, lasts: float = 0.02) -> Planned:
    return Planned(seconds, lasts, "noted", fault)


async def test_each_fault_is_undone_before_the_next_group_begins() -> None:
    log: list[str] = []
    played = await play(stack_with(), [at(0, Noted("first", log)), at(0.05, Noted("second", log))])
    assert log == ["first begins", "first ends", "second begins", "second ends"]
    assert all(each.ended is not None and each.ended - each.began >= 0.02 for each in played)


async def test_a_fault_that_the_stack_cannot_have_is_skipped() -> None:
    log: list[str] = []
    played = await play(stack_with(), [at(0, Noted("first", log, Unsuitable)), at(0.05, Noted("second", log))])
    assert [each.skipped for each in played] == ["no such part", ""]
    assert log == ["first begins", "first ends", "second begins", "second ends"]


async def test_a_fault_that_fails_is_undone_and_reported() -> None:
    log: list[str] = []
    (played,) = await play(stack_with(), [at(0, Noted("first", log, ValueError))])
    assert "no such part" in played.error
    assert log == ["first begins", "first ends"]


async def test_a_cancelled_run_undoes_its_running_fault() -> None:
    log: list[str] = []
    lasting = Noted("first", log)
    run = asyncio.create_task(play(stack_with(), [at(0, lasting, lasts=MINUTE)]))
    await lasting.began()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert log == ["first begins", "first ends"]


async def test_no_group_lasts_beyond_the_end() -> None:
    log: list[str] = []
    loop = asyncio.get_running_loop()
    await play(stack_with(), [at(0, Noted("first", log)), at(MINUTE, Noted("second", log))], until=loop.time() + 1)
    assert log == ["first begins", "first ends"]


async def test_conditions_are_undone_on_every_wire() -> None:
    calls: list[str] = []

    class Quiet:
        def disturb(self, conditions: Conditions) -> None:
            calls.append("disturb")

        def cut(self) -> None:
            calls.append("cut")

        def calm(self) -> None:
            calls.append("calm")

    stack = cast("RunningStack", Wired({"a>redis": Quiet(), "b>redis": Quiet(), "b>postgres": Quiet()}))
    fault = Disturbed("[a-z]+>redis", Conditions(refuses=True), cut_first=True)
    await play(stack, [at(0, fault)])
    assert calls == ["disturb", "cut", "disturb", "cut", "calm", "calm"]


async def test_wires_missing_in_the_stack_are_skipped() -> None:
    (played,) = await play(stack_with("a>redis"), [at(0, Disturbed("[a-z]+>postgres", Conditions()))])
    assert "no proxy" in played.skipped


def test_a_rolling_restart_includes_every_service() -> None:
    assert {"seat", "limits", "booking"} <= RollingRestart().parts
