"""Builds the requests of the state machine from calls.

A request has the owner of a hold, its TTL and limits, and the seats that it names. Building one needs no lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.layouts.cabin_layouts import LayoutSeat
from seat_service.layouts.flight_layouts import FlightLayouts
from seat_service.requests import AskedSeat, HoldRequest, Limits, Person
from seat_service.rules.hoarding import binds, is_guest
from seat_service.settings import SeatSettings
from services.addresses import counted_address
from services.auth import Principal, Role
from services.errors import FieldViolation, InvalidArgument, PermissionDenied
from services.idempotency import RequestKey
from services.running_call import Call

# The longest itinerary has four flights, and all of its seats are held in one transaction (SEAT-5).
FLIGHTS_PER_HOLD: Final = 4


class RequestBuilder:
    """Builds requests, and refuses calls that no request can be built from.

    It reads only immutable data: the layouts and the token.
    """

    def __init__(self, layouts: FlightLayouts, settings: SeatSettings) -> None:
        self._layouts = layouts
        self._ttl = {
            pb.Hold.CHECK_IN: settings.check_in_hold_ttl,
            pb.Hold.BOOKING: settings.booking_hold_ttl,
        }
        self._extensions = settings.hold_life_ttls - 1
        self.limits = Limits(
            held_seats=settings.held_seats_limit,
            lapses_allowed=settings.lapses_allowed,
            lapses_window=timedelta(seconds=settings.lapses_window_seconds),
            cool_down=timedelta(seconds=settings.cool_down_seconds),
        )
        self.address_limits = replace(
            self.limits,
            held_seats=settings.held_seats_limit_per_address,
            lapses_allowed=settings.lapses_allowed_per_address,
        )

    async def hold(
        self,
        call: Call,
        assignments: Sequence[pb.SeatAssignment],
        *,
        purpose: pb.Hold.Purpose.ValueType,
        owner: str,
        request_key: RequestKey | None,
        takes_offers: bool = False,
        confirm: bool = False,
        managed: bool = False,
        ttl: timedelta | None = None,
    ) -> HoldRequest:
        """Builds the request for a hold.

        Raises PermissionDenied as `check_owner` does, and if a caller other than a service asks for a managed hold;
        FLIGHT_NOT_FOUND or SEAT_NOT_FOUND.
        """
        check_owner(call.principal, owner)
        if managed and not manages(call.principal):
            raise PermissionDenied
        purpose = purpose or pb.Hold.CHECK_IN
        # SEAT-16 counts a managed hold for its owner, for whom the service acts.
        bound = binds(owner) if managed else not call.principal.acts_for_others
        owner = owner or call.principal.name
        outside = call.outside_address() if bound and is_guest(owner) else ""
        return HoldRequest(
            seats=await self.seats(assignments),
            owner=owner,
            actor=call.principal.name,
            purpose=purpose,
            ttl=ttl or self._ttl[purpose],
            extensions=self._extensions,
            limits=self.limits if bound else None,
            address=counted_address(outside) if outside else "",
            address_limits=self.address_limits,
            takes_offers=takes_offers,
            confirm=confirm,
            managed=managed,
            request_key=request_key,
        )

    async def seats(self, assignments: Sequence[pb.SeatAssignment]) -> tuple[AskedSeat, ...]:
        """Returns the requested seats with their description from the layout.

        Raises FLIGHT_NOT_FOUND, SEAT_NOT_FOUND, or INVALID_FIELD for too many flights.
        """
        if (flights := len({assignment.flight_id for assignment in assignments})) > FLIGHTS_PER_HOLD:
            description = f"must be on at most {FLIGHTS_PER_HOLD} flights, not {flights}; use more than one hold"
            raise InvalidArgument.of(FieldViolation("seats", description, "seats.flights"))
        described = [await self.seat(each.flight_id, each.seat_number) for each in assignments]
        return tuple(
            AskedSeat(each.flight_id, each.seat_number, each.passenger_id, _person(each.profile), seat)
            for each, seat in zip(assignments, described, strict=True)
        )

    async def seat(self, flight_id: str, seat_number: str) -> LayoutSeat:
        """Returns a seat from the flight's layout.

        Raises FLIGHT_NOT_FOUND or SEAT_NOT_FOUND.
        """
        seat = (await self._layouts.of(flight_id)).by_number.get(seat_number)
        if seat is None:
            raise refusals.seat_not_found(flight_id, seat_number)
        return seat


def manages(principal: Principal) -> bool:
    """Returns True for services, the only principals with these rights.

    They may move managed holds, and cancel confirmed holds of seats that bookings include.
    """
    return principal.role is Role.SERVICE


def check_owner(principal: Principal, owner: str) -> None:
    """Raises PermissionDenied if the principal must not name this owner.

    Every principal may name itself; only principals that act for others may name another owner.
    """
    if owner and owner != principal.name and not principal.acts_for_others:
        raise PermissionDenied


def _person(profile: pb.PassengerProfile) -> Person:
    return Person(profile.type or pb.PassengerProfile.ADULT, frozenset(profile.special_services), profile.cabin)
