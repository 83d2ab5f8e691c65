"""Ends the processes that a killed supervisor left running, by its last report."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from typing import Final

from deploy.local import ports, proc
from deploy.local.supervisor import Status

QUIT_SECONDS: Final = 5
KILL_SECONDS: Final = 5
LOOK_SECONDS: Final = 0.02


def end_leftovers(statuses: Iterable[Status]) -> list[int]:
    """Ends the rest of these processes and of all that they started; returns the pids.

    Waits until they have ended and nothing listens on their ports, for a few seconds at most. The statuses must be of
    this boot of the machine.
    """
    known = [status for status in statuses if status.pid is not None]
    left = {process.pid: process for status in known for process in _left_of(status)}
    # On SIGQUIT Postgres ends its sessions at once and recovers from its log at the next start. The others just end.
    _send(left.values(), signal.SIGQUIT)
    _wait_until_gone(left.values(), QUIT_SECONDS)
    _send(left.values(), signal.SIGKILL)
    _wait_until_gone(left.values(), KILL_SECONDS)
    if left:
        _wait_until_closed({port for status in known for port in status.ports.values()})
    return sorted(left)


def _left_of(status: Status) -> list[proc.Running]:
    """Returns the process of a status and the members of its session that still run.

    The kernel does not reuse a pid while a session or group has the same number. So if another process has the pid now,
    the whole session has ended; and if no process has it, all members belong to this session.
    """
    if status.pid is None or status.start_ticks is None:
        return []
    leader = proc.find(status.pid)
    if leader is not None and leader.start_ticks != status.start_ticks:
        return []
    return [member for member in proc.members(status.pid) if member.start_ticks >= status.start_ticks]


def _still_runs(process: proc.Running) -> bool:
    return proc.start_ticks(process.pid) == process.start_ticks


def _send(processes: Iterable[proc.Running], number: signal.Signals) -> None:
    for process in processes:
        if _still_runs(process):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def _wait_until_gone(processes: Iterable[proc.Running], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(_still_runs, processes)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def _wait_until_closed(numbers: set[int]) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while ports.listened_on(numbers) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
