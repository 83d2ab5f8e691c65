"""Adds the flights of the demo airline to the schedule and imports their manifests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from operations.connections import CALL_TIMEOUT_SECONDS, channel_to, metadata_of, refusals_of

if TYPE_CHECKING:
    from operations.demo.airline import Flight

Question = TypeVar("Question")
Answer = TypeVar("Answer")

# Enough to keep a service busy, and few enough that other callers do not wait longer.
CALLS_AT_ONCE: Final = 8
# For how long calls to an unavailable service are retried, and the pause between two tries.
PATIENCE_SECONDS: Final = 60
RETRY_SECONDS: Final = 0.2


async def load_all() -> None:
    """Adds the demo flights and imports their manifests; prints a line for each flight."""
    from operations.demo import airline

    await _load(airline.flights_to_come(datetime.now(UTC)))


async def _load(flights: Sequence[Flight]) -> None:
    types = {flight.service.aircraft_type for flight in flights}
    seats = await _add_to_schedule(flights)
    print(
        f"{len(flights)} flights of {len(types)} aircraft types, {seats} seats: "
        f"{flights[0].flight_id} … {flights[-1].flight_id}"
    )
    for line in await _import_manifests(flights):
        print(line)


async def _add_to_schedule(flights: Sequence[Flight]) -> int:
    """Calls CreateFlight for each flight; returns the number of seats of all of them.

    An error response ends the command.
    """
    from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

    from operations.demo import airline

    async def add(flight: Flight) -> int:
        added = await stub.CreateFlight(airline.schedule(flight), metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        return added.total_seats

    metadata = metadata_of("operations")
    with refusals_of("flight"):
        async with channel_to("flight") as channel:
            stub = FlightServiceStub(channel)
            return sum(await _each(add, flights))


async def _import_manifests(flights: Sequence[Flight]) -> list[str]:
    """Calls ImportManifest for each flight; returns a line of text for each.

    An error response ends the command.
    """
    from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

    from operations.demo import airline
    from services import airports

    async def import_one(flight: Flight) -> str:
        request = airline.manifest(flight)
        answer = await stub.ImportManifest(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        departure = airports.local_time(flight.departure_time, airports.zone(flight.service.origin))
        return (
            f"{flight.flight_id}  {flight.service.origin} → {flight.service.destination}  "
            f"{departure}  {len(request.passengers):>3} passengers: "
            f"{answer.added} added, {answer.changed} changed, {answer.unchanged} unchanged"
        )

    metadata = metadata_of("service")
    with refusals_of("checkin"):
        async with channel_to("checkin") as channel:
            stub = CheckInServiceStub(channel)
            return await _each(import_one, flights)


async def _each(ask: Callable[[Question], Awaitable[Answer]], questions: Sequence[Question]) -> list[Answer]:
    """Returns the responses to the requests, in their order.

    Makes CALLS_AT_ONCE calls at a time. Retries a call that fails with UNAVAILABLE, for up to PATIENCE_SECONDS.
    """
    import grpc

    at_once = asyncio.Semaphore(CALLS_AT_ONCE)
    deadline = time.monotonic() + PATIENCE_SECONDS

    async def ask_one(question: Question) -> Answer:
        async with at_once:
            while True:
                try:
                    return await ask(question)
                except grpc.aio.AioRpcError as error:
                    # The service is starting, or the machine is busy. A retry is safe: all these calls are idempotent.
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(RETRY_SECONDS)

    return await asyncio.gather(*map(ask_one, questions))
