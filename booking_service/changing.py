"""What a customer does with a booking that has its seats: change them, pay, give it up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4, uuid5

from skyhigh.booking.v1 import booking_service_pb2 as pb

from booking_service import bookings, notices, records, refusals
from booking_service.peers import Peers
from booking_service.records import Booking, SeatOf
from services import db, timers
from services.clients import PeerRefusal
from services.db import Conn, Pool
from services.errors import FieldViolation, InvalidArgument, Refusal, Unavailable
from services.idempotency import RequestKey
from services.mutations import Mutations


@dataclass(frozen=True, slots=True)
class OnBooking:
    """Asks something of one booking. `owner` is None for who acts for others, else only the owner's is meant."""

    booking_id: UUID
    owner: str | None
    actor: str
    request_key: RequestKey | None


class Changing:
    """Changes of bookings. `tell` wakes whoever looks for what a transaction left to be done."""

    def __init__(self, pool: Pool, peers: Peers, mutations: Mutations, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._peers = peers
        self._mutations = mutations
        self._tell = tell

    async def seats(self, on: OnBooking, asked: Sequence[pb.BookedSeat]) -> pb.Booking:
        """Exchanges all seats, all or none. The seat service decides; the booking follows, even if we die between."""
        known = await self._mutations.known(on.request_key, pb.Booking)
        if known is not None:
            return known
        async with db.transaction(self._pool) as conn:
            await records.lock(conn, on.booking_id, owner=on.owner)
            booking = await records.find(conn, on.booking_id, owner=on.owner)
            if booking.state != "SEATS_RESERVED":
                raise _refusal(booking)
            seats = _checked(booking, asked)
            await timers.set_timer(conn, bookings.LOOK_AT_HOLD, str(booking.booking_id), after=bookings.CALL_IS_OVER)
        change = on.request_key.key if on.request_key is not None else uuid4()
        try:
            hold = await self._peers.change(booking, seats, request_id=uuid5(booking.booking_id, f"change/{change}"))
        except PeerRefusal as refusal:
            async with db.snapshot(self._pool) as conn:
                standing = await records.find(conn, booking.booking_id)
            raise _of_change(refusal, standing) from refusal

        async def follow(conn: Conn) -> pb.Booking:
            adopted = await bookings.adopt(conn, booking.booking_id, hold)
            standing = await records.find(conn, booking.booking_id)
            # A hold that was changed and then confirmed was confirmed with these seats.
            if not adopted and standing.state != "CONFIRMED":
                # Given up, or expired, meanwhile: then its seats are being freed, these ones too.
                raise _refusal(standing)
            return standing.message()

        return await self._mutations.run(on.request_key, pb.Booking, follow)

    async def pay(self, on: OnBooking, payment_code: str) -> pb.Booking:
        """SEATS_RESERVED → PAYMENT_PENDING; the rest goes on by itself."""
        assert on.owner is not None, "nobody pays for others"
        owner = on.owner

        async def begin(conn: Conn) -> pb.Booking:
            await records.lock(conn, on.booking_id, owner=owner)
            begun = await bookings.begin_payment(conn, on.booking_id, owner=owner, payment_code=payment_code)
            standing = await records.find(conn, on.booking_id, owner=owner)
            if not begun:
                raise _refusal(standing)
            return standing.message()

        return await self._mutations.run(on.request_key, pb.Booking, begin)

    async def cancel(self, on: OnBooking, reason: str) -> pb.Booking:
        """Cancels what has not departed; seats and money follow by themselves. A repeat succeeds."""

        async def give_up(conn: Conn) -> pb.Booking:
            await records.lock(conn, on.booking_id, owner=on.owner)
            done = await bookings.cancel(conn, on.booking_id, owner=on.owner, actor=on.actor, reason=reason)
            standing = await records.find(conn, on.booking_id, owner=on.owner)
            if done is not None:
                await notices.cancelled(conn, done)
            elif standing.state in ("SEATS_RESERVED", "CONFIRMED"):
                # Where flights were cancelled before and the others have departed, it is a repeat.
                if standing.refund_reason is None:
                    raise refusals.flight_departed(standing.departure_time)
            elif standing.state != "CANCELLED":
                raise _refusal(standing)
            return standing.message()

        return await self._mutations.run(on.request_key, pb.Booking, give_up)


def _checked(booking: Booking, asked: Sequence[pb.BookedSeat]) -> list[SeatOf]:
    """Returns a seat on each flight for each traveller who needs one. Raises INVALID_FIELD for any other choice."""
    needed = {(leg.flight_id, traveller.passenger_id) for leg in booking.legs for traveller in booking.seated}
    for index, seat in enumerate(asked):
        if (seat.flight_id, seat.passenger_id) not in needed:
            raise InvalidArgument.of(FieldViolation(f"seats[{index}]", "is of no flight and traveller of this booking"))
    if len(asked) != len(needed):
        raise InvalidArgument.of(
            FieldViolation("seats", f"must be {len(needed)}: one on each flight for each traveller who needs one")
        )
    return [SeatOf(seat.flight_id, seat.passenger_id, seat.seat_number, named=True) for seat in asked]


def _of_change(refusal: PeerRefusal, booking: Booking) -> Refusal:
    if refusals.is_of_seats(refusal.reason):
        return refusals.of_seats(refusal.reason, refusal.metadata, retry_after_seconds=refusal.retry_after_seconds)
    if booking.state != "SEATS_RESERVED" or refusal.reason == "HOLD_EXPIRED":
        return _refusal(booking)
    # Its hold was ended by others, who tell why in a moment.
    return Unavailable("the booking is being changed by others, try again")


def _refusal(booking: Booking) -> Refusal:
    """Why a booking in this state takes no change and no payment."""
    match booking.state:
        case "CREATED":
            return refusals.seats_required()
        case "PAYMENT_PENDING" | "PAYMENT_PROCESSING":
            return refusals.payment_in_progress()
        case "CONFIRMED":
            return refusals.booking_confirmed()
        case "FAILED":
            return refusals.booking_failed(booking.last_error)
        case "CANCELLED":
            return refusals.booking_cancelled(booking.cancel_reason or "")
    # EXPIRED, or SEATS_RESERVED whose time is over and that nobody has looked at yet.
    assert booking.expire_time is not None
    return refusals.booking_expired(booking.expire_time)
