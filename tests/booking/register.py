"""The check-in service's register of locators, as far as a booking asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceServicer, add_CheckInServiceServicer_to_server

from checkin_service import refusals
from tests.checkin.fakes import Fake, refuse


class Register(Fake, CheckInServiceServicer):
    """Whose each locator is; `foreign` of the next ones belong to an imported party."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign = 0
        self.parties: dict[str, str] = {}

    async def ReserveLocator(self, request: pb.ReserveLocatorRequest, context: Any) -> pb.ReserveLocatorResponse:
        await self._arrive("ReserveLocator", context)
        if self.foreign:
            self.foreign -= 1
            self.parties[request.pnr] = "imported"
        if self.parties.setdefault(request.pnr, request.booking_id) != request.booking_id:
            await refuse(context, refusals.locator_taken())
        return pb.ReserveLocatorResponse()


@asynccontextmanager
async def serving(register: Register) -> AsyncIterator[str]:
    """Serves it within the block; yields the address."""
    server = grpc.aio.server()
    add_CheckInServiceServicer_to_server(register, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)
