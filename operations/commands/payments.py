"""`skyhigh payments`: prints intents, quarantined webhooks and open outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias
from uuid import UUID

import typer

from operations.local_stack import address_of
from operations.terminal import fail, print_table, table

if TYPE_CHECKING:
    import asyncpg

    Conn: TypeAlias = asyncpg.Connection[asyncpg.Record]

CONNECT_TIMEOUT_SECONDS: Final = 5
LARGEST_LOOK: Final = 1000

INTENT: Final = """
    SELECT intent_id, reference, owner, state::text, minor_units, currency, attempts, max_attempts, last_error,
           create_time, update_time
    FROM payment.intents WHERE intent_id = $1
"""
# The sections that `show` prints about an intent, each with its statement. No statement reads a payment code.
STORY: Final = {
    "history": """
        SELECT version, event_time, from_state::text, to_state::text, reason, actor
        FROM payment.intent_events WHERE intent_id = $1 ORDER BY version
    """,
    "charges": """
        SELECT number, key, state::text, tries, error, provider_charge_id, create_time, decide_time
        FROM payment.charges WHERE intent_id = $1 ORDER BY number
    """,
    "refunds": """
        SELECT charge_key, number, minor_units, state::text, reason, provider_refund_id, create_time, finish_time
        FROM payment.refunds WHERE intent_id = $1 ORDER BY create_time
    """,
    "webhooks": """
        SELECT receive_time, event_id, type, outcome::text, reason
        FROM payment.webhook_events
        WHERE charge_key IN (SELECT key FROM payment.charges WHERE intent_id = $1) ORDER BY receive_time
    """,
    "timers": """
        SELECT name, due_time, try_time, tries, last_error
        FROM payment.timers
        WHERE fire_time IS NULL AND split_part(subject, '/', 1) IN (
            SELECT $1::text UNION ALL SELECT key::text FROM payment.charges WHERE intent_id = $1::uuid)
        ORDER BY due_time
    """,
}
QUARANTINE: Final = """
    SELECT receive_time, event_id, type, reason, minor_units, currency, charge_key
    FROM payment.webhook_events WHERE outcome = 'QUARANTINED' ORDER BY receive_time LIMIT $1
"""
# Charges without a known outcome, and refunds that the provider has not done yet.
UNSETTLED: Final = """
    SELECT 'payment' AS what, intents.intent_id, intents.minor_units, intents.currency, charges.create_time AS since,
           intents.attempts, coalesce(timers.last_error, intents.last_error) AS last_error
    FROM payment.charges JOIN payment.intents USING (intent_id)
    LEFT JOIN payment.timers ON timers.name = 'reconcile' AND timers.subject = charges.key::text
    WHERE charges.state = 'PENDING'
    UNION ALL
    SELECT 'refund', intents.intent_id, refunds.minor_units, intents.currency, refunds.create_time,
           timers.tries, timers.last_error
    FROM payment.refunds JOIN payment.intents USING (intent_id)
    LEFT JOIN payment.timers ON timers.name = 'refund' AND timers.subject
        = refunds.charge_key::text || CASE number WHEN 1 THEN '' ELSE '/' || number END
    WHERE refunds.state = 'REQUESTED'
    ORDER BY since LIMIT $1
"""

payments = typer.Typer(help="Payment intents, quarantined webhooks and open outcomes.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(payments, name="payments")


@payments.command()
def show(intent_id: Annotated[str, typer.Argument(metavar="INTENT", help="UUID of the intent.")]) -> None:
    """Print an intent, its history, charges, refunds and webhooks, and its pending timers."""
    try:
        wanted = UUID(intent_id)
    except ValueError:
        fail(f"{intent_id!r} is not a UUID")
    asyncio.run(_ask(lambda connection: _show(connection, wanted)))


@payments.command()
def quarantine() -> None:
    """List the signed webhooks whose content contradicts the stored charges, oldest first."""
    asyncio.run(_ask(lambda connection: _list(connection, QUARANTINE, nothing="Nothing is in quarantine.")))


@payments.command()
def unsettled() -> None:
    """List payments without a known outcome and refunds that the provider has not completed, oldest first."""
    asyncio.run(_ask(lambda connection: _list(connection, UNSETTLED, nothing="No payment or refund is unsettled.")))


async def _ask(question: Callable[[Conn], Awaitable[None]]) -> None:
    import asyncpg

    try:
        connection = await asyncpg.connect(address_of("SKYHIGH_DATABASE_URL"), timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            await question(connection)
        finally:
            await connection.close()
    except asyncpg.UndefinedTableError:
        fail("the payment service has not run on this database yet")
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        fail(f"the database is unreachable: {error or repr(error)}")


async def _show(connection: Conn, intent_id: UUID) -> None:
    intent = await connection.fetchrow(INTENT, intent_id)
    if intent is None:
        fail(f"there is no intent {intent_id}")
    width = max(map(len, intent.keys()))
    for name, value in intent.items():
        print(f"{name:<{width}}  {_text(value)}")
    for part, statement in STORY.items():
        rows = await connection.fetch(statement, intent_id if part != "timers" else str(intent_id))
        if rows:
            print(f"\n{part}")
            _print_table(rows)


async def _list(connection: Conn, statement: str, *, nothing: str) -> None:
    rows = await connection.fetch(statement, LARGEST_LOOK)
    if rows:
        _print_table(rows)
    else:
        print(nothing)


def _print_table(records: Sequence[asyncpg.Record]) -> None:
    rows = table(*(name.upper().replace("_", " ") for name in records[0].keys()))  # noqa: SIM118
    for record in records:
        rows.add_row(*map(_text, record.values()))
    print_table(rows, markup=False)


def _text(value: Any) -> str:
    return "-" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)
