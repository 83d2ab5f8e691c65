"""What /proc says of the measured processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
LISTENING: Final = "0A"


def cpu_seconds(pid: int) -> float:
    """CPU that a process and all below it have used so far, those that ended and were waited for included."""
    stats = dict(_stats())
    below = {pid}
    # Parents may have higher numbers than their children, so that one pass is not enough.
    while grown := {child for child, stat in stats.items() if int(stat[1]) in below} - below:
        below |= grown
    # proc(5): fields 14 to 17 are utime, stime, cutime and cstime; field 3 is the first of `stat`.
    return sum(sum(map(int, stats[one][11:15])) for one in below if one in stats) / TICKS_PER_SECOND


def listeners(port: int) -> int:
    """How many sockets listen on a port of the machine: with SO_REUSEPORT one for each process of a server."""
    suffix = f":{port:04X}"
    # gRPC listens on IPv4 addresses by sockets of IPv6.
    tables = (Path("/proc/net") / name for name in ("tcp", "tcp6"))
    rows = (line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:])
    return sum(row[1].endswith(suffix) and row[3] == LISTENING for row in rows)


def _stats() -> Iterable[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # The name in field 2 may hold blanks and parentheses.
                yield int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                # It ended while we looked.
                continue
