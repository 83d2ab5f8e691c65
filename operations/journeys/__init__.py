"""`skyhigh journey`: the journeys of three people, with JSON through the gateway.

A customer searches, books two flights and gets two boarding passes (`booked`). Two passengers of the demo airline check
in for one flight: the bags of one are too heavy, and the other joins the waitlist for the first one's seat (`airport`).
At the end each of them cancels, so that all seats are available again.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from operations.gateway import GatewayAway
from operations.journeys import airport, booked
from operations.journeys.steps import JourneyFailed, Passed
from operations.stack import address_of, fail


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
    gateway_url = _gateway_url()
    try:
        asyncio.run(travel(gateway_url, flight))
    except (JourneyFailed, GatewayAway) as error:
        fail(f"the journey ended: {error}")


def _gateway_url() -> str:
    url = address_of("SKYHIGH_GATEWAY_URL").rstrip("/")
    return url if url.startswith(("http://", "https://")) else fail(f"SKYHIGH_GATEWAY_URL: {url!r} is no HTTP address")


async def travel(
    gateway_url: str, flight_id: str | None = None, *, after: Passed | None = None, patience: float = 1
) -> None:
    """Makes all journeys. Raises JourneyFailed or GatewayAway at the first wrong response.

    `after` is called with the name of each step after which other services continue the work; `patience` multiplies the
    time that these services have for it.
    """

    async def passed(step: str) -> None:
        if after is not None:
            await after(step)

    await booked.travel(gateway_url, passed=passed, patience=patience)
    await airport.travel(gateway_url, flight_id, passed=passed, patience=patience)
