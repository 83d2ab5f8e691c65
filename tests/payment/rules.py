"""A payment service in tests, signed webhooks, and the invariants about money."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
from google.api import httpbody_pb2
from google.type import money_pb2
from skyhigh.payment.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb
from standardwebhooks.webhooks import Webhook

from payment_service.charging import charge_key_of
from services.db import Pool
from tests.callers import Caller, Callers
from tests.instances import Database
from tests.waiting import eventually

SECRET: Final = "whsec_" + "c2t5aGlnaCBwYXltZW50cyBvbmUgMDAx"
NEXT_SECRET: Final = "whsec_" + "c2t5aGlnaCBwYXltZW50cyB0d28gMDAy"
FOREIGN_SECRET: Final = "whsec_" + "c29tZWJvZHkgZWxzZSdzIGtleSAwMDAw"
SUCCEEDS: Final = "00000"
FAILS: Final = "99999"
PRICE: Final = 9000

MESSAGES: Final[dict[str, Any]] = {
    "payment.succeeded.v1": events_pb2.PaymentSucceeded,
    "payment.failed.v1": events_pb2.PaymentFailed,
    "payment.refunded.v1": events_pb2.PaymentRefunded,
}
# Each query returns the rows that violate its invariant.
VIOLATIONS: Final = {
    "the history has no gap, and each line begins where the one before ended": """
        SELECT * FROM (
            SELECT intent_id, version, from_state, lag(version) OVER story AS before, lag(to_state) OVER story AS came
            FROM intent_events WINDOW story AS (PARTITION BY intent_id ORDER BY version)
        ) AS lines
        WHERE version <> coalesce(before, 0) + 1 OR from_state IS DISTINCT FROM came
    """,
    "an intent is where its history ends": """
        SELECT intent_id FROM intents WHERE (version, state) IS DISTINCT FROM (
            SELECT (version, to_state)::record FROM intent_events
            WHERE intent_events.intent_id = intents.intent_id ORDER BY version DESC LIMIT 1)
    """,
    "money that was taken is an intent's, once, or goes back": """
        SELECT charges.key FROM charges LEFT JOIN intents ON intents.paid_charge = charges.key
        WHERE charges.state = 'SUCCEEDED' AND intents.intent_id IS NULL
          AND NOT EXISTS (SELECT FROM refunds WHERE refunds.charge_key = charges.key)
    """,
    "an intent is paid by a charge of its own that succeeded": """
        SELECT intents.intent_id FROM intents JOIN charges ON charges.key = intents.paid_charge
        WHERE charges.state <> 'SUCCEEDED' OR charges.intent_id <> intents.intent_id
    """,
    "an intent is refunded when its charge is": """
        SELECT intents.intent_id FROM intents LEFT JOIN (
            SELECT charge_key, sum(minor_units) AS asked, sum(minor_units) FILTER (WHERE state = 'SUCCEEDED') AS done
            FROM refunds GROUP BY charge_key
        ) AS refunds ON refunds.charge_key = intents.paid_charge
        WHERE (refund_minor_units, refunded_minor_units) <> (coalesce(asked, 0), coalesce(done, 0))
           OR (intents.state = 'REFUNDED') <> (coalesce(done, 0) = minor_units)
           OR (intents.state IN ('REFUNDING', 'REFUNDED')) <> (coalesce(asked, 0) = minor_units)
    """,
}


def usd(minor_units: int) -> money_pb2.Money:
    """Returns an amount of cents."""
    return money_pb2.Money(currency_code="USD", units=minor_units // 100, nanos=minor_units % 100 * 10_000_000)


def new_reference() -> str:
    """Returns a reference that no other intent has."""
    return f"checkin/{uuid4()}/1"


def state_of(intent: pb.PaymentIntent) -> str:
    """Returns the name of an intent's state."""
    return pb.PaymentIntent.State.Name(intent.state)


def signed(
    body: bytes, *, event_id: str = "", secret: str = SECRET, age_seconds: float = 0, timestamp: int | None = None
) -> dict[str, str]:
    """Returns the headers of a webhook, signed by the reference implementation."""
    event_id = event_id or f"evt_{secrets.token_hex(8)}"
    moment = int(time.time() - age_seconds) if timestamp is None else timestamp
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(moment),
        "webhook-signature": Webhook(secret).sign(event_id, datetime.fromtimestamp(moment, UTC), body.decode()),
    }


def event(
    intent: pb.PaymentIntent,
    kind: str = "charge.succeeded",
    *,
    key: UUID | None = None,
    number: int = 1,
    **different: Any,
) -> bytes:
    """Returns the body of a webhook about the intent's charge with this number.

    `different` are fields of its data.
    """
    data = {
        "charge_id": f"ch_{intent.intent_id[:8]}_{number}",
        "key": str(key or charge_key_of(UUID(intent.intent_id), number)),
        "status": "failed" if kind == "charge.failed" else "succeeded",
        "amount": {"currency": "USD", "minor_units": PRICE},
        "error": "DECLINED" if kind == "charge.failed" else None,
        "metadata": {"intent_id": intent.intent_id},
        **({"refund_id": f"re_{intent.intent_id[:8]}_{number}"} if kind == "refund.succeeded" else {}),
        **different,
    }
    return json.dumps({"type": kind, "timestamp": datetime.now(UTC).isoformat(), "data": data}).encode()


@dataclass(frozen=True, slots=True)
class Payments:
    """A payment service in this process, and its database to inspect."""

    callers: Callers
    database: Database
    database_url: str
    pool: Pool
    """A pool like the service's own, for tests that call functions of the service."""

    async def intent(
        self, owner: Caller, *, reference: str = "", minor_units: int = PRICE, **more: Any
    ) -> pb.PaymentIntent:
        """Has a service create an intent for `owner`."""
        request = pb.CreatePaymentIntentRequest(
            reference=reference or new_reference(), amount=usd(minor_units), owner=owner.name, **more
        )
        created: pb.PaymentIntent = await self.callers.service("checkin").CreatePaymentIntent(request)
        return created

    async def pay(self, owner: Caller, intent: pb.PaymentIntent, code: str = SUCCEEDS, **more: Any) -> pb.PaymentIntent:
        """Has the owner submit a payment code."""
        request = pb.SubmitPaymentCodeRequest(intent_id=intent.intent_id, payment_code=code, **more)
        answer: pb.PaymentIntent = await owner.SubmitPaymentCode(request)
        return answer

    async def begun(self, owner: Caller, *, code: str = SUCCEEDS) -> pb.PaymentIntent:
        """Returns an intent in PROCESSING whose first charge has been stored."""
        intent = await self.intent(owner)
        await self.pay(owner, intent, code)

        async def charged() -> bool:
            return bool(await self.charges(intent))

        await eventually(charged)
        return intent

    async def unanswered(self, owner: Caller, *, code: str = SUCCEEDS) -> pb.PaymentIntent:
        """Returns an intent whose first charge has an unknown outcome.

        For the silent service.
        """
        intent = await self.begun(owner, code=code)

        async def ended() -> bool:
            return bool((await self.get(intent)).last_error)

        await eventually(ended)
        return intent

    async def cancel(self, intent: pb.PaymentIntent, **more: Any) -> pb.PaymentIntent:
        """Has a service cancel the intent."""
        request = pb.CancelPaymentIntentRequest(intent_id=intent.intent_id, **more)
        answer: pb.PaymentIntent = await self.callers.service("checkin").CancelPaymentIntent(request)
        return answer

    async def refund(self, intent: pb.PaymentIntent, **more: Any) -> pb.PaymentIntent:
        """Has a service refund the payment."""
        request = pb.RefundPaymentRequest(intent_id=intent.intent_id, **more)
        answer: pb.PaymentIntent = await self.callers.service("checkin").RefundPayment(request)
        return answer

    async def get(self, intent: pb.PaymentIntent) -> pb.PaymentIntent:
        """Reads the intent as a service."""
        request = pb.GetPaymentIntentRequest(intent_id=intent.intent_id)
        answer: pb.PaymentIntent = await self.callers.service().GetPaymentIntent(request)
        return answer

    async def becomes(self, intent: pb.PaymentIntent, state: str) -> pb.PaymentIntent:
        """Waits until an intent is in this state; returns it."""

        async def there() -> bool:
            return state_of(await self.get(intent)) == state

        await eventually(there)
        return await self.get(intent)

    async def goes_on(self, intent: pb.PaymentIntent) -> None:
        """Ends the pause before the next attempt or the next query of an unknown outcome.

        A running attempt is not affected: its timer is set to the attempt's end again.
        """
        await self.database.execute(
            """
            UPDATE timers SET due_time = statement_timestamp(), try_time = statement_timestamp()
            WHERE fire_time IS NULL AND due_time > statement_timestamp()
              AND (name, subject) IN (SELECT 'charge', $1::text
                                      UNION ALL SELECT 'reconcile', key::text FROM charges WHERE intent_id = $2)
            """,
            intent.intent_id,
            UUID(intent.intent_id),
        )

    async def shows(
        self, intent: pb.PaymentIntent, *, attempts: int, last_error: str, state: str = "PROCESSING"
    ) -> None:
        """Waits until the intent shows these attempts and this error, and no attempt runs.

        While an attempt runs, the intent still shows the error of the previous one.
        """
        runs = "SELECT attempt_end IS NOT NULL FROM intents WHERE intent_id = $1"

        async def shown() -> bool:
            found = await self.get(intent)
            # Read after the intent: an attempt may have begun before the intent showed it.
            running = await self.database.fetchval(runs, UUID(intent.intent_id))
            return not running and (state_of(found), found.attempts, found.last_error) == (state, attempts, last_error)

        await eventually(shown)

    async def deliver(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Delivers a webhook as the gateway does; by default with a valid signature."""
        await self.callers.anybody("none").ReceiveWebhook(
            httpbody_pb2.HttpBody(content_type="application/json", data=body),
            metadata=tuple((signed(body) if headers is None else headers).items()),
        )

    async def charges(self, intent: pb.PaymentIntent) -> list[asyncpg.Record]:
        """Returns the charges of an intent in their order."""
        return await self.database.fetch(
            "SELECT key, number, state::text, tries, error FROM charges WHERE intent_id = $1 ORDER BY number",
            UUID(intent.intent_id),
        )

    async def history(self, intent: pb.PaymentIntent) -> list[str]:
        """Returns the states of an intent, oldest first."""
        rows = await self.database.fetch(
            "SELECT to_state::text FROM intent_events WHERE intent_id = $1 ORDER BY version", UUID(intent.intent_id)
        )
        return [row["to_state"] for row in rows]

    async def told(self, intent: pb.PaymentIntent) -> list[tuple[str, Any]]:
        """Returns routing key and message of the events about an intent, oldest first."""
        rows = await self.database.fetch("SELECT routing_key, body FROM outbox ORDER BY create_time")
        messages = [(row["routing_key"], MESSAGES[row["routing_key"]].FromString(row["body"])) for row in rows]
        return [(key, message) for key, message in messages if message.intent_id == intent.intent_id]

    async def rows(self, intent: pb.PaymentIntent) -> list[list[asyncpg.Record]]:
        """Returns all rows of an intent, to compare before and after a call.

        They must be equal if the call changes nothing.
        """
        tables = {
            "intents": "intent_id",
            "intent_events": "version",
            "charges": "number",
            "refunds": "charge_key",
        }
        return [
            await self.database.fetch(
                f"SELECT * FROM {table} WHERE intent_id = $1 ORDER BY {order}", UUID(intent.intent_id)
            )
            for table, order in tables.items()
        ]

    async def webhook_events(self) -> dict[str, tuple[str, str | None]]:
        """Returns outcome and reason of each webhook, by event id."""
        rows = await self.database.fetch("SELECT event_id, outcome::text, reason FROM webhook_events")
        return {row["event_id"]: (row["outcome"], row["reason"]) for row in rows}

    async def violations(self) -> list[str]:
        """Returns the violations of the invariants."""
        return [
            f"{rule}: {dict(row)}" for rule, query in VIOLATIONS.items() for row in await self.database.fetch(query)
        ]
