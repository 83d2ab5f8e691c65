"""The state machine of an intent: one function per transition, each one guarded write and a line of history.

REQUIRES_PAYMENT → PROCESSING → SUCCEEDED → REFUNDING → REFUNDED; PROCESSING → FAILED → PROCESSING; REQUIRES_PAYMENT
or FAILED → CANCELLED; FAILED → SUCCEEDED, because money that came late is money.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
from google.protobuf.message import Message
from skyhigh.payment.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb

from payment_service import refusals
from services.call import RUNNING
from services.db import Conn, GuardMissed
from services.errors import Refusal
from services.money import Amount, money_of
from services.outbox import Event, enqueue
from services.proto import timestamp
from services.telemetry import traceparent_or_new

COLUMNS: Final = """intent_id, reference, owner, currency, minor_units, state::text, attempts, max_attempts, last_error,
    paid_charge, create_time, update_time, succeed_time, refund_time"""


@dataclass(frozen=True, slots=True)
class Cause:
    """Who moves an intent, and why."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class OnIntent:
    """Asks something of one intent. `owner` is None for who acts for others, else only the owner's intent is meant."""

    intent_id: UUID
    owner: str | None
    cause: Cause


def intent_of(row: asyncpg.Record) -> pb.PaymentIntent:
    """Returns the contract's message of a row with COLUMNS."""
    return pb.PaymentIntent(
        intent_id=str(row["intent_id"]),
        reference=row["reference"],
        state=pb.PaymentIntent.State.Value(row["state"]),
        amount=money_of(_amount(row)),
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        last_error=row["last_error"] or "",
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
    )


async def find(conn: Conn, intent_id: UUID, *, owner: str | None) -> pb.PaymentIntent:
    """Returns an intent; `owner` None sees all. Raises INTENT_NOT_FOUND."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM intents WHERE intent_id = $1 AND owner = coalesce($2, owner)",  # noqa: S608
        intent_id,
        owner,
    )
    if row is None:
        raise refusals.intent_not_found()
    return intent_of(row)


async def create(
    conn: Conn, *, reference: str, owner: str, amount: Amount, max_attempts: int, cause: Cause
) -> pb.PaymentIntent:
    """(nothing) → REQUIRES_PAYMENT. One intent for a reference, unless it was cancelled.

    A repeat with the same amount and owner answers the intent that is there. Raises INTENT_EXISTS.
    """
    row = await conn.fetchrow(
        f"""
        INSERT INTO intents (intent_id, reference, owner, currency, minor_units, max_attempts)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (reference) WHERE state <> 'CANCELLED' DO NOTHING
        RETURNING {COLUMNS}
        """,  # noqa: S608
        uuid4(),
        reference,
        owner,
        amount.currency,
        amount.minor_units,
        max_attempts,
    )
    if row is not None:
        await _record(conn, row, cause)
        return intent_of(row)
    standing = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM intents WHERE reference = $1 AND state <> 'CANCELLED'",  # noqa: S608
        reference,
    )
    if standing is None:
        # Cancelled between the two statements: the reference is free again.
        raise GuardMissed
    if (standing["owner"], _amount(standing)) != (owner, amount):
        raise refusals.intent_exists(standing["intent_id"], standing["state"])
    return intent_of(standing)


async def submit(conn: Conn, request: OnIntent, *, payment_code: str, max_attempts: int) -> pb.PaymentIntent:
    """REQUIRES_PAYMENT or FAILED → PROCESSING: a payment begins, with all its attempts before it.

    Of many that submit one wins. Raises INTENT_NOT_FOUND, PAYMENT_IN_PROGRESS, INTENT_PAID, INTENT_CANCELLED.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET state = 'PROCESSING', version = version + 1, payment_code = $3, attempts = 0, max_attempts = $4,
            last_error = NULL, update_time = statement_timestamp()
        WHERE intent_id = $1 AND owner = coalesce($2, owner) AND state IN ('REQUIRES_PAYMENT', 'FAILED')
        RETURNING {COLUMNS}
        """,  # noqa: S608
        request.intent_id,
        request.owner,
        payment_code,
        max_attempts,
    )
    if row is None:
        standing = await _standing(conn, request)
        raise refusals.intent_cancelled() if standing["state"] == "CANCELLED" else _taken(standing["state"])
    await _record(conn, row, request.cause)
    return intent_of(row)


async def cancel(conn: Conn, request: OnIntent) -> pb.PaymentIntent:
    """REQUIRES_PAYMENT or FAILED → CANCELLED. A repeat returns the cancelled intent.

    Raises INTENT_NOT_FOUND, PAYMENT_IN_PROGRESS, INTENT_PAID.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET state = 'CANCELLED', version = version + 1,
            cancel_time = statement_timestamp(), update_time = statement_timestamp()
        WHERE intent_id = $1 AND owner = coalesce($2, owner) AND state IN ('REQUIRES_PAYMENT', 'FAILED')
        RETURNING {COLUMNS}
        """,  # noqa: S608
        request.intent_id,
        request.owner,
    )
    if row is None:
        standing = await _standing(conn, request)
        if standing["state"] != "CANCELLED":
            raise _taken(standing["state"])
        return intent_of(standing)
    await _record(conn, row, request.cause)
    return intent_of(row)


async def begin_attempt(conn: Conn, intent_id: UUID, *, length: timedelta) -> asyncpg.Record | None:
    """Within PROCESSING: one attempt more, with its end; None where none is due.

    Returns `attempts`, `attempt_end`, `payment_code`, `currency` and `minor_units`.
    """
    return await conn.fetchrow(
        """
        UPDATE intents
        SET attempts = attempts + 1, attempt_end = statement_timestamp() + $2, update_time = statement_timestamp()
        WHERE intent_id = $1 AND state = 'PROCESSING' AND attempt_end IS NULL AND attempts < max_attempts
        RETURNING attempts, attempt_end, payment_code, currency, minor_units
        """,
        intent_id,
        length,
    )


async def end_attempt(conn: Conn, intent_id: UUID, *, attempt_end: datetime, error: str) -> asyncpg.Record | None:
    """Within PROCESSING: the attempt that ends then has failed without a verdict; None where it was decided meanwhile.

    Returns `attempts` and `max_attempts`.
    """
    return await conn.fetchrow(
        """
        UPDATE intents SET attempt_end = NULL, last_error = $3, update_time = statement_timestamp()
        WHERE intent_id = $1 AND state = 'PROCESSING' AND attempt_end = $2
        RETURNING attempts, max_attempts
        """,
        intent_id,
        attempt_end,
        error,
    )


async def decline(conn: Conn, intent_id: UUID, *, error: str) -> int | None:
    """Within PROCESSING: a charge was declined and another attempt is left.

    Returns the attempts made; None where none is left or no payment runs.
    """
    attempts: int | None = await conn.fetchval(
        """
        UPDATE intents SET attempt_end = NULL, last_error = $2, update_time = statement_timestamp()
        WHERE intent_id = $1 AND state = 'PROCESSING' AND attempts < max_attempts
        RETURNING attempts
        """,
        intent_id,
        error,
    )
    return attempts


async def fail(conn: Conn, intent_id: UUID, *, error: str, cause: Cause) -> None:
    """PROCESSING → FAILED, once no attempt is left. Tells `payment.failed.v1`; does nothing where no payment runs."""
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET state = 'FAILED', version = version + 1, attempt_end = NULL, payment_code = NULL, last_error = $2,
            update_time = statement_timestamp()
        WHERE intent_id = $1 AND state = 'PROCESSING' AND attempts = max_attempts
        RETURNING {COLUMNS}
        """,  # noqa: S608
        intent_id,
        error,
    )
    if row is None:
        return
    await _record(conn, row, cause)
    failed = events_pb2.PaymentFailed(
        intent_id=str(intent_id),
        reference=row["reference"],
        error=error,
        attempts=row["attempts"],
        fail_time=timestamp(row["update_time"]),
    )
    await _tell(conn, "payment.failed.v1", failed)


async def succeed(conn: Conn, intent_id: UUID, *, charge_key: UUID, cause: Cause) -> bool:
    """PROCESSING or FAILED → SUCCEEDED: this charge counts. Tells `payment.succeeded.v1`.

    Returns False where the intent takes no money any more: another charge paid it, or it was cancelled.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET state = 'SUCCEEDED', version = version + 1, paid_charge = $2, attempt_end = NULL, payment_code = NULL,
            last_error = NULL, succeed_time = statement_timestamp(), update_time = statement_timestamp()
        WHERE intent_id = $1 AND state IN ('PROCESSING', 'FAILED')
        RETURNING {COLUMNS}
        """,  # noqa: S608
        intent_id,
        charge_key,
    )
    if row is None:
        return False
    await _record(conn, row, cause)
    succeeded = events_pb2.PaymentSucceeded(
        intent_id=str(intent_id),
        reference=row["reference"],
        amount=money_of(_amount(row)),
        succeed_time=timestamp(row["succeed_time"]),
        attempts=row["attempts"],
    )
    await _tell(conn, "payment.succeeded.v1", succeeded)
    return True


async def begin_refund(conn: Conn, request: OnIntent) -> tuple[pb.PaymentIntent, UUID | None]:
    """SUCCEEDED → REFUNDING. Returns the intent, and the charge to give back; None for a repeat.

    Raises INTENT_NOT_FOUND, INTENT_NOT_PAID.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents SET state = 'REFUNDING', version = version + 1, update_time = statement_timestamp()
        WHERE intent_id = $1 AND owner = coalesce($2, owner) AND state = 'SUCCEEDED'
        RETURNING {COLUMNS}
        """,  # noqa: S608
        request.intent_id,
        request.owner,
    )
    if row is None:
        standing = await _standing(conn, request)
        if standing["state"] not in ("REFUNDING", "REFUNDED"):
            raise refusals.intent_not_paid(standing["state"])
        return intent_of(standing), None
    await _record(conn, row, request.cause)
    return intent_of(row), row["paid_charge"]


async def finish_refund(conn: Conn, intent_id: UUID, *, charge_key: UUID, cause: Cause) -> None:
    """REFUNDING → REFUNDED, where the charge that paid it was given back. Tells `payment.refunded.v1`.

    A charge that came too late for a cancelled intent moves no state; others are told all the same, because its owner
    should hear of it.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET state = 'REFUNDED', version = version + 1,
            refund_time = statement_timestamp(), update_time = statement_timestamp()
        WHERE intent_id = $1 AND state = 'REFUNDING' AND paid_charge = $2
        RETURNING {COLUMNS}
        """,  # noqa: S608
        intent_id,
        charge_key,
    )
    if row is not None:
        await _record(conn, row, cause)
    else:
        row = await conn.fetchrow(
            f"SELECT {COLUMNS} FROM intents WHERE intent_id = $1 AND state = 'CANCELLED'",  # noqa: S608
            intent_id,
        )
    if row is None:
        return
    refunded = events_pb2.PaymentRefunded(
        intent_id=str(intent_id),
        reference=row["reference"],
        amount=money_of(_amount(row)),
        reason=cause.reason,
        refund_time=timestamp(await conn.fetchval("SELECT statement_timestamp()")),
    )
    await _tell(conn, "payment.refunded.v1", refunded)


async def _standing(conn: Conn, request: OnIntent) -> asyncpg.Record:
    """Reads what refused a guarded write. Raises INTENT_NOT_FOUND."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM intents WHERE intent_id = $1 AND owner = coalesce($2, owner)",  # noqa: S608
        request.intent_id,
        request.owner,
    )
    if row is None:
        raise refusals.intent_not_found()
    return row


def _taken(state: str) -> Refusal:
    match state:
        case "PROCESSING":
            return refusals.payment_in_progress(state)
        case "SUCCEEDED" | "REFUNDING" | "REFUNDED":
            return refusals.intent_paid(state)
        case _:
            # The state that refused the write has changed since: the whole request is judged anew.
            raise GuardMissed


async def _record(conn: Conn, row: asyncpg.Record, cause: Cause) -> None:
    """Writes the line of history of the transition that this transaction has just made."""
    await conn.execute(
        """
        INSERT INTO intent_events (intent_id, version, from_state, to_state, actor, reason, event_time)
        SELECT intents.intent_id, intents.version, before.to_state, intents.state, $2, $3, intents.update_time
        FROM intents LEFT JOIN intent_events AS before
            ON before.intent_id = intents.intent_id AND before.version = intents.version - 1
        WHERE intents.intent_id = $1
        """,
        row["intent_id"],
        cause.actor,
        cause.reason,
    )


async def _tell(conn: Conn, routing_key: str, message: Message) -> None:
    call = RUNNING.get(None)
    await enqueue(conn, [Event(uuid4(), routing_key, message, traceparent_or_new(call.traceparent if call else None))])


def _amount(row: asyncpg.Record) -> Amount:
    return Amount(row["currency"], row["minor_units"])
