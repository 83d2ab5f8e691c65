"""Running processes as /proc shows them: their start times, groups and sessions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Running:
    """A running process. A pid alone does not identify one, because the kernel reuses pids."""

    pid: int
    start_ticks: int
    """When it started, in the kernel's ticks since the machine booted."""
    group: int
    session: int


def boot_id() -> str:
    """Returns the id of this boot of the machine; empty if it cannot be read.

    Ticks and pids are comparable only within one boot.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def find(pid: int) -> Running | None:
    """Returns the process with this pid; None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # proc(5), from field 3 on. The text is split after its last ")", because the name in field 2 may have blanks and
    # parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    if state in ("Z", "X"):
        return None
    return Running(pid, start_ticks=int(fields[18]), group=int(fields[1]), session=int(fields[2]))


def start_ticks(pid: int) -> int | None:
    """Returns when a process started, in the kernel's ticks; None if it does not run."""
    found = find(pid)
    return None if found is None else found.start_ticks


def members(leader: int) -> list[Running]:
    """Returns all processes of the session or group of `leader`, even if that has ended."""
    return [process for process in _all() if leader in (process.session, process.group)]


def _all() -> Iterator[Running]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (process := find(int(folder.name))) is not None:
            yield process
