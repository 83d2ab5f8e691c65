"""Calls to the seat and check-in services, and what their refusals mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from waitlist_service.eligibility import CHILD_IN_CARE, EXIT_ROW, INFANT_ON_LAP, NOT_FOR_INFANTS
from waitlist_service.entries import Entry, Facts
from waitlist_service.matching import FreedSeat
from waitlist_service.settings import WaitlistSettings

# The timeout of one call: a timer asks for the manifest and then claims, within its lease of four seconds.
TIMEOUT_SECONDS: Final = 1.2 * FACTOR
# The most special services that the seat service accepts. An adult with eight and an infant on the lap has nine.
MOST_NEEDS: Final = 8
# Reasons that mean: the seat cannot be claimed; it is taken or blocked, or does not exist.
GONE: Final = frozenset({"SEAT_TAKEN", "SEAT_OCCUPIED", "SEAT_NOT_FOUND", "FLIGHT_NOT_FOUND", "FLIGHT_CANCELLED"})
# Reasons that mean: the passenger is not eligible for the seat.
FORBIDDEN: Final = frozenset({"EXIT_ROW_NOT_ALLOWED", "INFANT_NOT_ALLOWED", "CABIN_NOT_ALLOWED"})
# Reasons that mean: the seat service does not find the passenger entitled to any seat of the flight.
NOT_ENTITLED: Final = frozenset(
    {
        "PASSENGER_NOT_ENTITLED",
        "PASSENGER_NOT_FOUND",
        "LAP_INFANT_HAS_NO_SEAT",
        "FLIGHT_DEPARTED",
        "FLIGHT_CANCELLED",
    }
)
PASSENGER_HOLDS_SEAT: Final = "PASSENGER_HOLDS_SEAT"
ENDED: Final = frozenset({"HOLD_EXPIRED", "HOLD_CANCELLED", "HOLD_NOT_FOUND", "FLIGHT_CANCELLED"})


class SeatUnavailable(Exception):
    """The seat can no longer be claimed, or its hold has ended."""


class NotForPassenger(Exception):
    """The seat service refuses the seat to this passenger.

    Another passenger might get it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def is_for_manifest(self) -> bool:
        """True if the entry must be compared with the manifest."""
        return self.reason in FORBIDDEN | NOT_ENTITLED


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold of the seat service.

    `state` is a value of its proto. `seats` has the seat numbers by flight id and passenger id.
    """

    hold_id: UUID
    state: str
    expire_time: datetime
    seats: Mapping[tuple[str, str], str]

    def seat_of(self, entry: Entry) -> str | None:
        """Returns the seat of the entry's passenger in this hold.

        It is not the offered one if the passenger has changed the hold. None if the passenger has left the hold, which
        other passengers may still have.
        """
        return self.seats.get((entry.flight_id, entry.passenger_id))


@dataclass(frozen=True, slots=True)
class PassengerSeat:
    """A seat that a passenger holds or has confirmed."""

    hold_id: UUID
    seat_number: str
    confirmed: bool


@dataclass(frozen=True, slots=True)
class FlightTimes:
    """The facts of the check-in service about a flight.

    `close_time` is the end of check-in, and `closed` is true if that has passed. `cancel_time` is None if the flight is
    not cancelled. `origin` is the airport of departure.
    """

    close_time: datetime
    closed: bool
    cancel_time: datetime | None
    cancel_reason: str
    origin: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A response of the check-in service.

    Passengers and flights that it does not know are left out.
    """

    passengers: Mapping[tuple[str, str], Facts]
    flights: Mapping[str, FlightTimes]


@dataclass(frozen=True, slots=True)
class MapSeat:
    """A seat of the seat service's map, with its state."""

    seat: FreedSeat
    state: str


class Peers:
    """Calls to the seat and check-in services.

    Each call raises Unavailable if the service is down.
    """

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
        # The generated stubs are typed for synchronous channels, and these are asynchronous: hence Any.
        self._seats: Any = SeatServiceStub(self._channels[0])
        self._checkin: Any = CheckInServiceStub(self._channels[1])

    async def close(self) -> None:
        """Closes the connections."""
        for each in self._channels:
            await each.close()

    async def claim(self, request: seat.ClaimSeatRequest) -> Hold:
        """Sends a claim. A repeat of the same request returns the same hold.

        Raises SeatUnavailable or NotForPassenger; PeerRefusal or PeerFault if the claim is refused for an unexpected
        reason.
        """
        try:
            return _hold(await ask(self._seats.ClaimSeat(request)))
        except PeerRefusal as refusal:
            if refusal.reason in FORBIDDEN | NOT_ENTITLED or refusal.reason == PASSENGER_HOLDS_SEAT:
                raise NotForPassenger(refusal.reason) from refusal
            if refusal.reason in GONE:
                raise SeatUnavailable from refusal
            raise

    async def confirm(self, hold_id: UUID) -> Hold:
        """Confirms a hold.

        The seat service also releases the passenger's former seat. A repeat succeeds. Raises SeatUnavailable or
        NotForPassenger.
        """
        request = seat.ConfirmHoldRequest(hold_id=str(hold_id), request_id=str(_request_id(hold_id, "confirm")))
        try:
            return _hold(await ask(self._seats.ConfirmHold(request)))
        except PeerRefusal as refusal:
            if refusal.reason in ENDED:
                raise SeatUnavailable from refusal
            if refusal.reason in FORBIDDEN | NOT_ENTITLED:
                raise NotForPassenger(refusal.reason) from refusal
            raise

    async def cancel_unconfirmed(self, hold_id: UUID, *, reason: str) -> bool:
        """Cancels a hold unless it is confirmed; returns False if it is.

        Returns True also if the hold had ended before. A retry may have another reason: it is another request.
        """
        request = seat.CancelHoldRequest(
            hold_id=str(hold_id),
            reason=reason,
            request_id=str(_request_id(hold_id, f"cancel unconfirmed {reason}")),
            unless_confirmed=True,
        )
        try:
            await ask(self._seats.CancelHold(request))
        except PeerRefusal as refusal:
            # FLIGHT_DEPARTED means that the hold is confirmed: only confirmed seats of a departed flight are kept.
            if refusal.reason in ("HOLD_CONFIRMED", "FLIGHT_DEPARTED"):
                return False
            if refusal.reason not in ENDED:
                raise
        return True

    async def hold(self, hold_id: UUID) -> Hold:
        """Returns the present state of a hold."""
        request = seat.GetHoldRequest(hold_id=str(hold_id))
        return _hold(await ask(self._seats.GetHold(request)))

    async def seat_map(self, flight_id: str) -> list[MapSeat]:
        """Returns a flight's seats from its map. Raises FLIGHT_NOT_FOUND.

        The map is usually at most 1 s old.
        """
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
        """Opens or closes the flight's waitlist at the seat service.

        Raises FLIGHT_NOT_FOUND. A repeat, or a request with a stale revision, changes nothing.
        """
        request = seat.SetWaitlistOpenRequest(flight_id=flight_id, open=is_open, revision=revision)
        try:
            await ask(self._seats.SetWaitlistOpen(request))
        except PeerRefusal as refusal:
            if refusal.reason == "FLIGHT_NOT_FOUND":
                raise refusals.flight_not_found(flight_id) from refusal
            raise

    async def return_seat(self, flight_id: str, seat_number: str) -> None:
        """Returns an OFFERED seat to general sale (ReturnSeat).

        Succeeds also if the seat is no longer OFFERED.
        """
        request = seat.ReturnSeatRequest(flight_id=flight_id, seat_number=seat_number)
        try:
            await ask(self._seats.ReturnSeat(request))
        except PeerRefusal as refusal:
            if refusal.reason not in GONE:
                raise

    async def seats_of(self, entries: Sequence[Entry]) -> dict[UUID, list[PassengerSeat]]:
        """Returns the held and confirmed seats of entries' passengers, by entry."""
        request = seat.FindPassengerSeatsRequest(
            passengers=[
                seat.FindPassengerSeatsRequest.FlightPassenger(
                    flight_id=entry.flight_id, passenger_id=entry.passenger_id
                )
                for entry in entries
            ]
        )
        answer = await ask(self._seats.FindPassengerSeats(request))
        return {
            entry.entry_id: [
                PassengerSeat(UUID(each.hold_id), each.seat_number, each.state == seat.Seat.CONFIRMED)
                for each in answer.seats
                if (each.flight_id, each.passenger_id) == (entry.flight_id, entry.passenger_id)
            ]
            for entry in entries
        }

    async def manifest(self, passengers: Sequence[tuple[str, str]], flight_ids: Sequence[str] = ()) -> Manifest:
        """Returns the check-in service's facts of passengers and of flights."""
        request = checkin.FindPassengersRequest(
            passengers=[
                checkin.FindPassengersRequest.FlightPassenger(flight_id=flight_id, passenger_id=passenger_id)
                for flight_id, passenger_id in passengers
            ],
            flight_ids=flight_ids,
        )
        answer: checkin.FindPassengersResponse = await ask(self._checkin.FindPassengers(request))
        return Manifest(
            passengers={
                (each.flight_id, each.passenger.passenger_id): _facts(each.passenger) for each in answer.passengers
            },
            flights={
                each.flight_id: FlightTimes(
                    close_time=each.check_in_close_time.ToDatetime(tzinfo=UTC),
                    closed=each.check_in_closed,
                    cancel_time=each.cancel_time.ToDatetime(tzinfo=UTC) if each.HasField("cancel_time") else None,
                    cancel_reason=each.cancel_reason,
                    origin=each.origin,
                )
                for each in answer.flights
            },
        )


def claim_request(entry: Entry, *, offer_ttl: timedelta | None) -> seat.ClaimSeatRequest:
    """Builds the claim of an entry's match.

    With `offer_ttl` the seat is held for that time and will be offered; with None it is confirmed at once.
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
            # The list is cut to MOST_NEEDS. These two codes come first: with them the seat service refuses each seat
            # that it would refuse because of a code that is cut off.
            special_services=sorted(
                entry.special_services, key=lambda code: code not in (INFANT_ON_LAP, CHILD_IN_CARE)
            )[:MOST_NEEDS],
        ),
        request_id=str(entry.claim_id),
        confirm=offer_ttl is None,
    )
    if offer_ttl is not None:
        request.ttl.FromTimedelta(offer_ttl)
    return request


def _facts(passenger: checkin.ManifestPassenger) -> Facts:
    return Facts(
        owner=f"passenger:{passenger.pnr}",
        type=checkin.PassengerType.Name(passenger.type or checkin.ADULT),
        cabin=checkin.Cabin.Name(passenger.cabin or checkin.ECONOMY),
        special_services=tuple(sorted(passenger.special_services)),
        contact_email=passenger.contact_email,
        contact_name=passenger.given_name,
    )


def _hold(answer: seat.Hold) -> Hold:
    return Hold(
        hold_id=UUID(answer.hold_id),
        state=seat.Hold.State.Name(answer.state),
        expire_time=answer.expire_time.ToDatetime(tzinfo=UTC),
        seats={(each.flight_id, each.passenger_id): each.seat_number for each in answer.seats},
    )


def _request_id(hold_id: UUID, what: str) -> UUID:
    """Returns a request id that is the same for each retry.

    It is a UUID of version 5; the seat service accepts every version.
    """
    return uuid5(hold_id, what)


def offered(seats: Sequence[MapSeat]) -> set[str]:
    """Returns the numbers of the seats that only the waitlist can claim."""
    return {each.seat.seat_number for each in seats if each.state == "OFFERED"}


def free(seats: Sequence[MapSeat]) -> set[str]:
    """Returns the numbers of the seats that the waitlist can claim."""
    return {each.seat.seat_number for each in seats if each.state in ("AVAILABLE", "OFFERED")}
