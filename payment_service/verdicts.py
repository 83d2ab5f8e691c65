"""Applies the provider's verdict on a charge, and its effect on the intent.

A verdict comes by a webhook or in a response. A charge moves PENDING → FAILED or VOIDED → SUCCEEDED, and only forward:
repeats, late and reordered deliveries end in the same state. The row of the intent is always locked first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

import asyncpg
from prometheus_client import Counter

from payment_service import intents, refunds
from payment_service.intents import Cause
from payment_service.provider import ProviderCharge, Status
from payment_service.settings import Attempts
from services import telemetry
from services.db import Conn
from services.timers import cancel_timer, set_timer

CHARGE: Final = "charge"
"""The name of the timer of an intent's attempts."""
RECONCILE: Final = "reconcile"
"""The name of the timer that asks for a charge's verdict."""

QUARANTINED: Final = Counter("skyhigh_payment_quarantined_total", "Verdicts that a person must look at.", ["reason"])

_log = telemetry.log("verdicts")


class Quarantine(StrEnum):
    """Why a verdict is not applied until a person has looked at it."""

    UNKNOWN_CHARGE = "UNKNOWN_CHARGE"
    UNKNOWN_REFUND = "UNKNOWN_REFUND"
    INTENT_DIFFERS = "INTENT_DIFFERS"
    CURRENCY_DIFFERS = "CURRENCY_DIFFERS"
    AMOUNT_DIFFERS = "AMOUNT_DIFFERS"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of applying a verdict."""

    changed: bool = False
    quarantine: Quarantine | None = None


async def apply(conn: Conn, verdict: ProviderCharge, *, attempts: Attempts, actor: str) -> Outcome:
    """Applies a verdict in the caller's transaction.

    A verdict that changes nothing any more is no error. A doubtful verdict is not applied: the outcome names the doubt.
    """
    charge = await locked_charge(conn, verdict.key)
    doubt = mismatch_of(verdict, charge)
    if doubt is not None or charge is None:
        return Outcome(quarantine=doubt)
    match verdict.status:
        case Status.SUCCEEDED:
            return Outcome(await _succeed(conn, charge, verdict, actor=actor))
        case Status.FAILED | Status.VOIDED:
            return Outcome(await _decline(conn, charge, verdict, attempts=attempts, actor=actor))
        case Status.PENDING:
            return Outcome()


async def locked_charge(conn: Conn, key: UUID) -> asyncpg.Record | None:
    """Locks the intent of a charge, and returns the charge with its intent.

    `age` is the time since the charge was created. Returns None if the key is not known.
    """
    return await conn.fetchrow(
        """
        SELECT charges.key, charges.intent_id, charges.state::text AS charge_state, charges.provider_charge_id,
               statement_timestamp() - charges.create_time AS age,
               intents.state::text AS intent_state, intents.currency, intents.minor_units
        FROM charges JOIN intents USING (intent_id)
        WHERE charges.key = $1 FOR NO KEY UPDATE OF intents
        """,
        key,
    )


def mismatch_of(verdict: ProviderCharge, charge: asyncpg.Record | None) -> Quarantine | None:
    """Returns what is wrong with a verdict, or None.

    Its charge is not known, or its intent, currency or amount differs.
    """
    if charge is None:
        return Quarantine.UNKNOWN_CHARGE
    if verdict.metadata is not None and verdict.metadata.intent_id != charge["intent_id"]:
        return Quarantine.INTENT_DIFFERS
    if verdict.amount is None:
        # The key was voided before any charge.
        return None
    if verdict.amount.currency != charge["currency"]:
        return Quarantine.CURRENCY_DIFFERS
    return Quarantine.AMOUNT_DIFFERS if verdict.amount.minor_units != charge["minor_units"] else None


def report(doubt: Quarantine, *, key: UUID, event_id: str | None = None) -> None:
    """Reports a verdict in quarantine by a metric and an error log.

    `event_id` is that of the webhook, or None for a response.
    """
    QUARANTINED.labels(doubt).inc()
    _log.error("verdict quarantined", reason=doubt, key=str(key), event_id=event_id)


async def _succeed(conn: Conn, charge: asyncpg.Record, verdict: ProviderCharge, *, actor: str) -> bool:
    """Records a successful charge: PENDING, FAILED or VOIDED → SUCCEEDED.

    The first success pays the intent; any other is refunded.
    """
    intent_id, key = charge["intent_id"], charge["key"]
    taken = await conn.fetchval(
        """
        UPDATE charges
        SET state = 'SUCCEEDED', provider_charge_id = $2, error = NULL, decide_time = statement_timestamp()
        WHERE key = $1 AND state IN ('PENDING', 'FAILED', 'VOIDED')
        RETURNING key
        """,
        key,
        verdict.charge_id,
    )
    if taken is None:
        return False
    await cancel_timer(conn, RECONCILE, str(key))
    if await intents.succeed(conn, intent_id, charge_key=key, cause=Cause(actor, "PAID")):
        await cancel_timer(conn, CHARGE, str(intent_id))
        await _end_others(conn, intent_id)
    else:
        reason = "INTENT_CANCELLED" if charge["intent_state"] == "CANCELLED" else "PAID_TWICE"
        await refunds.request(conn, key, intent_id=intent_id, reason=reason, total_minor_units=charge["minor_units"])
    return True


async def _decline(
    conn: Conn, charge: asyncpg.Record, verdict: ProviderCharge, *, attempts: Attempts, actor: str
) -> bool:
    """Records a failed or voided charge: PENDING → FAILED or VOIDED.

    The next attempt has another key. After the last attempt the payment fails.
    """
    intent_id, key = charge["intent_id"], charge["key"]
    error = verdict.error or verdict.status.upper()
    ended = await conn.fetchval(
        """
        UPDATE charges
        SET state = $2::charge_state, provider_charge_id = $3, error = $4, decide_time = statement_timestamp()
        WHERE key = $1 AND state = 'PENDING'
        RETURNING key
        """,
        key,
        verdict.status.upper(),
        verdict.charge_id,
        error,
    )
    if ended is None:
        return False
    await cancel_timer(conn, RECONCILE, str(key))
    made = await intents.decline(conn, intent_id, error=error)
    if made is not None:
        await set_timer(conn, CHARGE, str(intent_id), after=attempts.pause_after(made))
    else:
        await cancel_timer(conn, CHARGE, str(intent_id))
        await intents.fail(conn, intent_id, error=error, cause=Cause(actor, error))
    return True


async def _end_others(conn: Conn, intent_id: UUID) -> None:
    """Sets the timer RECONCILE of each undecided charge of a paid intent.

    The paid intent does not need the charge: it is voided, or refunded if it succeeds.
    """
    for row in await conn.fetch("SELECT key FROM charges WHERE intent_id = $1 AND state = 'PENDING'", intent_id):
        await set_timer(conn, RECONCILE, str(row["key"]))
