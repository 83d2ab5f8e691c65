"""The `skyhigh` command. Each module of this package that has commands registers them."""

from __future__ import annotations

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
    help="Runs and inspects SkyHigh.",
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


def main() -> None:
    """The entry of the installed command."""
    app()


if __name__ == "__main__":
    main()
