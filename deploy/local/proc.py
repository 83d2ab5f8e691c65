"""What the kernel knows of running processes: when each began, and which belong to one session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs. A pid alone does not identify one, because the kernel gives a number out again."""

    pid: int
    start_ticks: int
    """When it began, in the kernel's ticks since the machine booted."""
    group: int
    session: int


def boot_id() -> str:
    """Returns what names this boot of the machine: ticks and pids of another boot mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def find(pid: int) -> Running | None:
    """Returns the process of this number; None if there is none, or if it has ended and only its parent keeps it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # proc(5), from field 3 on: the name in field 2 may hold blanks and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    if state in ("Z", "X"):
        return None
    return Running(pid, start_ticks=int(fields[18]), group=int(fields[1]), session=int(fields[2]))


def start_ticks(pid: int) -> int | None:
    """Returns when a running process began, in the kernel's ticks; None if there is no such process."""
    found = find(pid)
    return None if found is None else found.start_ticks


def members(leader: int) -> list[Running]:
    """Returns all processes of the session or group that `leader` opened, whether or not `leader` still runs."""
    return [process for process in _all() if leader in (process.session, process.group)]


def _all() -> Iterator[Running]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (process := find(int(folder.name))) is not None:
            yield process
