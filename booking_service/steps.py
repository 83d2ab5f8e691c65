"""The timer handlers of bookings: the steps that call other services.

Each step reads the booking, calls other services outside a transaction, and writes last, guarded by the state that it
read. So a step may run twice or stop anywhere; its timer runs it again until it succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid5

from skyhigh.payment.v1 import payment_service_pb2 as payment

from booking_service import bookings, locators, notices, records
from booking_service.bookings import FLIGHT_CANCELLED, ITSELF, SALE_CLOSED, Hold
from booking_service.locators import LocatorTaken
from booking_service.peers import Peers
from booking_service.records import Booking, SeatOf
from booking_service.reserving import Reserving
from services import db, timers
from services.clients import PeerRefusal
from services.db import Pool
from services.errors import Refusal, Unavailable
from services.money import amount_of
from services.time_limits import FACTOR
from services.timers import Handler

# Seats for late money are held in the booking service's own name, so that no limit of the customer applies (decision
# 21).
OWN_NAME: Final = "service:booking"
# The most holds for one late payment. Such a hold lapses only if its process died, and then another one is made.
LATE_HOLDS: Final = 3
# The step of a dead process is claimed again within the 5 s that a timer may be late. A step that takes longer is
# cancelled and runs again, and finds what it has done.
LEASE_SECONDS: Final = 4 * FACTOR
# The pause before the next look. By then every transaction that did not see the cancellation of its flight has ended.
LAST_CHECK: Final = timedelta(seconds=10)
CANCELLED_AT_ONCE: Final = 100
# Among 658 million locators a second one is hardly ever taken too. A step that finds all of them taken fails, and its
# timer retries it.
MINTED_AT_ONCE: Final = 3
NO_RETURN: Final = timedelta(seconds=15)
FLIGHT_DEPARTED: Final = "FLIGHT_DEPARTED"

_HOLD_ENDED: Final = frozenset({"HOLD_EXPIRED", "HOLD_CANCELLED", "HOLD_NOT_FOUND"})


class Steps:
    """The timer handlers.

    `tell` wakes the tasks that do the follow-up work of a transaction.
    """

    def __init__(
        self, pool: Pool, peers: Peers, reserving: Reserving, *, payment_look: timedelta, tell: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._peers = peers
        self._reserving = reserving
        self._payment_look = payment_look
        self._tell = tell

    def handlers(self) -> Mapping[str, Handler]:
        """Returns the handlers by timer name."""
        steps = {
            bookings.RESERVE: self.reserve,
            bookings.EXPIRE: self.check_hold,
            bookings.CHECK_HOLD: self.check_hold,
            bookings.PAY: self.pay,
            bookings.CHECK_PAYMENT: self.check_payment,
            bookings.CONFIRM: self.confirm,
            bookings.RELEASE: self.release,
            bookings.RELEASE_AT_DEPARTURE: self.release,
            bookings.REFUND: self.refund,
            bookings.CANCEL_FOREIGN_HOLD: self.cancel_foreign_hold,
            bookings.CANCEL_FLIGHT: self.cancel_flight,
            bookings.FOLLOW_SEATS: self.follow_seats,
        }
        return {name: Handler(step, lease_seconds=LEASE_SECONDS) for name, step in steps.items()}

    async def reserve(self, subject: str) -> None:
        """Continues a booking whose caller's process died."""
        try:
            await self._reserving.reserve(UUID(subject))
        except Unavailable:
            raise
        except Refusal:
            # The booking is FAILED now, and keeps the reason.
            return

    async def check_hold(self, subject: str) -> None:
        """Copies the hold from the seat service, or expires the booking.

        An unpaid booking becomes EXPIRED if its hold has ended and its `expire_time` has passed.
        """
        booking = await self._find(subject)
        if booking.hold_id is None or booking.pay_time is not None:
            return
        if booking.state not in ("SEATS_RESERVED", "PAYMENT_PENDING", "PAYMENT_PROCESSING"):
            return
        hold = await self._peers.find_hold(booking)
        async with db.transaction(self._pool) as conn:
            if hold.state == "HELD":
                await bookings.adopt(conn, booking.booking_id, hold)
            else:
                await bookings.expire(conn, booking.booking_id)
        self._tell()

    async def pay(self, subject: str) -> None:
        """PAYMENT_PENDING → PAYMENT_PROCESSING: extends the hold, submits the code.

        The extended hold outlasts the payment attempts. The locator is reserved before the payment, so that a paid
        booking can be confirmed while the check-in service is down.
        """
        booking = await self._find(subject)
        if booking.state != "PAYMENT_PENDING" or booking.payment_code is None:
            return
        if not await self._extend_hold(booking):
            return
        await self._locator_of(booking)
        intent = await self._peers.intent(booking)
        intent_id = UUID(intent.intent_id)
        await self._peers.submit(
            intent_id, payment_code=booking.payment_code, request_id=uuid5(booking.booking_id, "pay")
        )
        async with db.transaction(self._pool) as conn:
            await bookings.process_payment(
                conn,
                booking.booking_id,
                intent_id=intent_id,
                max_attempts=intent.max_attempts,
                look_after=self._payment_look,
            )
        self._tell()

    async def _extend_hold(self, booking: Booking) -> bool:
        """Extends the booking's hold to its full time.

        Returns False if the hold has ended or a flight was cancelled or has departed; then the booking is EXPIRED or
        FAILED.
        """
        try:
            hold = await self._peers.extend(booking, request_id=uuid5(booking.booking_id, "extend"))
        except PeerRefusal as refusal:
            if refusal.reason == "HOLD_LIMIT_REACHED":
                # The hold has reached its longest life. Money that comes after its end is late money (BKG-5).
                return True
            if refusal.reason not in _HOLD_ENDED | {FLIGHT_CANCELLED, FLIGHT_DEPARTED}:
                raise
            async with db.transaction(self._pool) as conn:
                if not await bookings.expire(conn, booking.booking_id):
                    await bookings.fail_payment(
                        conn, booking.booking_id, intent_id=None, attempts=0, error=refusal.reason
                    )
            self._tell()
            return False
        async with db.transaction(self._pool) as conn:
            await bookings.adopt(conn, booking.booking_id, hold)
        return True

    async def check_payment(self, subject: str) -> None:
        """Copies the payment's attempts, and its outcome if the event is late."""
        booking = await self._find(subject)
        if booking.state != "PAYMENT_PROCESSING" or booking.pay_time is not None or booking.payment_intent_id is None:
            return
        intent = await self._peers.payment(booking.payment_intent_id)
        async with db.transaction(self._pool) as conn:
            if intent.state == payment.PaymentIntent.SUCCEEDED:
                await bookings.receive_money(
                    conn,
                    booking.booking_id,
                    intent_id=booking.payment_intent_id,
                    amount=amount_of(intent.amount),
                    attempts=intent.attempts,
                )
            elif intent.state == payment.PaymentIntent.FAILED:
                await bookings.fail_payment(
                    conn,
                    booking.booking_id,
                    intent_id=booking.payment_intent_id,
                    attempts=intent.attempts,
                    error=intent.last_error,
                )
            else:
                await bookings.note_attempts(
                    conn,
                    booking.booking_id,
                    intent_id=booking.payment_intent_id,
                    attempts=intent.attempts,
                    last_error=intent.last_error,
                )
                await timers.set_timer(conn, bookings.CHECK_PAYMENT, subject, after=self._payment_look)
        self._tell()

    async def confirm(self, subject: str) -> None:
        """Confirms a paid booking with its seats, or refunds the payment.

        The seats are those of its hold, or the same seats held again if the hold has ended.
        """
        booking = await self._find(subject)
        if booking.pay_time is None or booking.state == "CONFIRMED":
            return
        if booking.refund_reason is not None:
            # An earlier try, whose response was lost, may have held the seats after the refund had released them.
            async with db.transaction(self._pool) as conn:
                await timers.set_timer(conn, bookings.RELEASE, subject)
            return self._tell()
        if booking.state != "PAYMENT_PROCESSING" and await self._sale_is_closed(booking):
            return await self._decide_refund(booking, SALE_CLOSED)
        try:
            hold = await self._seats_of(booking)
        except PeerRefusal as refusal:
            # Every refusal leads to the refund: the customer has paid, and must get either the seats or the money.
            return await self._decide_refund(booking, refusal.reason)
        # The seats are confirmed first: they no longer expire while the check-in service is down. Most bookings have
        # had their locator since `pay`.
        await self._write_confirmed(booking, hold, pnr=await self._locator_of(booking))

    async def _locator_of(self, booking: Booking) -> str:
        """Returns the booking's reserved locator; reserves one if it has none.

        Raises LocatorTaken if all minted locators are taken.
        """
        if booking.reserved_pnr is not None:
            return booking.reserved_pnr
        pnr = await self._reserve_locator(booking)
        async with db.transaction(self._pool) as conn:
            kept = await bookings.keep_locator(conn, booking.booking_id, pnr=pnr)
        # If none is stored, another process has ended the booking, and no statement writes this one.
        return kept or pnr

    async def _reserve_locator(self, booking: Booking) -> str:
        last: LocatorTaken | None = None
        for _ in range(MINTED_AT_ONCE):
            pnr = locators.mint()
            try:
                await self._peers.reserve_locator(booking.booking_id, pnr)
            except LocatorTaken as taken:
                last = taken
            else:
                return pnr
        assert last is not None
        raise last

    async def _seats_of(self, booking: Booking) -> Hold:
        """Confirms the booking's hold, or the same seats again if the hold has ended."""
        if booking.state == "PAYMENT_PROCESSING":
            try:
                return await self._peers.confirm(_hold_id(booking), booking.seats)
            except PeerRefusal as refusal:
                if refusal.reason not in _HOLD_ENDED:
                    raise
        return await self._hold_again(booking)

    async def _hold_again(self, booking: Booking) -> Hold:
        """Holds and confirms the same seats again, all or none. Raises PeerRefusal.

        The former hold is cancelled first and never confirmed, so that a concurrent step that still cancels it releases
        no other seats (decision 21).
        """
        await self._peers.cancel_hold(_hold_id(booking), reason="PAID_LATE")
        last: PeerRefusal | None = None
        for number in range(1, LATE_HOLDS + 1):
            request_id = uuid5(booking.booking_id, f"late/{number}")
            hold = await self._peers.hold(booking, booking.seats, owner=OWN_NAME, request_id=request_id)
            try:
                return await self._peers.confirm(hold.hold_id, hold.seats)
            except PeerRefusal as refusal:
                if refusal.reason not in _HOLD_ENDED:
                    raise
                last = refusal
        assert last is not None
        raise last

    async def _sale_is_closed(self, booking: Booking) -> bool:
        async with db.transaction(self._pool) as conn:
            closed: bool = await conn.fetchval("SELECT statement_timestamp() >= $1", booking.sale_close_time)
            return closed

    async def _write_confirmed(self, booking: Booking, hold: Hold, *, pnr: str) -> None:
        async with db.transaction(self._pool) as conn:
            if await bookings.confirm(conn, booking, hold, pnr=pnr):
                await notices.confirmed(conn, replace(booking, seats=hold.seats), pnr)
            elif await bookings.decide_refund(conn, booking, reason=FLIGHT_CANCELLED):
                await notices.refunded(conn, booking, reason=FLIGHT_CANCELLED)
            # Also needed if another process was faster and the booking has ended since.
            await bookings.cancel_foreign_hold_later(conn, booking.booking_id, hold.hold_id)
        self._tell()

    async def _decide_refund(self, booking: Booking, reason: str) -> None:
        async with db.transaction(self._pool) as conn:
            if await bookings.decide_refund(conn, booking, reason=reason):
                await notices.refunded(conn, booking, reason=reason)
        self._tell()

    async def release(self, subject: str) -> None:
        """Releases the seats of an ended booking or of its cancelled flights.

        Cancels the hold of an ended booking. If that was paid, it also releases the seats that its passengers have by
        another hold: a seat changed at check-in, or the seats that were held again for late money. Of a CONFIRMED
        booking it releases the passengers' seats on the cancelled flights only.
        """
        booking = await self._find(subject)
        undecided = booking.pay_time is not None and booking.refund_reason is None
        if booking.hold_id is None or undecided:
            return
        reason = booking.cancel_reason or booking.refund_reason or "PAYMENT_FAILED"
        if booking.state == "CONFIRMED":
            # The hold also has the seats of the flown flights, so it must not be cancelled.
            cancelled = [leg for leg in booking.legs if leg.cancel_time is not None]
            return await self._peers.release_passengers(booking, cancelled, reason=reason)
        await self._peers.cancel_hold(booking.hold_id, reason=reason)
        if booking.pay_time is not None:
            await self._peers.release_passengers(booking, booking.legs, reason=reason)

    async def refund(self, subject: str) -> None:
        """Pays the decided refund."""
        booking = await self._find(subject)
        if booking.payment_intent_id is None or booking.refund_reason is None or booking.refund is None:
            return
        await self._peers.refund(booking.payment_intent_id, reason=booking.refund_reason, total=booking.refund)

    async def follow_seats(self, subject: str) -> None:
        """Copies the present seats of a confirmed booking from the seat service."""
        booking = await self._find(subject)
        if booking.state != "CONFIRMED" or not booking.live_legs:
            return
        if await self._of_a_cancelled_flight(booking):
            # The cancellation is going to end the booking, which keeps showing the seats that it had.
            return
        confirmed_seats = await self._peers.confirmed_seats(booking)
        known = [seat for seat in booking.seats if seat.flight_id in {leg.flight_id for leg in booking.live_legs}]
        if {_place(seat) for seat in confirmed_seats} == {_place(seat) for seat in known}:
            return
        async with db.transaction(self._pool) as conn:
            if not await bookings.follow_seats(conn, booking, confirmed_seats):
                # The booking has changed since it was read.
                await timers.set_timer(conn, bookings.FOLLOW_SEATS, subject)
        self._tell()

    async def cancel_foreign_hold(self, subject: str) -> None:
        """Cancels a hold that belongs to no booking."""
        await self._peers.cancel_hold(UUID(subject), reason="NOT_NEEDED")

    async def _of_a_cancelled_flight(self, booking: Booking) -> bool:
        async with db.transaction(self._pool) as conn:
            return bool(
                await conn.fetchval(
                    "SELECT EXISTS (SELECT FROM cancelled_flights WHERE flight_id = ANY($1::text[]))",
                    [leg.flight_id for leg in booking.live_legs],
                )
            )

    async def cancel_flight(self, subject: str) -> None:
        """Cancels the bookings of a cancelled flight.

        It runs again after LAST_CHECK until NO_RETURN has passed since the cancellation arrived, because a transaction
        that ran meanwhile may not have seen it.
        """
        last = UUID(int=0)
        while batch := await self._live_bookings(subject, after=last):
            for booking_id in batch:
                async with db.transaction(self._pool) as conn:
                    done = await bookings.cancel(conn, booking_id, owner=None, actor=ITSELF, reason=FLIGHT_CANCELLED)
                    if done is not None:
                        await notices.cancelled(conn, done)
            last = batch[-1]
        self._tell()
        async with db.transaction(self._pool) as conn:
            fresh = await conn.fetchval(
                "SELECT learn_time > statement_timestamp() - $2::interval FROM cancelled_flights WHERE flight_id = $1",
                subject,
                NO_RETURN,
            )
            if fresh:
                await timers.set_timer(conn, bookings.CANCEL_FLIGHT, subject, after=LAST_CHECK)

    async def _live_bookings(self, flight_id: str, *, after: UUID) -> list[UUID]:
        """Returns the next bookings to cancel, by an index without ended bookings."""
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                """
                SELECT booking_id FROM booking_flights JOIN bookings USING (booking_id)
                WHERE flight_id = $1 AND live AND booking_id > $2 AND state IN ('SEATS_RESERVED', 'CONFIRMED')
                ORDER BY booking_id LIMIT $3
                """,
                flight_id,
                after,
                CANCELLED_AT_ONCE,
            )
        return [row["booking_id"] for row in rows]

    async def _find(self, subject: str) -> Booking:
        async with db.snapshot(self._pool) as conn:
            return await records.find(conn, UUID(subject))


def _place(seat: SeatOf) -> tuple[str, str, str]:
    return seat.flight_id, seat.passenger_id, seat.seat_number


def _hold_id(booking: Booking) -> UUID:
    assert booking.hold_id is not None, "money is taken only for seats that were held"
    return booking.hold_id
