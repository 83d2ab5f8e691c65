"""Runs the stack of a checkout and carries out the tester's orders.

`stack.py` starts it with that checkout's Python. It is a separate program, because the checkout may be an older commit:
it imports only `deploy.local`, which the checkout's Python finds in the checkout, and nothing of the tests. Orders and
answers are JSON lines on standard input and output. It ends all processes when standard input ends, so that a killed
tester leaves no processes behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from deploy.local.process import Process
from deploy.local.report import Report
from deploy.local.stack import Stack
from deploy.local.supervisor import StartError, Supervisor

try:
    from deploy.local.process_table import processes_of
except ImportError:
    # In an older checkout the stack itself lists its processes.
    def processes_of(stack: Stack) -> list[Process]:
        """Returns the processes of a stack."""
        processes: list[Process] = stack.processes()  # type: ignore[attr-defined]
        return processes


ADDRESS: Final = re.compile(r"127\.0\.0\.1:(\d+)")
# Variables with an address on which the process itself listens.
OWN_ADDRESS: Final = re.compile(r"_(LISTEN|CONTROL|PORT)$")


class Host:
    """A running stack and the orders for it."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._stack = Stack.from_environment()
        # Orders change these; a supervisor reads them at each start of a process.
        self._variables: dict[str, dict[str, str]] = {}
        self._supervisor: Supervisor | None = None
        self._processes = [self._with_own_variables(process) for process in processes_of(self._stack)]

    def _with_own_variables(self, process: Process) -> Process:
        self._variables[process.name] = variables = dict(process.environment)
        return dataclasses.replace(process, environment=variables)

    def wires(self) -> dict[str, list[int]]:
        """Returns the ports of 127.0.0.1 to which each process connects."""
        return {
            name: sorted(
                {
                    int(port)
                    for variable, value in variables.items()
                    if not OWN_ADDRESS.search(variable)
                    for port in ADDRESS.findall(value)
                }
            )
            for name, variables in self._variables.items()
            # The servers do not connect to our processes.
            if any(variable.startswith("SKYHIGH_") for variable in variables)
        }

    def answer(self, **content: Any) -> None:
        """Writes a line to the tester."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(content), file=self._answers, flush=True)

    async def carry_out(self, order: Mapping[str, Any]) -> None:
        """Carries out an order; answers with its number, and with an error if it failed."""
        try:
            await self._do(order["do"], order)
        except Exception as error:
            self.answer(number=order["number"], error=str(error) or repr(error))
        else:
            self.answer(number=order["number"], error="")

    async def _do(self, what: str, order: Mapping[str, Any]) -> None:
        name = order.get("name", "")
        if what == "wire":
            self._connect_through(order["ports"])
        elif what == "start all":
            await self._start_all()
        elif what == "set":
            self._variables[name].update(order["variables"])
        elif what == "unset":
            for variable in order["variables"]:
                self._variables[name].pop(variable, None)
        elif what == "stop":
            await self._running.stop(name)
        elif what == "start":
            await self._running.start(name)
        else:
            raise ValueError(f"unknown order {what!r}")

    @property
    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise StartError("the stack was not started")
        return self._supervisor

    def _connect_through(self, ports: Mapping[str, Mapping[str, int]]) -> None:
        """Lets each process connect to other ports: `ports` by the process's name and the original port."""
        for name, replaced in ports.items():

            def replace(match: re.Match[str], replaced: Mapping[str, int] = replaced) -> str:
                return f"127.0.0.1:{replaced.get(match[1], match[1])}"

            variables = self._variables[name]
            for variable, value in variables.items():
                if not OWN_ADDRESS.search(variable):
                    variables[variable] = ADDRESS.sub(replace, value)

    async def _start_all(self) -> None:
        pid = os.getpid()
        report = Report(pid, _start_ticks(pid), addresses=self._stack.addresses, given=self._stack.given)

        def write(statuses: Any) -> None:
            report.processes = statuses
            report.write(self._stack.home)

        self._supervisor = Supervisor(self._processes, logs=self._stack.home / "logs", on_change=write)
        self._stack.signing_keys.ensure()
        self._stack.ensure_certificates()
        await self._supervisor.start()

    async def stop(self) -> None:
        """Ends all processes, including those that the tester has paused."""
        if self._supervisor is not None:
            for status in self._supervisor.statuses:
                _continue(status.pid)
            await self._supervisor.stop()


def _start_ticks(pid: int) -> int:
    # proc(5), field 22; the name in field 2 may contain blanks and parentheses.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _continue(leader: int | None) -> None:
    """Continues all processes of a session."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and leader is not None:
            with contextlib.suppress(OSError):
                session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
                if session == leader:
                    os.kill(int(folder.name), signal.SIGCONT)


async def main() -> None:
    """Carries out orders until standard input ends or a signal arrives."""
    # Other output must not mix with the answers, because child processes inherit standard output.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    host = Host(answers)
    host.answer(wires=host.wires())
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def listen() -> None:
        while line := await orders.readline():
            task = asyncio.create_task(host.carry_out(json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)
        stopping.set()

    listening = asyncio.create_task(listen())
    await stopping.wait()
    for task in (listening, *running):
        task.cancel()
    await asyncio.gather(listening, *running, return_exceptions=True)
    await host.stop()


if __name__ == "__main__":
    asyncio.run(main())
