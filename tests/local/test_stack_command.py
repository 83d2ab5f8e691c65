"""The commands for a stack, on a real stack of its own.

Covers `skyhigh up`, `status`, `env`, `logs`, `psql`, `restart`, `down` and `clean`. It starts in a difficult
environment: a home with blanks and quotes in its path, a proxy for all protocols, and variables that the programs of
Postgres and RabbitMQ read.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.local.port_table import PORT_SPAN
from deploy.local.proc import members, start_ticks
from deploy.local.process import LOOPBACK, port_is_free
from deploy.local.report import Report
from deploy.local.stack import Stack
from operations.__main__ import app
from tests.waiting import eventually

# Far more than a start takes on a busy machine: it only ends a test that hangs.
UP_SECONDS = 280
pytestmark = pytest.mark.timeout(300)
SERVERS = ["postgres", "redis", "epmd", "rabbitmq"]
MOCKS = ["mock-weight", "mock-provider", "mock-mail"]
SERVICES = ["seat", "checkin", "waitlist", "payment", "flight", "booking", "limits"]


def skyhigh(*arguments: str) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(app, list(arguments))


def report_of(stack: Stack) -> Report:
    """Returns the supervisor's present report."""
    report = Report.read(stack.home)
    assert report is not None
    return report


def pid_of(stack: Stack, name: str) -> int | None:
    """Returns the pid of the process with this name from the supervisor's report."""
    return next(status.pid for status in report_of(stack).processes if status.name == name)


def free_port_base() -> int:
    """Returns a base whose ports are all free."""
    for _ in range(50):
        base = random.randrange(20000, 32000, PORT_SPAN)
        ports = Stack.from_environment({"SKYHIGH_PORT_BASE": str(base)}).ports.values()
        if all(map(port_is_free, ports)):
            return base
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Yields a stack that `skyhigh up` started."""
    # Not below pytest's own folder: Postgres may run as another user, who must be able to enter.
    home = Path(tempfile.mkdtemp(prefix='skyhigh test\'s "ü" #'))
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("SKYHIGH_")]:
            patch.delenv(variable)
        for variable in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(variable, f"http://{LOOPBACK}:9")
        for variable, value in {"PGSSLMODE": "require", "PGHOST": "/nowhere", "ERL_FLAGS": "-bogus"}.items():
            patch.setenv(variable, value)
        patch.setenv("RABBITMQ_NODENAME", "rabbit@nowhere")
        patch.setenv("SKYHIGH_HOME", str(home))
        patch.setenv("SKYHIGH_PORT_BASE", str(free_port_base()))
        patch.setenv("SKYHIGH_SEAT_PROCESSES", "1")
        # Without flights.
        patch.setenv("SKYHIGH_FLIGHT_HORIZON_DAYS", "0")
        command = [sys.executable, "-m", "operations", "up", "--no-journey"]
        started = subprocess.run(command, capture_output=True, text=True, timeout=UP_SECONDS, check=False)
        try:
            assert started.returncode == 0, started.stdout + started.stderr
            stack = Stack.from_environment()
            yield stack
            down_leaves_no_process_and_clean_no_file(stack)
        finally:
            skyhigh("clean")
            shutil.rmtree(home, ignore_errors=True)


def down_leaves_no_process_and_clean_no_file(stack: Stack) -> None:
    """Ends the stack and checks the result.

    The fixture does this, because the order of the tests is random.
    """
    pids = [status.pid for status in report_of(stack).processes]
    assert skyhigh("down").exit_code == 0
    assert not [pid for pid in pids if pid is not None and start_ticks(pid) is not None]
    assert all(map(port_is_free, stack.ports.values()))
    assert skyhigh("status").exit_code == 1
    assert skyhigh("env").exit_code == 0
    assert skyhigh("clean").exit_code == 0
    assert not stack.home.exists()
    refused = skyhigh("env")
    assert refused.exit_code == 1
    assert "make up" in refused.stderr


def test_all_processes_are_ready(stack: Stack) -> None:
    shown = skyhigh("status")
    assert shown.exit_code == 0, shown.output
    rows = [line.split() for line in shown.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [(name, "ready") for name in (*SERVERS, *MOCKS, *SERVICES, "gateway")]


def test_the_addresses_are_printed_and_work(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = dict(line.split("=", 1) for line in skyhigh("env").stdout.splitlines())
    assert lines == stack.addresses

    # asyncpg would read PGSSLMODE; the command has removed it from its own environment.
    monkeypatch.delenv("PGSSLMODE")

    async def owner_sees_the_seats() -> int:
        import asyncpg

        connection = await asyncpg.connect(lines["SKYHIGH_DATABASE_URL"])
        try:
            return int(await connection.fetchval("SELECT count(*) FROM seat.seats"))
        finally:
            await connection.close()

    assert asyncio.run(owner_sees_the_seats()) >= 0


def test_psql_is_the_owners_and_takes_any_argument(stack: Stack) -> None:
    command = [sys.executable, "-m", "operations", "psql", "-At", "-d", "skyhigh", "-c", "SELECT current_user"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert shown.stdout == "skyhigh\n"


def test_up_again_starts_nothing(stack: Stack) -> None:
    before = report_of(stack)
    again = skyhigh("up", "--no-journey")
    assert again.exit_code == 0, again.output
    assert "is already running" in again.stdout
    after = report_of(stack)
    assert after.pid == before.pid
    assert [status.pid for status in after.processes] == [status.pid for status in before.processes]


def test_up_with_other_settings_says_that_they_wait(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYHIGH_OFFER_WINDOW_SECONDS", "3")
    assert "other values of SKYHIGH_OFFER_WINDOW_SECONDS" in skyhigh("up", "--no-journey").stderr


def test_another_stack_names_the_ports_that_are_taken(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path))
    refused = skyhigh("up")
    assert refused.exit_code == 1
    assert f"SKYHIGH_GATEWAY_PORT={stack.ports['gateway']}" in refused.stderr


async def test_redis_is_back_after_a_crash_and_that_is_reported(stack: Stack) -> None:
    pid = pid_of(stack, "redis")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def back() -> bool:
        return pid_of(stack, "redis") not in (pid, None) and skyhigh("status").exit_code == 0

    await eventually(back)
    assert "was killed by signal 9; restart 1" in skyhigh("logs", "supervisor", "-n", "1000").stdout


def test_a_restart_leaves_the_other_processes_alone(stack: Stack) -> None:
    before = {status.name: status.pid for status in report_of(stack).processes}
    restarted = skyhigh("restart", "mock-mail", "payment")
    assert restarted.exit_code == 0, restarted.output
    assert "Restarted in" in restarted.stdout
    after = {status.name: status.pid for status in report_of(stack).processes}
    assert {name for name in before if before[name] != after[name]} == {"mock-mail", "payment"}
    assert skyhigh("status").exit_code == 0


def test_an_unknown_process_cannot_be_restarted(stack: Stack) -> None:
    refused = skyhigh("restart", "pilot")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("skyhigh: there is no process 'pilot'; the processes are postgres, redis")


def test_up_restarts_what_was_edited(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {status.name: status.pid for status in report_of(stack).processes}
    monkeypatch.setattr("deploy.local.sources.edited", lambda digests: [p for p in digests if p == "deploy/mocks"])
    again = skyhigh("up", "--no-journey")
    assert again.exit_code == 0, again.output
    assert "mock-mail     is restarted: deploy/mocks/" in again.stdout
    after = {status.name: status.pid for status in report_of(stack).processes}
    assert {name for name in before if before[name] != after[name]} == set(MOCKS)


def test_a_killed_supervisors_processes_are_ended_and_a_new_stack_starts(stack: Stack) -> None:
    before = report_of(stack)
    sessions = [status.pid for status in before.processes if status.pid is not None]
    os.kill(before.pid, signal.SIGKILL)

    async def gone() -> bool:
        return not before.is_alive

    asyncio.run(eventually(gone))
    command = [sys.executable, "-m", "operations", "up", "--no-journey"]
    # Two at once: one starts the stack, and the other waits for it.
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    outputs = [started.communicate(timeout=UP_SECONDS)[0] for started in both]
    assert [started.returncode for started in both] == [0, 0], outputs
    assert sum("that a killed supervisor had left" in output for output in outputs) == 1
    assert sum("is starting this stack: waiting for it" in output for output in outputs) == 1
    assert sum("is already running" in output for output in outputs) == 1
    assert not [pid for leader in sessions for pid in members(leader)]
    assert skyhigh("status").exit_code == 0


def test_logs_of_one_process_or_of_all(stack: Stack) -> None:
    assert "seat is ready" in skyhigh("logs", "supervisor", "-n", "1000").stdout
    assert "supervisor " in skyhigh("logs").stdout
    unknown = skyhigh("logs", "pilot")
    assert unknown.exit_code == 1
    assert "postgres" in unknown.stderr
