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
        str | None, typer.Option(metavar="FLIGHT", help="The flight of the two demo passengers. Default: any.")
    ] = None,
) -> None:
    """Test the stack by the journeys of three people through the gateway.

    A guest searches, books two flights, changes seats, pays, gets a record locator, logs in, gets two boarding passes
    and cancels. Then a passenger of the demo airline holds a seat, checks in, pays for 31 kg of bags and gets a
    boarding pass. A second passenger is refused the seat, joins the waitlist, and gets the seat and a mail when the
    first one cancels. Ends with 1 at the first wrong response.
    """
    journeys.prove(flight)
