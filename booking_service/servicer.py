"""Converts between the proto messages and domain calls; makes no decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceServicer

from booking_service import bookings, records
from booking_service.changing import Changing, OnBooking
from booking_service.peers import Peers
from booking_service.records import Booking
from booking_service.reserving import Order, Reserving
from booking_service.sessions import GuestSessions
from services import db
from services.clients import PeerFault, PeerRefusal
from services.db import Pool
from services.errors import Unavailable
from services.running_call import running
from services.watch import Watches

Context = Any


class BookingServicer(BookingServiceServicer):
    """Implements BookingService, as its proto documents it."""

    def __init__(
        self,
        *,
        pool: Pool,
        sessions: GuestSessions,
        peers: Peers,
        reserving: Reserving,
        changing: Changing,
        watches: Watches[Booking],
    ) -> None:
        self._pool = pool
        self._sessions = sessions
        self._peers = peers
        self._reserving = reserving
        self._changing = changing
        self._watches = watches

    async def CreateGuestSession(self, request: pb.CreateGuestSessionRequest, context: Context) -> pb.GuestSession:
        return self._sessions.open()

    async def CreateBooking(self, request: pb.CreateBookingRequest, context: Context) -> pb.Booking:
        call = running()
        return await self._reserving.book(Order(request, call.principal.name, call.request_key(request)))

    async def GetBooking(self, request: pb.GetBookingRequest, context: Context) -> pb.Booking:
        async with db.snapshot(self._pool) as conn:
            booking = await records.find(conn, UUID(request.booking_id), owner=_reachable())
            history = await records.history(conn, booking.booking_id)
        answer = (await self._as_seated(booking)).message()
        answer.history.extend(history)
        return answer

    async def _as_seated(self, booking: Booking) -> Booking:
        """Returns a confirmed booking with its passengers' present seats.

        Passengers may have changed seats at check-in. While the seat service is down, the booking shows the seats of
        the last event.
        """
        if booking.state != "CONFIRMED" or not booking.live_legs:
            return booking
        try:
            confirmed_seats = await self._peers.confirmed_seats(booking)
        except (Unavailable, PeerRefusal, PeerFault):
            return booking
        return replace(booking, seats=bookings.in_order(booking, confirmed_seats))

    async def WatchBooking(self, request: pb.WatchBookingRequest, context: Context) -> AsyncIterator[pb.BookingUpdate]:
        async with db.snapshot(self._pool) as conn:
            first = await records.find(conn, UUID(request.booking_id), owner=_reachable())
        async for booking in self._watches.follow(first):
            if booking is None:
                yield pb.BookingUpdate(heartbeat=pb.BookingUpdate.Heartbeat())
            else:
                yield pb.BookingUpdate(booking=booking.message())

    async def ChangeBookingSeats(self, request: pb.ChangeBookingSeatsRequest, context: Context) -> pb.Booking:
        return await self._changing.seats(_on_booking(request, owner=_self()), request.seats)

    async def PayBooking(self, request: pb.PayBookingRequest, context: Context) -> pb.Booking:
        return await self._changing.pay(_on_booking(request, owner=_self()), request.payment_code)

    async def CancelBooking(self, request: pb.CancelBookingRequest, context: Context) -> pb.Booking:
        return await self._changing.cancel(_on_booking(request, owner=_reachable()), request.reason or "CANCELLED")


def _self() -> str:
    """Returns the caller's name."""
    return running().principal.name


def _reachable() -> str | None:
    """Returns the owner whose bookings the caller can reach; None for all."""
    principal = running().principal
    return None if principal.acts_for_others else principal.name


def _on_booking(request: Any, *, owner: str | None) -> OnBooking:
    return OnBooking(
        booking_id=UUID(request.booking_id), owner=owner, actor=_self(), request_key=running().request_key(request)
    )
