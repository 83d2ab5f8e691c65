"""The state machine of payment intents: one function per transition.

Each transition is one guarded write and one row of history.

REQUIRES_PAYMENT → PROCESSING → SUCCEEDED → REFUNDING → REFUNDED; PROCESSING → FAILED → PROCESSING; REQUIRES_PAYMENT or
FAILED → CANCELLED; FAILED → SUCCEEDED, because a late success is a payment too. A refund of a part changes no state:
its row is in `refunds`, and the sum of all refunds in the intent.
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
from services.db import Conn, GuardMissed
from services.errors import FieldViolation, InvalidArgument, Refusal
from services.money import Amount, money_of, text_of
from services.outbox import Event, enqueue
from services.proto import timestamp
from services.running_call import RUNNING
from services.telemetry import traceparent_or_new

COLUMNS: Final = """intent_id, reference, owner, currency, minor_units, state::text, attempts, max_attempts, last_error,
    paid_charge, create_time, update_time, succeed_time, refund_time, refunded_minor_units"""
# Purposes whose payments only the owning service refunds, and the call with which an agent makes it do so.
CALLS_OF_PURPOSES: Final = {"booking": "CancelBooking", "checkin": "CancelCheckIn"}


@dataclass(frozen=True, slots=True)
class Cause:
    """The actor that changes an intent, and the reason."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class OnIntent:
    """A request that concerns one intent.

    With `owner`, only an intent of that owner is found. None is for a caller that acts for others.
    """

    intent_id: UUID
    owner: str | None
    cause: Cause


def intent_of(row: asyncpg.Record) -> pb.PaymentIntent:
    """Returns the message of an intent's row, which has COLUMNS."""
    return pb.PaymentIntent(
        intent_id=str(row["intent_id"]),
        reference=row["reference"],
        state=pb.PaymentIntent.State.Value(row["state"]),
        amount=money_of(_amount(row)),
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        last_error=row["last_error"] or "",
        refunded=money_of(Amount(row["currency"], row["refunded_minor_units"])),
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
    )


async def find(conn: Conn, intent_id: UUID, *, owner: str | None) -> pb.PaymentIntent:
    """Returns an intent. Raises INTENT_NOT_FOUND.

    With `owner`, only an intent of that owner is found.
    """
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
    """Creates an intent: (nothing) → REQUIRES_PAYMENT.

    A reference has at most one intent that is not cancelled. A repeat with the same amount and owner returns that
    intent. Raises INTENT_EXISTS if the amount or the owner differs.
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
        # The intent was cancelled between the two statements, so its reference is free; the request is evaluated again.
        raise GuardMissed
    if (standing["owner"], _amount(standing)) != (owner, amount):
        raise refusals.intent_exists(standing["intent_id"], standing["state"])
    return intent_of(standing)


async def submit(conn: Conn, request: OnIntent, *, payment_code: str, max_attempts: int) -> pb.PaymentIntent:
    """Begins a payment: REQUIRES_PAYMENT or FAILED → PROCESSING.

    The count of attempts begins at zero. Of concurrent calls one succeeds. Raises INTENT_NOT_FOUND,
    PAYMENT_IN_PROGRESS, INTENT_PAID or INTENT_CANCELLED.
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
        raise refusals.intent_cancelled() if standing["state"] == "CANCELLED" else _refusal_of(standing["state"])
    await _record(conn, row, request.cause)
    return intent_of(row)


async def cancel(conn: Conn, request: OnIntent) -> pb.PaymentIntent:
    """Cancels an intent: REQUIRES_PAYMENT or FAILED → CANCELLED.

    A repeat returns the cancelled intent. Raises INTENT_NOT_FOUND, PAYMENT_IN_PROGRESS or INTENT_PAID.
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
            raise _refusal_of(standing["state"])
        return intent_of(standing)
    await _record(conn, row, request.cause)
    return intent_of(row)


async def begin_attempt(conn: Conn, intent_id: UUID, *, length: timedelta) -> asyncpg.Record | None:
    """Counts a new attempt and sets its end; the state stays PROCESSING.

    Returns `attempts`, `attempt_end`, `payment_code`, `currency` and `minor_units`, or None if no attempt is due.
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
    """Ends an attempt that failed without a verdict; the state stays PROCESSING.

    `attempt_end` identifies the attempt. Returns `attempts` and `max_attempts`, or None if the attempt was decided
    meanwhile.
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
    """Records a declined charge if another attempt is left.

    The state stays PROCESSING. Returns the number of attempts made. Returns None, and changes nothing, if no attempt is
    left or no payment is running.
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
    """Ends a payment after its last attempt: PROCESSING → FAILED.

    Publishes `payment.failed.v1`. Does nothing if an attempt is left or no payment is running.
    """
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
    await _enqueue(conn, "payment.failed.v1", failed)


async def succeed(conn: Conn, intent_id: UUID, *, charge_key: UUID, cause: Cause) -> bool:
    """Records the charge that paid the intent: PROCESSING or FAILED → SUCCEEDED.

    Publishes `payment.succeeded.v1`. Returns False, and changes nothing, if the intent accepts no payment any more:
    another charge paid it, or it was cancelled.
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
    await _enqueue(conn, "payment.succeeded.v1", succeeded)
    return True


async def begin_refund(
    conn: Conn, request: OnIntent, *, total: Amount | None, by_agent: bool
) -> tuple[pb.PaymentIntent, UUID | None, int]:
    """Sets the total to refund, including earlier refunds; None means everything.

    SUCCEEDED → REFUNDING for everything; for a part the state stays SUCCEEDED. Returns the intent, the key of the
    charge to refund, and the total in minor units; for a repeat, which changes nothing, the key is None. Raises
    INTENT_NOT_FOUND, INTENT_NOT_PAID or INVALID_FIELD, and REFUND_BY_ITS_SERVICE for an agent.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET refund_minor_units = coalesce($3, minor_units),
            state = CASE coalesce($3, minor_units) WHEN minor_units THEN 'REFUNDING' ELSE state END,
            version = version + CASE coalesce($3, minor_units) WHEN minor_units THEN 1 ELSE 0 END,
            update_time = statement_timestamp()
        WHERE intent_id = $1 AND owner = coalesce($2, owner) AND state = 'SUCCEEDED'
          AND refund_minor_units < coalesce($3, minor_units) AND coalesce($3, minor_units) <= minor_units
          AND currency = coalesce($4, currency) AND split_part(reference, '/', 1) <> ALL($5::text[])
        RETURNING {COLUMNS}
        """,  # noqa: S608
        request.intent_id,
        request.owner,
        total.minor_units if total is not None else None,
        total.currency if total is not None else None,
        list(CALLS_OF_PURPOSES) if by_agent else [],
    )
    if row is None:
        standing = await _standing(conn, request)
        _refuse_refund(standing, total, by_agent=by_agent)
        return intent_of(standing), None, 0
    if row["state"] == "REFUNDING":
        await _record(conn, row, request.cause)
    return intent_of(row), row["paid_charge"], total.minor_units if total is not None else row["minor_units"]


def _refuse_refund(standing: asyncpg.Record, total: Amount | None, *, by_agent: bool) -> None:
    """Raises the error that prevented a refund; returns for a repeat."""
    purpose = standing["reference"].partition("/")[0]
    if standing["state"] not in ("SUCCEEDED", "REFUNDING", "REFUNDED"):
        raise refusals.intent_not_paid(standing["state"])
    if total is not None and (total.currency != standing["currency"] or total.minor_units > standing["minor_units"]):
        limit = text_of(Amount(standing["currency"], standing["minor_units"]))
        raise InvalidArgument.of(
            FieldViolation("total_refund", f"must be at most {limit}, the amount of the payment intent")
        )
    if by_agent and standing["state"] == "SUCCEEDED" and purpose in CALLS_OF_PURPOSES:
        raise refusals.refund_by_its_service(standing["reference"], CALLS_OF_PURPOSES[purpose])


async def finish_refund(conn: Conn, intent_id: UUID, *, charge_key: UUID, minor_units: int, cause: Cause) -> None:
    """Adds a finished refund to the intent; the last one moves it to REFUNDED.

    Publishes `payment.refunded.v1`. A charge that came too late for a CANCELLED intent changes no state, but its refund
    is published too, because the owner should learn of it. The refund of a second charge of a paid intent changes
    nothing here and is not published.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE intents
        SET refunded_minor_units = refunded_minor_units + $3,
            state = CASE refunded_minor_units + $3 WHEN minor_units THEN 'REFUNDED' ELSE state END,
            version = version + CASE refunded_minor_units + $3 WHEN minor_units THEN 1 ELSE 0 END,
            refund_time = CASE refunded_minor_units + $3 WHEN minor_units THEN statement_timestamp() END,
            update_time = statement_timestamp()
        WHERE intent_id = $1 AND state IN ('SUCCEEDED', 'REFUNDING') AND paid_charge = $2
        RETURNING {COLUMNS}
        """,  # noqa: S608
        intent_id,
        charge_key,
        minor_units,
    )
    if row is None:
        row = await conn.fetchrow(
            f"SELECT {COLUMNS} FROM intents WHERE intent_id = $1 AND state = 'CANCELLED'",  # noqa: S608
            intent_id,
        )
    elif row["state"] == "REFUNDED":
        await _record(conn, row, cause)
    if row is None:
        return
    currency = row["currency"]
    refunded = events_pb2.PaymentRefunded(
        intent_id=str(intent_id),
        reference=row["reference"],
        amount=money_of(Amount(currency, minor_units)),
        reason=cause.reason,
        refund_time=timestamp(await conn.fetchval("SELECT statement_timestamp()")),
        total_refunded=money_of(Amount(currency, row["refunded_minor_units"] or minor_units)),
    )
    await _enqueue(conn, "payment.refunded.v1", refunded)


async def _standing(conn: Conn, request: OnIntent) -> asyncpg.Record:
    """Reads the intent that a guarded write did not match. Raises INTENT_NOT_FOUND."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM intents WHERE intent_id = $1 AND owner = coalesce($2, owner)",  # noqa: S608
        request.intent_id,
        request.owner,
    )
    if row is None:
        raise refusals.intent_not_found()
    return row


def _refusal_of(state: str) -> Refusal:
    match state:
        case "PROCESSING":
            return refusals.payment_in_progress(state)
        case "SUCCEEDED" | "REFUNDING" | "REFUNDED":
            return refusals.intent_paid(state)
        case _:
            # The state that did not match has changed since: the whole request is evaluated again.
            raise GuardMissed


async def _record(conn: Conn, row: asyncpg.Record, cause: Cause) -> None:
    """Writes the history row of the transition that this transaction has just made."""
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


async def _enqueue(conn: Conn, routing_key: str, message: Message) -> None:
    call = RUNNING.get(None)
    await enqueue(conn, [Event(uuid4(), routing_key, message, traceparent_or_new(call.traceparent if call else None))])


def _amount(row: asyncpg.Record) -> Amount:
    return Amount(row["currency"], row["minor_units"])
