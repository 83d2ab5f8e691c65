"""`skyhigh logs`: prints the logs of the stack's processes."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from operations.local_stack import home
from operations.log_files import last_lines
from operations.terminal import fail

LOG_TAIL_LINES: Final = 25


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(logs)


def logs(
    name: Annotated[str | None, typer.Argument(help="A process, or `supervisor`. Default: all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then print new lines, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines of each log.")] = LOG_TAIL_LINES,
) -> None:
    """Print the end of the logs."""
    folder = home() / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if not known:
        fail(f"there are no logs in {folder}")
    if name is not None and name not in known:
        fail(f"there is no log of {name!r}; the logs are {', '.join(known)}")
    chosen = [name] if name is not None else known
    for line in last_lines([folder / f"{one}.log" for one in chosen], lines, follow=follow):
        print(line, flush=follow)
