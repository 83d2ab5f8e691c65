"""The `skyhigh` command. Each module of this package that has commands registers them."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from operations import (
    abuse,
    bookings,
    demo,
    dlq,
    events,
    flights,
    journeys,
    limits,
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
    *(stack, demo, journeys, token, flights, seats, bookings, manifest),
    *(waitlist, payments, abuse, limits, events, dlq, mock, verify),
):
    module.register(app)


def print_version(asked: bool) -> None:
    """Prints the version of the installed package and ends the command, if `--version` was given."""
    if asked:
        print(f"skyhigh {metadata.version('skyhigh')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Runs and inspects SkyHigh."""


def main() -> None:
    """The entry of the installed command."""
    app()


if __name__ == "__main__":
    main()
