"""Timer steps that charge payments and settle undecided charges (PAY-3).

The attempt, the key of the charge and the timer of the attempt's end are committed before the provider is called. So a
process that dies during the call leaves nothing to guess: the process that takes the timer asks for the verdict, and
the next attempt repeats the key, for which the provider returns the same charge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

import asyncpg

from payment_service import intents, verdicts
from payment_service.provider import OutcomeUnknown, Provider, ProviderCharge, Status
from payment_service.settings import Attempts
from payment_service.verdicts import CHARGE, RECONCILE
from services import db, telemetry
from services.db import Conn, Pool
from services.money import Amount
from services.timers import NOW, set_timer

ACTOR: Final = "payment"
# The error of an attempt that ended without a verdict.
TIMEOUT: Final = "TIMEOUT"
FIRST_QUESTION: Final = timedelta(seconds=1)
LONGEST_QUESTION_PAUSE: Final = timedelta(minutes=1)

_log = telemetry.log("charging")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A running attempt; `attempt_end` identifies it among those of its intent."""

    intent_id: UUID
    key: UUID
    amount: Amount
    payment_code: str
    attempt_end: datetime
    over: bool
    """True if its time has passed without a verdict."""


def charge_key_of(intent_id: UUID, number: int) -> UUID:
    """Returns our idempotency key for the charge with this number of an intent."""
    return uuid5(intent_id, f"charge/{number}")


class Charging:
    """The steps of the timers CHARGE and RECONCILE.

    `tell` wakes the relay and the timers after a commit.
    """

    def __init__(self, pool: Pool, provider: Provider, attempts: Attempts, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._provider = provider
        self._attempts = attempts
        self._tell = tell

    async def charge(self, subject: str) -> None:
        """Begins the attempt that is due, or ends the attempt whose time has passed."""
        async with db.transaction(self._pool) as conn:
            attempt = await _attempt(conn, UUID(subject), length=self._attempts.length)
        if attempt is None:
            return
        try:
            verdict = await (self._ask(attempt) if attempt.over else self._begin(attempt))
            if verdict.status is not Status.PENDING:
                await self._apply(verdict)
            elif attempt.over:
                raise OutcomeUnknown(TIMEOUT, "the charge is not decided yet")
        except OutcomeUnknown as unanswered:
            _log.warning("payment attempt failed", intent_id=subject, error=str(unanswered))
            await self._end(attempt, error=unanswered.error)

    async def reconcile(self, subject: str) -> None:
        """Asks the provider for the verdict on a charge, until there is one.

        Voids a key that the provider does not know, and so decides it. Also voids a charge that stays undecided for too
        long, or whose intent does not wait for it any more. While there is no verdict, sets the timer again. Raises
        OutcomeUnknown, so that the timer retries.
        """
        key = UUID(subject)
        async with db.transaction(self._pool) as conn:
            charge = await verdicts.locked_charge(conn, key)
        if charge is None or charge["charge_state"] != "PENDING":
            return
        verdict = await self._provider.find(key)
        unwanted = charge["intent_state"] != "PROCESSING" or charge["age"] > self._attempts.patience
        if verdict is None or (verdict.status is Status.PENDING and unwanted):
            verdict = await self._provider.void(key)
        if verdict.status is not Status.PENDING:
            await self._apply(verdict)
            return
        # The pause grows with the charge's age, so the number of questions need not be stored.
        pause = min(max(charge["age"] / 2, FIRST_QUESTION), LONGEST_QUESTION_PAUSE)
        async with db.transaction(self._pool) as conn:
            await set_timer(conn, RECONCILE, subject, after=pause)

    async def _begin(self, attempt: Attempt) -> ProviderCharge:
        return await self._provider.charge(
            attempt.key, amount=attempt.amount, payment_code=attempt.payment_code, intent_id=attempt.intent_id
        )

    async def _ask(self, attempt: Attempt) -> ProviderCharge:
        """Asks for the verdict of an attempt whose time has passed.

        Raises OutcomeUnknown, with TIMEOUT if the provider does not know the key.
        """
        verdict = await self._provider.find(attempt.key)
        if verdict is None:
            raise OutcomeUnknown(TIMEOUT, "the provider does not know the charge")
        return verdict

    async def _apply(self, verdict: ProviderCharge) -> None:
        async with db.transaction(self._pool) as conn:
            outcome = await verdicts.apply(conn, verdict, attempts=self._attempts, actor=ACTOR)
        if outcome.quarantine is not None:
            verdicts.report(outcome.quarantine, key=verdict.key)
            # The charge stays undecided, for a person to look at.
            raise OutcomeUnknown(
                outcome.quarantine, f"the provider's answer for {verdict.key} is not what was asked for"
            )
        self._tell()

    async def _end(self, attempt: Attempt, *, error: str) -> None:
        """Ends an attempt that failed without a verdict.

        Another attempt repeats its key. After the last attempt, the timer RECONCILE asks for the outcome until it is
        known.
        """
        async with db.transaction(self._pool) as conn:
            made = await intents.end_attempt(conn, attempt.intent_id, attempt_end=attempt.attempt_end, error=error)
            if made is None:
                return
            if made["attempts"] < made["max_attempts"]:
                pause = self._attempts.pause_after(made["attempts"])
                await set_timer(conn, CHARGE, str(attempt.intent_id), after=pause)
            else:
                await set_timer(conn, RECONCILE, str(attempt.key), after=FIRST_QUESTION)
        self._tell()


async def _attempt(conn: Conn, intent_id: UUID, *, length: timedelta) -> Attempt | None:
    """Begins the next attempt, or returns the one whose time has passed.

    Sets the timer of a new attempt's end. Returns None if neither is due.
    """
    standing = await conn.fetchrow(
        """
        SELECT attempt_end, attempt_end - statement_timestamp() AS time_left, payment_code, currency, minor_units
        FROM intents WHERE intent_id = $1 AND state = 'PROCESSING' FOR NO KEY UPDATE
        """,
        intent_id,
    )
    if standing is None:
        return None
    if standing["attempt_end"] is None:
        begun = await intents.begin_attempt(conn, intent_id, length=length)
        if begun is None:
            return None
        key = await _open_charge(conn, intent_id)
        await set_timer(conn, CHARGE, str(intent_id), after=length)
        return _attempt_of(begun, intent_id, key, over=False)
    if standing["time_left"] > NOW:
        await set_timer(conn, CHARGE, str(intent_id), after=standing["time_left"])
        return None
    key = await conn.fetchval("SELECT key FROM charges WHERE intent_id = $1 AND state = 'PENDING'", intent_id)
    return _attempt_of(standing, intent_id, key, over=True)


def _attempt_of(row: asyncpg.Record, intent_id: UUID, key: UUID, *, over: bool) -> Attempt:
    return Attempt(
        intent_id=intent_id,
        key=key,
        amount=Amount(row["currency"], row["minor_units"]),
        payment_code=row["payment_code"],
        attempt_end=row["attempt_end"],
        over=over,
    )


async def _open_charge(conn: Conn, intent_id: UUID) -> UUID:
    """Returns the key of the undecided charge, or of a new charge.

    The caller has locked the intent.
    """
    key: UUID | None = await conn.fetchval(
        "UPDATE charges SET tries = tries + 1 WHERE intent_id = $1 AND state = 'PENDING' RETURNING key", intent_id
    )
    if key is not None:
        return key
    number = await conn.fetchval("SELECT coalesce(max(number), 0) + 1 FROM charges WHERE intent_id = $1", intent_id)
    key = charge_key_of(intent_id, number)
    await conn.execute("INSERT INTO charges (key, intent_id, number) VALUES ($1, $2, $3)", key, intent_id, number)
    return key
