"""Small processes that take the place of servers, for tests of their start and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from deploy.local import proc
from deploy.local.supervisor import Status
from tests.waiting import eventually

# A shell starts a background pytest with SIGQUIT ignored, and each child would inherit that.
LEADER: Final = """
import signal, subprocess, sys, time
signal.signal(signal.SIGQUIT, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def leader_with_child(*, deaf: bool = False) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts a session leader with a child; yields the leader and the child's pid.

    If `deaf`, both ignore SIGQUIT.
    """
    command = [sys.executable, "-c", LEADER, *(["deaf"] if deaf else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        try:
            yield leader, child
        finally:
            for process in proc.members(leader.pid):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def status_of(leader: subprocess.Popen[str], ports: Mapping[str, int] | None = None) -> Status:
    """Returns the status that a supervisor would have reported of the leader."""
    return Status("server", 0, pid=leader.pid, start_ticks=proc.start_ticks(leader.pid), ports=ports or {})


async def ended(pid: int) -> None:
    """Waits until a process has ended."""

    async def gone() -> bool:
        return proc.find(pid) is None

    await eventually(gone)
