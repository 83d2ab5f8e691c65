"""Waits until the flight service has the flights of its schedule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from operations.connections import CALL_TIMEOUT_SECONDS, Metadata, ask
from operations.terminal import fail

if TYPE_CHECKING:
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

POLL_SECONDS: Final = 0.5
PROGRESS_SECONDS: Final = 10
# `wait_for_schedule` does not wait for a flight that departs within this time: the flight could depart during the wait.
DEPARTS_SOON: Final = timedelta(minutes=10)
PAGE_SIZE: Final = 100


async def wait_for_schedule(days: int, *, within_seconds: float) -> None:
    """Waits until the flight service lists all flights of the schedule's next days.

    The first of the `days` is today. Ends the command if flights are still missing after `within_seconds`.
    """
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

    from flight_service.schedule import departures

    now = datetime.now(UTC)
    wanted = {
        str(day): {flight.flight_id for flight in departures(day) if flight.departure_time > now + DEPARTS_SOON}
        for day in (now.date() + timedelta(days=n) for n in range(days))
    }
    total = sum(map(len, wanted.values()))

    async def wait(stub: FlightServiceStub, metadata: Metadata) -> None:
        deadline = time.monotonic() + within_seconds
        printed = time.monotonic()
        while missing := total - len(await _listed(stub, metadata, wanted)):
            if time.monotonic() > deadline:
                fail(
                    f"{missing} of {total} flights of the schedule are missing after {within_seconds:.0f} s; "
                    "`skyhigh logs flight` may say why"
                )
            if time.monotonic() - printed > PROGRESS_SECONDS:
                print(f"Waiting for the schedule: {total - missing} of {total} flights exist.", flush=True)
                printed = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)
        print(f"The schedule has {total} flights from {min(wanted)} to {max(wanted)}.", flush=True)

    await ask("flight", FlightServiceStub, wait)


async def _listed(stub: FlightServiceStub, metadata: Metadata, wanted: Mapping[str, set[str]]) -> set[str]:
    """Returns those of the wanted flights that the service lists; `wanted` is by date."""
    from skyhigh.flight.v1 import flight_service_pb2 as pb

    found: set[str] = set()
    for day, flight_ids in wanted.items():
        request = pb.ListFlightsRequest(date=day, page_size=PAGE_SIZE)
        while True:
            page = await stub.ListFlights(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
            found |= flight_ids & {flight.flight_id for flight in page.flights}
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    return found
