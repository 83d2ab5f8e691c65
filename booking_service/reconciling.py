"""Compares bookings with their payment intents, in case an event was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from skyhigh.payment.v1 import events_pb2 as payment

from booking_service import handlers, records
from booking_service.peers import Peers
from services import db
from services.db import Pool
from services.payment_outcomes import UNDECIDED_SINCE, events_of
from services.reconciler import Comparison, by_update_time, waiting

_FOR_MONEY: Final = by_update_time(
    "bookings",
    "booking_id",
    what="payment_intent_id IS NOT NULL AND pay_time IS NULL AND state IN ('PAYMENT_PROCESSING', 'FAILED', 'EXPIRED')",
    since=UNDECIDED_SINCE,
)
_FOR_REFUND: Final = by_update_time("bookings", "booking_id", what="refund_reason IS NOT NULL AND refund_time IS NULL")


class Payments:
    """Compares bookings with their payment intents."""

    def __init__(self, pool: Pool, peers: Peers) -> None:
        self._pool = pool
        self._peers = peers

    def comparisons(self) -> Sequence[Comparison]:
        """Returns the comparisons of expected payments and of expected refunds.

        A payment can also be expected for a booking that ended without it.
        """
        return [
            Comparison("booking-payments", waiting(self._pool, _FOR_MONEY), self.compare),
            Comparison("booking-refunds", waiting(self._pool, _FOR_REFUND), self.compare),
        ]

    async def compare(self, subject: str) -> bool:
        """Applies the present state of the booking's intent, as its events would.

        Returns whether the booking changed.
        """
        booking_id = UUID(subject)
        async with db.session(self._pool) as conn:
            booking = await records.find(conn, booking_id)
        if booking.payment_intent_id is None:
            return False
        intent = await self._peers.payment(booking.payment_intent_id)
        async with db.transaction(self._pool) as conn:
            for event in events_of(intent):
                match event:
                    case payment.PaymentSucceeded():
                        await handlers.on_payment_succeeded(conn, event)
                    case payment.PaymentFailed():
                        await handlers.on_payment_failed(conn, event)
                    case payment.PaymentRefunded():
                        await handlers.on_payment_refunded(conn, event)
            return (await records.find(conn, booking_id)).version != booking.version
