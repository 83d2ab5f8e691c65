"""Changes of a booking that has its seats: other seats, payment, cancellation."""

from __future__ import annotations

from collections.abc import Sequence
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
from services.transitions import Transitions


@dataclass(frozen=True, slots=True)
class OnBooking:
    """A request about one booking.

    `owner` limits it to bookings of that owner; None, for a caller that acts for others, means any owner.
    """

    booking_id: UUID
    owner: str | None
    actor: str
    request_key: RequestKey | None


class Changing:
    """Changes bookings."""

    def __init__(self, pool: Pool, peers: Peers, transitions: Transitions) -> None:
        self._pool = pool
        self._peers = peers
        self._transitions = transitions

    async def seats(self, on: OnBooking, asked: Sequence[pb.BookedSeat]) -> pb.Booking:
        """Replaces all seats of the booking, all or none.

        The seat service decides, and the booking copies the result. If this process dies in between, the CHECK_HOLD
        timer copies it.
        """
        known = await self._transitions.known(on.request_key, pb.Booking)
        if known is not None:
            return known
        async with db.transaction(self._pool) as conn:
            await records.lock(conn, on.booking_id, owner=on.owner)
            booking = await records.find(conn, on.booking_id, owner=on.owner)
            if booking.state != "SEATS_RESERVED":
                raise _refusal(booking)
            seats = _checked(booking, asked)
            await timers.set_timer(conn, bookings.CHECK_HOLD, str(booking.booking_id), after=bookings.CALL_ENDED_AFTER)
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
            # If the booking is CONFIRMED meanwhile, its hold was confirmed with these seats.
            if not adopted and standing.state != "CONFIRMED":
                # The booking was cancelled or has expired meanwhile, so that all its seats, including these, are being
                # released.
                raise _refusal(standing)
            return standing.message()

        return await self._transitions.run(on.request_key, pb.Booking, follow)

    async def pay(self, on: OnBooking, payment_code: str) -> pb.Booking:
        """SEATS_RESERVED → PAYMENT_PENDING; timers do the rest."""
        assert on.owner is not None, "nobody pays for others"
        owner = on.owner

        async def begin(conn: Conn) -> pb.Booking:
            await records.lock(conn, on.booking_id, owner=owner)
            begun = await bookings.begin_payment(conn, on.booking_id, owner=owner, payment_code=payment_code)
            standing = await records.find(conn, on.booking_id, owner=owner)
            if not begun:
                raise _refusal(standing)
            return standing.message()

        return await self._transitions.run(on.request_key, pb.Booking, begin)

    async def cancel(self, on: OnBooking, reason: str) -> pb.Booking:
        """Cancels the flights that have not departed. A repeat succeeds.

        Timers release the seats and refund the money.
        """

        async def cancel_live_flights(conn: Conn) -> pb.Booking:
            await records.lock(conn, on.booking_id, owner=on.owner)
            done = await bookings.cancel(conn, on.booking_id, owner=on.owner, actor=on.actor, reason=reason)
            standing = await records.find(conn, on.booking_id, owner=on.owner)
            if done is not None:
                await notices.cancelled(conn, done)
            elif standing.state in ("SEATS_RESERVED", "CONFIRMED"):
                # If flights were cancelled before and the others have departed, this call is a repeat and succeeds.
                if standing.refund_reason is None:
                    raise refusals.flight_departed(standing.departure_time)
            elif standing.state != "CANCELLED":
                raise _refusal(standing)
            return standing.message()

        return await self._transitions.run(on.request_key, pb.Booking, cancel_live_flights)


def _checked(booking: Booking, asked: Sequence[pb.BookedSeat]) -> list[SeatOf]:
    """Returns a seat on each flight for each traveller who needs one.

    Raises INVALID_FIELD if `asked` is not exactly that.
    """
    needed = {(leg.flight_id, traveller.passenger_id) for leg in booking.legs for traveller in booking.seated}
    for index, seat in enumerate(asked):
        if (seat.flight_id, seat.passenger_id) not in needed:
            description = (
                "must be for a flight of this booking and a passenger of it who needs a seat, not for flight "
                f"{seat.flight_id} and passenger {seat.passenger_id}"
            )
            raise InvalidArgument.of(FieldViolation(f"seats[{index}]", description))
    if len(asked) != len(needed):
        description = (
            f"must be {len(needed)} seats, not {len(asked)}: one on each flight for each passenger who needs a seat"
        )
        raise InvalidArgument.of(FieldViolation("seats", description))
    return [SeatOf(seat.flight_id, seat.passenger_id, seat.seat_number, named=True) for seat in asked]


def _of_change(refusal: PeerRefusal, booking: Booking) -> Refusal:
    if refusals.is_of_seats(refusal.reason):
        return refusals.of_seats(refusal.reason, refusal.metadata, retry_after_seconds=refusal.retry_after_seconds)
    if booking.state != "SEATS_RESERVED" or refusal.reason == "HOLD_EXPIRED":
        return _refusal(booking)
    # Another process has ended the hold, and the booking will show the reason in a moment.
    return Unavailable("another request is changing the booking; retry")


def _refusal(booking: Booking) -> Refusal:
    """Returns why a booking in this state accepts no change and no payment."""
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
    # EXPIRED, or SEATS_RESERVED after its `expire_time` whose timer has not fired yet.
    assert booking.expire_time is not None
    return refusals.booking_expired(booking.expire_time)
