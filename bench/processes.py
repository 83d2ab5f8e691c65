"""The CPU and the sockets of the measured processes, as /proc shows them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
LISTENING: Final = "0A"


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process and all its descendants have used so far.

    This includes descendants that have ended and were waited for.
    """
    stats = dict(_stats())
    below = {pid}
    # One pass is not enough, because a parent may have a higher pid than its child.
    while grown := {child for child, stat in stats.items() if int(stat[1]) in below} - below:
        below |= grown
    # proc(5): fields 14 to 17 are utime, stime, cutime and cstime; field 3 is the first of `stat`.
    return sum(sum(map(int, stats[one][11:15])) for one in below if one in stats) / TICKS_PER_SECOND


def listeners(port: int) -> int:
    """Returns how many sockets of the machine listen on a port.

    With SO_REUSEPORT, each process of a server has one.
    """
    suffix = f":{port:04X}"
    # gRPC uses IPv6 sockets to listen on IPv4 addresses, so both tables are read.
    tables = (Path("/proc/net") / name for name in ("tcp", "tcp6"))
    rows = (line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:])
    return sum(row[1].endswith(suffix) and row[3] == LISTENING for row in rows)


def _stats() -> Iterable[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # Split after the last ")", because the name in field 2 may have blanks and parentheses.
                yield int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                # The process has ended meanwhile.
                continue
