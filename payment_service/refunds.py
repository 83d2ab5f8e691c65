"""Giving money back: a whole charge, once, by a timer's step that goes on until the provider has done it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid5

from payment_service import intents
from payment_service.intents import Cause
from payment_service.provider import Provider, Status
from services import db
from services.db import Conn, Pool
from services.timers import cancel_timer, set_timer

REFUND: Final = "refund"
"""The timer of a refund; its subject is the charge's key."""
# The webhook is the rule; this asks again in case it was lost.
ASK_AGAIN: Final = timedelta(seconds=10)


def refund_key_of(charge_key: UUID) -> UUID:
    """Returns our idempotency key for the refund of a charge: the same, however often it is asked for."""
    return uuid5(charge_key, "refund")


async def request(conn: Conn, charge_key: UUID, *, intent_id: UUID, reason: str) -> None:
    """(nothing) → REQUESTED, in the caller's transaction; the step begins when it has committed."""
    await conn.execute(
        """
        INSERT INTO refunds (charge_key, intent_id, refund_key, reason) VALUES ($1, $2, $3, $4)
        ON CONFLICT (charge_key) DO NOTHING
        """,
        charge_key,
        intent_id,
        refund_key_of(charge_key),
        reason,
    )
    await set_timer(conn, REFUND, str(charge_key))


async def finish(conn: Conn, charge_key: UUID, *, provider_refund_id: str, actor: str) -> bool:
    """REQUESTED → SUCCEEDED, and its intent REFUNDING → REFUNDED. Returns False for a repeat."""
    row = await conn.fetchrow(
        """
        SELECT intents.intent_id, refunds.reason FROM refunds JOIN intents USING (intent_id)
        WHERE refunds.charge_key = $1 FOR NO KEY UPDATE OF intents
        """,
        charge_key,
    )
    finished = await conn.fetchval(
        """
        UPDATE refunds
        SET state = 'SUCCEEDED', provider_refund_id = $2, finish_time = statement_timestamp()
        WHERE charge_key = $1 AND state = 'REQUESTED'
        RETURNING charge_key
        """,
        charge_key,
        provider_refund_id,
    )
    if row is None or finished is None:
        return False
    await cancel_timer(conn, REFUND, str(charge_key))
    cause = Cause(actor, row["reason"])
    await intents.finish_refund(conn, row["intent_id"], charge_key=charge_key, cause=cause)
    return True


class Refunding:
    """The refund timer's step. `tell` says that a transaction with events or timers has committed."""

    def __init__(self, pool: Pool, provider: Provider, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._provider = provider
        self._tell = tell

    async def refund(self, subject: str) -> None:
        """Has the provider give a charge back. Raises Unanswered, so that it is tried again."""
        charge_key = UUID(subject)
        async with db.transaction(self._pool) as conn:
            row = await conn.fetchrow(
                """
                SELECT refunds.refund_key, charges.provider_charge_id
                FROM refunds JOIN charges ON charges.key = refunds.charge_key
                WHERE refunds.charge_key = $1 AND refunds.state = 'REQUESTED'
                """,
                charge_key,
            )
        if row is None:
            return
        refund = await self._provider.refund(row["refund_key"], provider_charge_id=row["provider_charge_id"])
        async with db.transaction(self._pool) as conn:
            if refund.status is Status.SUCCEEDED:
                await finish(conn, charge_key, provider_refund_id=refund.refund_id, actor="payment")
            else:
                await set_timer(conn, REFUND, subject, after=ASK_AGAIN)
        self._tell()
