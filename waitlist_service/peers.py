"""What the waitlist asks other services, and what their refusals mean here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid5

from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub
from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from services.clients import PeerRefusal, ask, channel
from services.time_limits import FACTOR
from services.tokens import OwnToken
from waitlist_service import refusals
from waitlist_service.eligibility import EXIT_ROW, NOT_FOR_INFANTS
from waitlist_service.entries import Entry
from waitlist_service.matching import FreedSeat
from waitlist_service.settings import WaitlistSettings

# A lease of a claim is three seconds, and a claim and its confirmation are two calls.
TIMEOUT_SECONDS: Final = 1.2 * FACTOR
# Somebody was faster, or the seat was blocked: it is not to be had.
GONE: Final = frozenset({"SEAT_TAKEN", "SEAT_OCCUPIED", "SEAT_NOT_FOUND", "FLIGHT_NOT_FOUND", "FLIGHT_CANCELLED"})
# The passenger may never sit there.
FORBIDDEN: Final = frozenset({"EXIT_ROW_NOT_ALLOWED", "INFANT_NOT_ALLOWED", "CABIN_NOT_ALLOWED"})
ENDED: Final = frozenset({"HOLD_EXPIRED", "HOLD_CANCELLED", "HOLD_NOT_FOUND", "FLIGHT_CANCELLED"})


class SeatGone(Exception):
    """The seat, or the hold of it, is not to be had any more."""


class NotForPassenger(Exception):
    """The seat can be had, by somebody else; `for_ever` where the rules say so."""

    def __init__(self, reason: str, *, for_ever: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.for_ever = for_ever


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold of the seat service; `state` by its contract."""

    hold_id: UUID
    state: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class MapSeat:
    """A seat as the map shows it."""

    seat: FreedSeat
    state: str


class Peers:
    """Calls to the seat and check-in services. All raise Unavailable where they are away."""

    def __init__(self, settings: WaitlistSettings) -> None:
        token = OwnToken(settings.token_file)
        peer = partial(channel, token=token, identity=settings.identity, timeout_seconds=TIMEOUT_SECONDS)
        self._channels = [
            peer(address, service=f"skyhigh.{service}")
            for address, service in (
                (settings.seat_address, "seat.v1.SeatService"),
                (settings.checkin_address, "checkin.v1.CheckInService"),
            )
        ]
        # Generated stubs of an aio channel are typed for the other kind.
        self._seats: Any = SeatServiceStub(self._channels[0])
        self._checkin: Any = CheckInServiceStub(self._channels[1])

    async def close(self) -> None:
        """Closes the connections."""
        for each in self._channels:
            await each.close()

    async def claim(self, entry: Entry, *, offer_ttl: timedelta | None) -> Hold:
        """Holds the seat that an entry is matched with, as long as its offer lasts; without an offer it is confirmed.

        A repeat answers the same hold. Raises SeatGone or NotForPassenger.
        """
        request = seat.ClaimSeatRequest(
            flight_id=entry.flight_id,
            seat_number=entry.seat_number or "",
            passenger_id=entry.passenger_id,
            owner=entry.owner,
            purpose=seat.Hold.CHECK_IN,
            profile=seat.PassengerProfile(
                type=seat.PassengerProfile.Type.Value(entry.type),
                cabin=seat.Seat.Cabin.Value(entry.cabin),
                special_services=entry.special_services,
            ),
            request_id=str(entry.claim_id),
            confirm=offer_ttl is None,
        )
        if offer_ttl is not None:
            request.ttl.FromTimedelta(offer_ttl)
        try:
            return _hold(await ask(self._seats.ClaimSeat(request)))
        except PeerRefusal as refusal:
            if refusal.reason in GONE:
                raise SeatGone from refusal
            if refusal.reason in FORBIDDEN or refusal.reason == "PASSENGER_HOLDS_SEAT":
                raise NotForPassenger(refusal.reason, for_ever=refusal.reason in FORBIDDEN) from refusal
            raise

    async def confirm(self, hold_id: UUID) -> None:
        """Confirms a claimed hold; the passenger's former seat is freed. A repeat succeeds. Raises SeatGone."""
        request = seat.ConfirmHoldRequest(hold_id=str(hold_id), request_id=str(_request_id(hold_id, "confirm")))
        try:
            await ask(self._seats.ConfirmHold(request))
        except PeerRefusal as refusal:
            if refusal.reason in ENDED:
                raise SeatGone from refusal
            raise

    async def cancel(self, hold_id: UUID, *, reason: str) -> None:
        """Gives a hold back; one that has ended is no more to be given."""
        request = seat.CancelHoldRequest(
            hold_id=str(hold_id), reason=reason, request_id=str(_request_id(hold_id, "cancel"))
        )
        try:
            await ask(self._seats.CancelHold(request))
        except PeerRefusal as refusal:
            if refusal.reason not in ENDED:
                raise

    async def hold(self, hold_id: UUID) -> Hold:
        """Returns a hold as it is now."""
        request = seat.GetHoldRequest(hold_id=str(hold_id))
        return _hold(await ask(self._seats.GetHold(request)))

    async def seat_map(self, flight_id: str) -> list[MapSeat]:
        """Returns a flight's seats, at most a second old. Raises FLIGHT_NOT_FOUND."""
        request = seat.GetSeatMapRequest(flight_id=flight_id)
        try:
            answer = await ask(self._seats.GetSeatMap(request))
        except PeerRefusal as refusal:
            if refusal.reason == "FLIGHT_NOT_FOUND":
                raise refusals.flight_not_found(flight_id) from refusal
            raise
        return [
            MapSeat(
                FreedSeat(
                    seat_number=each.seat_number,
                    ordinal=ordinal,
                    cabin=seat.Seat.Cabin.Name(each.cabin),
                    position=seat.Seat.Position.Name(each.position),
                    exit_row=EXIT_ROW in each.characteristics,
                    infant_allowed=NOT_FOR_INFANTS not in each.characteristics,
                ),
                seat.Seat.State.Name(each.state),
            )
            for ordinal, each in enumerate(answer.seats)
        ]

    async def set_open(self, flight_id: str, *, is_open: bool, revision: int) -> None:
        """Says whether anybody waits. A repeat, or one that was overtaken, changes nothing. Raises FLIGHT_NOT_FOUND."""
        request = seat.SetWaitlistOpenRequest(flight_id=flight_id, open=is_open, revision=revision)
        try:
            await ask(self._seats.SetWaitlistOpen(request))
        except PeerRefusal as refusal:
            if refusal.reason == "FLIGHT_NOT_FOUND":
                raise refusals.flight_not_found(flight_id) from refusal
            raise

    async def hand_back(self, flight_id: str, seat_number: str) -> None:
        """Hands back an offered seat that nobody wants; one that is no longer offered needs no handing back."""
        request = seat.ReturnSeatRequest(flight_id=flight_id, seat_number=seat_number)
        try:
            await ask(self._seats.ReturnSeat(request))
        except PeerRefusal as refusal:
            if refusal.reason not in GONE:
                raise

    async def passenger(self, flight_id: str, passenger_id: str) -> checkin.ManifestPassenger | None:
        """Returns a passenger as the manifest has it; None where it has none."""
        request = checkin.GetPassengerRequest(flight_id=flight_id, passenger_id=passenger_id)
        try:
            found: checkin.ManifestPassenger = await ask(self._checkin.GetPassenger(request))
        except PeerRefusal as refusal:
            if refusal.reason == "PASSENGER_NOT_FOUND":
                return None
            raise
        return found


def _hold(answer: seat.Hold) -> Hold:
    return Hold(UUID(answer.hold_id), seat.Hold.State.Name(answer.state), answer.expire_time.ToDatetime(tzinfo=UTC))


def _request_id(hold_id: UUID, what: str) -> UUID:
    """The same for each repeat. The seat service wants a UUID, and does not mind which version."""
    return uuid5(hold_id, what)


def offered(seats: Sequence[MapSeat]) -> set[str]:
    """Returns the seats that only the waitlist may take."""
    return {each.seat.seat_number for each in seats if each.state == "OFFERED"}


def free(seats: Sequence[MapSeat]) -> set[str]:
    """Returns the seats that can be claimed."""
    return {each.seat.seat_number for each in seats if each.state in ("AVAILABLE", "OFFERED")}
