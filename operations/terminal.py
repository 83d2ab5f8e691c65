"""What the commands print: errors, tables, JSON lines and times."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.table import Table

WIDTH: Final = 260


def fail(reason: str) -> NoReturn:
    """Ends the command with code 1 and a line that says why."""
    print(f"skyhigh: {reason}", file=sys.stderr)
    raise typer.Exit(1)


def table(*columns: str, numbers: Collection[str] = ()) -> Table:
    """Returns an empty table with these columns; those in `numbers` are right-aligned."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", no_wrap=True, overflow="fold")
    return made


def print_table(rows: Table, *, markup: bool = True, nothing: str = "") -> None:
    """Prints a table; prints `nothing` instead if it is given and the table has no rows.

    `markup` False prints the cells as they are. It must be False if callers of the system choose their text.
    """
    from rich.console import Console

    if nothing and not rows.row_count:
        print(nothing)
        return
    # One line per row even on a narrow terminal, because grep cannot search rows that wrap.
    Console(highlight=False, markup=markup, width=max(Console().width, WIDTH)).print(rows)


def add_plain_row(rows: Table, *cells: str) -> None:
    """Adds a row of plain text, in which markup has no effect. An empty cell becomes `-`."""
    from rich.text import Text

    rows.add_row(*(Text(cell or "-") for cell in cells))


def print_json_line(**fields: Any) -> None:
    """Prints one JSON object and flushes it, so that a pipe receives it at once."""
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def utc(moment: Timestamp) -> str:
    """Formats a time in UTC, to the second; returns an empty string if it is unset."""
    return f"{moment.ToDatetime(UTC):%Y-%m-%dT%H:%M:%SZ}" if moment.ByteSize() else ""
