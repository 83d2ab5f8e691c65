"""Fakes of the services that `skyhigh demo` and `skyhigh manifest` call.

They validate requests by the contract, and record them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import (
    CheckInServiceServicer,
    add_CheckInServiceServicer_to_server,
)
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceServicer, add_FlightServiceServicer_to_server

from checkin_service.manifests.manifest_lines import Lines
from services.errors import FieldViolation, InvalidArgument, NotFound, Refusal
from services.validation import validate
from tests.waiting import eventually

Context = Any


class FakeCheckIn(CheckInServiceServicer):
    """Keeps manifests, and reports everybody in them as ready to check in who is not in `checked_in`."""

    def __init__(self) -> None:
        self.imports: list[pb.ImportManifestRequest] = []
        self.manifests: dict[str, dict[str, pb.ManifestPassenger]] = {}
        self.checked_in: set[str] = set()
        self.violations: dict[str, list[FieldViolation]] = {}
        """The violations with which imports are refused, by flight, in addition to the contract's rules."""
        self.tokens: set[str] = set()
        self.at_once_first = 1
        """The first calls are answered only when so many of them wait."""
        self.calls_at_once = 0
        self.most_calls_at_once = 0

    async def ImportManifest(self, request: pb.ImportManifestRequest, context: Context) -> pb.ImportManifestResponse:
        async with self._call(context):
            validate(request)
            if request.flight_id in self.violations:
                raise InvalidArgument.of(*self.violations[request.flight_id])
            self.imports.append(request)
            lines = Lines(request.passengers)
            lines.refuse_if_none_is_left()
            passengers = [each for _, each in lines.accepted()]
            known = self.manifests.setdefault(request.flight_id, {})
            added = sum(each.passenger_id not in known for each in passengers)
            unchanged = sum(known.get(each.passenger_id) == each for each in passengers)
            known.update({each.passenger_id: each for each in passengers})
            return pb.ImportManifestResponse(
                flight_id=request.flight_id,
                added=added,
                changed=len(passengers) - added - unchanged,
                unchanged=unchanged,
                rejected=lines.rejected(),
            )
        raise AssertionError("a refusal ends the call")

    async def GetEligibility(self, request: pb.GetEligibilityRequest, context: Context) -> pb.Eligibility:
        async with self._call(context):
            if request.passenger_id not in self.manifests.get(request.flight_id, {}):
                raise NotFound("PASSENGER_NOT_FOUND", "passenger not found on this flight")
            return pb.Eligibility(eligible=request.passenger_id not in self.checked_in)
        raise AssertionError("a refusal ends the call")

    async def _first_calls_are_there(self) -> bool:
        return self.most_calls_at_once >= self.at_once_first

    @asynccontextmanager
    async def _call(self, context: Context) -> AsyncIterator[None]:
        self.tokens.add(dict(context.invocation_metadata())["authorization"])
        self.calls_at_once += 1
        self.most_calls_at_once = max(self.most_calls_at_once, self.calls_at_once)
        try:
            if self.most_calls_at_once < self.at_once_first:
                await eventually(self._first_calls_are_there)
            yield
        except Refusal as refusal:
            details = ("grpc-status-details-bin", refusal.status().SerializeToString())
            await context.abort(refusal.code, refusal.message, (details,))
        finally:
            self.calls_at_once -= 1


class FakeFlights(FlightServiceServicer):
    """Keeps the schedule; each flight has a hundred seats."""

    def __init__(self) -> None:
        self.schedule: dict[str, flight_pb.CreateFlightRequest] = {}

    async def CreateFlight(self, request: flight_pb.CreateFlightRequest, context: Context) -> flight_pb.Flight:
        validate(request)
        known = self.schedule.setdefault(request.flight_id, request)
        if known != request:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is such a flight with other facts")
        return flight_pb.Flight(flight_id=request.flight_id, total_seats=100)


@asynccontextmanager
async def serving(check_in: FakeCheckIn, flights: FakeFlights) -> AsyncIterator[str]:
    """Serves both within the block; yields the address."""
    server = grpc.aio.server()
    add_CheckInServiceServicer_to_server(check_in, server)
    add_FlightServiceServicer_to_server(flights, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop(0)
