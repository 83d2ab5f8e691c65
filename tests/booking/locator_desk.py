"""A fake check-in service that only reserves locators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceServicer, add_CheckInServiceServicer_to_server

from checkin_service import refusals
from tests.checkin.fakes import refuse


class LocatorDesk(CheckInServiceServicer):
    """Reserves each locator for the first booking that requests it."""

    def __init__(self) -> None:
        self.bookings: dict[str, str] = {}

    async def ReserveLocator(self, request: pb.ReserveLocatorRequest, context: Any) -> pb.ReserveLocatorResponse:
        if self.bookings.setdefault(request.pnr, request.booking_id) != request.booking_id:
            await refuse(context, refusals.locator_taken())
        return pb.ReserveLocatorResponse()


@asynccontextmanager
async def locator_desk() -> AsyncIterator[str]:
    """Runs the service within the block; yields its address."""
    # Without so_reuseport no other server of the test run can listen on the same port.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_CheckInServiceServicer_to_server(LocatorDesk(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
