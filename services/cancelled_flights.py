"""Compares a service's cancelled flights with the flight service's list.

It finds the cancellations whose event the service has missed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from skyhigh.flight.v1 import events_pb2
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from services import db
from services.clients import PeerRefusal, ask, channel
from services.db import Conn, Pool
from services.reconciler import BATCH, Batch, Comparison
from services.time_limits import FACTOR
from services.tls_identity import Identity

TIMEOUT_SECONDS: Final = 2 * FACTOR
# For services that store cancelled flights in a table of their own.
KNOWN: Final = "SELECT flight_id FROM cancelled_flights WHERE flight_id = ANY($1::text[])"

# The service's handler of `flight.cancelled.v1`. It is idempotent.
Cancel = Callable[[Conn, events_pb2.FlightCancelled], Awaitable[None]]


@asynccontextmanager
async def comparison(
    pool: Pool, address: str, *, identity: Identity | None, cancel: Cancel, known: str = KNOWN
) -> AsyncIterator[Comparison]:
    """Yields the comparison of a service's cancelled flights with the flight service.

    `known` is an SQL statement that returns those of the flight ids in $1 that the service knows to be cancelled.
    """
    # ListFlights needs no token.
    flights = channel(
        address, service="skyhigh.flight.v1.FlightService", identity=identity, timeout_seconds=TIMEOUT_SECONDS
    )
    # The generated stubs are typed for synchronous channels.
    stub: Any = FlightServiceStub(flights)

    async def find(after: str, limit: int) -> Batch:
        request = pb.ListFlightsRequest(status=pb.Flight.CANCELLED, page_size=min(limit, BATCH), page_token=after)
        try:
            answer: pb.ListFlightsResponse = await ask(stub.ListFlights(request))
        except PeerRefusal:
            if not after:
                raise
            # A page token may have become invalid, so the round starts again.
            return Batch([], "")
        missed = await _unknown(pool, known, answer.flights)
        return Batch([each for each in answer.flights if each.flight_id in missed], answer.next_page_token)

    async def repair(flight: pb.Flight) -> bool:
        event = events_pb2.FlightCancelled(
            flight_id=flight.flight_id, reason=flight.cancel_reason, cancel_time=flight.cancel_time
        )
        async with db.transaction(pool) as conn:
            await cancel(conn, event)
        return True

    try:
        yield Comparison("cancelled-flights", find, repair)
    finally:
        await flights.close()


async def _unknown(pool: Pool, known: str, flights: Sequence[pb.Flight]) -> set[str]:
    flight_ids = [each.flight_id for each in flights]
    async with db.session(pool) as conn:
        return set(flight_ids) - {row[0] for row in await conn.fetch(known, flight_ids)}
