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
    """Add the flights of the next days to the schedule and import their manifests. Loading again changes nothing."""
    asyncio.run(loading.load_all())


@demo.command()
def flight() -> None:
    """Print only the id of a flight of the demo airline that departs tomorrow."""
    from operations.demo import airline

    print(airline.flights(datetime.now(UTC).date() + timedelta(days=1))[0].flight_id)


@demo.command()
def pnr(
    flight: Annotated[
        str | None, typer.Option(metavar="FLIGHT", help="Only passengers of this flight. Default: any flight.")
    ] = None,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, max=100, metavar="N", help="Number of passengers.")
    ] = 1,
) -> None:
    """Print only the record locator and the last name of passengers who can check in now.

    Each is an adult who travels alone on the STANDARD fare without special services, chosen at random.
    """
    found = asyncio.run(passengers.eligible(number, passengers.open_flights(flight)))
    if len(found) < number:
        fail(f"only {len(found)} of {number} passengers can check in now; `skyhigh demo load` loads the demo airline")
    for candidate in found:
        print(candidate.pnr, candidate.last_name)
