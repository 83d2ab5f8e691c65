"""The supervisor of the local stack, with processes that only start and end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.orders import Orders
from deploy.local.proc import start_ticks
from deploy.local.process import NotReadyError, Process
from deploy.local.report import Report
from deploy.local.supervisor import StartError, State, Status, Supervisor
from tests.waiting import eventually


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The file in which the processes record that they begin and end."""
    path = tmp_path / "journal"
    path.touch()
    return path


@pytest.fixture
def process(journal: Path) -> Callable[..., Process]:
    """Returns a function that makes a process, which runs until SIGTERM."""

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


async def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""

    async def holds() -> bool:
        return condition()

    await eventually(holds)


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a file so far."""
    return path.read_text().splitlines()


def is_alive(pid: int) -> bool:
    """Returns whether a process runs."""
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
    process: Callable[..., Process], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = Supervisor([process("broken", script="exit 3")], logs=tmp_path / "logs")
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.statuses[0].restarts == 2 and supervisor.statuses[0].state is State.DIED)
    await supervisor.stop()
    starting.cancel()
    assert supervisor.statuses[0].last_end == "ended with code 3"
    delays = [line.partition("; ")[2] for line in capsys.readouterr().err.splitlines() if "ended with" in line]
    assert delays == ["restart 1 in 0.25 s", "restart 2 in 0.5 s", "restart 3 in 1 s"]


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


async def test_a_process_that_ignores_the_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"

    async def ready() -> bool:
        return child.exists() and child.read_text() != ""

    script = f"trap '' TERM; sleep 600 & echo $! >{child}; wait"
    deaf = Process("deaf", ["sh", "-c", script], ready, port=0, stop_seconds=0.2)
    supervisor = Supervisor([deaf], logs=tmp_path / "logs")
    await supervisor.start()
    pid = supervisor.statuses[0].pid
    assert pid is not None
    await supervisor.stop()
    assert not is_alive(pid)
    assert not is_alive(int(child.read_text()))


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


async def test_the_status_says_why_a_process_is_not_ready(process: Callable[..., Process], tmp_path: Path) -> None:
    loaded = asyncio.Event()

    async def ready() -> bool:
        if not loaded.is_set():
            raise NotReadyError("the dump is being loaded")
        return True

    seen: list[str] = []

    def record(statuses: Sequence[Status]) -> None:
        seen.append(statuses[0].trouble)

    supervisor = Supervisor([replace(process("redis"), ready=ready)], logs=tmp_path / "logs", on_change=record)
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: seen[-1:] == ["the dump is being loaded"])
    loaded.set()
    await starting
    assert seen[-1] == ""
    await supervisor.stop()


async def test_an_order_restarts_the_named_process_alone(process: Callable[..., Process], tmp_path: Path) -> None:
    async with Supervisor([process("redis"), process("seat", "redis")], logs=tmp_path / "logs") as supervisor:
        redis, seat = supervisor.statuses
        before = (redis.pid, seat.pid)
        report = Report(os.getpid(), start_ticks(os.getpid()), addresses={}, given={})
        stale = Orders(tmp_path)
        (tmp_path / "orders").mkdir()
        (tmp_path / "orders" / "stale.json").write_text('["redis"]')
        arrived = stale.listen()
        carrying = asyncio.create_task(stale.carry_out(supervisor, arrived))
        try:
            Orders(tmp_path).restart(report, ["seat"])
            await until(lambda: seat.state is State.READY and seat.pid != before[1])
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)
        assert redis.pid == before[0]
        assert (seat.restarts, seat.last_end) == (0, "")


async def test_a_restart_takes_the_digests_of_the_source_again(
    process: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter(["old", "new"])

    def digests(parts: Sequence[str]) -> dict[str, str]:
        content = next(taken)
        return dict.fromkeys(parts, content)

    monkeypatch.setattr("deploy.local.sources.digests", digests)
    seat = replace(process("seat"), sources=("seat_service",))
    async with Supervisor([seat], logs=tmp_path / "logs") as supervisor:
        assert supervisor.statuses[0].sources == {"seat_service": "old"}
        await supervisor.restart("seat")
        assert supervisor.statuses[0].sources == {"seat_service": "new"}


def test_a_report_of_another_boot_names_no_running_process(tmp_path: Path) -> None:
    pid = os.getpid()
    Report(pid, start_ticks(pid), addresses={}, given={}, boot="another").write(tmp_path)
    report = Report.read(tmp_path)
    assert report is not None
    assert not report.is_alive
    assert not report.is_of_this_boot


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"processes": [{}]}'])
def test_a_damaged_report_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "stack.json").write_text(content)
    assert Report.read(tmp_path) is None


def test_a_report_of_another_version_is_read(tmp_path: Path) -> None:
    status = '{"name": "redis", "port": 1, "colour": "red"}'
    (tmp_path / "stack.json").write_text(
        f'{{"pid": 1, "start_ticks": 2, "addresses": {{}}, "given": {{}}, "more": 1, "processes": [{status}]}}'
    )
    report = Report.read(tmp_path)
    assert report is not None
    assert report.processes == [Status("redis", 1)]
    assert report.sources == {}


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
