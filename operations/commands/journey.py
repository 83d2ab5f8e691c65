"""`skyhigh journey`: makes the journeys through the gateway of a running stack."""

from __future__ import annotations

from typing import Annotated

import typer

from operations import journeys


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(journey)


def journey(
    flight: Annotated[
        str | None, typer.Option(metavar="FLIGHT", help="Where the two meet.  [default: one of the demo airline's]")
    ] = None,
) -> None:
    """Prove the stack by whole ways through the gateway.

    Search, a booking of two flights, other seats, payment, record locator, login, two boarding passes, cancellation;
    then a seat, a second caller's refusal, check-in, 31 kg of bags, payment, webhook, boarding pass, the waitlist, the
    seat's new owner and the mail. Ends with 1 at the first answer that is wrong.
    """
    journeys.prove(flight)
