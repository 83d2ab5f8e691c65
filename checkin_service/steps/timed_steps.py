"""Timer handlers of check-ins: calls to other services, and timed steps.

A handler that needs another service asks it first, outside any transaction, and writes last, with a guard on what it
read before. So a handler can run twice or die at any point; its timer runs it again until it succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final
from uuid import UUID

from checkin_service import notices, records
from checkin_service.check_ins import cancel_reasons, cancellation, fees, timer_names
from checkin_service.peers import Peers, Seat, Withdrawal
from checkin_service.records import INFANT_SEAT, CheckIn
from services import db, timers
from services.db import Pool
from services.money import Amount
from services.timers import Handler

# Pause before the next question about a running payment. Its attempts end within half a minute.
RETRY_PAUSE: Final = timedelta(seconds=2)
# Check-ins per transaction; each one takes about a dozen statements.
CHECK_INS_AT_ONCE: Final = 25


class Steps:
    """The timer handlers of check-ins.

    `tell` wakes the relay and the timers after a commit.
    """

    def __init__(self, pool: Pool, peers: Peers, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._peers = peers
        self._tell = tell

    def handlers(self) -> Mapping[str, Handler]:
        """Returns each handler by the name of its timer."""
        return {
            timer_names.PAYMENT_DEADLINE: Handler(self.end_unpaid),
            timer_names.RELEASE_SEAT: Handler(self.release_seat),
            timer_names.SETTLE_FEE: Handler(self.settle_fee),
            timer_names.REFUND: Handler(self.refund),
            timer_names.CANCEL_CHECK_INS: Handler(self.cancel_check_ins),
            timer_names.DEPARTURE: Handler(self.end_at_departure),
        }

    async def end_unpaid(self, subject: str) -> None:
        """Cancels a check-in whose fee is unpaid at its deadline.

        A running payment extends the deadline, and so does a succeeded one until its event arrives.
        """
        checkin_id = UUID(subject)
        intent_id = await self._overdue_intent(checkin_id)
        if intent_id is None:
            return
        outcome = await self._peers.withdraw_intent(intent_id, reason=cancel_reasons.PAYMENT_TIMEOUT)
        async with db.transaction(self._pool) as conn:
            if outcome is not Withdrawal.WITHDRAWN and await fees.extend_deadline(
                conn, checkin_id, intent_id=intent_id, by=RETRY_PAUSE, paid=outcome is Withdrawal.PAID
            ):
                return
            if outcome is not Withdrawal.PAID and await cancellation.time_out(conn, checkin_id, intent_id=intent_id):
                cancelled = await records.find(conn, checkin_id)
                keeps_seat = await cancellation.keeps_seat(conn, cancelled)
                await notices.payment_timed_out(conn, cancelled, keeps_seat=keeps_seat)
        self._tell()

    async def release_seat(self, subject: str) -> None:
        """Releases the seat of a cancelled check-in.

        Keeps a seat that the passenger confirmed after the cancellation, a seat of the passenger's confirmed booking,
        and after departure every seat.
        """
        async with db.transaction(self._pool) as conn:
            check_in = await records.find(conn, UUID(subject))
            if await cancellation.keeps_seat(conn, check_in):
                return
        seat = await self._peers.confirmed_seat(check_in.flight_id, check_in.passenger_id)
        if seat is not None and await self._was_cancelled_seat(check_in, seat):
            await self._peers.release_seat(
                check_in.flight_id, check_in.passenger_id, seat.hold_id, reason=check_in.cancel_reason or ""
            )

    async def settle_fee(self, subject: str) -> None:
        """Cancels the unpaid intent of a check-in that ended, or refunds the paid fee.

        If a payment is running, the timer is set again.
        """
        check_in = await self._find(subject)
        reason = check_in.cancel_reason or (cancel_reasons.FLIGHT_DEPARTED if check_in.fee_returned else None)
        if check_in.payment_intent_id is None or reason is None:
            return
        match await self._peers.withdraw_intent(check_in.payment_intent_id, reason=reason):
            case Withdrawal.RUNNING:
                await self._again(timer_names.SETTLE_FEE, subject)
            case Withdrawal.PAID:
                await self._peers.refund(check_in.payment_intent_id, reason=reason)

    async def refund(self, subject: str) -> None:
        """Refunds a payment intent that no check-in waits for."""
        await self._peers.refund(UUID(subject), reason="NOT_DUE")

    async def end_at_departure(self, flight_id: str) -> None:
        """Ends the wait for payment of all check-ins on a flight that has left.

        Refunds paid fees and notifies those passengers; the timer of its deadline then cancels each unpaid check-in.
        """
        while await self._end_some(flight_id):
            self._tell()

    async def _end_some(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            ended = await fees.end_at_departure(conn, flight_id, limit=CHECK_INS_AT_ONCE)
            for checkin_id in ended:
                check_in = await records.find(conn, checkin_id)
                if check_in.fee_returned:
                    await notices.payment_refunded(conn, check_in, Amount(check_in.fee_currency, check_in.fee_cents))
        return bool(ended)

    async def cancel_check_ins(self, flight_id: str) -> None:
        """Cancels all check-ins of a cancelled flight, and notifies the passengers."""
        while await self._cancel_some(flight_id):
            self._tell()

    async def _cancel_some(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            # Infants last: the cancellation of an adult cancels the infant too, and one mail covers both.
            rows = await conn.fetch(
                """
                SELECT checkin_id FROM check_ins JOIN flights USING (flight_id)
                WHERE flight_id = $1 AND state <> 'CANCELLED' AND flights.cancel_time IS NOT NULL
                ORDER BY seat_number IS NOT DISTINCT FROM $2, checkin_id LIMIT $3
                """,
                flight_id,
                INFANT_SEAT,
                CHECK_INS_AT_ONCE,
            )
            for row in rows:
                done = await cancellation.cancel(
                    conn, row["checkin_id"], reason=cancel_reasons.FLIGHT_CANCELLED, actor="flight"
                )
                if done:
                    await notices.flight_cancelled(conn, await records.find(conn, row["checkin_id"]))
        return bool(rows)

    async def _find(self, subject: str) -> CheckIn:
        async with db.transaction(self._pool) as conn:
            return await records.find(conn, UUID(subject))

    async def _again(self, name: str, subject: str) -> None:
        async with db.transaction(self._pool) as conn:
            await timers.set_timer(conn, name, subject, after=RETRY_PAUSE)

    async def _overdue_intent(self, checkin_id: UUID) -> UUID | None:
        async with db.transaction(self._pool) as conn:
            intent_id: UUID | None = await conn.fetchval(
                """
                SELECT payment_intent_id FROM check_ins
                WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NULL
                  AND payment_deadline <= statement_timestamp()
                """,
                checkin_id,
            )
            return intent_id

    async def _was_cancelled_seat(self, check_in: CheckIn, seat: Seat) -> bool:
        """Returns whether a confirmed seat is the one that a cancelled check-in had.

        The check-in recorded its hold, or the passenger moved to the seat just before the cancellation. A seat that a
        live check-in of the passenger uses is not.
        """
        assert check_in.cancel_time is not None
        assert seat.confirm_time is not None
        async with db.transaction(self._pool) as conn:
            in_use = await conn.fetchval(
                """
                SELECT hold_id FROM check_ins
                WHERE flight_id = $1 AND passenger_id = $2 AND state <> 'CANCELLED'
                """,
                check_in.flight_id,
                check_in.passenger_id,
            )
        mine = seat.hold_id == check_in.hold_id or seat.confirm_time <= check_in.cancel_time
        return mine and seat.hold_id != in_use
