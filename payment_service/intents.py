"""The state machine of an intent: one function per transition, each one guarded write and a line of history.

REQUIRES_PAYMENT → PROCESSING → SUCCEEDED → REFUNDING → REFUNDED; PROCESSING → FAILED → PROCESSING; REQUIRES_PAYMENT
or FAILED → CANCELLED; FAILED → SUCCEEDED, because money that came late is money. What is given back of a part moves no
state: its rows are in `refunds`, its sums in the intent.
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
from services.errors import FieldViolation, InvalidArgument, Refusal
from services.money import Amount, money_of
from services.outbox import Event, enqueue
from services.proto import timestamp
from services.telemetry import traceparent_or_new

COLUMNS: Final = """intent_id, reference, owner, currency, minor_units, state::text, attempts, max_attempts, last_error,
    paid_charge, create_time, update_time, succeed_time, refund_time, refunded_minor_units"""
# Whose money only the service that asked for it gives back, and by which of its calls an agent has it do that.
CALLS_OF_PURPOSES: Final = {"booking": "CancelBooking", "checkin": "CancelCheckIn"}


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
        refunded=money_of(Amount(row["currency"], row["refunded_minor_units"])),
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


async def begin_refund(
    conn: Conn, request: OnIntent, *, total: Amount | None, by_agent: bool
) -> tuple[pb.PaymentIntent, UUID | None, int]:
    """Decides that `total` is given back in the end, this and earlier refunds together; None is everything.

    SUCCEEDED → REFUNDING for everything; for a part it stays SUCCEEDED. Returns the intent, the charge to give back
    from, None for a repeat, and the total in minor units. Raises INTENT_NOT_FOUND, INTENT_NOT_PAID, INVALID_FIELD; for
    agents REFUND_BY_ITS_SERVICE.
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
    """Raises what was in the way of a refund; a repeat is no reason."""
    purpose = standing["reference"].partition("/")[0]
    if standing["state"] not in ("SUCCEEDED", "REFUNDING", "REFUNDED"):
        raise refusals.intent_not_paid(standing["state"])
    if total is not None and (total.currency != standing["currency"] or total.minor_units > standing["minor_units"]):
        raise InvalidArgument.of(
            FieldViolation(
                "total_refund", f"must be at most the intent's amount, in its currency {standing['currency']}"
            )
        )
    if by_agent and standing["state"] == "SUCCEEDED" and purpose in CALLS_OF_PURPOSES:
        raise refusals.refund_by_its_service(standing["reference"], CALLS_OF_PURPOSES[purpose])


async def finish_refund(conn: Conn, intent_id: UUID, *, charge_key: UUID, minor_units: int, cause: Cause) -> None:
    """Notes that so much of the charge that paid it was given back; with the last part REFUNDING → REFUNDED.

    Tells `payment.refunded.v1`. A charge that came too late for a cancelled intent moves no state; others are told all
    the same, because its owner should hear of it.
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
