"""`skyhigh logs`: prints the logs of the stack's processes."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from operations.stack import fail, home

POLL_SECONDS: Final = 0.1
LOG_TAIL_LINES: Final = 25
# `cause` searches so many lines, because the line with the error is often not the last one.
CAUSE_LINES: Final = 30
CAUSE: Final = re.compile(r"^\s*(\w+\.)*\w+(Error|Exception|Exit)\b|FATAL|\berror\b|No space left", re.IGNORECASE)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(logs)


def logs(
    name: Annotated[str | None, typer.Argument(help="One process, or `supervisor`; all if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines of each.")] = LOG_TAIL_LINES,
) -> None:
    """Print the end of the logs."""
    folder = home() / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if not known:
        fail(f"there are no logs in {folder}")
    if name is not None and name not in known:
        fail(f"there is no log of {name!r}; there are {', '.join(known)}")
    chosen = [name] if name is not None else known
    for line in _lines([folder / f"{one}.log" for one in chosen], lines, follow=follow):
        print(line, flush=follow)


def cause(name: str) -> str:
    """Returns the log line that most likely says why a process ended.

    Returns an empty string if the log is empty.
    """
    last = [line.strip() for line in _lines([home() / "logs" / f"{name}.log"], CAUSE_LINES, follow=False)]
    return next((line for line in reversed(last) if CAUSE.search(line)), last[-1] if last else "")


def _lines(paths: list[Path], lines: int, *, follow: bool) -> Iterator[str]:
    """Yields the last lines of each file, then, with `follow`, each line that is added.

    With several files, each line begins with the name of its file.
    """
    alone = len(paths) == 1
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(path.open(errors="replace")) for path in paths if path.exists()}
        for path, file in files.items():
            for line in deque(file, maxlen=lines):
                yield _named(path, line, alone=alone)
        while follow:
            time.sleep(POLL_SECONDS)
            for path, file in files.items():
                for line in file:
                    yield _named(path, line, alone=alone)


def _named(path: Path, line: str, *, alone: bool) -> str:
    return line.rstrip() if alone else f"{path.stem:<13} {line.rstrip()}"
