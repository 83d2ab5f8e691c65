"""Small processes that stand for servers, for tests of what starts and ends them."""

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

# A shell starts pytest with SIGQUIT ignored if it puts it into the background, and each child would inherit that.
LEADER: Final = """
import signal, subprocess, sys, time
signal.signal(signal.SIGQUIT, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def leader_with_child(*, deaf: bool = False) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts a process that opens a session and has a child in it; yields it and the child's pid.

    A deaf one, and its child, ignore SIGQUIT.
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
    """What a supervisor would have reported of it."""
    return Status("server", 0, pid=leader.pid, start_ticks=proc.start_ticks(leader.pid), ports=ports or {})


async def ended(pid: int) -> None:
    """Waits until a process has ended."""

    async def gone() -> bool:
        return proc.find(pid) is None

    await eventually(gone)
