"""Creates bookings: from the request to the held seats.

A booking is written as CREATED before its seats are held. Its caller, a retry or its timer then completes it (decision
20).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4, uuid5

from skyhigh.booking.v1 import booking_service_pb2 as pb

from booking_service import bookings, fares, records, refusals, seating
from booking_service.bookings import NewBooking
from booking_service.peers import Journey, Peers
from booking_service.records import ADULT, INFANT, Booking, SeatOf, Traveller
from booking_service.seating import Place
from services import db, telemetry
from services.clients import PeerRefusal
from services.db import Conn, Pool
from services.errors import DeadlineExceeded, FieldViolation, InvalidArgument, Refusal, Unavailable
from services.idempotency import RequestKey
from services.transitions import Transitions

# After this many lost plans the flight is selling out, and the booking fails.
PLANS: Final = 10
_log = telemetry.log("reserving")

# Refusals of one seat and not of the booking: another seat may be available.
_ABOUT_A_SEAT: Final = frozenset({"SEAT_TAKEN", "EXIT_ROW_NOT_ALLOWED", "INFANT_NOT_ALLOWED"})


@dataclass(frozen=True, slots=True)
class Order:
    """A request for a booking of one flight or of an itinerary."""

    request: pb.CreateBookingRequest
    owner: str
    request_key: RequestKey | None

    @property
    def cabin(self) -> str:
        """The requested cabin."""
        return pb.Cabin.Name(self.request.cabin or pb.ECONOMY)


class Reserving:
    """Creates bookings.

    `tell` wakes the tasks that do the follow-up work of a transaction.
    """

    def __init__(self, pool: Pool, peers: Peers, transitions: Transitions, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._peers = peers
        self._transitions = transitions
        self._tell = tell

    async def book(self, order: Order) -> pb.Booking:
        """Returns the booking with its seats held.

        A retry gets the same booking, also while the first request still runs. Raises the errors of the contract; then
        nothing is held, and a retry is processed as new. If the seat service or the database does not respond, the
        booking's timer continues it: a request with a key fails as unavailable, and its retry returns the booking. A
        request without a key raises DeadlineExceeded, because its outcome stays unknown.
        """
        opened = await self._transitions.known(order.request_key, pb.Booking)
        if opened is None:
            opened = await self._open(order)
        try:
            return await self.reserve(UUID(opened.booking_id))
        except db.UNREACHABLE as unavailable:
            if order.request_key is not None:
                raise
            # The booking's timer holds its seats later, and without a key no retry returns that booking.
            raise DeadlineExceeded from unavailable

    async def _open(self, order: Order) -> pb.Booking:
        travellers = _travellers(order.request, booking_id := uuid4())
        journey = await self._journey(order)
        named = _named_seats(order.request, journey, travellers)
        new = NewBooking(
            booking_id=booking_id,
            owner=order.owner,
            cabin=order.cabin,
            contact_email=order.request.contact_email,
            total=fares.total(journey.legs, [each.type for each in travellers], currency=journey.currency),
            legs=journey.legs,
            travellers=travellers,
            seats=await seating.plan(self._peers, journey.legs, travellers, cabin=order.cabin, named=named),
            request_key=order.request_key,
        )

        async def open_(conn: Conn) -> pb.Booking:
            if not await bookings.create(conn, new):
                raise refusals.sale_closed(new.legs[0].flight_id, new.legs[0].sale_close_time)
            return pb.Booking(booking_id=str(booking_id))

        return await self._transitions.run(order.request_key, pb.Booking, open_)

    async def _journey(self, order: Order) -> Journey:
        if order.request.flight_id:
            return await self._peers.flight(order.request.flight_id, cabin=order.cabin)
        return await self._peers.itinerary(order.request.itinerary_id, cabin=order.cabin)

    async def reserve(self, booking_id: UUID) -> pb.Booking:
        """CREATED → SEATS_RESERVED, or → FAILED and raises the refusal.

        For a booking that has left CREATED it returns, or raises, the outcome of that time. Concurrent and repeated
        calls are safe: the stored plan decides which seats are held, and its request id makes the hold the same. Raises
        Unavailable if the seat service is down; the booking's timer then continues.
        """
        lost: set[Place] = set()
        while True:
            async with db.snapshot(self._pool) as conn:
                booking = await records.find(conn, booking_id)
            if booking.first_answer is not None:
                return pb.Booking.FromString(booking.first_answer)
            if booking.state != "CREATED":
                raise _refusal_of(booking)
            try:
                hold = await self._peers.hold(
                    booking, booking.seats, owner=booking.owner, request_id=uuid5(booking_id, f"hold/{booking.plan}")
                )
            except PeerRefusal as refusal:
                await self._replace_plan(booking, refusal, lost)
                continue
            async with db.transaction(self._pool) as conn:
                answer = await bookings.reserve(conn, booking, hold)
                if answer is None:
                    # Another process has completed or failed the booking. A hold that is not the booking's is
                    # cancelled.
                    await bookings.cancel_foreign_hold_later(conn, booking_id, hold.hold_id)
            self._tell()
            if answer is not None:
                return answer

    async def _replace_plan(self, booking: Booking, refusal: PeerRefusal, lost: set[Place]) -> None:
        """Stores another plan after a refused one, or fails the booking.

        It fails the booking if no other seats would help.
        """
        if not refusals.is_of_seats(refusal.reason):
            # It is unknown whether another plan would help, and a booking must not wait without end.
            _log.error("seat service refused for an unknown reason", reason=refusal.reason)
            return await self._fail(booking, refusals.of_seats("SEATS_UNAVAILABLE", refusal.metadata))
        place = (refusal.metadata.get("flight_id", ""), refusal.metadata.get("seat_number", ""))
        named = [seat for seat in booking.seats if seat.named]
        # The seat service names the seat without its flight if a rule refuses it.
        meant = any(seat.seat_number == place[1] and place[0] in ("", seat.flight_id) for seat in named)
        told: Refusal = refusals.of_seats(
            refusal.reason, refusal.metadata, retry_after_seconds=refusal.retry_after_seconds
        )
        if refusal.reason in _ABOUT_A_SEAT and not meant and booking.plan < PLANS:
            lost |= {place} if all(place) else {(seat.flight_id, seat.seat_number) for seat in booking.seats}
            try:
                seats = await seating.plan(
                    self._peers, booking.legs, booking.travellers, cabin=booking.cabin, named=named, lost=lost
                )
            except Unavailable:
                # No decision about seats: the order stays CREATED, and its timer or a retry continues it.
                raise
            except Refusal as no_room:
                told = no_room
            else:
                async with db.transaction(self._pool) as conn:
                    await bookings.replace_plan(conn, booking, seats)
                return
        await self._fail(booking, told)

    async def _fail(self, booking: Booking, told: Refusal) -> None:
        async with db.transaction(self._pool) as conn:
            await bookings.refuse(
                conn, booking, reason=told.reason, metadata=told.metadata, retry_after_seconds=told.retry_after_seconds
            )


def _travellers(request: pb.CreateBookingRequest, booking_id: UUID) -> list[Traveller]:
    """Numbers the party, and assigns each infant to an adult of its own.

    Raises ADULT_REQUIRED if there are too few adults.
    """
    types = [pb.PassengerType.Name(passenger.type or pb.ADULT) for passenger in request.passengers]
    names = [f"{booking_id.hex[:16]}-{number}" for number in range(1, len(types) + 1)]
    laps = iter([name for name, kind in zip(names, types, strict=True) if kind == ADULT])
    if types.count(INFANT) > types.count(ADULT) or ADULT not in types:
        raise refusals.adult_required()
    return [
        Traveller(
            passenger_id=name,
            given_name=passenger.given_name,
            last_name=passenger.last_name,
            type=kind,
            accompanying_passenger_id=next(laps) if kind == INFANT else None,
        )
        for name, kind, passenger in zip(names, types, request.passengers, strict=True)
    ]


def _named_seats(request: pb.CreateBookingRequest, journey: Journey, travellers: Sequence[Traveller]) -> list[SeatOf]:
    """Returns the seats that were requested by number.

    Raises INVALID_FIELD for a flight outside the journey and for an infant.
    """
    flights = {leg.flight_id for leg in journey.legs}
    for index, seat in enumerate(request.seats):
        if seat.flight_id not in flights:
            description = f"must be a flight of the booked journey ({', '.join(sorted(flights))}), not {seat.flight_id}"
            raise InvalidArgument.of(FieldViolation(f"seats[{index}].flight_id", description))
        if travellers[seat.passenger_index].type == INFANT:
            description = f"must not be an infant: passengers[{seat.passenger_index}] travels on an adult's lap"
            raise InvalidArgument.of(FieldViolation(f"seats[{index}].passenger_index", description))
    return [
        SeatOf(seat.flight_id, travellers[seat.passenger_index].passenger_id, seat.seat_number, named=True)
        for seat in request.seats
    ]


def _refusal_of(booking: Booking) -> Refusal:
    assert booking.refusal is not None, "only a refusal leads elsewhere from CREATED"
    told = json.loads(booking.refusal)
    return refusals.of_seats(told["reason"], told["metadata"], retry_after_seconds=told["retry_after_seconds"])
