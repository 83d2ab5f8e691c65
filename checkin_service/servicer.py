"""The gRPC methods of the check-in service.

Each method translates its request, calls the domain code and translates the result. The business rules are in the
modules that it calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

from google.api import httpbody_pb2
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceServicer

from checkin_service import records, refusals
from checkin_service.boarding import boarding_passes
from checkin_service.check_ins import cancellation, eligibility
from checkin_service.manifests import locators, manifest, manifest_import
from checkin_service.manifests.entitlements import Entitlements
from checkin_service.records import CheckIn, pnr_of
from checkin_service.sessions.passenger_sessions import Sessions
from checkin_service.sessions.trips import Trips
from checkin_service.steps.declaring import Baggage, Declaration
from checkin_service.steps.seating import Seating
from checkin_service.steps.starting import Starting, StartRequest
from services import db, paging
from services.db import Conn, Pool
from services.paging import PageTokens
from services.running_call import running
from services.transitions import Transitions
from services.watch import Watches

Context = Any


class CheckInServicer(CheckInServiceServicer):
    """The servicer of CheckInService; its proto documents each RPC and its errors."""

    def __init__(
        self,
        *,
        pool: Pool,
        transitions: Transitions,
        sessions: Sessions,
        trips: Trips,
        entitlements: Entitlements,
        seating: Seating,
        starting: Starting,
        baggage: Baggage,
        watches: Watches[CheckIn],
        page_tokens: PageTokens,
    ) -> None:
        self._pool = pool
        self._transitions = transitions
        self._sessions = sessions
        self._trips = trips
        self._entitlements = entitlements
        self._seating = seating
        self._starting = starting
        self._baggage = baggage
        self._watches = watches
        self._page_tokens = page_tokens

    async def ImportManifest(self, request: pb.ImportManifestRequest, context: Context) -> pb.ImportManifestResponse:
        imported = await self._transitions.run(
            running().request_key(request),
            pb.ImportManifestResponse,
            lambda conn: manifest_import.import_passengers(conn, request),
        )
        # Sent now, so that a passenger on the manifest can hold a seat at once. A timer sends it if the seat service is
        # down.
        await self._entitlements.try_to_send([request.flight_id])
        return imported

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Context) -> pb.Session:
        return await self._sessions.open(
            pnr=request.pnr, last_name=request.last_name, address=running().client_address()
        )

    async def GetTrip(self, request: pb.GetTripRequest, context: Context) -> pb.Trip:
        own = pnr_of(running().principal)
        if own not in (None, request.pnr):
            raise refusals.trip_not_found()
        return await self._trips.get(request.pnr)

    async def GetEligibility(self, request: pb.GetEligibilityRequest, context: Context) -> pb.Eligibility:
        principal = running().principal
        async with db.transaction(self._pool) as conn:
            situation = await eligibility.situation(
                conn, request.flight_id, request.passenger_id, pnr=pnr_of(principal), role=principal.role
            )
        return eligibility.message(situation)

    async def StartCheckIn(self, request: pb.StartCheckInRequest, context: Context) -> pb.CheckIn:
        call = running()
        return await self._starting.start(
            StartRequest(
                flight_id=request.flight_id,
                passenger_id=request.passenger_id,
                hold_id=UUID(request.hold_id) if request.hold_id else None,
                pnr=pnr_of(call.principal),
                role=call.principal.role,
                actor=call.principal.name,
                request_key=call.request_key(request),
            )
        )

    async def GetCheckIn(self, request: pb.GetCheckInRequest, context: Context) -> pb.CheckIn:
        async with db.transaction(self._pool) as conn:
            check_in = await _own(conn, request.checkin_id)
            answer = check_in.message()
            answer.history.extend(await records.history(conn, check_in.checkin_id))
        return answer

    async def WatchCheckIn(self, request: pb.WatchCheckInRequest, context: Context) -> AsyncIterator[pb.CheckInUpdate]:
        async with db.transaction(self._pool) as conn:
            first = await _own(conn, request.checkin_id)
        async for check_in in self._watches.follow(first):
            if check_in is None:
                yield pb.CheckInUpdate(heartbeat=pb.CheckInUpdate.Heartbeat())
            else:
                yield pb.CheckInUpdate(checkin=check_in.message())

    async def DeclareBaggage(self, request: pb.DeclareBaggageRequest, context: Context) -> pb.CheckIn:
        call = running()
        return await self._baggage.declare(
            Declaration(
                checkin_id=UUID(request.checkin_id),
                declared_grams=[bag.weight_grams for bag in request.bags],
                pnr=pnr_of(call.principal),
                actor=call.principal.name,
                request_key=call.request_key(request),
            )
        )

    async def CancelCheckIn(self, request: pb.CancelCheckInRequest, context: Context) -> pb.CheckIn:
        call = running()

        async def transition(conn: Conn) -> pb.CheckIn:
            check_in = await cancellation.cancel_for(
                conn,
                UUID(request.checkin_id),
                pnr=pnr_of(call.principal),
                reason=request.reason or "CANCELLED",
                actor=call.principal.name,
            )
            return check_in.message()

        return await self._transitions.run(call.request_key(request), pb.CheckIn, transition)

    async def GetBoardingPass(self, request: pb.GetBoardingPassRequest, context: Context) -> pb.BoardingPass:
        return await self._boarding_pass(request.checkin_id)

    async def GetBoardingPassSvg(
        self, request: pb.GetBoardingPassBarcodeRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        boarding_pass = await self._boarding_pass(request.checkin_id)
        return boarding_passes.svg(boarding_pass, request.symbology)

    async def GetBoardingPassPng(
        self, request: pb.GetBoardingPassBarcodeRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        boarding_pass = await self._boarding_pass(request.checkin_id)
        return boarding_passes.png(boarding_pass, request.symbology)

    async def ListCheckIns(self, request: pb.ListCheckInsRequest, context: Context) -> pb.ListCheckInsResponse:
        query, principal = f"check-ins {request.flight_id}", running().principal.name
        after = self._page_tokens.read(request.page_token, query=query, principal=principal)
        size = paging.page_size(request.page_size)
        async with db.transaction(self._pool) as conn:
            found = await records.of_flight(
                conn,
                request.flight_id,
                after=(datetime.fromisoformat(after[0]), UUID(after[1])) if after else None,
                limit=size + 1,
            )
        page, rest = found[:size], found[size:]
        token = ""
        if rest:
            position = [page[-1].create_time.isoformat(), str(page[-1].checkin_id)]
            token = self._page_tokens.write(position, query=query, principal=principal)
        return pb.ListCheckInsResponse(checkins=[each.message() for each in page], next_page_token=token)

    async def GetPassenger(self, request: pb.GetPassengerRequest, context: Context) -> pb.ManifestPassenger:
        async with db.transaction(self._pool) as conn:
            return await manifest.find(conn, request.flight_id, request.passenger_id)

    async def ReserveLocator(self, request: pb.ReserveLocatorRequest, context: Context) -> pb.ReserveLocatorResponse:
        async with db.transaction(self._pool) as conn:
            await locators.reserve(conn, request.pnr, booking_id=UUID(request.booking_id))
        return pb.ReserveLocatorResponse()

    async def FindPassengers(self, request: pb.FindPassengersRequest, context: Context) -> pb.FindPassengersResponse:
        async with db.transaction(self._pool) as conn:
            return await manifest.find_all(conn, request)

    async def _boarding_pass(self, checkin_id: str) -> pb.BoardingPass:
        async with db.transaction(self._pool) as conn:
            check_in = boarding_passes.completed(await _own(conn, checkin_id))
        check_in = await self._seating.seat_for_pass(check_in)
        async with db.transaction(self._pool) as conn:
            return await boarding_passes.issue(conn, check_in)


async def _own(conn: Conn, checkin_id: str) -> CheckIn:
    """Returns a check-in that the caller can access. Raises CHECK_IN_NOT_FOUND."""
    return await records.find(conn, UUID(checkin_id), pnr=pnr_of(running().principal))
