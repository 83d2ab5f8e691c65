"""What the provider says of a charge, by a webhook or as an answer, and what follows for the intent.

A charge moves PENDING → FAILED or VOIDED → SUCCEEDED, and only forward: repeats, late and reordered deliveries end in
the same state. The intent's row is locked first, always.
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
"""The timer of an intent's attempts."""
RECONCILE: Final = "reconcile"
"""The timer that asks for a charge's verdict."""

QUARANTINED: Final = Counter("skyhigh_payment_quarantined_total", "Verdicts that a person must look at.", ["reason"])

_log = telemetry.log("verdicts")


class Quarantine(StrEnum):
    """Why a verdict is believed by nobody until a person has looked at it."""

    UNKNOWN_CHARGE = "UNKNOWN_CHARGE"
    UNKNOWN_REFUND = "UNKNOWN_REFUND"
    INTENT_DIFFERS = "INTENT_DIFFERS"
    CURRENCY_DIFFERS = "CURRENCY_DIFFERS"
    AMOUNT_DIFFERS = "AMOUNT_DIFFERS"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a verdict."""

    changed: bool = False
    quarantine: Quarantine | None = None


async def apply(conn: Conn, verdict: ProviderCharge, *, attempts: Attempts, actor: str) -> Outcome:
    """Applies a verdict in the caller's transaction; one that changes nothing any more is no error."""
    charge = await locked_charge(conn, verdict.key)
    doubt = doubt_of(verdict, charge)
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
    """Locks the intent of a charge and returns both: what the charge is for, where it stands, and its `age`."""
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


def doubt_of(verdict: ProviderCharge, charge: asyncpg.Record | None) -> Quarantine | None:
    """Returns what is wrong with a verdict: it is for no charge of ours, or for another amount."""
    if charge is None:
        return Quarantine.UNKNOWN_CHARGE
    if verdict.metadata is not None and verdict.metadata.intent_id != charge["intent_id"]:
        return Quarantine.INTENT_DIFFERS
    if verdict.amount is None:
        # A key that was voided before it was ever used.
        return None
    if verdict.amount.currency != charge["currency"]:
        return Quarantine.CURRENCY_DIFFERS
    return Quarantine.AMOUNT_DIFFERS if verdict.amount.minor_units != charge["minor_units"] else None


def report(doubt: Quarantine, *, key: UUID, event_id: str | None = None) -> None:
    """Tells people of a verdict in quarantine; `event_id` is the webhook's, None for an answer."""
    QUARANTINED.labels(doubt).inc()
    _log.error("verdict quarantined", reason=doubt, key=str(key), event_id=event_id)


async def _succeed(conn: Conn, charge: asyncpg.Record, verdict: ProviderCharge, *, actor: str) -> bool:
    """PENDING, FAILED or VOIDED → SUCCEEDED. The first success of an intent counts; any other goes back by itself."""
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
    """PENDING → FAILED or VOIDED: the next attempt has another key, and after the last one the payment has failed."""
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
    """A paid intent needs no charge that still runs: it is ended, or given back if it should succeed."""
    for row in await conn.fetch("SELECT key FROM charges WHERE intent_id = $1 AND state = 'PENDING'", intent_id):
        await set_timer(conn, RECONCILE, str(row["key"]))
