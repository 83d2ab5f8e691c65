"""The supervisor of the local stack, with processes that do nothing but come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.process import Process
from deploy.local.report import Report
from deploy.local.supervisor import (
    StartError,
    State,
    Status,
    Supervisor,
    end_leftovers,
    sole_supervisor,
    start_ticks,
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where the processes write when they begin and end."""
    path = tmp_path / "journal"
    path.touch()
    return path


@pytest.fixture
def process(journal: Path) -> Callable[..., Process]:
    """Makes a process that runs until SIGTERM."""

    def make(name: str, *after: str, script: str = "while :; do sleep 0.02; done") -> Process:
        mark = journal.with_name(f"{name}.ready")

        async def ready() -> bool:
            return mark.exists()

        async def prepare() -> None:
            mark.unlink(missing_ok=True)

        begin = f'echo "{name} begins" >>{journal}; trap \'echo "{name} ends" >>{journal}; exit 0\' TERM'
        return Process(
            name=name,
            command=["sh", "-c", f"{begin}; touch {mark}; {script}"],
            ready=ready,
            port=0,
            after=after,
            stop_seconds=5,
            prepare=prepare,
        )

    return make


async def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Waits for what must come true soon."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def lines_of(path: Path) -> list[str]:
    """What was written so far."""
    return path.read_text().splitlines()


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    return start_ticks(pid) is not None


async def test_processes_start_in_the_order_of_readiness_and_stop_in_the_reverse(
    process: Callable[..., Process], journal: Path, tmp_path: Path
) -> None:
    table = [process("gateway", "service"), process("service", "server"), process("server")]
    async with Supervisor(table, logs=tmp_path / "logs"):
        pass
    assert lines_of(journal) == [
        "server begins",
        "service begins",
        "gateway begins",
        "gateway ends",
        "service ends",
        "server ends",
    ]


async def test_a_process_that_is_killed_is_reported_and_started_again(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    seen: list[tuple[str, State]] = []

    def record(statuses: Sequence[Status]) -> None:
        seen.extend((status.name, status.state) for status in statuses)

    async with Supervisor([process("redis")], logs=tmp_path / "logs", on_change=record) as supervisor:
        status = supervisor.statuses[0]
        first = status.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: status.restarts == 1 and status.state is State.READY)
        assert status.pid != first
        assert status.last_end == "was killed by signal 9"
        assert ("redis", State.DIED) in seen
    assert status.state is State.STOPPED
    assert status.pid is None


async def test_a_process_that_keeps_dying_is_started_ever_later(
    process: Callable[..., Process], journal: Path, tmp_path: Path
) -> None:
    supervisor = Supervisor([process("broken", script="exit 3")], logs=tmp_path / "logs")
    starting = asyncio.create_task(supervisor.start())
    await asyncio.sleep(1.2)
    await supervisor.stop()
    starting.cancel()
    # At once, after 0.25 s, after 0.5 s more; the fourth would come after another second.
    assert len(lines_of(journal)) == 3
    assert supervisor.statuses[0].last_end == "ended with code 3"


async def test_what_a_dead_process_leaves_behind_ends_with_it(process: Callable[..., Process], tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"sleep 600 & echo $! >{child}; wait"
    async with Supervisor([process("parent", script=script)], logs=tmp_path / "logs") as supervisor:
        await until(lambda: child.exists() and lines_of(child) != [])
        (left,) = lines_of(child)
        pid = supervisor.statuses[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.statuses[0].restarts == 1)
        assert not is_alive(int(left))


async def test_who_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    async def ready() -> bool:
        return True

    deaf = Process("deaf", ["sh", "-c", "trap '' TERM; sleep 600"], ready, port=0, stop_seconds=0.2)
    supervisor = Supervisor([deaf], logs=tmp_path / "logs")
    await supervisor.start()
    pid = supervisor.statuses[0].pid
    assert pid is not None
    # The trap is not set before the shell has read it.
    await asyncio.sleep(0.1)
    await supervisor.stop()
    assert not is_alive(pid)


async def test_without_restart_a_dead_process_stays_dead_until_it_is_started(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    table = [process("redis"), process("service", "redis")]
    async with Supervisor(table, logs=tmp_path / "logs", restart=False) as supervisor:
        redis, service = supervisor.statuses
        service_pid = service.pid
        await supervisor.kill("redis")
        assert redis.state is State.DIED
        await supervisor.start("redis")
        assert (redis.state, service.state, service.pid) == (State.READY, State.READY, service_pid)


async def test_without_restart_a_failing_start_is_an_error_that_names_the_log(tmp_path: Path) -> None:
    broken = Process("broken", ["sh", "-c", "echo why; exit 3"], ready=_never, port=0)
    supervisor = Supervisor([broken], logs=tmp_path / "logs", restart=False)
    with pytest.raises(StartError, match=r"broken ended with code 3; see .*broken\.log"):
        await supervisor.start()
    await supervisor.stop()
    assert (tmp_path / "logs" / "broken.log").read_text() == "why\n"


async def _never() -> bool:
    return False


async def test_what_cannot_be_set_up_is_started_over(process: Callable[..., Process], tmp_path: Path) -> None:
    attempts: list[int] = []

    async def settle() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("the schema is locked")

    async with Supervisor([replace(process("postgres"), settle=settle)], logs=tmp_path / "logs") as supervisor:
        assert supervisor.statuses[0].last_end == "could not be set up: the schema is locked"
        assert supervisor.statuses[0].restarts == 1


async def test_what_cannot_be_prepared_is_told_in_one_line_and_in_its_log_whole(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    async def prepare() -> None:
        raise RuntimeError("line 3: no such field\nthe configuration is wrong")

    broken = replace(process("gateway"), prepare=prepare)
    supervisor = Supervisor([broken], logs=tmp_path / "logs", restart=False)
    with pytest.raises(StartError, match="gateway could not start: the configuration is wrong; see"):
        await supervisor.start()
    await supervisor.stop()
    assert lines_of(tmp_path / "logs" / "gateway.log") == ["line 3: no such field", "the configuration is wrong"]


def test_leftovers_are_ended_but_never_another_process_with_the_same_number() -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as left:
        ticks = start_ticks(left.pid)
        assert ticks is not None
        end_leftovers([Status("other", 0, pid=left.pid, start_ticks=ticks - 1)])
        assert left.poll() is None
        end_leftovers([Status("ours", 0, pid=left.pid, start_ticks=ticks)])
        assert left.wait(5) == -signal.SIGQUIT


def test_one_home_has_one_supervisor(tmp_path: Path) -> None:
    with sole_supervisor(tmp_path / "home") as first, sole_supervisor(tmp_path / "home") as second:
        assert first
        assert not second
    with sole_supervisor(tmp_path / "home") as third:
        assert third


def test_a_report_says_whether_its_supervisor_lives(tmp_path: Path) -> None:
    assert Report.read(tmp_path) is None
    pid = os.getpid()
    report = Report(pid, start_ticks(pid), addresses={"SKYHIGH_X": "y"}, given={}, processes=[Status("redis", 1)])
    report.write(tmp_path)
    read = Report.read(tmp_path)
    assert read == report
    assert read.is_alive
    assert not Report(pid, 1, addresses={}, given={}).is_alive
    assert (tmp_path / "stack.json").stat().st_mode & 0o777 == 0o600
