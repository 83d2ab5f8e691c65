"""The log files of the stack's processes."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from operations.local_stack import home

POLL_SECONDS: Final = 0.1
# `cause` searches so many lines, because the line with the error is often not the last one.
CAUSE_LINES: Final = 30
CAUSE: Final = re.compile(r"^\s*(\w+\.)*\w+(Error|Exception|Exit)\b|FATAL|\berror\b|No space left", re.IGNORECASE)


def cause(name: str) -> str:
    """Returns the log line that most likely says why a process ended.

    Returns an empty string if the log is empty.
    """
    last = [line.strip() for line in last_lines([home() / "logs" / f"{name}.log"], CAUSE_LINES, follow=False)]
    return next((line for line in reversed(last) if CAUSE.search(line)), last[-1] if last else "")


def last_lines(paths: list[Path], lines: int, *, follow: bool) -> Iterator[str]:
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
