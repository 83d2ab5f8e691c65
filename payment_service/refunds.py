"""Giving money back: a charge whole or in parts, each once, by a timer's step that ends when the provider has done it.

Callers name the total that is to be given back in the end. So a repeat adds nothing, and two that ask for different
parts at once cannot give more back than the larger total.
"""

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
from services.money import Amount
from services.timers import cancel_timer, set_timer

REFUND: Final = "refund"
"""The timer of a refund; its subject is the charge's key, for a later refund of the charge with its number."""
# The webhook is the rule; this asks again in case it was lost.
ASK_AGAIN: Final = timedelta(seconds=10)


def refund_key_of(charge_key: UUID, number: int = 1) -> UUID:
    """Returns our idempotency key for a refund of a charge: the same, however often it is asked for."""
    return uuid5(charge_key, "refund" if number == 1 else f"refund/{number}")


async def request(conn: Conn, charge_key: UUID, *, intent_id: UUID, reason: str, total_minor_units: int) -> None:
    """(nothing) → REQUESTED for what of the total was not requested before; the step begins after the commit.

    The intent is locked by the caller's transaction, so that no two count the same refunds.
    """
    before = await conn.fetchrow(
        "SELECT count(*) AS refunds, coalesce(sum(minor_units), 0)::bigint AS sum FROM refunds WHERE charge_key = $1",
        charge_key,
    )
    assert before is not None
    number = before["refunds"] + 1
    if before["sum"] >= total_minor_units:
        return
    await conn.execute(
        """
        INSERT INTO refunds (charge_key, number, intent_id, refund_key, reason, minor_units)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        charge_key,
        number,
        intent_id,
        refund_key_of(charge_key, number),
        reason,
        total_minor_units - before["sum"],
    )
    await set_timer(conn, REFUND, _subject(charge_key, number))


async def finish(conn: Conn, charge_key: UUID, number: int, *, provider_refund_id: str, actor: str) -> bool:
    """REQUESTED → SUCCEEDED, and its intent REFUNDING → REFUNDED with the last. Returns False for a repeat."""
    row = await conn.fetchrow(
        """
        SELECT intents.intent_id, refunds.reason, refunds.minor_units FROM refunds JOIN intents USING (intent_id)
        WHERE refunds.charge_key = $1 AND number = $2 FOR NO KEY UPDATE OF intents
        """,
        charge_key,
        number,
    )
    finished = await conn.fetchval(
        """
        UPDATE refunds
        SET state = 'SUCCEEDED', provider_refund_id = $3, finish_time = statement_timestamp()
        WHERE charge_key = $1 AND number = $2 AND state = 'REQUESTED'
        RETURNING charge_key
        """,
        charge_key,
        number,
        provider_refund_id,
    )
    if row is None or finished is None:
        return False
    await cancel_timer(conn, REFUND, _subject(charge_key, number))
    cause = Cause(actor, row["reason"])
    await intents.finish_refund(
        conn, row["intent_id"], charge_key=charge_key, minor_units=row["minor_units"], cause=cause
    )
    return True


def _subject(charge_key: UUID, number: int) -> str:
    return str(charge_key) if number == 1 else f"{charge_key}/{number}"


class Refunding:
    """The refund timer's step. `tell` says that a transaction with events or timers has committed."""

    def __init__(self, pool: Pool, provider: Provider, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._provider = provider
        self._tell = tell

    async def refund(self, subject: str) -> None:
        """Has the provider give a charge back, or a part of it. Raises Unanswered, so that it is tried again."""
        key, _, later = subject.partition("/")
        charge_key, number = UUID(key), int(later or 1)
        async with db.transaction(self._pool) as conn:
            row = await conn.fetchrow(
                """
                SELECT refunds.refund_key, refunds.minor_units, charges.provider_charge_id, intents.currency,
                       intents.minor_units AS whole
                FROM refunds JOIN charges ON charges.key = refunds.charge_key
                JOIN intents ON intents.intent_id = refunds.intent_id
                WHERE refunds.charge_key = $1 AND refunds.number = $2 AND refunds.state = 'REQUESTED'
                """,
                charge_key,
                number,
            )
        if row is None:
            return
        part = None if row["minor_units"] == row["whole"] else Amount(row["currency"], row["minor_units"])
        refund = await self._provider.refund(row["refund_key"], provider_charge_id=row["provider_charge_id"], part=part)
        async with db.transaction(self._pool) as conn:
            if refund.status is Status.SUCCEEDED:
                await finish(conn, charge_key, number, provider_refund_id=refund.refund_id, actor="payment")
            else:
                await set_timer(conn, REFUND, subject, after=ASK_AGAIN)
        self._tell()
