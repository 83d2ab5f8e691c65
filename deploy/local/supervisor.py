"""Starts processes in order, restarts those that die, and stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from deploy.local import environment, proc, sources
from deploy.local.process import Process

PROBE_SECONDS: Final = 0.05
PROBE_TIMEOUT_SECONDS: Final = 5
# The first restart comes soon. The delay then doubles, so that a process that dies at each start does not keep the
# machine busy.
FIRST_RESTART_SECONDS: Final = 0.25
LONGEST_RESTART_SECONDS: Final = 15
# After a process has run this long, its next restart has the first delay again.
WELL_AFTER_SECONDS: Final = 60
LOG_BYTES: Final = 32 * 1024 * 1024
# A killed child ends within milliseconds, but one that waits for a disk may take longer.
GROUP_SECONDS: Final = 5


class State(StrEnum):
    """The states of a process."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DIED = "died"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(slots=True)
class Status:
    """The state of a process, as the supervisor knows it."""

    name: str
    port: int
    state: State = State.WAITING
    pid: int | None = None
    start_ticks: int | None = None
    """When the process started, in the kernel's ticks: a later process with the same pid has another value."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """All ports on which it listens when it is ready, by the variables that set them."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Digests of the source that it was started from."""
    since: float = 0
    """When it entered this state, in seconds of the Unix epoch."""
    restarts: int = 0
    last_end: str = ""
    """How it ended the last time."""
    trouble: str = ""
    """Why the last probe found it not ready; empty if it is ready."""


class StartError(Exception):
    """A process ended before it was ready, and is not restarted."""


class Supervisor:
    """A set of running processes, with a log file for each.

    With `restart`, a process that dies is started again after a growing delay. Without it, the process stays down, as
    tests that kill a process need.
    """

    def __init__(
        self,
        processes: Iterable[Process],
        *,
        logs: Path,
        restart: bool = True,
        on_change: Callable[[Sequence[Status]], None] = lambda _: None,
    ) -> None:
        self._processes = {process.name: process for process in processes}
        self._logs = logs
        self._restart = restart
        self._on_change = on_change
        self._statuses = {
            name: Status(name, process.port, ports=process.ports) for name, process in self._processes.items()
        }
        self._ready = {name: asyncio.Event() for name in self._processes}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.subprocess.Process] = {}

    @property
    def statuses(self) -> list[Status]:
        """The status of each process, in the order of the table."""
        return list(self._statuses.values())

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, *names: str) -> None:
        """Starts the named processes, or all; returns when they are ready.

        Raises StartError if one ends before it is ready and is not restarted.
        """
        for name in names or self._processes:
            if name not in self._keepers or self._keepers[name].done():
                self._keepers[name] = asyncio.create_task(self._keep(self._processes[name]), name=name)
        waiters = [asyncio.create_task(self._until_ready(name)) for name in names or self._processes]
        try:
            await asyncio.gather(*waiters)
        finally:
            for waiter in waiters:
                waiter.cancel()

    async def stop(self, *names: str) -> None:
        """Stops the named processes, or all. Idempotent.

        Each one is stopped after the processes that name it in `after`.
        """
        endings: dict[str, asyncio.Task[None]] = {}
        chosen = names or tuple(self._processes)

        async def end(name: str) -> None:
            await asyncio.gather(*(endings[other] for other in chosen if name in self._processes[other].after))
            await self._end(name)

        # In reverse order, so that each task of `endings` exists before another task waits for it.
        for name in reversed(self._in_order(chosen)):
            endings[name] = asyncio.create_task(end(name))
        await asyncio.gather(*endings.values())

    async def restart(self, *names: str) -> None:
        """Stops the named processes and starts them again; the others keep running.

        Returns when the named ones are ready.
        """
        await self.stop(*names)
        await self.start(*names)

    async def kill(self, name: str) -> None:
        """Kills a process, as a crash would. With `restart` it starts again by itself."""
        running = self._running[name]
        os.killpg(running.pid, signal.SIGKILL)
        await running.wait()
        await _end_members(running.pid)
        if not self._restart:
            await asyncio.gather(self._keepers.pop(name), return_exceptions=True)

    def _in_order(self, names: Iterable[str]) -> list[str]:
        ordered: list[str] = []

        def add(name: str) -> None:
            for earlier in self._processes[name].after:
                if earlier in self._processes:
                    add(earlier)
            if name not in ordered:
                ordered.append(name)

        chosen = set(names)
        for name in self._processes:
            add(name)
        return [name for name in ordered if name in chosen]

    async def _until_ready(self, name: str) -> None:
        ready = asyncio.create_task(self._ready[name].wait())
        await asyncio.wait({ready, self._keepers[name]}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._keepers[name].result()
            raise StartError(f"{name} {self._statuses[name].last_end}; see {self._log_path(name)}")

    async def _keep(self, process: Process) -> None:
        """Waits for the processes of `after`, then runs the process.

        With `restart` it runs the process again after each end, until it is cancelled.
        """
        status = self._statuses[process.name]
        failures = 0
        # Prepares during the wait: the gateway waits for all services, and rendering its configuration takes a second.
        early = asyncio.create_task(self._prepare(process, status))
        try:
            for earlier in process.after:
                if earlier in self._ready:
                    await self._ready[earlier].wait()
        except asyncio.CancelledError:
            early.cancel()
            raise
        preparing: asyncio.Task[None] | None = early
        while True:
            started = time.monotonic()
            try:
                await self._run(process, status, preparing)
            # Any error, because the other processes keep running in each case, and the next try may succeed.
            except Exception as error:
                reason = str(error) or repr(error)
                with self._open_log(process.name) as log:
                    log.write(f"{reason}\n".encode())
                status.last_end = f"could not start: {reason.splitlines()[-1]}"
            preparing = None
            self._ready[process.name].clear()
            # The result of the last probe, such as a closed port, says nothing about a process that has ended.
            status.trouble = ""
            self._change(status, State.DIED, pid=None)
            if not self._restart:
                log_line(f"{process.name} {status.last_end}")
                return
            failures = 1 if time.monotonic() - started > WELL_AFTER_SECONDS else failures + 1
            delay = min(FIRST_RESTART_SECONDS * 2 ** (failures - 1), LONGEST_RESTART_SECONDS)
            log_line(f"{process.name} {status.last_end}; restart {status.restarts + 1} in {delay:g} s")
            await asyncio.sleep(delay)
            status.restarts += 1

    async def _prepare(self, process: Process, status: Status) -> None:
        # Before the process reads its source, so that each later edit counts as one.
        status.sources = await asyncio.to_thread(sources.digests, process.sources)
        if process.prepare is not None:
            await process.prepare()

    async def _run(self, process: Process, status: Status, preparing: asyncio.Task[None] | None) -> None:
        """Starts the process, reports when it is ready, and returns when it has ended."""
        self._change(status, State.STARTING)
        await (preparing or self._prepare(process, status))
        running = await self._launch(process)
        self._running[process.name] = running
        self._change(status, State.STARTING, pid=running.pid)
        ended = asyncio.create_task(running.wait())
        watching = asyncio.create_task(self._watch(process, status))
        try:
            await asyncio.wait({ended, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and watching.exception() is not None:
                # `settle` failed, or a probe raised another error than OSError or EOFError: the process is stopped, and
                # with `restart` it is started again.
                reason = str(watching.exception()) or repr(watching.exception())
                status.last_end = f"could not be set up: {reason.splitlines()[0]}"
                running.send_signal(process.stop_signal)
                await ended
            else:
                code = await ended
                status.last_end = f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
        finally:
            watching.cancel()
            ended.cancel()
        # Its children may still listen on the ports that the next start needs.
        await _end_members(running.pid)
        del self._running[process.name]

    async def _watch(self, process: Process, status: Status) -> None:
        """Returns when the process is ready and set up."""
        while True:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                    if await process.ready():
                        break
                trouble = "it does not answer as it should"
            except TimeoutError:
                trouble = f"no response within {PROBE_TIMEOUT_SECONDS} s"
            except (OSError, EOFError) as error:
                trouble = str(error) or repr(error)
            if trouble != status.trouble:
                status.trouble = trouble
                self._on_change(self.statuses)
            await asyncio.sleep(PROBE_SECONDS)
        if process.settle is not None:
            await process.settle()
        status.trouble = ""
        self._change(status, State.READY)
        log_line(f"{process.name} is ready: pid {status.pid}, port {process.port}")
        self._ready[process.name].set()

    async def _launch(self, process: Process) -> asyncio.subprocess.Process:
        inherited = {name: value for name, value in environment.inherited().items() if name not in process.hidden}
        identity = pwd.getpwnam(process.user) if process.user is not None else None
        if identity is not None:
            inherited |= {"HOME": identity.pw_dir, "USER": identity.pw_name, "LOGNAME": identity.pw_name}
        with self._open_log(process.name) as log:
            return await asyncio.create_subprocess_exec(
                *process.command,
                env=inherited | dict(process.environment),
                cwd=process.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C in a terminal does not reach it, and the supervisor can end all members.
                start_new_session=True,
                user=None if identity is None else identity.pw_uid,
                group=None if identity is None else identity.pw_gid,
                extra_groups=None if identity is None else [],
            )

    async def _end(self, name: str) -> None:
        keeper = self._keepers.pop(name, None)
        running = self._running.pop(name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        status = self._statuses[name]
        self._ready[name].clear()
        if running is not None:
            process = self._processes[name]
            self._change(status, State.STOPPING)
            with contextlib.suppress(ProcessLookupError):
                running.send_signal(process.stop_signal)
            try:
                await asyncio.wait_for(running.wait(), process.stop_seconds)
            except TimeoutError:
                log_line(f"{name} did not end within {process.stop_seconds:g} s; killing it")
            _kill(running.pid)
            await running.wait()
            await _end_members(running.pid)
        status.trouble = ""
        if status.state is not State.STOPPED:
            self._change(status, State.STOPPED, pid=None)

    def _change(self, status: Status, state: State, *, pid: int | None = -1) -> None:
        if pid != -1:
            status.pid = pid
            status.start_ticks = proc.start_ticks(pid) if pid is not None else None
        if state is not status.state:
            status.since = time.time()
        status.state = state
        self._on_change(self.statuses)

    def _log_path(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _open_log(self, name: str) -> IO[bytes]:
        path = self._log_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


async def _end_members(leader: int) -> None:
    """Kills the rest of the session of an ended process, and waits until no member runs."""
    deadline = time.monotonic() + GROUP_SECONDS
    while (left := proc.members(leader)) and time.monotonic() < deadline:
        for member in left:
            _kill(member.pid)
        await asyncio.sleep(0.01)


def log_line(line: str) -> None:
    """Writes a line with the current time to stderr, which is the supervisor's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}", file=sys.stderr, flush=True)
