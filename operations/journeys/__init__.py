"""The journeys of three people, with JSON through the gateway.

A customer searches, books two flights and gets two boarding passes (`booked`). Two passengers of the demo airline check
in for one flight: the bags of one are too heavy, and the other joins the waitlist for the first one's seat (`airport`).
At the end each of them cancels, so that all seats are available again.
"""

from __future__ import annotations

import asyncio

from operations.gateway_client import GatewayUnavailable
from operations.journeys import airport, booked
from operations.journeys.steps import JourneyFailed, Passed
from operations.local_stack import address_of
from operations.terminal import fail


def prove(flight_id: str | None = None) -> None:
    """Makes all journeys on the stack of this home. Ends the command at the first wrong response."""
    gateway_url = _gateway_url()
    try:
        asyncio.run(travel(gateway_url, flight_id))
    except (JourneyFailed, GatewayUnavailable) as error:
        fail(f"the journey failed: {error}")


def _gateway_url() -> str:
    url = address_of("SKYHIGH_GATEWAY_URL").rstrip("/")
    return url if url.startswith(("http://", "https://")) else fail(f"SKYHIGH_GATEWAY_URL: {url!r} is not an HTTP URL")


async def travel(
    gateway_url: str, flight_id: str | None = None, *, after: Passed | None = None, patience: float = 1
) -> None:
    """Makes all journeys. Raises JourneyFailed or GatewayUnavailable at the first wrong response.

    `after` is called with the name of each step after which other services continue the work; `patience` multiplies the
    time that these services have for it.
    """

    async def passed(step: str) -> None:
        if after is not None:
            await after(step)

    await booked.travel(gateway_url, passed=passed, patience=patience)
    await airport.travel(gateway_url, flight_id, passed=passed, patience=patience)
