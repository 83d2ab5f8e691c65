"""Refunds of a charge, in full or in parts; a timer's step makes each once.

Callers name the total to refund, including earlier refunds. So a repeat adds nothing, and concurrent requests for
different totals refund no more than the larger one.
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
"""The timer of a refund. Its subject is the charge's key; from the second refund on, also the refund's number."""
# Normally a webhook reports the refund; this repeat finds out if the webhook was lost.
RETRY_PAUSE: Final = timedelta(seconds=10)


def refund_key_of(charge_key: UUID, number: int = 1) -> UUID:
    """Returns our idempotency key for a refund of a charge, always the same."""
    return uuid5(charge_key, "refund" if number == 1 else f"refund/{number}")


async def request(conn: Conn, charge_key: UUID, *, intent_id: UUID, reason: str, total_minor_units: int) -> None:
    """Requests a refund up to a total: (nothing) → REQUESTED.

    The amount is what earlier refunds have not requested of the total. The step begins after the commit. The caller's
    transaction has locked the intent, so that two requests can't count the same earlier refunds.
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
    """Records that the provider made a refund: REQUESTED → SUCCEEDED.

    The last refund moves its intent REFUNDING → REFUNDED. Returns False for a repeat.
    """
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
    """The step of the refund timer.

    `tell` wakes the relay and the timers after a commit.
    """

    def __init__(self, pool: Pool, provider: Provider, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._provider = provider
        self._tell = tell

    async def refund(self, subject: str) -> None:
        """Has the provider refund a charge, in full or in part.

        Raises OutcomeUnknown, so that the timer retries.
        """
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
                await set_timer(conn, REFUND, subject, after=RETRY_PAUSE)
        self._tell()
