"""Webhooks of the provider, signed by Standard Webhooks 1.0.0 (PAY-4).

They arrive at least once, in any order. Until the signature is checked the caller is unknown, so before that nothing is
parsed, stored or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from standardwebhooks.webhooks import Webhook

from payment_service import card_numbers, refunds, refusals, verdicts
from payment_service.provider import Metadata, ProviderAmount, ProviderCharge, ProviderId, ProviderText, Status
from payment_service.settings import Attempts
from payment_service.verdicts import Outcome, Quarantine
from services import db
from services.db import Conn, Pool

PROVIDER: Final = "payment-provider"
ACTOR: Final = "provider"
TOLERANCE_SECONDS: Final = 300
# The provider may repeat an event for more than three days (Standard Webhooks: 75 h 35 min); PAY-4 requires seven.
KEPT_DAYS: Final = 14
FORGET_SECONDS: Final = 3600
# No dots, because the signed text is joined by dots and must have only one reading.
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_TIMESTAMP: Final = re.compile(r"[0-9]{1,11}", re.ASCII)
_VERSION: Final = "v1,"

RECEIVED: Final = Counter("skyhigh_payment_webhooks_total", "Signed webhooks.", ["outcome"])


class EventType(StrEnum):
    """The types of events that the provider sends."""

    CHARGE_SUCCEEDED = "charge.succeeded"
    CHARGE_FAILED = "charge.failed"
    REFUND_SUCCEEDED = "refund.succeeded"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as received: the raw body, and the headers of its signature."""

    body: bytes
    event_id: str | None
    timestamp: str | None
    signature: str | None


class EventData(BaseModel):
    """The charge of an event; for a refund, also the refund."""

    model_config = ConfigDict(frozen=True)

    key: UUID
    charge_id: ProviderId
    status: Status
    amount: ProviderAmount
    error: ProviderText | None = None
    metadata: Metadata | None = None
    refund_id: ProviderId | None = None
    refund_key: UUID | None = None
    refund_amount: ProviderAmount | None = None


class ProviderEvent(BaseModel):
    """The content of a signed event."""

    model_config = ConfigDict(frozen=True)

    type: EventType
    data: EventData

    @model_validator(mode="after")
    def _refund_is_named(self) -> Self:
        if self.type is EventType.REFUND_SUCCEEDED and self.data.refund_id is None:
            raise ValueError("a refund has its refund_id")
        return self

    @property
    def verdict(self) -> ProviderCharge:
        """Returns the event's verdict on the charge.

        The event's type decides, not the charge's status, which may have changed since.
        """
        status = Status.FAILED if self.type is EventType.CHARGE_FAILED else Status.SUCCEEDED
        return ProviderCharge(
            key=self.data.key,
            charge_id=self.data.charge_id,
            status=status,
            amount=self.data.amount,
            error=self.data.error,
            metadata=self.data.metadata,
        )


class Signatures:
    """Checks signatures against all our keys; there are several while one is rotated."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [Webhook(secret) for secret in secrets]

    def check(self, delivery: Delivery) -> str:
        """Returns the event's id if its signature is valid and recent.

        Raises WEBHOOK_UNSIGNED or WEBHOOK_FORGED; raises WEBHOOK_STALE only for a valid signature.
        """
        event_id, timestamp, signature = delivery.event_id, delivery.timestamp, delivery.signature
        if not (event_id and timestamp and signature):
            raise refusals.webhook_unsigned()
        if not (_ID.fullmatch(event_id) and _TIMESTAMP.fullmatch(timestamp)):
            raise refusals.webhook_forged()
        signed_time = int(timestamp)
        self._check_signature(delivery.body, event_id, signed_time, signature)
        if abs(time.time() - signed_time) > TOLERANCE_SECONDS:
            raise refusals.webhook_stale()
        return event_id

    def _check_signature(self, body: bytes, event_id: str, signed_time: int, signature: str) -> None:
        try:
            text = body.decode()
            moment = datetime.fromtimestamp(signed_time, UTC)
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            raise refusals.webhook_forged() from error
        expected = [key.sign(event_id, moment, text) for key in self._keys]
        offered = [each for each in signature.split(" ") if each.startswith(_VERSION)]
        # Compares every pair, in constant time, so that the response time reveals nothing.
        if not sum(hmac.compare_digest(ours.encode(), theirs.encode()) for ours in expected for theirs in offered):
            raise refusals.webhook_forged()


def read(body: bytes) -> ProviderEvent:
    """Parses a signed body. Raises CARD_DATA_REFUSED or WEBHOOK_MALFORMED."""
    card_numbers.refuse(body.decode())
    try:
        return ProviderEvent.model_validate_json(body)
    except ValidationError:
        # The text of the error would contain the body.
        raise refusals.webhook_malformed() from None


async def take(conn: Conn, event_id: str, event: ProviderEvent, *, attempts: Attempts) -> None:
    """Applies an event and records its id, in the caller's transaction.

    A repeat changes nothing. An event for an unknown charge, or with another amount, is kept in quarantine and changes
    no payment; a metric and an error log report it.
    """
    if not await _note(conn, event_id, event):
        RECEIVED.labels("REPEATED").inc()
        return
    outcome = await _apply(conn, event, attempts=attempts)
    label = "QUARANTINED" if outcome.quarantine else "APPLIED" if outcome.changed else "IGNORED"
    await conn.execute(
        """
        UPDATE webhook_events SET outcome = $3::webhook_outcome, reason = $4
        WHERE provider = $1 AND event_id = $2
        """,
        PROVIDER,
        event_id,
        label,
        outcome.quarantine,
    )
    RECEIVED.labels(label).inc()
    if outcome.quarantine is not None:
        verdicts.report(outcome.quarantine, key=event.data.key, event_id=event_id)


async def _note(conn: Conn, event_id: str, event: ProviderEvent) -> bool:
    """Records the event; returns False if it is recorded already.

    If a concurrent transaction applies the same event, the insert waits for it to end.
    """
    noted = await conn.fetchval(
        """
        INSERT INTO webhook_events (provider, event_id, type, charge_key, currency, minor_units, outcome)
        VALUES ($1, $2, $3, $4, $5, $6, 'IGNORED')
        ON CONFLICT (provider, event_id) DO NOTHING
        RETURNING event_id
        """,
        PROVIDER,
        event_id,
        event.type,
        event.data.key,
        event.data.amount.currency,
        event.data.amount.minor_units,
    )
    return noted is not None


async def _apply(conn: Conn, event: ProviderEvent, *, attempts: Attempts) -> Outcome:
    if event.type is not EventType.REFUND_SUCCEEDED:
        return await verdicts.apply(conn, event.verdict, attempts=attempts, actor=ACTOR)
    assert event.data.refund_id is not None
    charge = await verdicts.locked_charge(conn, event.data.key)
    doubt = verdicts.mismatch_of(event.verdict, charge)
    if doubt is not None:
        return Outcome(quarantine=doubt)
    assert charge is not None, "mismatch_of doubts what is for no charge"
    refund_key, told = event.data.refund_key, event.data.refund_amount
    # An event that names no refund key is the refund of the whole charge.
    refund = await conn.fetchrow(
        """
        SELECT number, minor_units FROM refunds
        WHERE charge_key = $1 AND (refund_key = $2 OR $2 IS NULL AND minor_units = $3)
        """,
        event.data.key,
        refund_key,
        charge["minor_units"],
    )
    if refund is None:
        return Outcome(quarantine=Quarantine.UNKNOWN_REFUND)
    if told is not None and told.currency != charge["currency"]:
        return Outcome(quarantine=Quarantine.CURRENCY_DIFFERS)
    if told is not None and told.minor_units != refund["minor_units"]:
        return Outcome(quarantine=Quarantine.AMOUNT_DIFFERS)
    return Outcome(
        await refunds.finish(
            conn, event.data.key, refund["number"], provider_refund_id=event.data.refund_id, actor=ACTOR
        )
    )


async def forget_old(pool: Pool) -> None:
    """Deletes old events every FORGET_SECONDS, until cancelled."""
    while True:
        with contextlib.suppress(*db.UNREACHABLE):
            await forget_once(pool)
        await asyncio.sleep(FORGET_SECONDS)


async def forget_once(pool: Pool) -> None:
    """Deletes events after KEPT_DAYS.

    Events in quarantine stay until a person has dealt with them.
    """
    await db.in_batches(pool, _forget)


async def _forget(conn: Conn, *, limit: int) -> int:
    status = await conn.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT provider, event_id FROM webhook_events
            WHERE outcome <> 'QUARANTINED' AND receive_time < now() - make_interval(days => $1)
            ORDER BY receive_time LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM webhook_events USING old
        WHERE webhook_events.provider = old.provider AND webhook_events.event_id = old.event_id
        """,
        KEPT_DAYS,
        limit,
    )
    return int(status.split()[-1])
