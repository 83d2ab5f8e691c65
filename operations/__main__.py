"""The `skyhigh` command. Each module of `operations.commands` registers its commands."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from deploy.local.environment import clean
from operations.commands import (
    abuse,
    bookings,
    demo,
    dlq,
    events,
    flights,
    journey,
    limits,
    logs,
    manifest,
    mock,
    payments,
    seats,
    stack,
    token,
    verify,
    waitlist,
)

app = typer.Typer(
    name="skyhigh",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    *(stack, logs, demo, journey, token, flights, seats, bookings, manifest),
    *(waitlist, payments, abuse, limits, events, dlq, mock, verify),
):
    module.register(app)


def print_version(asked: bool) -> None:
    """Prints the version and ends the command if `--version` was given."""
    if asked:
        print(f"skyhigh {metadata.version('skyhigh')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Run and inspect SkyHigh."""


def main() -> None:
    """Runs the installed command `skyhigh`. An OSError ends it with one line of text."""
    clean()
    try:
        app()
    except OSError as error:
        # The machine is the cause, for example a home of another user or a full disk: a traceback would not help.
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"skyhigh: {place}{error.strerror or error}")


if __name__ == "__main__":
    main()
