"""Calls to the seat service."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from flight_service import refusals
from flight_service.settings import FlightSettings
from services.clients import Meanings, ask, channel
from services.proto import timestamp
from services.time_limits import FACTOR
from services.tokens import OwnToken

TIMEOUT_SECONDS: Final = 3 * FACTOR


class Peers:
    """Calls to the seat service. All raise Unavailable if it is down."""

    def __init__(self, settings: FlightSettings) -> None:
        self._channel = channel(
            settings.seat_address,
            service="skyhigh.seat.v1.SeatService",
            token=OwnToken(settings.token_file),
            identity=settings.identity,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        # The generated stubs are typed for synchronous channels.
        self._seats: Any = SeatServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def provision(self, flight_id: str, layout_id: str, departure_time: datetime) -> int:
        """Creates the seats of a flight; returns how many it has.

        A repeat with the same layout changes nothing. Raises FLIGHT_EXISTS if the flight has seats of another layout.
        """
        request = seat.ProvisionSeatsRequest(
            flight_id=flight_id, layout_id=layout_id, departure_time=timestamp(departure_time)
        )
        meanings: Meanings = {"FLIGHT_EXISTS": lambda _: refusals.flight_exists(flight_id)}
        answer: seat.ProvisionSeatsResponse = await ask(self._seats.ProvisionSeats(request), meanings)
        return answer.total_seats
