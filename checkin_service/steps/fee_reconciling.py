"""Reconciles check-ins with the payment intents of their fees.

So a check-in learns the outcome of a payment even if its event was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from skyhigh.payment.v1 import events_pb2 as payment

from checkin_service import handlers, records
from checkin_service.peers import Peers
from services import db
from services.db import Pool
from services.payment_outcomes import UNDECIDED_SINCE, events_of
from services.reconciler import Comparison, by_update_time, waiting

_FOR_FEE: Final = by_update_time(
    "check_ins",
    "checkin_id",
    what="payment_intent_id IS NOT NULL AND fee_pay_time IS NULL AND fee_refund_time IS NULL",
    since=UNDECIDED_SINCE,
)
_FOR_REFUND: Final = by_update_time(
    "check_ins",
    "checkin_id",
    what="(state = 'CANCELLED' OR fee_returned) AND fee_pay_time IS NOT NULL AND fee_refund_time IS NULL",
)


class Fees:
    """Compares check-ins with the payment intents of their fees."""

    def __init__(self, pool: Pool, peers: Peers) -> None:
        self._pool = pool
        self._peers = peers

    def comparisons(self) -> Sequence[Comparison]:
        """Returns the comparisons for unpaid fees and for refunds that are not complete.

        An unpaid fee is compared even after its check-in has ended, because it may still be paid.
        """
        return [
            Comparison("checkin-fees", waiting(self._pool, _FOR_FEE), self.compare),
            Comparison("checkin-refunds", waiting(self._pool, _FOR_REFUND), self.compare),
        ]

    async def compare(self, subject: str) -> bool:
        """Applies the current outcome of a fee's intent, as its events would.

        Returns whether the check-in changed.
        """
        checkin_id = UUID(subject)
        async with db.session(self._pool) as conn:
            check_in = await records.find(conn, checkin_id)
        if check_in.payment_intent_id is None:
            return False
        intent = await self._peers.intent(check_in.payment_intent_id)
        async with db.transaction(self._pool) as conn:
            for event in events_of(intent):
                match event:
                    # Skipped if it is recorded already: the handler would notify the passenger again.
                    case payment.PaymentSucceeded() if check_in.fee_pay_time is None:
                        await handlers.on_payment_succeeded(conn, event)
                    case payment.PaymentFailed() if check_in.payment_error != event.error:
                        await handlers.on_payment_failed(conn, event)
                    case payment.PaymentRefunded():
                        await handlers.on_payment_refunded(conn, event)
            return (await records.find(conn, checkin_id)).version != check_in.version
