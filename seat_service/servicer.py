"""gRPC servicer: converts requests to domain calls, and results to responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from google.api import httpbody_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceServicer

from seat_service.flights.provisioning import ProvisionRequest
from seat_service.flights.waitlist_switch import WaitlistRequest
from seat_service.holds import ledger, outcomes, passenger_seats
from seat_service.holds.request_builder import RequestBuilder, check_owner, manages
from seat_service.inventory import Inventory
from seat_service.layouts.flight_layouts import FlightLayouts
from seat_service.manifests import manifest_copy
from seat_service.manifests.departures import Departure, Departures
from seat_service.manifests.manifest_copy import ManifestChange
from seat_service.maps.map_rendering import MapRenderer
from seat_service.maps.seat_map import SeatMaps
from seat_service.maps.suggestions import suggest_to_party
from seat_service.maps.watch import Watches
from seat_service.requests import ChangeRequest, OnHold, OnPassenger, OnSeat
from seat_service.rules import entitlements
from seat_service.rules.entitlements import Passenger
from services import db, paging
from services.auth import Role
from services.db import Pool
from services.errors import FieldViolation, InvalidArgument, PermissionDenied
from services.paging import PageTokens
from services.running_call import running

Context = Any


class SeatServicer(SeatServiceServicer):
    """The servicer of SeatService. The proto describes each RPC and its errors."""

    def __init__(
        self,
        *,
        pool: Pool,
        layouts: FlightLayouts,
        requests: RequestBuilder,
        inventory: Inventory,
        maps: SeatMaps,
        renderer: MapRenderer,
        watches: Watches,
        page_tokens: PageTokens,
        offer_window: timedelta,
    ) -> None:
        self._pool = pool
        self._layouts = layouts
        self._requests = requests
        self._inventory = inventory
        self._maps = maps
        self._renderer = renderer
        self._watches = watches
        self._page_tokens = page_tokens
        self._offer_window = offer_window

    async def ProvisionSeats(self, request: pb.ProvisionSeatsRequest, context: Context) -> pb.ProvisionSeatsResponse:
        key = running().request_key(request)
        departure = _moment("departure_time", request.departure_time) if request.HasField("departure_time") else None
        return await self._inventory.provision(ProvisionRequest(request.flight_id, request.layout_id, departure, key))

    async def GetSeatMap(self, request: pb.GetSeatMapRequest, context: Context) -> pb.SeatMap:
        snapshot = await self._maps.read(request.flight_id, known_version=request.known_version)
        # The map is already serialized; the server sends bytes without serializing them again.
        return self._renderer.protobuf(snapshot, known_version=request.known_version)  # type: ignore[return-value]

    async def GetSeatMapJson(self, request: pb.GetSeatMapJsonRequest, context: Context) -> httpbody_pb2.HttpBody:
        snapshot = await self._maps.read(request.flight_id, known_version=request.known_version)
        body = self._renderer.json(snapshot, known_version=request.known_version)
        return httpbody_pb2.HttpBody(content_type="application/json", data=body)

    async def WatchSeatMap(self, request: pb.WatchSeatMapRequest, context: Context) -> AsyncIterator[pb.SeatMapUpdate]:
        async for update in self._watches.watch(request.flight_id, known_version=request.known_version):
            yield update

    async def SuggestSeats(self, request: pb.SuggestSeatsRequest, context: Context) -> pb.SuggestSeatsResponse:
        layout = await self._layouts.of(request.flight_id)
        snapshot = await self._maps.read(request.flight_id)
        own = entitlements.locator(running().principal.name)
        party: list[Passenger] = []
        if own is not None or request.passenger_ids:
            async with db.transaction(self._pool) as conn:
                party = await entitlements.party(conn, request.flight_id, pnr=own, passenger_ids=request.passenger_ids)
        return pb.SuggestSeatsResponse(suggestions=suggest_to_party(layout, snapshot.states, request, party))

    async def HoldSeat(self, request: pb.HoldSeatRequest, context: Context) -> pb.Hold:
        call = running()
        return await self._inventory.hold(
            await self._requests.hold(
                call,
                [_assignment(request)],
                purpose=request.purpose,
                owner=request.owner,
                request_key=call.request_key(request),
            )
        )

    async def HoldSeats(self, request: pb.HoldSeatsRequest, context: Context) -> pb.Hold:
        call = running()
        return await self._inventory.hold(
            await self._requests.hold(
                call,
                request.seats,
                purpose=request.purpose,
                owner=request.owner,
                request_key=call.request_key(request),
                managed=request.managed,
            )
        )

    async def ClaimSeat(self, request: pb.ClaimSeatRequest, context: Context) -> pb.Hold:
        call = running()
        return await self._inventory.claim(
            await self._requests.hold(
                call,
                [_assignment(request)],
                purpose=request.purpose,
                owner=request.owner,
                request_key=call.request_key(request),
                takes_offers=True,
                confirm=request.confirm,
                ttl=request.ttl.ToTimedelta() if request.HasField("ttl") else None,
            )
        )

    async def GetHold(self, request: pb.GetHoldRequest, context: Context) -> pb.Hold:
        principal = running().principal
        sees_all = principal.acts_for_others or principal.role is Role.OPERATIONS
        async with db.transaction(self._pool) as conn:
            return await outcomes.find(conn, UUID(request.hold_id), owner=None if sees_all else principal.name)

    async def ExtendHold(self, request: pb.ExtendHoldRequest, context: Context) -> pb.Hold:
        return await self._inventory.extend(_on_hold(request, request.hold_id))

    async def ChangeHoldSeats(self, request: pb.ChangeHoldSeatsRequest, context: Context) -> pb.Hold:
        return await self._inventory.change(
            ChangeRequest(
                on=_on_hold(request, request.hold_id),
                seats=await self._requests.seats(request.seats),
                limits=self._requests.limits,
                address_limits=self._requests.address_limits,
            )
        )

    async def ConfirmHold(self, request: pb.ConfirmHoldRequest, context: Context) -> pb.Hold:
        return await self._inventory.confirm(_on_hold(request, request.hold_id, owner=request.owner))

    async def CancelHold(self, request: pb.CancelHoldRequest, context: Context) -> pb.Hold:
        if request.after_departure and running().principal.role is not Role.SERVICE:
            raise PermissionDenied
        return await self._inventory.cancel(
            _on_hold(
                request,
                request.hold_id,
                reason=request.reason or "CANCELLED",
                after_departure=request.after_departure,
                unless_confirmed=request.unless_confirmed,
            )
        )

    async def ReleasePassengerSeat(self, request: pb.ReleasePassengerSeatRequest, context: Context) -> pb.Hold:
        call = running()
        return await self._inventory.release_passenger(
            OnPassenger(
                hold_id=UUID(request.hold_id),
                owner=None,
                actor=call.principal.name,
                reason=request.reason or "RELEASED",
                after_departure=request.after_departure,
                request_key=call.request_key(request),
                flight_id=request.flight_id,
                passenger_id=request.passenger_id,
            )
        )

    async def FindPassengerSeats(
        self, request: pb.FindPassengerSeatsRequest, context: Context
    ) -> pb.FindPassengerSeatsResponse:
        async with db.transaction(self._pool) as conn:
            return pb.FindPassengerSeatsResponse(seats=await passenger_seats.find(conn, request.passengers))

    async def SyncPassengers(self, request: pb.SyncPassengersRequest, context: Context) -> pb.SyncPassengersResponse:
        if request.flights:
            await self._inventory.set_departures(
                Departures(
                    tuple(
                        Departure(
                            each.flight_id, _moment(f"flights[{n}].departure_time", each.departure_time), each.revision
                        )
                        for n, each in enumerate(request.flights)
                    )
                )
            )
        return await self._inventory.sync_passengers(
            ManifestChange(tuple(map(manifest_copy.entry, request.passengers)), running().principal.name)
        )

    async def BlockSeat(self, request: pb.BlockSeatRequest, context: Context) -> pb.Seat:
        return await self._described(request, await self._inventory.block(await self._on_seat(request)))

    async def UnblockSeat(self, request: pb.UnblockSeatRequest, context: Context) -> pb.Seat:
        return await self._described(request, await self._inventory.unblock(await self._on_seat(request)))

    async def ReturnSeat(self, request: pb.ReturnSeatRequest, context: Context) -> pb.Seat:
        return await self._described(request, await self._inventory.return_seat(await self._on_seat(request)))

    async def ListSeatEvents(self, request: pb.ListSeatEventsRequest, context: Context) -> pb.ListSeatEventsResponse:
        await self._requests.seat(request.flight_id, request.seat_number)
        query = f"seat events {request.flight_id}/{request.seat_number}"
        principal = running().principal.name
        after = self._page_tokens.read(request.page_token, query=query, principal=principal) or 0
        size = paging.page_size(request.page_size)
        async with db.transaction(self._pool) as conn:
            events = await ledger.events_of_seat(
                conn, request.flight_id, request.seat_number, after_version=after, limit=size + 1
            )
        page, rest = events[:size], events[size:]
        token = self._page_tokens.write(page[-1].version, query=query, principal=principal) if rest else ""
        return pb.ListSeatEventsResponse(events=page, next_page_token=token)

    async def SetWaitlistOpen(self, request: pb.SetWaitlistOpenRequest, context: Context) -> pb.SetWaitlistOpenResponse:
        key = running().request_key(request)
        return await self._inventory.set_waitlist_open(
            WaitlistRequest(request.flight_id, request.open, request.revision, self._offer_window, key)
        )

    async def _on_seat(self, request: pb.BlockSeatRequest | pb.UnblockSeatRequest | pb.ReturnSeatRequest) -> OnSeat:
        await self._requests.seat(request.flight_id, request.seat_number)
        call = running()
        reason = "RETURNED" if isinstance(request, pb.ReturnSeatRequest) else request.reason or "UNBLOCKED"
        return OnSeat(
            flight_id=request.flight_id,
            seat_number=request.seat_number,
            actor=call.principal.name,
            reason=reason,
            request_key=call.request_key(request),
        )

    async def _described(
        self, request: pb.BlockSeatRequest | pb.UnblockSeatRequest | pb.ReturnSeatRequest, seat: pb.Seat
    ) -> pb.Seat:
        described = await self._requests.seat(request.flight_id, seat.seat_number)
        return pb.Seat(
            seat_number=seat.seat_number,
            state=seat.state,
            cabin=described.cabin,
            position=described.position,
            characteristics=described.characteristics,
        )


def _moment(field: str, given: Timestamp) -> datetime:
    """Converts a timestamp of a request. Raises INVALID_FIELD if it is out of range."""
    try:
        return given.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument.of(FieldViolation(field, "must be a time in the years 1 to 9999")) from error


def _assignment(request: pb.HoldSeatRequest | pb.ClaimSeatRequest) -> pb.SeatAssignment:
    return pb.SeatAssignment(
        flight_id=request.flight_id,
        seat_number=request.seat_number,
        passenger_id=request.passenger_id,
        profile=request.profile,
    )


def _on_hold(
    request: Message,
    hold_id: str,
    *,
    reason: str = "",
    owner: str = "",
    after_departure: bool = False,
    unless_confirmed: bool = False,
) -> OnHold:
    """Builds a request about one hold. Raises PermissionDenied as `check_owner` does."""
    call = running()
    check_owner(call.principal, owner)
    return OnHold(
        hold_id=UUID(hold_id),
        owner=(owner or None) if call.principal.acts_for_others else call.principal.name,
        actor=call.principal.name,
        reason=reason,
        manages=manages(call.principal),
        after_departure=after_departure,
        unless_confirmed=unless_confirmed,
        request_key=call.request_key(request),
    )
