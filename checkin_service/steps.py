"""What a check-in has others do, or does by the clock: the handlers of its timers.

Each asks first, in no transaction, and writes last, under the guard of what it saw. So each may run twice, or die
anywhere; it runs again until it has ended well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final
from uuid import UUID

from checkin_service import checkins, notices, records
from checkin_service.peers import Peers, Seat, Withdrawal
from checkin_service.records import INFANT_SEAT, CheckIn
from services import db, timers
from services.db import Pool
from services.money import Amount
from services.timers import Handler

# A payment's attempts end within half a minute; then its outcome is known.
ASK_AGAIN: Final = timedelta(seconds=2)
# A dozen statements each.
CHECK_INS_AT_ONCE: Final = 25


class Steps:
    """The handlers. `tell` wakes whoever looks for what a transaction left to be done."""

    def __init__(self, pool: Pool, peers: Peers, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._peers = peers
        self._tell = tell

    def handlers(self) -> Mapping[str, Handler]:
        """Returns the handlers by the names of their timers."""
        return {
            checkins.PAYMENT_DEADLINE: Handler(self.end_unpaid),
            checkins.RELEASE_SEAT: Handler(self.release_seat),
            checkins.SETTLE_FEE: Handler(self.settle_fee),
            checkins.REFUND: Handler(self.refund),
            checkins.CANCEL_CHECK_INS: Handler(self.cancel_check_ins),
            checkins.DEPARTURE: Handler(self.end_at_departure),
        }

    async def end_unpaid(self, subject: str) -> None:
        """Cancels a check-in whose deadline passed unpaid.

        A payment that runs is waited for. So is the event of one that succeeded.
        """
        checkin_id = UUID(subject)
        intent_id = await self._overdue_intent(checkin_id)
        if intent_id is None:
            return
        outcome = await self._peers.withdraw_intent(intent_id, reason=checkins.PAYMENT_TIMEOUT)
        async with db.transaction(self._pool) as conn:
            if outcome is not Withdrawal.WITHDRAWN and await checkins.extend_deadline(
                conn, checkin_id, intent_id=intent_id, by=ASK_AGAIN, paid=outcome is Withdrawal.PAID
            ):
                return
            if outcome is not Withdrawal.PAID and await checkins.time_out(conn, checkin_id, intent_id=intent_id):
                cancelled = await records.find(conn, checkin_id)
                await notices.payment_timed_out(conn, cancelled, keeps_seat=await checkins.keeps_seat(conn, cancelled))
        self._tell()

    async def release_seat(self, subject: str) -> None:
        """Frees the seat that a cancelled check-in had; not one that the passenger confirmed afterwards.

        A seat of the passenger's confirmed booking stays, and after departure every seat.
        """
        async with db.transaction(self._pool) as conn:
            check_in = await records.find(conn, UUID(subject))
            if await checkins.keeps_seat(conn, check_in):
                return
        seat = await self._peers.confirmed_seat(check_in.flight_id, check_in.passenger_id)
        if seat is not None and await self._was_given_up(check_in, seat):
            await self._peers.release_seat(
                check_in.flight_id, check_in.passenger_id, seat.hold_id, reason=check_in.cancel_reason or ""
            )

    async def settle_fee(self, subject: str) -> None:
        """Ends the unpaid intent of a check-in that ended, or gives the paid fee back."""
        check_in = await self._find(subject)
        reason = check_in.cancel_reason or (checkins.FLIGHT_DEPARTED if check_in.fee_returned else None)
        if check_in.payment_intent_id is None or reason is None:
            return
        match await self._peers.withdraw_intent(check_in.payment_intent_id, reason=reason):
            case Withdrawal.RUNNING:
                await self._again(checkins.SETTLE_FEE, subject)
            case Withdrawal.PAID:
                await self._peers.refund(check_in.payment_intent_id, reason=reason)

    async def refund(self, subject: str) -> None:
        """Gives back what was paid for an intent that no check-in waits for."""
        await self._peers.refund(UUID(subject), reason="NOT_DUE")

    async def end_at_departure(self, flight_id: str) -> None:
        """Gives back what was paid for check-ins that a flight left without, and ends the unpaid ones."""
        while await self._end_some(flight_id):
            self._tell()

    async def _end_some(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            ended = await checkins.end_at_departure(conn, flight_id, limit=CHECK_INS_AT_ONCE)
            for checkin_id in ended:
                check_in = await records.find(conn, checkin_id)
                if check_in.fee_returned:
                    await notices.payment_refunded(conn, check_in, Amount(check_in.fee_currency, check_in.fee_cents))
        return bool(ended)

    async def cancel_check_ins(self, flight_id: str) -> None:
        """Cancels the check-ins of a flight that will not leave, and tells the passengers."""
        while await self._cancel_some(flight_id):
            self._tell()

    async def _cancel_some(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            # Infants last: most of them are cancelled with their adults, who are told for both.
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
                done = await checkins.cancel(
                    conn, row["checkin_id"], reason=checkins.FLIGHT_CANCELLED, actor="flight", departed_too=True
                )
                if done:
                    await notices.flight_cancelled(conn, await records.find(conn, row["checkin_id"]))
        return bool(rows)

    async def _find(self, subject: str) -> CheckIn:
        async with db.transaction(self._pool) as conn:
            return await records.find(conn, UUID(subject))

    async def _again(self, name: str, subject: str) -> None:
        async with db.transaction(self._pool) as conn:
            await timers.set_timer(conn, name, subject, after=ASK_AGAIN)

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

    async def _was_given_up(self, check_in: CheckIn, seat: Seat) -> bool:
        """Whether a seat is the one that a cancelled check-in left, known to it or moved to just before."""
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
