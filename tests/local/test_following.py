"""`skyhigh up` follows a start.

It ends with one line as soon as a process certainly will not become ready.
"""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from deploy.local.proc import start_ticks
from deploy.local.report import Report
from deploy.local.supervisor import State, Status
from operations import supervision
from operations.__main__ import app

Usage = namedtuple("Usage", "total used free")
Following = Callable[..., Result]


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Following:
    """Follows the start of a process with this status and this log.

    The supervisor is this process.
    """
    monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path))

    def follow(status: Status, *, log: str = "", alive: bool = True) -> Result:
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / f"{status.name}.log").write_text(log)
        ticks = start_ticks(os.getpid()) if alive else -1
        first = Report(os.getpid(), ticks, addresses={}, given={}, processes=[Status(status.name, 1)])
        Report(os.getpid(), ticks, addresses={}, given={}, processes=[status]).write(tmp_path)
        command = typer.Typer()

        @command.command()
        def run() -> None:
            supervision._follow(first, [status.name])

        return CliRunner().invoke(command)

    return follow


def line_of(result: Result) -> str:
    """Returns the one line with which a failure ends."""
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    return str(line)


def test_a_ready_process_is_shown(following: Following) -> None:
    result = following(Status("redis", 17379, State.READY, pid=1))
    assert result.exit_code == 0
    assert result.stdout.startswith("  redis         ready  port 17379")


@pytest.mark.parametrize(
    ("last_end", "restarts"),
    [("ended with code 1", 2), ("ended with code 2", 0), ("ended with code 3", 0), ("was killed by signal 9", 2)],
)
def test_a_process_that_keeps_dying_ends_it_with_the_cause(following: Following, last_end: str, restarts: int) -> None:
    status = Status("seat", 50051, State.DIED, restarts=restarts, last_end=last_end)
    log = (
        "starting\nTraceback (most recent call last):\n  File x\nOSError: [Errno 98] in use\n{'event': 'worker died'}\n"
    )
    line = line_of(following(status, log=log))
    assert line == (
        f"skyhigh: seat {last_end}: OSError: [Errno 98] in use. `skyhigh logs seat` prints more; "
        "`make down` stops the other processes"
    )


def test_a_full_disk_is_named_as_the_cause(following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    status = Status("postgres", 17432, State.DIED, restarts=2, last_end="ended with code 1")
    line = line_of(following(status, log="PANIC: could not write to file\n"))
    assert "is full: 0 MB are free. Free some space" in line


def test_a_supervisor_that_ended_ends_it(following: Following, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "supervisor.log").write_text("T00:00:00Z the server of SKYHIGH_AMQP_URL refuses\n")
    line = line_of(following(Status("seat", 50051), alive=False))
    assert line.startswith("skyhigh: the supervisor ended: the server of SKYHIGH_AMQP_URL refuses. ")


def test_a_process_that_is_never_ready_ends_it_with_its_probes_error(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "START_SECONDS", 0)
    line = line_of(following(Status("postgres", 17432, State.STARTING, trouble="SSL is required")))
    assert line.startswith("skyhigh: postgres is not ready after 0 s: SSL is required. `skyhigh logs postgres`")


def test_a_slow_process_says_what_it_waits_for(following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "WAITING_SECONDS", -1)
    monkeypatch.setattr(supervision, "START_SECONDS", 0.3)
    result = following(Status("rabbitmq", 17672, State.STARTING, trouble="connection refused"))
    assert "  rabbitmq      starting for" in result.stdout
    assert "connection refused" in result.stdout


def test_a_ready_process_whose_worker_is_missing_is_shown_as_partly_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path))
    status = Status("seat", 1, State.READY, pid=os.getpid(), ports={"SKYHIGH_SEAT_WORKER_PORT + 1": 1})
    Report(os.getpid(), start_ticks(os.getpid()), addresses={}, given={}, processes=[status]).write(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 1
    assert "partly" in result.stdout
    assert "does not listen on SKYHIGH_SEAT_WORKER_PORT + 1" in result.stdout


def test_a_home_that_is_a_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path / "file"))
    assert line_of(CliRunner().invoke(app, ["up"])).startswith(f"skyhigh: {tmp_path / 'file'} is a file")
