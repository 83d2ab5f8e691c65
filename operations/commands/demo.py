"""`skyhigh demo`: the demo airline."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from operations.demo import loading, passengers
from operations.terminal import fail

demo = typer.Typer(help="The demo airline.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(demo, name="demo")


@demo.callback()
def _group() -> None:
    """The demo airline."""


@demo.command()
def load() -> None:
    """Add the flights of the next days to the schedule and import their manifests. A repeat changes nothing."""
    asyncio.run(loading.load_all())


@demo.command()
def flight() -> None:
    """Print the id of one of the demo airline's flights, tomorrow's first, and nothing else."""
    from operations.demo import airline

    print(airline.flights(datetime.now(UTC).date() + timedelta(days=1))[0].flight_id)


@demo.command()
def pnr(
    flight: Annotated[str | None, typer.Option(metavar="FLIGHT", help="Of this flight.  [default: of any]")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=100, metavar="N", help="So many people.")] = 1,
) -> None:
    """Print the locator and the last name of somebody who can check in now, and nothing else.

    An adult who travels alone on the STANDARD fare and needs nothing special; another one each time.
    """
    found = asyncio.run(passengers.eligible(number, passengers.open_flights(flight)))
    if len(found) < number:
        fail(f"only {len(found)} of {number} can check in now; was the airline loaded by `skyhigh demo load`?")
    for candidate in found:
        print(candidate.pnr, candidate.last_name)
